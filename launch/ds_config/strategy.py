"""A ds_config in short: where the state lives, in what precision, in what batches."""

from dataclasses import dataclass
from typing import Any

from deepspeed.accelerator import get_accelerator

from astrobio.config import ConfigError

AUTO, ZERO = "auto", "zero_optimization"
#: What an ``"auto"`` batch is, as in the shipped ds_configs.
MICRO_BATCH, ACCUMULATION = 1, 32


@dataclass(frozen=True)
class Strategy:
    """Where parameters and the optimizer's state live, and in what precision."""

    stage: int
    optimizer_device: str  # none, cpu, nvme
    param_device: str
    precision: str  # fp16, bf16, fp32

    @property
    def uses_nvme(self) -> bool:
        return "nvme" in (self.optimizer_device, self.param_device)


def value_of(config: dict, key: str) -> Any:
    """The value of a dotted key; None where it, or a block above it, is missing."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def number(value: Any, default: float) -> float:
    """``value``; the default where it is missing or "auto"."""
    return value if isinstance(value, int | float) else default


def is_on(value: Any) -> bool:
    """Of a switch, or a size that is 1 where nothing is split."""
    return value is True or value not in (None, False, 0, 1)


def strategy(config: dict) -> Strategy:
    """Of a config without key problems; it may still have ``"auto"`` values."""
    zero = config.get("zero_optimization") or {}
    devices = []
    for block, old in (("offload_optimizer", "cpu_offload"), ("offload_param", "cpu_offload_param")):
        device = (zero.get(block) or {}).get("device", "none")
        devices.append("cpu" if device == "none" and zero.get(old) else device)
    optimizer_device, param_device = devices
    return Strategy(zero_stage(config), optimizer_device, param_device, precision(config))


def zero_stage(config: dict) -> int:
    """1 in place of 0, which differs only in that it shards the optimizer's state: the checkpoints do not know the
    optimizer wrappers of DeepSpeed's stage 0."""
    return int((config.get("zero_optimization") or {}).get("stage", 0)) or 1


def settle_precision(config: dict, has_bf16: bool | None = None) -> dict:
    """The config with each ``"auto"`` of ``fp16.enabled`` and ``bf16.enabled`` replaced.

    Args:
        has_bf16: whether the cards compute it; None: those of this machine.
    """
    chosen = precision(config, has_bf16)
    return {
        block: {**values, "enabled": chosen == {"bfloat16": "bf16"}.get(block, block)}
        if block in ("fp16", "bf16", "bfloat16") and isinstance(values, dict) and values.get("enabled") == AUTO
        else values
        for block, values in config.items()
    }


def precision(config: dict, has_bf16: bool | None = None) -> str:
    """fp16, bf16 or fp32. Where both blocks say "auto", bf16 if the device has it: it needs no loss scaling."""
    blocks = {
        name: config.get(block)
        for name, block in (("bf16", "bf16" if config.get("bf16") is not None else "bfloat16"), ("fp16", "fp16"))
    }
    wanted = {name: block.get("enabled", False) if isinstance(block, dict) else False for name, block in blocks.items()}
    for name in wanted:
        if wanted[name] is True:
            return name
    if wanted["bf16"] == AUTO and (
        wanted["fp16"] != AUTO or (get_accelerator().is_bf16_supported() if has_bf16 is None else has_bf16)
    ):
        return "bf16"
    return "fp16" if wanted["fp16"] == AUTO else "fp32"


def nvme_blocks(config: dict) -> dict[str, dict]:
    """The blocks that offload to NVMe, by key."""
    zero = config.get("zero_optimization") or {}
    return {
        f"zero_optimization.{block}": zero[block]
        for block in ("offload_optimizer", "offload_param")
        if (zero.get(block) or {}).get("device") == "nvme"
    }


def nvme_paths(config: dict) -> list[tuple[str, str]]:
    """(key, nvme_path) of each block that offloads to NVMe."""
    return [(f"{key}.nvme_path", block.get("nvme_path", "")) for key, block in nvme_blocks(config).items()]


def batch_sizes(config: dict, world_size: int) -> tuple[int, int]:
    """(micro-batch, accumulation steps), by DeepSpeed's rule: train = micro × accumulation × ranks.

    Raises:
        ConfigError: the three that are given contradict each other, or too few are given.
    """
    train, micro, steps = (
        value_of(config, key)
        for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    )
    if micro is None and train is None:
        raise ConfigError("ds_config must give train_micro_batch_size_per_gpu or train_batch_size")
    train = None if train == AUTO else train
    micro = MICRO_BATCH if micro == AUTO or micro is None and train is None else micro
    if steps == AUTO:
        steps = ACCUMULATION if train is None else None
    if micro is None and train is not None:
        micro = train // (world_size * (steps or 1))
    if steps is None:
        steps = train // (world_size * micro) if train is not None and micro else 1
    for key, value in (("train_micro_batch_size_per_gpu", micro), ("gradient_accumulation_steps", steps)):
        if not isinstance(value, int) or value < 1:
            raise ConfigError(
                f"ds_config: {key} = {value!r}: must be a whole number of at least 1"
                + (
                    f"; train_batch_size {train} is less than the {world_size} ranks take at a time"
                    if train is not None and value == 0
                    else ""
                )
            )
    if train is not None and train != micro * steps * world_size:
        raise ConfigError(
            f"ds_config: train_batch_size = {train}, but train_micro_batch_size_per_gpu {micro} × "
            f"gradient_accumulation_steps {steps} × {world_size} ranks = {micro * steps * world_size}: "
            "leave one of them out"
        )
    return micro, steps
