"""A ds_config as the launcher reads it: `DsConfig`, parsed once from DeepSpeed's JSON."""

import copy
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from astrobio.config import ConfigError, set_dotted

AUTO, ZERO, COMPRESSED = "auto", "zero_optimization", "compressed_optimizer"
#: What an ``"auto"`` batch is, as in the shipped ds_configs.
MICRO_BATCH, ACCUMULATION = 1, 32
#: DeepSpeed's defaults: runtime/zero/offload_config.py, runtime/zero/config.py.
OPTIMIZER_BUFFERS, PARAMETER_BUFFERS, SUB_GROUP = 4, 5, 1_000_000_000

T = TypeVar("T")


@dataclass(frozen=True)
class Offload:
    """Where ZeRO keeps the optimizer's state or the parameters; sizes in elements."""

    buffer_count: int
    device: str = "none"  # none, cpu, nvme
    nvme_path: str = ""
    buffer_size: int = 100_000_000  # of parameters alone, as is the next
    max_in_cpu: int = 1_000_000_000
    pin_memory: bool = True


@dataclass(frozen=True)
class Component:
    """The optimizer or the scheduler: a class by its name, and its arguments. ``type`` is empty where there is none."""

    type: str = ""
    params: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        params = ", ".join(f"{key}={value}" for key, value in self.params.items())
        return f"{self.type}({params})" if self.type else "none"


@dataclass(frozen=True)
class LossScaling:
    """Settings of dynamic loss scaling, with the defaults of DeepSpeed's ``fp16`` block."""

    loss_scale_window: int = 1000
    min_loss_scale: float = 1
    hysteresis: int = 2
    consecutive_hysteresis: bool = False


@dataclass(frozen=True)
class Aio:
    """DeepSpeed's settings for NVMe I/O, with its defaults."""

    block_size: int = 1 << 20
    queue_depth: int = 8
    intra_op_parallelism: int = 1
    single_submit: bool = False
    overlap_events: bool = True
    use_gds: bool = False


@dataclass(frozen=True)
class Compression:
    """The block `compressed_optimizer`, ours: `launch.zero.compressed_adamw`."""

    remainder_bits: int = 16  # of each master weight, beside its 16-bit weight
    block_size: int = 256  # parameters that share a scale


@dataclass(frozen=True)
class DsConfig:
    """What the launcher reads of a ds_config. ``raw`` is the whole, for DeepSpeed and for files."""

    raw: dict[str, Any] = field(repr=False)
    stage: int  # 1 in place of 0, whose optimizer wrappers the checkpoints do not know; 1 only shards state besides
    precision: str  # fp16, bf16, fp32
    optimizer_offload: Offload
    parameter_offload: Offload
    sub_group_size: int | None  # as it is given, like the next two
    micro_batch: int | None
    accumulation: int | None
    leaf_classes: tuple[str, ...] | None  # None: without the block
    optimizer: Component
    scheduler: Component
    moments: str  # precision of Adam's
    loss_scaling: LossScaling
    aio: Aio
    compression: Compression | None
    activation_checkpointing: bool
    wall_clock_breakdown: bool

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> "DsConfig":
        """Parse a config without key problems. An ``"auto"`` that is left gets the default."""
        zero, wide = raw.get(ZERO) or {}, precision(raw)
        leaves, narrow = zero.get("leaf_module"), ("optimizer_states", "master_weights_and_grads")
        compressed = raw.get(COMPRESSED) or {}
        devices = {old: "cpu" if zero.get(old) else "none" for old in ("cpu_offload", "cpu_offload_param")}
        return cls(
            raw=raw,
            stage=int(zero.get("stage", 0)) or 1,
            precision=wide,
            optimizer_offload=_filled(
                Offload, zero.get("offload_optimizer"), buffer_count=OPTIMIZER_BUFFERS, device=devices["cpu_offload"]
            ),
            parameter_offload=_filled(
                Offload, zero.get("offload_param"), buffer_count=PARAMETER_BUFFERS, device=devices["cpu_offload_param"]
            ),
            sub_group_size=zero.get("sub_group_size"),
            micro_batch=raw.get("train_micro_batch_size_per_gpu"),
            accumulation=raw.get("gradient_accumulation_steps"),
            leaf_classes=None if leaves is None else tuple(leaves.get("classes") or ()),
            optimizer=_filled(Component, raw.get("optimizer")),
            scheduler=_filled(Component, raw.get("scheduler")),
            moments=wide if any(value_of(raw, f"{wide}.{wide}_{key}") for key in narrow) else "fp32",
            loss_scaling=_filled(LossScaling, raw.get("fp16")),
            aio=_filled(Aio, raw.get("aio")),
            compression=_filled(Compression, compressed) if compressed.get("enabled") else None,
            activation_checkpointing=raw.get("activation_checkpointing") is not None,
            wall_clock_breakdown=bool(raw.get("wall_clock_breakdown")),
        )

    def changed(self, changes: dict[str, Any]) -> "DsConfig":
        """A copy with other values of some dotted keys."""
        raw = copy.deepcopy(self.raw)
        for key, value in changes.items():
            set_dotted(raw, key, value)
        return DsConfig.parse(raw)

    @property
    def uses_nvme(self) -> bool:
        return "nvme" in (self.optimizer_offload.device, self.parameter_offload.device)

    @property
    def lean_gradients(self) -> bool:
        """Whether `launch.zero.lean_stage3` serves, which holds the fp32 gradient of one sub-group at a time."""
        return self.stage == 3 and self.optimizer_offload.device != "none" and self.optimizer.type.lower() != "muon"

    @property
    def nvme_paths(self) -> dict[str, str]:
        """Each folder that the optimizer or the parameters are swapped to, by its dotted key."""
        offloads = {"offload_optimizer": self.optimizer_offload, "offload_param": self.parameter_offload}
        return {
            f"{ZERO}.{key}.nvme_path": offload.nvme_path
            for key, offload in offloads.items()
            if offload.device == "nvme" and offload.nvme_path
        }


