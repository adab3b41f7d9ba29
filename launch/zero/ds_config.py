"""Reads a ds_config, checks its keys, and fills in what only the run knows (``"auto"``)."""

import inspect
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
from deepspeed.runtime import lr_schedules
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError

from astrobio.config import ConfigError, set_dotted, suggestion

AUTO = "auto"

#: Top-level keys that DeepSpeed 0.19.8 reads (runtime/config.py, runtime/constants.py). It ignores all others.
TOP_LEVEL_KEYS = frozenset((
    "activation_checkpointing", "aio", "amp", "autotuning", "bf16", "checkpoint", "comet", "comms_logger",
    "communication_data_type", "compile", "compression_training", "csv_monitor", "curriculum_learning",
    "data_efficiency", "data_parallel_size", "data_types", "dataloader_drop_last", "disable_allgather",
    "dump_state", "eigenvalue", "elasticity", "flops_profiler", "fp16", "gradient_accumulation_steps",
    "gradient_allreduce_op", "gradient_clipping", "gradient_predivide_factor", "graph_harvesting",
    "hybrid_engine", "load_universal_checkpoint", "memory_breakdown", "monitor_config", "nebula", "optimizer",
    "pipeline", "prescale_gradients", "progressive_layer_drop", "scheduler",
    "seq_parallel_communication_data_type", "sequence_parallel_size", "sparse_attention", "sparse_gradients",
    "steps_per_print", "tensor_parallel", "tensorboard", "timers", "torch_autocast", "train_batch_size",
    "train_micro_batch_size_per_gpu", "use_data_before_expert_parallel_parallelism", "vocabulary_size",
    "wall_clock_breakdown", "wandb", "weight_quantization", "zenflow", "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer", "zero_optimization",
))

#: Blocks that DeepSpeed reads key by key with defaults, ignoring the rest: runtime/activation_checkpointing/config.py,
#: runtime/swap_tensor/aio_config.py.
PLAIN_BLOCKS = {
    "activation_checkpointing": ("partition_activations", "contiguous_memory_optimization", "cpu_checkpointing",
                                 "number_checkpoints", "synchronize_checkpoint_boundary", "profile"),
    "aio": ("block_size", "queue_depth", "intra_op_parallelism", "single_submit", "overlap_events", "use_gds"),
}

_MODELS = {"zero_optimization": DeepSpeedZeroConfig, "fp16": DeepSpeedFP16Config, "bf16": DeepSpeedBF16Config}


def load_ds_config(path: Path, changes: dict[str, Any] | None = None) -> dict:
    """The JSON in ``path`` with ``changes`` (dotted keys) put in, its keys checked.

    Raises:
        ConfigError: no such file, malformed JSON, a key that DeepSpeed does not know: all of them, one a line.
    """
    try:
        text = path.read_text()
    except OSError as error:
        near = suggestion(path.stem, [p.stem for p in path.parent.glob("*.json")]) if path.parent.is_dir() else ""
        raise ConfigError(f"--ds_config {path}: {error.strerror.lower()}{near}") from None
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--ds_config {path}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"--ds_config {path}: must hold an object, holds {type(config).__name__}")
    for key, value in (changes or {}).items():
        set_dotted(config, key, value)
    problems = key_problems(config)
    if problems:
        raise ConfigError("\n".join(f"--ds_config {path}: {problem}" for problem in problems))
    return config


def key_problems(config: dict) -> list[str]:
    """Unknown keys and wrong values, a line each."""
    problems = [f"unknown key {key!r}{suggestion(key, TOP_LEVEL_KEYS)}" for key in config if key not in TOP_LEVEL_KEYS]
    for block, known in PLAIN_BLOCKS.items():
        if block in config and not isinstance(config[block], dict):
            problems.append(f"{block} = {config[block]!r}: must be an object")
            continue
        problems += [f"unknown key '{block}.{key}'{suggestion(key, known)}"
                     for key in config.get(block, {}) if key not in known]
    for block, model in _MODELS.items():
        problems += _model_problems(block, model, config.get(block, {}))
    problems += _scheduler_problems(config.get("scheduler"))
    if _enabled(config, "fp16") and _enabled(config, "bf16"):
        problems.append("fp16.enabled and bf16.enabled are both true: choose one")
    return problems


