"""Checkpoints of a run: saved whole or not at all, found again, and loaded only where DeepSpeed loads them rightly.

A run's ``checkpoints/`` holds one folder for each saved step, ``step_00000500``, with DeepSpeed's files, the random
state of every rank, and `STATE`, which is written last; beside them ``best`` names the best one. A folder that is
being written ends in ``.partial``.
"""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import numpy as np
import torch
from deepspeed.accelerator import get_accelerator

from astrobio.config import ConfigError, StackConfig
from astrobio.files import sync, write_whole
from launch.zero.ds_config import strategy

STATE = "run_state.json"
BEST = "best"
PARTIAL = ".partial"


def folder_of(run: Path) -> Path:
    return run / "checkpoints"


def is_complete(checkpoint: Path) -> bool:
    return checkpoint.suffix != PARTIAL and (checkpoint / STATE).is_file()


def complete_checkpoints(run: Path) -> list[Path]:
    """The run's complete checkpoints, oldest first."""
    return sorted(path for path in folder_of(run).glob("step_*") if is_complete(path))


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint that validated best, if one is kept."""
    name = folder_of(run) / BEST
    best = folder_of(run) / name.read_text().strip() if name.is_file() else None
    return best if best is not None and is_complete(best) else None


def save(engine, run: Path, state: dict[str, Any], best: bool = False) -> Path:
    """Save the engine, every rank's random state and ``state`` (JSON) as the checkpoint of the present step.

    All ranks call it. The folder gets its name only when every rank's files are in it; a step that is saved already is
    not written again.
    """
    target = folder_of(run) / f"step_{engine.global_steps:08d}"
    if not is_complete(target):
        partial = target.with_name(target.name + PARTIAL)
        if dist.get_rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        engine.save_checkpoint(str(partial.parent), tag=partial.name, client_state={}, save_latest=False)
        torch.save(_random_state(), partial / f"random_state_rank_{dist.get_rank():05d}.pt")
        dist.barrier()
        if dist.get_rank() == 0:
            for path in partial.rglob("*"):
                if path.is_file():
                    sync(path)
            write_whole(partial / STATE, json.dumps(state, indent=2))
            sync(partial)
            os.rename(partial, target)
            sync(target.parent)
    if best and dist.get_rank() == 0:
        write_whole(folder_of(run) / BEST, target.name + "\n")
    dist.barrier()
    return target


def remove_old(run: Path, keep_last: int) -> None:
    """Remove all complete checkpoints but the last ``keep_last`` and the best one. Rank 0 only."""
    kept = {*complete_checkpoints(run)[-keep_last:], best_checkpoint(run)}
    for path in complete_checkpoints(run):
        if path not in kept:
            (path / STATE).unlink()  # first, so that a half-removed folder is not taken for a checkpoint
            shutil.rmtree(path)


def remove_partial(run: Path) -> None:
    """Remove what a killed save or removal left behind. Rank 0 only, before the first save."""
    for path in folder_of(run).glob("step_*"):
        if not is_complete(path):
            shutil.rmtree(path)


def load(engine, checkpoint: Path) -> dict[str, Any]:
    """Restore the engine and this rank's random state; returns the ``state`` that was saved."""
    path, _ = engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    if path is None:
        raise RuntimeError(f"{checkpoint}: DeepSpeed found nothing to load")
    random_state = checkpoint / f"random_state_rank_{dist.get_rank():05d}.pt"
    if random_state.is_file():
        _set_random_state(torch.load(random_state, weights_only=False))
    return json.loads((checkpoint / STATE).read_text())


def load_weights(engine, checkpoint: Path) -> None:
    """Only the weights, for an evaluation of the best model at the end of a run."""
    engine.load_checkpoint(str(checkpoint.parent), tag=checkpoint.name, load_optimizer_states=True,
                           load_lr_scheduler_states=False)


def can_load(ds_config: dict) -> bool:
    """Whether DeepSpeed 0.19.8 restores a checkpoint of this config at all.

    With the optimizer on NVMe it does not: `load_checkpoint` skips the ZeRO state, so that Adam's moments and step
    counter, the loss scale and small sub-groups' weights are lost without a word.
    """
    return strategy(ds_config).optimizer_device != "nvme"


def check_compatible(checkpoint: Path, stack: StackConfig, ds_config: dict, data: Path) -> None:
    """Refuse a resume that would continue something else than was saved, or be silently wrong.

    Raises:
        ConfigError: another model, another dataset, another ZeRO layout, or a config that DeepSpeed cannot resume.
    """
    state = json.loads((checkpoint / STATE).read_text())
    problems = []
    if not can_load(ds_config):
        problems.append("its ds_config keeps the optimizer on NVMe, whose state DeepSpeed 0.19.8 loses on loading "
                        "without a word: train with an optimizer on the CPU if the run must be resumed")
    if state["model"] != stack.name:
        problems.append(f"it was saved from model {state['model']!r}, not {stack.name!r}")
    if state["dataset"] != dataset_hash(data):
        problems.append(f"it was trained on a dataset of content_sha256 {state['dataset'][:12]}…, {data} has "
                        f"{dataset_hash(data)[:12]}…")
    layout = layout_of(ds_config)
    for key, value in layout.items():
        if state["layout"][key] != value:
            problems.append(f"it was saved with {key} = {state['layout'][key]}, this run has {value}: resume with "
                            "the ds_config it was saved with")
    if problems:
        raise ConfigError("\n".join(f"--resume {checkpoint}: {problem}" for problem in problems))


def layout_of(ds_config: dict) -> dict[str, Any]:
    """What must be the same for DeepSpeed's own checkpoint to fit."""
    plan = strategy(ds_config)
    return {"zero stage": plan.stage, "precision": plan.precision, "offload_optimizer": plan.optimizer_device,
            "sub_group_size": ds_config.get("zero_optimization", {}).get("sub_group_size"),
            "world size": int(os.environ.get("WORLD_SIZE", 1))}


def dataset_hash(data: Path) -> str:
    return json.loads((data / "manifest.json").read_text())["content_sha256"]


def _random_state() -> dict[str, Any]:
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(),
            "device": get_accelerator().get_rng_state()}


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    get_accelerator().set_rng_state(state["device"])