def _filled(cls: type[T], block: dict | None, **defaults: Any) -> T:
    """A dataclass filled from the block, with defaults for the rest."""
    block = block or {}
    given = {each.name: block[each.name] for each in fields(cls) if block.get(each.name) not in (None, AUTO)}  # type: ignore[arg-type]
    return cls(**defaults | given)


def value_of(config: dict, key: str) -> Any:
    """The value of a dotted key; None where it, or a block above it, is missing."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def without(config: dict, broken: set[str], above: str = "") -> dict:
    """The config without its ``broken`` keys (dotted names), so that the others can be checked."""
    return {
        key: without(value, broken, f"{above}{key}.") if isinstance(value, dict) else value
        for key, value in config.items()
        if f"{above}{key}" not in broken
    }


def number(value: Any, default: float) -> float:
    """``value``; the default where it is missing or "auto"."""
    return value if isinstance(value, int | float) else default


def is_on(value: Any) -> bool:
    """Whether a switch is on, or a size splits something: 1 splits nothing."""
    return value is True or value not in (None, False, 0, 1)


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
    bf16 = value_of(config, f"{'bfloat16' if config.get('bf16') is None else 'bf16'}.enabled")
    fp16 = value_of(config, "fp16.enabled")
    if bf16 is True or fp16 is True:
        return "bf16" if bf16 is True else "fp16"
    if bf16 == AUTO and (fp16 != AUTO or (_has_bf16() if has_bf16 is None else has_bf16)):
        return "bf16"
    return "fp16" if fp16 == AUTO else "fp32"


def _has_bf16() -> bool:
    from deepspeed.accelerator import get_accelerator  # seconds, which few configs need

    return get_accelerator().is_bf16_supported()


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
            few = f"; train_batch_size {train} is less than the {world_size} ranks take at a time"
            few = few if train is not None and value == 0 else ""
            raise ConfigError(f"ds_config: {key} = {value!r}: must be a whole number of at least 1{few}")
    if train is not None and train != micro * steps * world_size:
        raise ConfigError(
            f"ds_config: train_batch_size = {train}, but train_micro_batch_size_per_gpu {micro} × "
            f"gradient_accumulation_steps {steps} × {world_size} ranks = {micro * steps * world_size}: "
            "leave one of them out"
        )
    return micro, steps
