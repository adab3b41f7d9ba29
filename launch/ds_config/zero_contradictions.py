"""Contradictions in the block ``zero_optimization``: its stage, offloading, and how gradients are reduced."""

from launch.ds_config.auto import OPTIMIZER
from launch.ds_config.config import PARAMETER_BUFFERS, ZERO, DsConfig, number, value_of
from launch.ds_config.finding import ABSENT, Finding, remark

#: Keys of both offload blocks.
ONLY_NVME = "nvme_path buffer_count buffer_size max_in_cpu pipeline_read pipeline_write fast_init".split()


def zero_contradictions(config: dict, world_size: int) -> list[Finding]:
    zero, where = config.get(ZERO) or {}, DsConfig.parse(config)
    return [*_stage(where, zero), *_offload(where, zero), *_reduction(where, zero, world_size)]


def _stage(where: DsConfig, zero: dict) -> list[Finding]:
    found, config, stage = [], where.raw, where.stage
    if not zero.get("stage"):
        found.append(
            remark(
                f"{ZERO}.stage",
                zero.get("stage", ABSENT),
                "trains as stage 1, which differs in nothing "
                "but sharing the optimizer's state: checkpoints are written under ZeRO alone",
                "write 1",
            )
        )
    if zero.get("legacy_stage1") is True:
        found.append(Finding(f"{ZERO}.legacy_stage1", True, "DeepSpeed refuses it", "leave it out"))
    if stage < 3:
        for key in zero:
            if key.startswith("stage3_") or key in ("sub_group_size", "zero_hpz_partition_size", "leaf_module"):
                found.append(remark(f"{ZERO}.{key}", zero[key], f"has no effect at stage {stage}", "leave it out"))
        for key in ("zero_quantized_weights", "zero_quantized_gradients", "zero_quantized_nontrainable_weights"):
            if zero.get(key) is True:
                found.append(Finding(f"{ZERO}.{key}", True, f"has no effect at stage {stage}", "set stage to 3"))
    if stage == 3 and zero.get("elastic_checkpoint") is True:
        found.append(
            Finding(
                f"{ZERO}.elastic_checkpoint",
                True,
                "has no effect at stage 3",
                "convert to a universal checkpoint instead",
            )
        )
    if zero.get("compute_grad_norm") is False:
        if number(config.get("gradient_clipping"), 1.0):
            found.append(
                Finding(
                    f"{ZERO}.compute_grad_norm",
                    False,
                    "DeepSpeed refuses it with gradient_clipping "
                    f"{config.get('gradient_clipping', '1.0 (the default)')}",
                    "set gradient_clipping to 0",
                )
            )
        if where.optimizer_offload.device != "none":
            found.append(
                Finding(
                    f"{ZERO}.compute_grad_norm",
                    False,
                    "DeepSpeed refuses it with an offloaded optimizer",
                    "leave it out",
                )
            )
    return found


def _offload(where: DsConfig, zero: dict) -> list[Finding]:
    found, stage = [], where.stage
    for block in ("offload_optimizer", "offload_param"):
        path, values = f"{ZERO}.{block}", zero.get(block) or {}
        device = values.get("device", "none")
        if values and "device" not in values:
            found.append(Finding(f"{path}.device", ABSENT, "without it nothing is offloaded", "cpu or nvme"))
        if device == "none":
            continue
        if block == "offload_param" and stage < 3:
            found.append(
                Finding(
                    f"{path}.device",
                    device,
                    f"parameters are whole on each rank at stage {stage}, and are not offloaded",
                    "set stage to 3",
                )
            )
        if block == "offload_optimizer" and device == "nvme" and stage < 3:
            found.append(
                Finding(
                    f"{path}.device",
                    device,
                    f"at stage {stage} DeepSpeed would keep it in host memory without a word",
                    "set stage to 3, or device to cpu",
                )
            )
        if device == "nvme" and not values.get("nvme_path"):
            found.append(
                Finding(
                    f"{path}.nvme_path",
                    values.get("nvme_path", ABSENT),
                    "missing, with device nvme",
                    'give a folder on a local disk, or "auto"',
                )
            )
        found += [
            remark(f"{path}.{key}", values[key], "has no effect with device cpu", "leave it out")
            for key in ONLY_NVME
            if device == "cpu" and values.get(key) not in (False, None)
        ]
        if device == "nvme":
            found += _buffers(where, path, values)
    optimizer = zero.get("offload_optimizer") or {}
    if optimizer.get("super_offload") is True and (stage != 3 or optimizer.get("device") != "cpu"):
        found.append(
            Finding(
                f"{ZERO}.offload_optimizer.super_offload",
                True,
                "needs stage 3 and device cpu",
                "set both, or leave it out",
            )
        )
    if number(optimizer.get("ratio"), 1.0) < 1.0 and optimizer.get("device") != "cpu":
        found.append(
            Finding(
                f"{ZERO}.offload_optimizer.ratio",
                optimizer["ratio"],
                "a part of the optimizer can stay on the cards with device cpu only",
                "set device to cpu, or leave it out",
            )
        )
    if where.raw.get("aio") and not where.uses_nvme:
        found.append(remark("aio", "…", "has no effect: nothing is on NVMe", "leave it out"))
    return found


