"""The nearest changes to a ds_config that make a model fit, or make it faster: each is ghost-run before it is named."""

import json
import shlex
from typing import Any

from astrobio.blocks import Block
from astrobio.config import ConfigError
from astrobio.graph_vae import Layer
from launch.ds_config.strategy import strategy
from launch.planner.hardware.profile import Hardware
from launch.planner.plan import assemble, make_job
from launch.planner.report import GIB, seconds
from launch.planner.simulation import run as ghost

#: A change is called faster from this share of a step on.
_WORTHWHILE = 0.05
#: Of the stack's encoders. A layer of the language model is so large that to wait for all of it takes longer.
LAYERS = [f"{layer.__module__}.{layer.__name__}" for layer in (Layer, Block)]
_OPTIMIZER, _PARAM = "zero_optimization.offload_optimizer", "zero_optimization.offload_param"


def candidates(job: ghost.Job, machine: Hardware) -> dict[str, dict[str, Any]]:
    """What might help, by what it is: dotted keys of the ds_config."""
    where, zero = strategy(job.ds_config), job.ds_config.get("zero_optimization", {})
    offload = zero.get("offload_optimizer") or {}
    found: dict[str, dict[str, Any]] = {}
    if where.precision == "fp16" and machine.capability[0] >= 8:
        found["bf16 in place of fp16"] = {"fp16.enabled": False, "bf16.enabled": True}
    if where.optimizer_device != "none" and offload.get("pin_memory", True):
        found["gradients and optimizer state not page-locked"] = {f"{_OPTIMIZER}.pin_memory": False}
    if where.optimizer_device == "cpu" and where.stage == 3:
        found["the optimizer on NVMe"] = {_OPTIMIZER: {**offload, "device": "nvme", "nvme_path": "/nvme",
                                                       "pin_memory": False, "buffer_count": 5}}
    if where.optimizer_device == "nvme":
        found["the optimizer on the host"] = {f"{_OPTIMIZER}.device": "cpu"}
    if where.stage == 3 and where.param_device != "none":
        found["parameters on the cards"] = {_PARAM: {"device": "none"}}
    if where.stage == 3 and where.param_device == "none" and where.optimizer_device != "none":
        found["parameters on the host"] = {_PARAM: {"device": "cpu", "pin_memory": False}}
    parts = job.workload.get("stack", {}).values()
    if where.stage == 3 and "leaf_module" not in zero and any("depth" in part for part in parts if type(part) is dict):
        found["each encoder's layers gathered as a whole"] = {"zero_optimization.leaf_module.classes": LAYERS}
    accumulation = job.ds_config.get("gradient_accumulation_steps", 1)
    if accumulation % 2 == 0:
        found["twice the micro-batch, half the accumulation"] = {
            "train_micro_batch_size_per_gpu": 2 * job.micro_batch, "gradient_accumulation_steps": accumulation // 2}
    return found


def advise(plan: dict[str, Any], job: ghost.Job, machine: Hardware, model, ds_config, **options) -> list[dict]:
    """Changes that fit where the plan does not, or that fit and are faster, best first: each with its ``text``,
    ``changes`` and what its own ghost run gave."""
    advice = []
    for text, changes in candidates(job, machine).items():
        try:
            other = make_job(model, ds_config, machine, changes=changes, **options)
            found = assemble(ghost.run(other), other, machine)
        except ConfigError:
            continue  # it cannot run, and is not recommended
        step = found["time"]["step_s"]
        if not found["fits"] or plan["fits"] and step > (1 - _WORTHWHILE) * plan["time"]["step_s"]:
            continue
        sizes = ", ".join(f"{found[key]['peak_bytes'] / GIB:.1f} GiB {label}" for key, label in
                          (("gpu", "on each card"), ("host", "on the host"), ("nvme", "on NVMe"))
                          if found[key] and found[key]["peak_bytes"])
        settings = " ".join(shlex.quote(f"ds_config.{key}={json.dumps(value)}") for key, value in changes.items())
        advice.append({"text": f"{text} fits: {sizes}, a step in {seconds(step)} (--set {settings})",
                       "changes": changes, "step_s": step,
                       **{key: found[key]["peak_bytes"] for key in ("gpu", "host", "nvme") if found[key]}})
    return sorted(advice, key=lambda item: item["step_s"])
