"""A job to plan: a model under a ds_config on given hardware, checked and resolved."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astrobio.config import StackConfig, set_dotted
from launch import expandable_segments, locked_rounding
from launch.ds_config.auto import resolve
from launch.ds_config.check import check
from launch.ds_config.config import DsConfig, batch_sizes, settle_precision
from launch.ds_config.facts import model_facts
from launch.ds_config.finding import raise_problems
from launch.ds_config.read import read_ds_config
from launch.options import TrainConfig
from launch.planner.hardware import Hardware, load_hardware
from launch.planner.model import load_model
from launch.planner.simulation.spec import Simulation

#: The first cards that compute bf16: Ampere.
BF16 = (8, 0)
#: Optimizer steps that a ds_config's schedule is resolved for; no size depends on it.
_STEPS = 1000


@dataclass(frozen=True)
class Job:
    """A job to plan and what follows from it. `make_job` creates one, `changed` a variant."""

    model: str | StackConfig
    raw: dict[str, Any]  # the ds_config with all changes, before "auto" is resolved
    source: str  # of the ds_config, for messages
    hardware: Hardware
    ranks: int
    seq_length: int | None  # text tokens; None: as many as the model reads
    micro_batch: int
    stack: StackConfig
    ds_config: DsConfig

    def changed(
        self, changes: dict[str, Any] | None = None, *, seq_length: int | None = None, micro_batch: int | None = None
    ) -> "Job":
        """The same job but for dotted keys of the ds_config, the length of texts or the micro-batch.

        Raises:
            ConfigError: it cannot run.
        """
        return _resolved(
            self.model,
            _with(self.raw, changes, micro_batch),
            self.source,
            self.hardware,
            self.ranks,
            seq_length or self.seq_length,
        )

    def simulation(self, beyond_training: bool = True) -> Simulation:
        """The ghost run that answers it."""
        return Simulation(
            {"stack": dataclasses.asdict(self.stack)},
            self.ds_config,
            self.ranks,
            self.micro_batch,
            self.seq_length,
            self.hardware.capability,
            self.hardware.gpu_memory_bytes,
            TrainConfig.eval_micro_batch,
            beyond_training,
            expandable_segments(),
            locked_rounding(),
        )


def make_job(
    model: str | StackConfig,
    ds_config: Path | str | dict,
    hardware: str | Hardware = "a5000x2",
    *,
    seq_length: int | None = None,
    micro_batch: int | None = None,
    ranks: int | None = None,
    changes: dict[str, Any] | None = None,
) -> Job:
    """Check and resolve a job's inputs.

    Args:
        model: a preset, a YAML file, the folder of a Hugging Face model (its config.json is enough), or a StackConfig.
        ds_config: a file, or its content; values of "auto" are resolved.
        hardware: a profile, a YAML file, ``this``, or a Hardware.
        seq_length: text tokens; as many as the preset reads if None.
        micro_batch: in place of the ds_config's.
        ranks: as many as the hardware has cards if None.
        changes: dotted keys of the ds_config.

    Raises:
        ConfigError: it cannot run.
    """
    machine = load_hardware(hardware) if isinstance(hardware, str) else hardware
    if isinstance(ds_config, dict):
        raw, source = ds_config, "the ds_config"
    else:
        raw, source = read_ds_config(Path(ds_config)), f"--ds_config {ds_config}"
    return _resolved(model, _with(raw, changes, micro_batch), source, machine, ranks or machine.gpus, seq_length)


def _with(raw: dict, changes: dict[str, Any] | None, micro_batch: int | None) -> dict:
    raw = json.loads(json.dumps(raw))
    for key, value in (changes or {}).items():
        set_dotted(raw, key, value)
    if micro_batch is not None:
        raw["train_micro_batch_size_per_gpu"] = micro_batch
        raw.pop("train_batch_size", None)
    return raw


def _resolved(
    model: str | StackConfig, raw: dict, source: str, hardware: Hardware, ranks: int, seq_length: int | None
) -> Job:
    stack = model if isinstance(model, StackConfig) else load_model(model, seq_length)
    facts, has_bf16 = model_facts(stack), hardware.is_cpu or hardware.capability >= BF16
    raise_problems(check(raw, world_size=ranks, facts=facts, machine=False, has_bf16=has_bf16), source)
    settled = settle_precision(raw, has_bf16)
    micro_batch, _ = batch_sizes(settled, ranks)
    ds_config = resolve(
        settled,
        world_size=ranks,
        nvme_folder=Path("/nvme"),
        total_steps=_STEPS,
        largest_parameter=facts.largest,
        hidden_size=facts.hidden_size,
    )
    return Job(model, raw, source, hardware, ranks, seq_length, micro_batch, stack, ds_config)