def _buffers(where: DsConfig, path: str, values: dict) -> list[Finding]:
    found, name = [], _optimizer(where)
    if path.endswith("optimizer"):
        need = 1 if where.compression else {"adam": 3, "adamw": 3, "adagrad": 2, "lion": 2}.get(name, 4)
        passes = 1 + bool(values.get("pipeline_read")) + bool(values.get("pipeline_write"))
        if (count := where.optimizer_offload.buffer_count) < need * passes:
            found.append(
                Finding(
                    f"{path}.buffer_count",
                    count,
                    f"{name or 'the optimizer'} swaps {need} tensor{'s' * (need > 1)} at a time"
                    + (f", {passes} times over with pipelining" if passes > 1 else ""),
                    f"give at least {need * passes}",
                )
            )
    elif (count := where.parameter_offload.buffer_count) < 1:
        found.append(
            Finding(f"{path}.buffer_count", count, "must be at least 1", f"{PARAMETER_BUFFERS} is the default")
        )
    return found


def _reduction(where: DsConfig, zero: dict, world_size: int) -> list[Finding]:
    found, config, stage = [], where.raw, where.stage
    scatter = zero.get("reduce_scatter", True)
    if config.get("gradient_allreduce_op") == "sum" and (
        stage == 3 or zero.get("zenflow") is not None or value_of(config, "compile.deepcompile")
    ):
        found.append(
            Finding(
                "gradient_allreduce_op",
                "sum",
                "DeepSpeed refuses it with ZeRO stage 3, ZenFlow and DeepCompile",
                "write mean",
            )
        )
    if scatter:
        if config.get("prescale_gradients") is True:
            found.append(
                Finding(
                    "prescale_gradients",
                    True,
                    f"DeepSpeed refuses it at stage {stage} with reduce_scatter",
                    f"leave it out, or set {ZERO}.reduce_scatter to false",
                )
            )
        if number(config.get("gradient_predivide_factor"), 1.0) != 1.0:
            found.append(
                Finding(
                    "gradient_predivide_factor",
                    config["gradient_predivide_factor"],
                    f"DeepSpeed refuses all but 1.0 at stage {stage} with reduce_scatter",
                    "leave it out",
                )
            )
    if stage == 3 and scatter and _optimizer(where) == "muon":
        found.append(
            Finding(
                f"{ZERO}.reduce_scatter",
                zero.get("reduce_scatter", ABSENT),
                "DeepSpeed refuses true, the default, with Muon at stage 3",
                "set it to false",
            )
        )
    group = zero.get("zero_hpz_partition_size", 1)
    if stage == 3 and isinstance(group, int) and group > 1 and world_size % group:
        found.append(
            Finding(
                f"{ZERO}.zero_hpz_partition_size",
                group,
                f"does not divide the {world_size} ranks",
                "give the number of cards in a machine",
            )
        )
    sequence, data = config.get("sequence_parallel_size", 1), config.get("data_parallel_size")
    if data is not None and sequence * data != world_size:
        found.append(
            Finding(
                "data_parallel_size",
                data,
                f"times sequence_parallel_size {sequence} is not the {world_size} ranks",
                f"write {max(1, world_size // sequence)}",
            )
        )
    return found


def _optimizer(where: DsConfig) -> str:
    """Its type in lower case, as DeepSpeed compares it."""
    return str(where.optimizer.type or OPTIMIZER["type"]).lower()
