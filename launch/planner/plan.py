"""Predicts what a model under a ds_config costs on given hardware, and whether it fits. Start here.

A job is simulated (`launch.planner.simulation`), its allocations and its work are replayed on the hardware
(`launch.planner.cost`), and both make a plan (`launch.planner.assemble`). Everything is a prediction.
"""

import json
import math
from pathlib import Path
from typing import Any

from astrobio.config import ConfigError
from launch.options import TrainConfig
from launch.planner import search
from launch.planner.assemble import Plan, plan_of
from launch.planner.job import Job


def plan(
    job: Job, *, advice: bool = False, largest: bool = False, data: Path | None = None, epochs: int | None = None
) -> Plan:
    """Predict memory and time.

    Args:
        job: as `launch.planner.job.make_job` makes it.
        advice: also look for changes that fit or are faster, a ghost run each.
        largest: also look for the largest micro-batch and the longest text that fit, a handful of ghost runs each.
        data: a built dataset: the plan also says how long ``epochs`` take (as many as launch/train.py runs if None).

    Raises:
        ConfigError: the job cannot run, or ``data`` is no dataset.
    """
    answer = plan_of(job)
    if data is not None:
        answer.recipe = training_time(answer, data, epochs or TrainConfig.epochs)
    if largest:
        answer.largest = search.largest(job)
    if advice:
        answer.advice = search.advise(job, answer)
    return answer


def training_time(plan: Plan, data: Path, epochs: int) -> dict[str, Any]:
    """Optimizer steps and days of ``epochs`` of a dataset, without validations and checkpoints.

    Raises:
        ConfigError: not a dataset.
    """
    try:
        counts = json.loads((data / "manifest.json").read_text())["counts"]["train"]
        records = sum(kind["records"] for kind in counts.values())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--data {data}: not a built dataset ({error}); `astrobio data build sample --out {data}` builds one"
        ) from None
    steps = math.ceil(epochs * records / (plan.micro_batch * plan.accumulation * plan.ranks))
    return {"records": records, "epochs": epochs, "steps": steps, "days": steps * plan.time.step_s / 86400}
