"""Values that are right one by one and wrong together, or wrong for the model or the number of ranks."""

import importlib.util
from typing import Any

from deepspeed.accelerator import get_accelerator

from astrobio.config import ConfigError, suggestion
from launch.ds_config.auto import OPTIMIZER
from launch.ds_config.facts import ModelFacts
from launch.ds_config.finding import ABSENT, Finding, remark
from launch.ds_config.strategy import AUTO, batch_sizes, is_on, precision, strategy, value_of, zero_stage
from launch.ds_config.unsupported import unsupported

ZERO = "zero_optimization"
BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
#: DeepSpeed's defaults: runtime/zero/config.py, runtime/zero/offload_config.py.
BUCKET, SUB_GROUP, REUSE, PERSISTENT = 500_000_000, 1_000_000_000, 1_000_000_000, 100_000
OPTIMIZER_BUFFERS, PARAM_BUFFERS, PARAM_BUFFER = 4, 5, 100_000_000


def contradictions(config: dict, world_size: int, facts: ModelFacts | None = None) -> list[Finding]:
    """Of a config whose keys are sound; those of a model only where ``facts`` are given."""
    zero = config.get(ZERO) or {}
    found = [
        *_absent(config),
        *_batches(config, world_size),
        *_precisions(config),
        *_stage(config, zero),
        *_offload(config, zero),
        *_reduction(config, zero, world_size),
        *_activations(config),
        *_checkpoints(config),
        *_elsewhere(config),
        *unsupported(config),
    ]
    if facts is not None:
        found += _model(config, zero, world_size, facts)
    return found


def _number(value: Any, default: float) -> float:
    return value if isinstance(value, int | float) else default


def _absent(config: dict) -> list[Finding]:
    found = []
    if not config.get("optimizer"):
        found.append(
            remark(
                "optimizer",
                ABSENT,
                f"the launcher takes the optimizer from here, and else {OPTIMIZER['type']} with {OPTIMIZER['params']}",
            )
        )
    if not config.get("scheduler"):
        found.append(remark("scheduler", ABSENT, "the learning rate stays as it is"))
    return found


def _batches(config: dict, world_size: int) -> list[Finding]:
    try:
        batch_sizes(config, world_size)
    except ConfigError as error:
        key, value, limit = "train_batch_size", config.get("train_batch_size", ABSENT), str(error)
        told = limit.removeprefix(f"ds_config: {key} = {value}, but ")
        return [Finding(key, value, told.removeprefix("ds_config: "))]
    return []


def _precisions(config: dict) -> list[Finding]:
    found = []
    on = {block: (config.get(block) or {}).get("enabled") is True for block in ("fp16", "bf16", "bfloat16")}
    wide = "bf16" if on["bf16"] else "bfloat16"
    if on["fp16"] and on[wide]:
        found.append(
            Finding(f"fp16.enabled and {wide}.enabled", True, "DeepSpeed trains in one of them", "set one to false")
        )
    fp16, dynamic = config.get("fp16") or {}, not (config.get("fp16") or {}).get("loss_scale")
    power, least = _number(fp16.get("initial_scale_power"), 16), _number(fp16.get("min_loss_scale"), 1)
    if on["fp16"] and dynamic:
        if not 0 <= power <= 127:
            found.append(
                Finding(
                    "fp16.initial_scale_power",
                    power,
                    "2 to this power is the first loss scale; fp32 ends at 2^127",
                    "16 is usual",
                )
            )
        elif power > 24:
            found.append(
                remark(
                    "fp16.initial_scale_power",
                    power,
                    f"about {power - 16} steps will be skipped before the loss scale is one that fp16 can hold",
                    "16 is usual",
                )
            )
        if 0 <= power <= 127 and 2**power < least:
            found.append(
                Finding(
                    "fp16.min_loss_scale",
                    least,
                    f"is above the first loss scale, 2^{power}",
                    "lower it, or raise initial_scale_power",
                )
            )
        if fp16.get("hysteresis", 2) != AUTO and _number(fp16.get("hysteresis"), 2) < 1:
            found.append(Finding("fp16.hysteresis", fp16["hysteresis"], "must be at least 1", "2 is usual"))
    elif on["fp16"] and fp16["loss_scale"] > 65504:
        found.append(
            remark(
                "fp16.loss_scale",
                fp16["loss_scale"],
                "a fixed scale above 65504, the end of fp16: every step may overflow",
                "0 scales dynamically",
            )
        )
    if (config.get("torch_autocast") or {}).get("enabled") is True and (on["fp16"] or on[wide]):
        found.append(
            remark(
                "torch_autocast.enabled",
                True,
                f"beside {'fp16' if on['fp16'] else wide}, whose weights are converted already",
                "leave one out",
            )
        )
    wanted = (config.get("data_types") or {}).get("param_dtype")
    short = {
        "half": "fp16",
        "float16": "fp16",
        "torch.float16": "fp16",
        "bfloat16": "bf16",
        "torch.bfloat16": "bf16",
        "float": "fp32",
        "float32": "fp32",
        "torch.float32": "fp32",
    }
    if wanted and short.get(wanted, wanted) != precision(config):
        found.append(
            Finding(
                "data_types.param_dtype",
                wanted,
                f"DeepSpeed refuses it beside {precision(config)}, which the fp16 and bf16 blocks ask for",
                "leave it out",
            )
        )
    for key, needs in (
        ("fp16.fp16_master_weights_and_grads", None),
        ("bf16.bf16_master_weights_and_grads", None),
        ("bf16.bf16_optimizer_states", "bf16_master_weights_and_grads"),
        ("bfloat16.bf16_master_weights_and_grads", None),
        ("bfloat16.bf16_optimizer_states", "bf16_master_weights_and_grads"),
    ):
        block, name = key.split(".")
        if (config.get(block) or {}).get(name) is True:
            if needs and not config[block].get(needs):
                found.append(Finding(key, True, f"needs {block}.{needs}", f"set {block}.{needs} to true"))
            if (name.startswith("fp16") or not needs and zero_stage(config) == 3) and strategy(
                config
            ).optimizer_device == "none":
                found.append(
                    Finding(
                        key,
                        True,
                        "DeepSpeed has it with the optimizer on the CPU only"
                        + ("" if name.startswith("fp16") else " at stage 3"),
                        f"set {ZERO}.offload_optimizer.device to cpu",
                    )
                )
    return found


