"""What a run of launch/train.py is: every option resolved."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from astrobio.config import StackConfig
from launch.ds_config.config import DsConfig
from launch.options import TrainConfig


@dataclass
class RunPlan:
    """What will run, all resolved; `config.yaml` of the run's folder holds it."""

    stack: StackConfig
    ds_config: DsConfig
    train: TrainConfig
    parameters: int
    trainable: int  # of them
    attention: str  # the language model's attention implementation
    data: Path
    tokenizer: Path
    run: Path
    resume: list[Path]  # the checkpoints to continue from, the newest first: the others in case it is broken
    resume_notes: list[str]  # differences from the saved run, and broken checkpoints
    max_steps: int | None
    micro_batch: int
    accumulation: int
    world_size: int
    steps_per_epoch: float
    model_reason: str
    remarks: list[str] = dataclasses.field(default_factory=list)  # about the ds_config

    @property
    def global_batch(self) -> int:
        return self.micro_batch * self.accumulation * self.world_size

    @property
    def swap(self) -> list[Path]:
        """The run's own folders of swap files; removed at its end."""
        return list(dict.fromkeys(map(Path, self.ds_config.nvme_paths.values())))

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, if nothing stops it earlier."""
        return math.ceil(self.train.epochs * self.steps_per_epoch)
