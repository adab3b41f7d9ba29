"""Features of DeepSpeed that this stack, this launcher or a CPU cannot use. Each was run without the check and ended as
its message says (`pytest -m slow tests/launch/ds_config/test_field_inputs.py`)."""

import importlib
from typing import Any

from deepspeed.accelerator import get_accelerator

from launch.ds_config.config import ZERO, DsConfig, is_on, value_of
from launch.ds_config.finding import Finding


def unsupported(config: dict) -> list[Finding]:
    """Problems on any device."""
    return [*_engines(config), *_zero(config), *_numbers(config)]


def unsupported_on_cpu(config: dict) -> list[Finding]:
    """Problems on the CPU accelerator."""
    found, zero = [], config.get(ZERO) or {}
    for key in ("zero_quantized_weights", "zero_quantized_gradients", "zero_quantized_nontrainable_weights"):
        if zero.get(key) is True:
            found.append(Finding(f"{ZERO}.{key}", True, "its kernels are for cards only", "leave it out"))
    if value_of(config, f"{ZERO}.offload_optimizer.super_offload") is True:
        found.append(Finding(f"{ZERO}.offload_optimizer.super_offload", True, "works with cards only", "leave it out"))
    writer = value_of(config, "checkpoint.writer") or {}
    if writer and str(writer.get("type", "FAST")).upper() == "FAST":
        found.append(
            Finding(
                "checkpoint.writer.type",
                writer.get("type", "FAST"),
                "needs a card; the launcher does not write its checkpoints with it",
                "leave checkpoint.writer out",
            )
        )
    return found


def _engines(config: dict) -> list[Finding]:
    """Engines that rebuild the model themselves."""
    found = []
    for key, why in (
        ("tensor_parallel.autotp_size", "DeepSpeed splits only models that it knows"),
        ("expert_parallel.enabled", "DeepSpeed needs a mixture-of-experts model that it knows"),
        ("hybrid_engine.enabled", "DeepSpeed rebuilds only models that it knows"),
        (
            "data_efficiency.data_routing.random_ltd.enabled",
            "DeepSpeed drops tokens only in models whose layers were converted for it",
        ),
    ):
        if is_on(value := value_of(config, key)):
            found.append(
                Finding(
                    key,
                    value,
                    f"stops at the start: {why}, and the stack is not one of them",
                    f"leave {key.split('.')[0]} out",
                )
            )
    if config.get("managed_gradient_accumulation") is False:
        found.append(
            Finding(
                "managed_gradient_accumulation",
                False,
                "the launcher leaves accumulation to DeepSpeed, and would step after every micro-batch",
                "leave it out",
            )
        )
    return found


def _zero(config: dict) -> list[Finding]:
    found, zero, where = [], config.get(ZERO) or {}, DsConfig.parse(config)
    if zero.get("zenflow") is not None:
        found.append(
            Finding(
                f"{ZERO}.zenflow",
                "…",
                "fails in the first steps: it selects columns of matrices, and many parameters of the stack are none",
                "leave it out",
            )
        )
    size = zero.get("stage3_module_granularity_threshold", zero.get("module_granularity_threshold"))
    if isinstance(size, int | float) and size > 0:
        found.append(
            Finding(
                f"{ZERO}.stage3_module_granularity_threshold",
                size,
                "makes leaves of modules whose parts the stack uses by themselves",
                "leave it out, or name classes in leaf_module",
            )
        )
    if value_of(config, "activation_checkpointing.contiguous_memory_optimization") is True:
        found.append(
            Finding(
                "activation_checkpointing.contiguous_memory_optimization",
                True,
                "needs checkpoints of one size, and the stack's parts differ",
                "set it to false",
            )
        )
    if (block := where.aio.block_size) % 512:
        found.append(
            Finding(
                "aio.block_size",
                block,
                "must be a multiple of 512, the sector of a disk, or the first read or write aborts the process",
                f"write {max(512, block // 512 * 512)}",
            )
        )
    dtype = value_of(config, "data_types.grad_accum_dtype")
    if dtype in ("fp32", "float32", "float", "torch.float32") and (
        (where.precision, where.stage, where.optimizer_offload.device) == ("bf16", 1, "none")
    ):
        found.append(
            Finding(
                "data_types.grad_accum_dtype",
                dtype,
                "with bf16 at stage 1 DeepSpeed takes its BF16_Optimizer, of which no checkpoint is known",
                f"leave it out, or set {ZERO}.stage to 2",
            )
        )
    return found


def _numbers(config: dict) -> list[Finding]:
    found: list[Finding] = []
    autocast = config.get("torch_autocast") or {}
    if autocast.get("enabled") is not True:
        return found
    if str(autocast.get("dtype", "bf16")).removeprefix("torch.") in ("fp16", "float16", "half"):
        found.append(
            Finding(
                "torch_autocast.dtype",
                autocast["dtype"],
                "DeepSpeed 0.19.8 clips the gradients before "
                "it takes the loss scale off them, and its scaler is in no checkpoint",
                "write bfloat16, or enable fp16 instead",
            )
        )
    for name in autocast.get("lower_precision_safe_modules") or []:
        if not _importable(name):
            found.append(
                Finding(
                    "torch_autocast.lower_precision_safe_modules",
                    name,
                    "there is no such class",
                    "write its whole name, as torch.nn.Linear",
                )
            )
    return found


def _importable(name: Any) -> bool:
    module, _, attribute = str(name).rpartition(".")
    try:
        return hasattr(importlib.import_module(module), attribute)
    except (ImportError, ValueError):
        return False


def without_builder(config: dict) -> list[Finding]:
    """The optimizer, if its compiled op does not exist for this device."""
    where = DsConfig.parse(config)
    kind = str(where.optimizer.type).lower()
    builder = {"lamb": "FusedLambBuilder", "lion": "FusedLionBuilder"}.get(kind)
    if builder is None or kind == "lion" and where.optimizer_offload.device != "none":
        return []
    if "NotImplemented" not in getattr(get_accelerator().get_op_builder(builder), "__name__", "NotImplemented"):
        return []
    return [Finding("optimizer.type", where.optimizer.type, "DeepSpeed has it for cards only", "take AdamW")]