def _stage(config: dict, zero: dict) -> list[Finding]:
    found, stage = [], zero_stage(config)
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
        if _number(config.get("gradient_clipping"), 1.0):
            found.append(
                Finding(
                    f"{ZERO}.compute_grad_norm",
                    False,
                    "DeepSpeed refuses it with gradient_clipping "
                    f"{config.get('gradient_clipping', '1.0 (the default)')}",
                    "set gradient_clipping to 0",
                )
            )
        if strategy(config).optimizer_device != "none":
            found.append(
                Finding(
                    f"{ZERO}.compute_grad_norm",
                    False,
                    "DeepSpeed refuses it with an offloaded optimizer",
                    "leave it out",
                )
            )
    return found


def _offload(config: dict, zero: dict) -> list[Finding]:
    found, stage = [], zero_stage(config)
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
        only_nvme = (
            [
                key
                for key in (
                    "nvme_path",
                    "buffer_count",
                    "buffer_size",
                    "max_in_cpu",
                    "pipeline_read",
                    "pipeline_write",
                    "fast_init",
                )
                if key in values
            ]
            if device == "cpu"
            else []
        )
        found += [
            remark(f"{path}.{key}", values[key], "has no effect with device cpu", "leave it out")
            for key in only_nvme
            if values[key] not in (False, None)
        ]
        found += _buffers(config, path, values, device)
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
    if _number(optimizer.get("ratio"), 1.0) < 1.0 and optimizer.get("device") != "cpu":
        found.append(
            Finding(
                f"{ZERO}.offload_optimizer.ratio",
                optimizer["ratio"],
                "a part of the optimizer can stay on the cards with device cpu only",
                "set device to cpu, or leave it out",
            )
        )
    if "aio" in config and config["aio"] and not strategy(config).uses_nvme:
        found.append(remark("aio", "…", "has no effect: nothing is on NVMe", "leave it out"))
    return found


def _optimizer(config: dict) -> str:
    """Its type in lower case, as DeepSpeed tells them apart."""
    return str((config.get("optimizer") or OPTIMIZER).get("type", "")).lower()


def _buffers(config: dict, path: str, values: dict, device: str) -> list[Finding]:
    if device != "nvme":
        return []
    name = _optimizer(config)
    count, found = values.get("buffer_count"), []
    if path.endswith("optimizer"):
        need = {"adam": 4, "adamw": 4, "adagrad": 3, "lion": 3}.get(name, 4)
        passes = 1 + bool(values.get("pipeline_read")) + bool(values.get("pipeline_write"))
        if _number(count, OPTIMIZER_BUFFERS) < need * passes:
            found.append(
                Finding(
                    f"{path}.buffer_count",
                    OPTIMIZER_BUFFERS if count is None else count,
                    f"{name or 'the optimizer'} swaps {need} tensors at a time (weights, gradients, "
                    "moments)" + (f", {passes} times over with pipelining" if passes > 1 else ""),
                    f"give at least {need * passes}",
                )
            )
    elif _number(count, PARAM_BUFFERS) < 1:
        found.append(Finding(f"{path}.buffer_count", count, "must be at least 1", f"{PARAM_BUFFERS} is the default"))
    return found


