"""Compares jobs: small changes that help, the largest micro-batch and the longest text that fit."""

import dataclasses
import json
import shlex
from collections.abc import Callable
from typing import Any

from astrobio.blocks import Block
from astrobio.config import ConfigError
from astrobio.graph_vae import Layer
from launch.ds_config.compression import compression_contradictions
from launch.ds_config.config import COMPRESSED, DsConfig
from launch.planner.assemble import Plan, plan_of, plans_of
from launch.planner.job import Job
from launch.planner.units import gb, seconds

#: A change is called faster from this share of a step on.
_WORTHWHILE = 0.05
#: Of the stack's encoders. A layer of the language model is so large that to wait for all of it takes longer.
LAYERS = [f"{layer.__module__}.{layer.__name__}" for layer in (Layer, Block)]
_OPTIMIZER, _PARAM = "zero_optimization.offload_optimizer", "zero_optimization.offload_param"
#: Text lengths are tried in steps of so many tokens, micro-batches one by one.
TOKENS = 256
_MOST = 1 << 12  # micro-batches, or steps of tokens, beyond which there is no search


def candidates(job: Job) -> dict[str, dict[str, Any]]:
    """Changes that might help, as dotted keys of the ds_config, by their description."""
    ds_config, optimizer = job.ds_config, job.ds_config.optimizer_offload
    changes: dict[str, dict[str, Any]] = {}
    if ds_config.precision == "fp16" and job.hardware.capability[0] >= 8:
        changes["bf16 in place of fp16"] = {"fp16.enabled": False, "bf16.enabled": True}
    if optimizer.device != "none" and optimizer.pin_memory:
        changes["gradients and optimizer state not page-locked"] = {f"{_OPTIMIZER}.pin_memory": False}
    if optimizer.device == "cpu" and ds_config.stage == 3:
        changes["the optimizer on NVMe"] = {
            f"{_OPTIMIZER}.device": "nvme",
            f"{_OPTIMIZER}.nvme_path": "/nvme",
            f"{_OPTIMIZER}.pin_memory": False,
            f"{_OPTIMIZER}.buffer_count": 5,
        }
    if _may_compress(ds_config):
        changes["an optimizer with 8-bit moments"] = {f"{COMPRESSED}.enabled": True}
    if optimizer.device == "nvme":
        changes["the optimizer on the host"] = {f"{_OPTIMIZER}.device": "cpu"}
    if ds_config.stage == 3 and ds_config.parameter_offload.device != "none":
        changes["parameters on the cards"] = {_PARAM: {"device": "none"}}
    if ds_config.stage == 3 and ds_config.parameter_offload.device == "none" and optimizer.device != "none":
        changes["parameters on the host"] = {_PARAM: {"device": "cpu", "pin_memory": False}}
    if ds_config.stage == 3 and ds_config.leaf_classes is None and _has_encoder_layers(job):
        changes["each encoder's layers gathered as a whole"] = {"zero_optimization.leaf_module.classes": LAYERS}
    accumulation = ds_config.accumulation or 1
    if accumulation % 2 == 0:
        changes["twice the micro-batch, half the accumulation"] = {
            "train_micro_batch_size_per_gpu": 2 * job.micro_batch,
            "gradient_accumulation_steps": accumulation // 2,
        }
    return changes


def _may_compress(ds_config: DsConfig) -> bool:
    raw = ds_config.changed({f"{COMPRESSED}.enabled": True}).raw
    return ds_config.compression is None and not compression_contradictions(raw)


def _has_encoder_layers(job: Job) -> bool:
    parts = (getattr(job.stack, field.name) for field in dataclasses.fields(job.stack))
    return any(hasattr(part, "depth") for part in parts)