def _model_problems(block: str, model, values: Any) -> list[str]:
    if not isinstance(values, dict):
        return [f"{block} = {values!r}: must be an object"]
    try:
        model(**_without_auto(values))
    except ValidationError as error:
        problems = []
        for item in error.errors():
            path = ".".join((block, *(str(part) for part in item["loc"])))
            if item["type"] == "extra_forbidden":
                problems.append(f"unknown key {path!r}{suggestion(str(item['loc'][-1]), _fields(model, item['loc']))}")
            else:
                problems.append(f"{path} = {item['input']!r}: {item['msg']}")
        return problems
    return []


def _fields(model, path) -> list[str]:
    for part in path[:-1]:
        annotation = model.model_fields[part].annotation
        model = next((t for t in (annotation, *getattr(annotation, "__args__", ())) if hasattr(t, "model_fields")),
                     model)
    return [field.alias or name for name, field in model.model_fields.items()]


def _without_auto(values: dict) -> dict:
    """Without the values that `resolve` fills in later."""
    return {key: _without_auto(value) if isinstance(value, dict) else value
            for key, value in values.items() if value != AUTO}


def _scheduler_problems(scheduler: Any) -> list[str]:
    if scheduler is None:
        return []
    if not isinstance(scheduler, dict) or "type" not in scheduler:
        return ["scheduler must be an object with type and params"]
    if scheduler["type"] not in lr_schedules.VALID_LR_SCHEDULES:
        return [f"scheduler.type = {scheduler['type']!r}: DeepSpeed has no such scheduler"
                f"{suggestion(str(scheduler['type']), lr_schedules.VALID_LR_SCHEDULES)}"]
    known = inspect.signature(getattr(lr_schedules, scheduler["type"]).__init__).parameters
    return [f"unknown key 'scheduler.params.{key}'{suggestion(key, set(known) - {'self', 'optimizer'})}"
            for key in scheduler.get("params", {}) if key not in known]


def _enabled(config: dict, block: str) -> bool:
    return isinstance(config.get(block), dict) and bool(config[block].get("enabled"))


@dataclass(frozen=True)
class Strategy:
    """What a ds_config comes down to: where things live and in what precision."""

    stage: int
    optimizer_device: str  # none, cpu, nvme
    param_device: str
    precision: str  # fp16, bf16, fp32

    @property
    def uses_nvme(self) -> bool:
        return "nvme" in (self.optimizer_device, self.param_device)


def strategy(config: dict) -> Strategy:
    zero = config.get("zero_optimization", {})
    precision = "fp16" if _enabled(config, "fp16") else "bf16" if _enabled(config, "bf16") else "fp32"
    optimizer, param = ((zero.get(f"offload_{name}") or {}).get("device", "none") for name in ("optimizer", "param"))
    return Strategy(int(zero.get("stage", 0)), optimizer, param, precision)


def nvme_paths(config: dict) -> list[tuple[str, str]]:
    """(key, nvme_path) of each block that offloads to NVMe."""
    zero = config.get("zero_optimization", {})
    return [(f"zero_optimization.{block}.nvme_path", zero[block].get("nvme_path", ""))
            for block in ("offload_optimizer", "offload_param")
            if (zero.get(block) or {}).get("device") == "nvme"]


def nvme_problems(config: dict) -> list[str]:
    """What keeps NVMe offload from working on this machine: no libaio, a path that cannot be written."""
    paths = nvme_paths(config)
    if not paths:
        return []
    problems = []
    if not deepspeed.ops.op_builder.AsyncIOBuilder().is_compatible(verbose=False):
        problems.append("offload to nvme needs libaio and its headers, which are not installed: "
                        "`apt-get install libaio-dev` (Debian, Ubuntu) or `dnf install libaio-devel` (Fedora)")
    for key, path in paths:
        if not path or not isinstance(path, str):
            problems.append(f"{key} is missing: give a folder on a local disk, or \"auto\"")
            continue
        try:
            Path(path).mkdir(parents=True, exist_ok=True)
            probe = Path(path) / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            problems.append(f"{key} = {path!r}: cannot be written ({error.strerror}): give a folder you own, with "
                            f"--set ds_config.{key}=DIR")
    return problems


