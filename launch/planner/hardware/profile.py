"""Hardware profiles: numbers about cards, links, host and disk that a plan needs, each with its source.

A profile is a YAML file: every field of `Hardware` but ``name`` is ``{value: …, source: …}``. Shipped ones stand in
profiles/; `launch.planner.hardware.measure` makes one of this machine.
"""

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from astrobio.config import ConfigError, suggestion

PROFILES = Path(__file__).parent / "profiles"


@dataclass(kw_only=True)
class Hardware:
    """One machine, in bytes, bytes per second and seconds; rates are what programs reach, not datasheet values."""

    name: str
    gpu: str
    gpus: int
    gpu_memory_bytes: int
    capability: tuple[int, int]  # CUDA compute capability; [0, 0] for a CPU machine, whose device is the host
    peak_flops_per_s: float  # of the datasheet, in half precision; what model FLOPs utilisation is relative to
    fp16_flops_per_s: float  # matrix products with float32 accumulation
    bf16_flops_per_s: float
    fp32_flops_per_s: float
    memory_bytes_per_s: float  # of the card
    operator_s: float  # host time of one operator, views too, with its share of the model's Python and of autograd
    launch_s: float  # host time of one call to the card's driver: a kernel, a copy, an event
    hook_s: float  # host time of one of ZeRO-3's hooks around a module's passes, beside the operators it calls
    context_bytes: int  # what CUDA and NCCL take of the card beside torch's memory
    context_host_bytes: int  # what CUDA and its libraries take of the host, in each rank
    pcie_bytes_per_s: float  # page-locked, each direction, each card
    link_bytes_per_s: float  # NCCL's bus bandwidth between cards
    link_latency_s: float  # of one collective
    host_memory_bytes: int
    host_cores: int
    host_memory_bytes_per_s: float
    cpu_adam_parameters_per_s: float  # all cores together
    nvme_bytes: int
    nvme_read_bytes_per_s: float
    nvme_write_bytes_per_s: float
    sources: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def is_cpu(self) -> bool:
        return self.capability[0] == 0

    def on_one_machine(self, ranks: int) -> int:
        """Number of the ranks that share one host."""
        return ranks if self.is_cpu else min(ranks, self.gpus)

    def flops_per_s(self, dtype: torch.dtype) -> float:
        return {torch.float16: self.fp16_flops_per_s, torch.bfloat16: self.bf16_flops_per_s}.get(
            dtype, self.fp32_flops_per_s
        )


NUMBERS = [f.name for f in dataclasses.fields(Hardware) if f.name not in ("name", "sources")]


def profile_names() -> list[str]:
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load_profile(name: str) -> Hardware:
    """A shipped profile or a YAML file.

    Raises:
        ConfigError: no such profile; a field that is missing, unknown, of the wrong type or without a source.
    """
    path = PROFILES / f"{name}.yaml"
    if not path.is_file():
        path = Path(name)
    if not path.is_file():
        raise ConfigError(
            f"--hardware {name}: no such profile{suggestion(name, [*profile_names(), 'this'])}; or give "
            "the path of a YAML file"
        )
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    return parse_hardware(data, path)


def parse_hardware(data: dict, path: Path) -> Hardware:
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold a mapping of fields")
    while "base" in data:
        base = PROFILES / f"{data.pop('base')}.yaml"
        if not base.is_file():
            raise ConfigError(f"{path}: base = {base.stem!r}: no such profile{suggestion(base.stem, profile_names())}")
        data = {**yaml.safe_load(base.read_text()), **data}
    problems = [f"{path}: unknown field {key!r}{suggestion(key, NUMBERS)}" for key in data if key not in NUMBERS]
    problems += [f"{path}: {key} is missing" for key in NUMBERS if key not in data]
    hints = typing.get_type_hints(Hardware)
    fields: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key in NUMBERS:
        entry = data.get(key)
        if entry is None:
            continue
        if not isinstance(entry, dict) or set(entry) != {"value", "source"} or not entry["source"]:
            problems.append(f"{path}: {key} = {entry!r}: must be {{value: …, source: …}}")
            continue
        value, kind = entry["value"], hints[key]
        if kind in (int, float):
            try:
                value = kind(float(value))
            except (TypeError, ValueError):
                problems.append(f"{path}: {key} = {value!r}: must be a number")
                continue
        fields[key] = tuple(value) if key == "capability" else value
        sources[key] = str(entry["source"])
    if problems:
        raise ConfigError("\n".join(problems))
    return Hardware(name=path.stem, sources=sources, **fields)