def advise(job: Job, plan: Plan) -> list[dict[str, Any]]:
    """Changes that fit where the job's ``plan`` does not, or that fit and are faster, best first: each with its
    ``text``, ``changes``, ``step_s`` and the peak bytes of ``gpu``, ``host`` and ``nvme``, all from a ghost run."""
    advice = []
    for text, changes in candidates(job).items():
        try:
            other = plan_of(job.changed(changes))
        except ConfigError:
            continue  # it cannot run
        step = other.time.step_s
        if not other.fits or plan.fits and step > (1 - _WORTHWHILE) * plan.time.step_s:
            continue
        labels = {"gpu": "on each card", "host": "on the host", "nvme": "on NVMe"}
        sizes = ", ".join(
            f"{gb(side.peak_bytes)} {labels[name]}" for name, side in other.sides.items() if side.peak_bytes
        )
        settings = " ".join(shlex.quote(f"ds_config.{key}={json.dumps(value)}") for key, value in changes.items())
        advice.append(
            {
                "text": f"{text} fits: {sizes}, a step in {seconds(step)} (--set {settings})",
                "changes": changes,
                "step_s": step,
                **{name: side.peak_bytes for name, side in other.sides.items()},
            }
        )
    return sorted(advice, key=lambda item: item["step_s"])


def largest(job: Job) -> dict[str, int]:
    """The largest ``micro_batch`` of texts as long as the job's, and the longest ``seq_length`` in tokens of a
    micro-batch of one; 0 where not even the smallest fits the cards. A sequence does not become longer than the
    language model has positions for, beside the modalities' tokens.

    Raises:
        ConfigError: a machine without cards.
    """
    if job.hardware.is_cpu:
        raise ConfigError(f"--largest: {job.hardware.name} has no card whose memory could be the limit")
    positions = job.stack.language.config.get("max_position_embeddings", TOKENS * _MOST) - job.stack.prefix_tokens
    same = {"gradient_accumulation_steps": job.ds_config.accumulation}
    return {
        "micro_batch": _most_that_fits(lambda n: job.changed(same, micro_batch=n), _MOST),
        "seq_length": TOKENS
        * _most_that_fits(lambda n: job.changed(same, seq_length=n * TOKENS, micro_batch=1), positions // TOKENS),
    }


def _most_that_fits(job_of: Callable[[int], Job], most: int) -> int:
    """The largest ``n`` up to ``most`` whose job fits. Memory is close to a straight line in it, so two runs say where
    to look; the answer itself was run, and so was the next, which does not fit."""
    sizes: dict[int, int] = {}
    fitting: dict[int, bool] = {}
    limit = job_of(1).hardware.gpu_memory_bytes

    def look(*numbers: int) -> None:
        jobs = {str(n): job_of(n) for n in numbers if n not in sizes}
        # Neither a validation nor a checkpoint depends on the micro-batch.
        for name, plan in plans_of(jobs, beyond_training=False).items():
            assert plan.gpu is not None  # `largest` refuses machines without cards
            sizes[int(name)], fitting[int(name)] = plan.gpu.peak_bytes, plan.gpu.fits

    def fits(n: int) -> bool:
        if n not in sizes:
            look(n)
        return fitting[n]

    look(1, 2)
    if not fits(1):
        return 0
    low, high = 1, most + 1  # low fits, high does not
    while high - low > 1:
        guess = _where_it_ends(sizes, limit) if len(sizes) > 1 else 2
        guess = min(max(guess, low + 1), high - 1)
        if guess + 1 < high:
            look(guess, guess + 1)
        for n in (guess, guess + 1):
            if n < high and fits(n):
                low = max(low, n)
            else:
                high = min(high, n)
    return low


def _where_it_ends(sizes: dict[int, int], limit: int) -> int:
    """By the line through the two sizes that were run nearest to the limit."""
    (first, a), (second, b) = sorted(sizes.items(), key=lambda item: abs(item[1] - limit))[:2]
    slope = (b - a) / (second - first)
    return int(first + (limit - a) / slope) if slope > 0 else 2 * max(sizes)
