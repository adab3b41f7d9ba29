"""What goes into a simulation and what comes out."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from launch.ds_config.config import DsConfig
from launch.planner.simulation.trace import AllocationEvent, WorkEvent

#: Whether each micro-step ends an accumulation, by whether there is any. In the first one DeepSpeed learns the order of
#: the parameters, and its optimizer step allocates the optimizer's state; a plan counts the later ones.
MICRO_STEPS = {False: (True, True), True: (True, False, True)}


@dataclass
class Simulation:
    """One ghost run.

    ``workload`` is ``{"stack": …}``, a `StackConfig` as nested dicts, or ``{"function": "module:name", …}``: a callable
    that takes the simulation and its fake tensor mode, and returns an engine and a function that makes a batch and
    returns a loss and its tokens.
    """

    workload: dict[str, Any]
    ds_config: DsConfig
    ranks: int = 1
    micro_batch: int = 1
    seq_length: int | None = None  # text tokens; None: as many as the model reads
    capability: tuple[int, int] = (8, 6)  # CUDA compute capability; (0, 0): a CPU machine
    memory: int = 24 << 30  # bytes of the card
    eval_micro_batch: int = 8
    beyond_training: bool = True  # a stack also validates, saves and loads
    expandable: bool = False  # torch's allocator has expandable segments
    rounding: int | None = None  # of page-locked memory, see `launch.locked_rounding`

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self) | {"ds_config": self.ds_config.raw}

    @property
    def vocabulary(self) -> int:
        """Of the language model; 0 if unknown."""
        stack = self.workload.get("stack")
        return stack["language"]["config"].get("vocab_size", 0) if stack else self.workload.get("vocabulary", 0)

    @property
    def model(self) -> str:
        """The model's name."""
        return self.workload["stack"]["name"] if "stack" in self.workload else self.workload["function"]


@dataclass
class Peak:
    """The most bytes on one device in one phase, by part, and the module that was running."""

    bytes: int = 0
    parts: dict[str, int] = field(default_factory=dict)
    module: str = ""


@dataclass
class Phase:
    """One phase of a simulation: peaks and bytes at its end by device, and NVMe traffic in bytes."""

    name: str
    peaks: dict[str, Peak]
    end: dict[str, int]
    nvme_read: int = 0
    nvme_written: int = 0


@dataclass
class Result:
    """Of one rank. Bytes."""

    phases: list[Phase]
    trace: list[WorkEvent]
    allocations: list[AllocationEvent]
    files: dict[str, int]  # bytes of each swap file
    operators: int
    parameters: int
    trainable: int
    tokens: int  # of one micro-batch
    accumulation: int
    checkpoint_bytes: int = 0

    @property
    def nvme_resident(self) -> int:
        return sum(self.files.values())

    @property
    def nvme_optimizer(self) -> int:
        """The optimizer's share of `nvme_resident`."""
        return sum(size for path, size in self.files.items() if "/optimizer/" in path)
