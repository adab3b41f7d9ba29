"""Values of a ds_config that contradict the model: its sizes, its modules and what of it is frozen."""

from astrobio.config import suggestion
from launch.ds_config.facts import ModelFacts
from launch.ds_config.finding import ABSENT, Finding, remark
from launch.ds_config.strategy import AUTO, ZERO, number, strategy
from launch.ds_config.zero_contradictions import PARAM_BUFFERS

BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
#: DeepSpeed's defaults: runtime/zero/config.py, runtime/zero/offload_config.py.
REUSE, PERSISTENT, PARAM_BUFFER = 1_000_000_000, 100_000, 100_000_000


def model_contradictions(config: dict, world_size: int, facts: ModelFacts) -> list[Finding]:
    found, where, zero = [], strategy(config), config.get(ZERO) or {}
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
    leaves = zero.get("leaf_module") or {}
    for name in leaves.get("classes") or [] if where.stage == 3 else []:
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
    if where.param_device != "none" and number(persistent, 0) >= facts.largest:
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
    if facts.balance and config.get("activation_checkpointing") is not None:
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
    if where.param_device != "nvme":
        return found
    param, path = zero.get("offload_param") or {}, f"{ZERO}.offload_param"
    part = -(-facts.largest // world_size)
    size = param.get("buffer_size", PARAM_BUFFER)
    if size != AUTO and size < part:
        found.append(
            Finding(
                f"{path}.buffer_size",
                size,
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
    count, tensors = param.get("buffer_count", PARAM_BUFFERS), facts.tensors_in_a_layer(persistent)
    if number(count, PARAM_BUFFERS) < tensors:
        found.append(
            Finding(
                f"{path}.buffer_count",
                count,
                f"one layer has {tensors} weights that must be in memory together",
                f"give at least {tensors}",
                problem=facts.frozen,
            )
        )
    return found
