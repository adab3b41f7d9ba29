"""Fills in the values of a ds_config that only the run knows: ``"auto"``, and the optimizer where there is none.

Hugging Face's integration (transformers/integrations/deepspeed.py) takes them from its TrainingArguments and the
model; here they are the ones that the shipped ds_configs have, and the model's and the run's.
"""

import json
from pathlib import Path
from typing import Any

from astrobio.config import ConfigError, set_dotted
from launch.ds_config.config import ACCUMULATION, AUTO, MICRO_BATCH, DsConfig, batch_sizes, precision, value_of
from launch.ds_config.finding import Finding
from launch.ds_config.keys import AUTO_IS_MEANT

LEARNING_RATE = 1e-4
OPTIMIZER: dict[str, Any] = {
    "type": "AdamW",
    "params": {"lr": LEARNING_RATE, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 1e-5},
}
#: Share of a run's steps that a OneCycle scheduler rises (Smith & Topin 2017).
RISE = 0.3


def auto_keys(values: dict, above: tuple[str, ...] = ()) -> list[str]:
    """Dotted keys whose value is an ``"auto"`` that DeepSpeed itself does not know."""
    found = []
    for key, value in values.items():
        path = (*above, key)
        if isinstance(value, dict):
            found += auto_keys(value, path)
        elif value == AUTO and ".".join(path) not in AUTO_IS_MEANT:
            found.append(".".join(path))
    return found


def auto_values(
    config: dict,
    *,
    world_size: int = 1,
    nvme_folder: Any = None,
    total_steps: int | None = None,
    largest_parameter: int | None = None,
    hidden_size: int | None = None,
) -> dict[str, Any]:
    """What each ``"auto"`` becomes, by dotted key; None where it depends on what is not given, and left out where no
    rule is known. The arguments are those of `resolve`."""
    rules: dict[str, Any] = dict.fromkeys(
        ("zero_optimization.offload_optimizer.nvme_path", "zero_optimization.offload_param.nvme_path"),
        None if nvme_folder is None else str(nvme_folder),
    )
    try:
        micro, steps = batch_sizes(config, world_size)
    except (ConfigError, TypeError, ZeroDivisionError):
        micro, steps = MICRO_BATCH, ACCUMULATION
    wide = precision(config)
    rate = (value_of(config, "optimizer.params") or {}).get("lr", LEARNING_RATE)
    rise = None if total_steps is None else max(1, round(RISE * total_steps))
    square = None if hidden_size is None else hidden_size * hidden_size
    part = None if largest_parameter is None else -(-largest_parameter // world_size)
    rules |= {
        # accelerate's placeholders, which it fills with these where nothing else is said
        **{f"zero_optimization.{key}.device": "none" for key in ("offload_optimizer", "offload_param")},
        "zero_optimization.stage3_gather_16bit_weights_on_model_save": False,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": steps,
        "train_batch_size": micro * steps * world_size,
        "gradient_clipping": 1.0,
        "fp16.enabled": wide == "fp16",
        "bf16.enabled": wide == "bf16",
        "bfloat16.enabled": wide == "bf16",
        **{f"optimizer.params.{key}": value for key, value in OPTIMIZER["params"].items()},
        "scheduler.params.warmup_min_lr": 0,
        "scheduler.params.warmup_max_lr": LEARNING_RATE if rate == AUTO else rate,
        "scheduler.params.total_num_steps": total_steps,
        "scheduler.params.warmup_num_steps": None if rise is None else max(2, rise // 10),
        "scheduler.params.cycle_first_step_size": rise,
        "scheduler.params.cycle_second_step_size": None
        if total_steps is None or rise is None
        else max(1, total_steps - rise),
        "scheduler.params.cycle_min_lr": LEARNING_RATE / 10,
        "scheduler.params.cycle_max_lr": LEARNING_RATE if rate == AUTO else rate,
        "zero_optimization.reduce_bucket_size": square,
        "zero_optimization.stage3_prefetch_bucket_size": None if square is None else int(0.9 * square),
        "zero_optimization.stage3_param_persistence_threshold": None if hidden_size is None else 10 * hidden_size,
        "zero_optimization.offload_param.buffer_size": None if part is None else max(1 << 20, -(-part // 1024) * 1024),
    }
    return {key: rules[key] for key in auto_keys(config) if key in rules}


def auto_findings(config: dict) -> list[Finding]:
    """Each ``"auto"`` that no rule is known for."""
    known = auto_values(config)
    return [
        Finding(key, AUTO, "neither the launcher nor DeepSpeed knows a value for it", "give one")
        for key in auto_keys(config)
        if key not in known
    ]


def resolve(
    config: dict,
    *,
    world_size: int,
    nvme_folder: Any,
    total_steps: int,
    largest_parameter: int,
    hidden_size: int | None = None,
    run: Path | None = None,
) -> DsConfig:
    """The config with every ``"auto"`` replaced, with an optimizer where it has none, and stage 1 in place of 0.

    Args:
        nvme_folder: for ``nvme_path``.
        total_steps: optimizer steps of the whole run, which schedulers span.
        largest_parameter: elements of the largest one; ``offload_param.buffer_size`` must hold a rank's part of it.
        hidden_size: of the language model, for the sizes of buckets.
        run: for DeepSpeed's monitors without a folder, in place of the working directory, which runs share.

    Raises:
        ConfigError: an ``"auto"`` that nothing is known for.
    """
    found = auto_values(
        config,
        world_size=world_size,
        nvme_folder=nvme_folder,
        total_steps=total_steps,
        largest_parameter=largest_parameter,
        hidden_size=hidden_size,
    )
    left = [key for key in auto_keys(config) if found.get(key) is None]
    if left:
        raise ConfigError(f'"auto" is not known for {", ".join(left)}: give a value')
    config = json.loads(json.dumps(config))
    for key, value in found.items():
        set_dotted(config, key, value)
    set_dotted(config, "zero_optimization.stage", DsConfig.parse(config).stage)
    if not config.get("optimizer"):
        config["optimizer"] = json.loads(json.dumps(OPTIMIZER))
    for monitor in ("tensorboard", "csv_monitor") if run is not None else ():
        block = config.get(monitor) or {}
        if block.get("enabled") and not block.get("output_path"):
            block["output_path"] = str(run)
    return DsConfig.parse(config)