def frozen_problems(config: dict) -> list[str]:
    """What keeps frozen parameters from living on NVMe.

    Parameters that will be used again within `stage3_max_reuse_distance` are not given up, each with one of the
    ``buffer_count`` swap buffers, which run out in the second step (deepspeed 0.19.8).
    """
    distance = config.get("zero_optimization", {}).get("stage3_max_reuse_distance", 1_000_000_000)
    if strategy(config).param_device != "nvme" or distance == 0:
        return []
    return [f"zero_optimization.stage3_max_reuse_distance = {distance}: with frozen parameters on NVMe it must be 0, "
            "or DeepSpeed runs out of swap buffers in the second step: --set ds_config.zero_optimization."
            "stage3_max_reuse_distance=0"]


def resolve(config: dict, *, world_size: int, nvme_folder: Path, total_steps: int, largest_parameter: int) -> dict:
    """A copy with every ``"auto"`` replaced.

    Args:
        nvme_folder: for ``nvme_path``.
        total_steps: optimizer steps of the whole run: a OneCycle scheduler rises for 30% of them and falls for the
            rest (Smith & Topin 2017).
        largest_parameter: elements of the largest one; ``offload_param.buffer_size`` must hold a rank's part of it.

    Raises:
        ConfigError: an ``"auto"`` that nothing is known for.
    """
    config = json.loads(json.dumps(config))
    zero = config.get("zero_optimization", {})
    for block in ("offload_optimizer", "offload_param"):
        if (zero.get(block) or {}).get("nvme_path") == AUTO:
            zero[block]["nvme_path"] = str(nvme_folder)
    if (zero.get("offload_param") or {}).get("buffer_size") == AUTO:
        part = -(-largest_parameter // world_size)
        zero["offload_param"]["buffer_size"] = max(1 << 20, -(-part // 1024) * 1024)
    params = (config.get("scheduler") or {}).get("params", {})
    rise = max(1, round(0.3 * total_steps))
    for key, value in (("cycle_first_step_size", rise), ("cycle_second_step_size", max(1, total_steps - rise)),
                       ("total_num_steps", total_steps), ("warmup_num_steps", max(2, rise // 10))):
        if params.get(key) == AUTO:
            params[key] = value
    left = [".".join(path) for path in _auto_paths(config)]
    if left:
        raise ConfigError(f"\"auto\" is not known for {', '.join(left)}: give a value")
    return config


def _auto_paths(values: dict, above: tuple[str, ...] = ()):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _auto_paths(value, (*above, key))
        elif value == AUTO:
            yield (*above, key)


def batch_sizes(config: dict, world_size: int) -> tuple[int, int]:
    """(micro-batch, accumulation steps), by DeepSpeed's rule: train = micro × accumulation × ranks.

    Raises:
        ConfigError: the three that are given contradict each other, or too few are given.
    """
    train, micro, steps = (config.get(key) for key in
                           ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"))
    if micro is None and train is None:
        raise ConfigError("ds_config must give train_micro_batch_size_per_gpu or train_batch_size")
    if micro is None:
        micro = train // (world_size * (steps or 1))
    if steps is None:
        steps = train // (world_size * micro) if train is not None and micro else 1
    for key, value in (("train_micro_batch_size_per_gpu", micro), ("gradient_accumulation_steps", steps)):
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"ds_config: {key} = {value!r}: must be a whole number of at least 1")
    if train is not None and train != micro * steps * world_size:
        raise ConfigError(f"ds_config: train_batch_size = {train}, but train_micro_batch_size_per_gpu {micro} × "
                          f"gradient_accumulation_steps {steps} × {world_size} ranks = {micro * steps * world_size}: "
                          "leave one of them out")
    return micro, steps
