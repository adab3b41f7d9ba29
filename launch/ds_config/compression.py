"""What the block `compressed_optimizer` cannot be combined with."""

from launch.ds_config.auto import OPTIMIZER
from launch.ds_config.config import COMPRESSED, ZERO, DsConfig, number, value_of
from launch.ds_config.finding import Finding
from launch.ds_config.optimizers import MASTERS

#: Keys of master weights or moments in 16 bits, which it replaces.
SHORT_STATES = (*MASTERS, "bf16.bf16_optimizer_states")


def compression_contradictions(config: dict) -> list[Finding]:
    """Problems of a config that enables it."""
    where, zero = DsConfig.parse(config), config.get(ZERO) or {}
    if where.compression is None:
        return []
    key, found = f"{COMPRESSED}.enabled", []
    kind = where.optimizer.type or OPTIMIZER["type"]
    params = where.optimizer.params
    if where.stage != 3:
        found.append(Finding(key, True, f"serves ZeRO stage 3, not {where.stage}", f"set {ZERO}.stage to 3"))
    if where.optimizer_offload.device == "none":
        found.append(
            Finding(
                key,
                True,
                "serves an optimizer on the host or on NVMe, not one on the cards",
                f'set {ZERO}.offload_optimizer to {{"device": "cpu"}}',
            )
        )
    if where.precision == "fp32" or value_of(config, "torch_autocast.enabled") is True:
        found.append(Finding(key, True, "needs weights of 16 bits", "enable bf16 or fp16"))
    decoupled = kind.lower() == "adamw" or kind.lower() == "adam" and params.get("adam_w_mode", True)
    if not decoupled or params.get("torch_adam"):
        found.append(Finding(key, True, f"steps as AdamW, not as {kind} is given", "set optimizer.type to AdamW"))
    for short in SHORT_STATES:
        if value_of(config, short) is True:
            found.append(Finding(short, True, f"{COMPRESSED} keeps the state in a form of its own", "leave it out"))
    ratio = number(value_of(config, f"{ZERO}.offload_optimizer.ratio"), 1.0)
    if ratio < 1:
        found.append(
            Finding(f"{ZERO}.offload_optimizer.ratio", ratio, f"{COMPRESSED} steps on the host alone", "leave it out")
        )
    for other in ("zenflow", "offload_optimizer.super_offload"):
        if value_of(zero, other):
            found.append(
                Finding(f"{ZERO}.{other}", value_of(zero, other), f"{COMPRESSED} cannot step with it", "leave it out")
            )
    return found
