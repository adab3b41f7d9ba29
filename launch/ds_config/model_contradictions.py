"""Values of a ds_config that contradict the model: its sizes, its modules and what of it is frozen."""

from astrobio.config import suggestion
from launch.ds_config.config import AUTO, ZERO, DsConfig, number
from launch.ds_config.facts import ModelFacts
from launch.ds_config.finding import ABSENT, Finding, remark

BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
#: DeepSpeed's defaults: runtime/zero/config.py.
REUSE, PERSISTENT = 1_000_000_000, 100_000


def model_contradictions(config: dict, world_size: int, facts: ModelFacts) -> list[Finding]:
    found, where, zero = [], DsConfig.parse(config), config.get(ZERO) or {}
    param = where.parameter_offload
    bucket = number(zero.get("reduce_bucket_size"), 0)
    if where.stage == 3 and 0 < bucket < facts.hidden_size:
        found.append(
            remark(
                f"{ZERO}.reduce_bucket_size",
                bucket,
                f"is less than one row of {facts.hidden_size}: every gradient is sent by itself",
                "5e7 is usual",
            )
        )
    for name in where.leaf_classes or () if where.stage == 3 else ():
        if name not in facts.classes:
            found.append(
                remark(
                    f"{ZERO}.leaf_module.classes",
                    name,
                    "no module of the model is of this class",
                    suggestion(name, facts.classes).removeprefix("; ") or "leave it out",
                )
            )
    persistent = zero.get("stage3_param_persistence_threshold", zero.get("param_persistence_threshold", PERSISTENT))
    persistent = 10 * facts.hidden_size if persistent == AUTO else persistent
    if param.device != "none" and number(persistent, 0) >= facts.largest:
        width = BYTES[where.precision]
        found.append(
            remark(
                f"{ZERO}.stage3_param_persistence_threshold",
                persistent,
                "no parameter is larger: all "
                f"{width * facts.parameters / 1e9:.1f} GB of them stay on each card, and offload_param "
                "moves nothing",
                f"{PERSISTENT} is the default",
            )
        )
    if facts.balance and where.activation_checkpointing:
        found.append(
            Finding(
                "activation_checkpointing",
                "…",
                "under it the mixture's balance loss "
                "(language.config.output_router_logits) has no gradient: DeepSpeed runs the layers' first "
                "pass without one",
                "leave the block out, or set output_router_logits to false",
            )
        )
    for name in facts.unmatched:
        found.append(
            remark(
                "model.language.lora.target_modules",
                name,
                "the language model has no such module, which would get the adapter",
                "leave it out",
            )
        )
    for frozen in facts.frozen_at_random:
        found.append(
            remark(
                f"model.{frozen}.init_from",
                ABSENT,
                f"the {frozen} part is frozen, and its weights are random: it knows nothing and learns nothing",
                "give it a checkpoint's folder, or train it",
            )
        )
    if param.device != "nvme":
        return found
    path, part = f"{ZERO}.offload_param", -(-facts.largest // world_size)
    if param.buffer_size < part:
        found.append(
            Finding(
                f"{path}.buffer_size",
                param.buffer_size,
                f"must hold a rank's part of the largest parameter: "
                f"{facts.largest:,} elements ÷ {world_size} ranks = {part:,}",
                f'write {part} or "auto"',
            )
        )
    distance = zero.get("stage3_max_reuse_distance", zero.get("max_reuse_distance", REUSE))
    if facts.frozen and distance:
        found.append(
            Finding(
                f"{ZERO}.stage3_max_reuse_distance",
                distance,
                "with frozen parameters on NVMe it must be "
                "0, or DeepSpeed 0.19.8 runs out of swap buffers in the second step",
                f"--set ds_config.{ZERO}.stage3_max_reuse_distance=0",
            )
        )
    tensors = facts.tensors_in_a_layer(persistent)
    if param.buffer_count < tensors:
        found.append(
            Finding(
                f"{path}.buffer_count",
                param.buffer_count,
                f"one layer has {tensors} weights that must be in memory together",
                f"give at least {tensors}",
                problem=facts.frozen,
            )
        )
    return found