def _reduction(config: dict, zero: dict, world_size: int) -> list[Finding]:
    found, stage = [], zero_stage(config)
    scatter = zero.get("reduce_scatter", True)
    if config.get("gradient_allreduce_op") == "sum" and (
        stage == 3 or zero.get("zenflow") is not None or (config.get("compile") or {}).get("deepcompile")
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
        if _number(config.get("gradient_predivide_factor"), 1.0) != 1.0:
            found.append(
                Finding(
                    "gradient_predivide_factor",
                    config["gradient_predivide_factor"],
                    f"DeepSpeed refuses all but 1.0 at stage {stage} with reduce_scatter",
                    "leave it out",
                )
            )
    if stage == 3 and scatter and _optimizer(config) == "muon":
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


def _activations(config: dict) -> list[Finding]:
    block, path, found = config.get("activation_checkpointing") or {}, "activation_checkpointing", []
    if block.get("cpu_checkpointing") is True and not block.get("partition_activations"):
        found.append(
            remark(
                f"{path}.cpu_checkpointing",
                True,
                "without partition_activations it breaks on a CPU, where the launcher switches it off",
                "set partition_activations to true",
            )
        )
    return found


def _checkpoints(config: dict) -> list[Finding]:
    block, found = config.get("checkpoint") or {}, []
    if block.get("load_universal") is True and strategy(config).uses_nvme:
        found.append(
            Finding(
                "checkpoint.load_universal",
                True,
                "DeepSpeed 0.19.8 does not load universal checkpoints "
                "into NVMe: the state would be lost without a word",
                "load with everything on the CPU",
            )
        )
    if (block.get("writer") or {}).get("decoupled") is True:
        found.append(
            Finding(
                "checkpoint.writer.decoupled",
                True,
                "what it saves DeepSpeed 0.19.8 cannot load (#8500)",
                "leave it out",
            )
        )
    return found


def _elsewhere(config: dict) -> list[Finding]:
    """Blocks that DeepSpeed knows and the launcher's stack has no use for, and packages that a block needs."""
    found = []
    for key, why in (
        ("sequence_parallel_size", "the stack is not split over sequences"),
        ("data_efficiency.enabled", "the launcher orders the samples itself"),
        ("autotuning.enabled", "only `deepspeed --autotuning` reads it"),
        ("compile.deepcompile", "the launcher does not compile the engine"),
    ):
        if is_on(value := value_of(config, key)):
            found.append(remark(key, value, f"has no effect here: {why}", "leave it out"))
    sampling = (config.get("data_efficiency") or {}).get("data_sampling") or {}
    for block, needs in (("curriculum_learning", "curriculum_metrics"), ("dynamic_batching", "max_tokens")):
        values = sampling.get(block) or {}
        if values.get("enabled") and needs not in values:
            found.append(
                Finding(
                    f"data_efficiency.data_sampling.{block}.{needs}",
                    ABSENT,
                    f"{block} needs it",
                    "give it, or set enabled to false",
                )
            )
    if (config.get("aio") or {}).get("use_gds") and get_accelerator().device_name() != "cuda":
        found.append(Finding("aio.use_gds", True, "GPUDirect storage needs a CUDA device", "set it to false"))
    for block, module in (("tensorboard", "tensorboard"), ("comet", "comet_ml"), ("wandb", "wandb")):
        if (config.get(block) or {}).get("enabled") is True and importlib.util.find_spec(module) is None:
            found.append(
                Finding(
                    f"{block}.enabled",
                    True,
                    f"needs the package {module}, which is not installed",
                    f"pip install {module}, or set it to false",
                )
            )
    if (config.get("wandb") or {}).get("enabled") is True:
        found.append(
            remark(
                "wandb.enabled",
                True,
                "the launcher writes to Weights & Biases already: there will be two runs",
                "set it to false",
            )
        )
    return found


def _model(config: dict, zero: dict, world_size: int, facts: ModelFacts) -> list[Finding]:
    """What only shows beside a model of that size."""
    found, where = [], strategy(config)
    bucket = _number(zero.get("reduce_bucket_size"), 0)
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
    if where.param_device != "none" and _number(persistent, 0) >= facts.largest:
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
    if _number(count, PARAM_BUFFERS) < tensors:
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
