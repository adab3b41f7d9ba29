"""Values that are valid by themselves and wrong together, or wrong for the model or the number of ranks."""

import importlib.util

from deepspeed.accelerator import get_accelerator

from astrobio.config import ConfigError
from launch.ds_config.auto import OPTIMIZER
from launch.ds_config.compression import compression_contradictions
from launch.ds_config.config import ZERO, DsConfig, batch_sizes, is_on, number, value_of
from launch.ds_config.facts import ModelFacts
from launch.ds_config.finding import ABSENT, Finding, remark
from launch.ds_config.model_contradictions import model_contradictions
from launch.ds_config.unsupported import unsupported
from launch.ds_config.zero_contradictions import zero_contradictions


def contradictions(config: dict, world_size: int, facts: ModelFacts | None = None) -> list[Finding]:
    """Contradictions of a config with valid keys; those against the model only with ``facts``."""
    found = [
        *_absent(config),
        *_batches(config, world_size),
        *_precisions(config),
        *zero_contradictions(config, world_size),
        *compression_contradictions(config),
        *_activations(config),
        *_checkpoints(config),
        *_elsewhere(config),
        *unsupported(config),
    ]
    if facts is not None:
        found += model_contradictions(config, world_size, facts)
    return found


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
        key, value = "train_batch_size", config.get("train_batch_size", ABSENT)
        limit = str(error).removeprefix(f"ds_config: {key} = {value}, but ").removeprefix("ds_config: ")
        return [Finding(key, value, limit)]
    return []


def _precisions(config: dict) -> list[Finding]:
    found, where = [], DsConfig.parse(config)
    on = {block: value_of(config, f"{block}.enabled") is True for block in ("fp16", "bf16", "bfloat16")}
    wide = "bf16" if on["bf16"] else "bfloat16"
    if on["fp16"] and on[wide]:
        found.append(
            Finding(f"fp16.enabled and {wide}.enabled", True, "DeepSpeed trains in one of them", "set one to false")
        )
    fp16 = config.get("fp16") or {}
    power, least = number(fp16.get("initial_scale_power"), 16), where.loss_scaling.min_loss_scale
    if on["fp16"] and not fp16.get("loss_scale"):
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
        if where.loss_scaling.hysteresis < 1:
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
    if value_of(config, "torch_autocast.enabled") is True and (on["fp16"] or on[wide]):
        found.append(
            remark(
                "torch_autocast.enabled",
                True,
                f"beside {'fp16' if on['fp16'] else wide}, whose weights are converted already",
                "leave one out",
            )
        )
    wanted = value_of(config, "data_types.param_dtype")
    short = {"half": "fp16", "float16": "fp16", "bfloat16": "bf16", "float": "fp32", "float32": "fp32"}
    if wanted and short.get(name := wanted.removeprefix("torch."), name) != where.precision:
        found.append(
            Finding(
                "data_types.param_dtype",
                wanted,
                f"DeepSpeed refuses it beside {where.precision}, which the fp16 and bf16 blocks ask for",
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
        if value_of(config, key) is True:
            if needs and not config[block].get(needs):
                found.append(Finding(key, True, f"needs {block}.{needs}", f"set {block}.{needs} to true"))
            if where.optimizer_offload.device == "none" and (name.startswith("fp16") or not needs and where.stage == 3):
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


def _activations(config: dict) -> list[Finding]:
    path, found = "activation_checkpointing", []
    if value_of(config, f"{path}.cpu_checkpointing") is True and not value_of(config, f"{path}.partition_activations"):
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
    found = []
    if value_of(config, "checkpoint.load_universal") is True and DsConfig.parse(config).uses_nvme:
        found.append(
            Finding(
                "checkpoint.load_universal",
                True,
                "DeepSpeed 0.19.8 does not load universal checkpoints "
                "into NVMe: the state would be lost without a word",
                "load with everything on the CPU",
            )
        )
    if value_of(config, "checkpoint.writer.decoupled") is True:
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
    """Blocks that DeepSpeed knows and this launcher does not use, and packages that a block needs."""
    found = []
    for key, why in (
        ("sequence_parallel_size", "the stack is not split over sequences"),
        ("data_efficiency.enabled", "the launcher orders the samples itself"),
        ("autotuning.enabled", "only `deepspeed --autotuning` reads it"),
        ("compile.deepcompile", "the launcher does not compile the engine"),
    ):
        if is_on(value := value_of(config, key)):
            found.append(remark(key, value, f"has no effect here: {why}", "leave it out"))
    for block, needs in (("curriculum_learning", "curriculum_metrics"), ("dynamic_batching", "max_tokens")):
        values = value_of(config, f"data_efficiency.data_sampling.{block}") or {}
        if values.get("enabled") and needs not in values:
            found.append(
                Finding(
                    f"data_efficiency.data_sampling.{block}.{needs}",
                    ABSENT,
                    f"{block} needs it",
                    "give it, or set enabled to false",
                )
            )
    if DsConfig.parse(config).aio.use_gds and get_accelerator().device_name() != "cuda":
        found.append(Finding("aio.use_gds", True, "GPUDirect storage needs a CUDA device", "set it to false"))
    for block, module in (("tensorboard", "tensorboard"), ("comet", "comet_ml"), ("wandb", "wandb")):
        if value_of(config, f"{block}.enabled") is True and importlib.util.find_spec(module) is None:
            found.append(
                Finding(
                    f"{block}.enabled",
                    True,
                    f"needs the package {module}, which is not installed",
                    f"pip install {module}, or set it to false",
                )
            )
    if value_of(config, "wandb.enabled") is True:
        found.append(
            remark(
                "wandb.enabled",
                True,
                "the launcher writes to Weights & Biases already: there will be two runs",
                "set it to false",
            )
        )
    return found
