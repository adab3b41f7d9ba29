"""All that can be said against a ds_config before a run: one list, for `astrobio check` and the preflight alike."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from deepspeed.accelerator import get_accelerator

from astrobio.config import set_dotted
from launch.ds_config.auto import auto_findings, auto_values
from launch.ds_config.contradictions import contradictions
from launch.ds_config.facts import ModelFacts, model_facts
from launch.ds_config.finding import Finding
from launch.ds_config.keys import key_findings
from launch.ds_config.machine import machine_findings
from launch.ds_config.read import read_ds_config
from launch.ds_config.strategy import settle_precision

#: They are judged together, as they were given.
BATCHES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def check(config: dict, *, world_size: int, facts: ModelFacts | None = None, nvme_folder: Path | None = None,
          machine: bool = True, has_bf16: bool | None = None) -> list[Finding]:
    """Every problem and remark about a ds_config, as it was read; problems first. Each ``"auto"`` is judged by what it
    becomes.

    Args:
        world_size: ranks, all of them on this machine unless the launcher says otherwise.
        facts: of the model, where it is known.
        nvme_folder: what an ``nvme_path`` of "auto" will be.
        machine: also look at this machine.
        has_bf16: whether the cards compute it; None: those of this machine.
    """
    config = settle_precision(config, has_bf16)
    found = key_findings(config)
    found += auto_findings(_sound(config, {finding.key for finding in found if finding.problem}))
    broken = {finding.key for finding in found if finding.problem}
    sound = _sound(config, broken)
    if "zero_optimization.stage" in broken:
        sound["zero_optimization"]["stage"] = 3  # where everything else has a meaning
    for key, value in auto_values(sound, world_size=world_size, nvme_folder=nvme_folder,
                                  largest_parameter=facts and facts.largest,
                                  hidden_size=facts and facts.hidden_size).items():
        if value is not None and key not in BATCHES:
            set_dotted(sound, key, value)
    more = contradictions(sound, world_size, facts)
    if machine:
        more += machine_findings(sound, world_size, facts)
    found += [finding for finding in more if finding.key not in broken]
    unique = {(finding.key, finding.limit): finding for finding in found}
    return sorted(unique.values(), key=lambda finding: not finding.problem)


def _sound(config: dict, broken: set[str], above: str = "") -> dict:
    """Without the keys that are broken already, so that what goes together can be compared."""
    kept = {}
    for key, value in config.items():
        dotted = f"{above}.{key}" if above else key
        if dotted not in broken:
            kept[key] = _sound(value, broken, dotted) if isinstance(value, dict) else value
    return kept


def run(path: Path, model: str | None, ranks: int | None, as_json: bool) -> int:
    """`astrobio check`: prints what was found; returns 0, or 2 where there is a problem.

    Raises:
        ConfigError: the file cannot be read, or there is no such model.
    """
    config, facts = read_ds_config(path), None
    if model is not None:
        from launch.planner.model import load_model
        facts = model_facts(load_model(model))
    world_size = ranks or _likely_ranks(config)
    folder = os.environ.get("ASTROBIO_NVME")
    found = check(config, world_size=world_size, facts=facts, nvme_folder=Path(folder) if folder else None)
    problems = [finding for finding in found if finding.problem]
    autos = auto_values(_sound(config, {finding.key for finding in problems}), world_size=world_size,
                        nvme_folder=folder, largest_parameter=facts and facts.largest,
                        hidden_size=facts and facts.hidden_size)
    if as_json:
        print(json.dumps({"ds_config": str(path), "model": model, "ranks": world_size, "ok": not problems,
                          "problems": [finding.as_json() for finding in problems],
                          "remarks": [finding.as_json() for finding in found if not finding.problem], "auto": autos}))
        return 2 if problems else 0
    for finding in found:
        print(f"{'error' if finding.problem else 'remark'}: {finding}", file=sys.stderr if finding.problem else None)
    for key, value in autos.items():
        print(f"auto: {key} becomes {_told(key, value)}")
    print(f"{path}: {len(problems) or 'no'} problem{'s' if len(problems) > 1 else ''} found, for {world_size} ranks")
    return 2 if problems else 0


def _told(key: str, value: Any) -> str:
    if value is not None:
        return json.dumps(value)
    return "a folder in the run's" if key.endswith("nvme_path") else \
        "what the length of the run says" if key.startswith("scheduler") else "what the model says (--model)"


def _likely_ranks(config: dict) -> int:
    """Where nobody has said how many: what the batch sizes come to, or this machine's devices, or on a CPU two."""
    sizes = [config.get(key) for key in BATCHES]
    if all(isinstance(size, int) and size > 0 for size in sizes) and sizes[0] % (sizes[1] * sizes[2]) == 0:
        return sizes[0] // (sizes[1] * sizes[2])
    accelerator = get_accelerator()
    return 2 if accelerator.device_name() == "cpu" else max(1, accelerator.device_count())
