"""What a model under a ds_config costs on given hardware, and whether it fits: a ghost run, put together.

Everything here is a prediction.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from astrobio.config import ConfigError, StackConfig, set_dotted
from launch import expandable_segments, locked_rounding
from launch.ds_config.auto import resolve
from launch.ds_config.check import check
from launch.ds_config.facts import model_facts
from launch.ds_config.finding import raise_problems
from launch.ds_config.read import read_ds_config
from launch.ds_config.strategy import batch_sizes, precision, settle_precision
from launch.options import TrainConfig
from launch.planner.cost.allocator import CachingAllocator, ExpandableSegments, OutOfMemory, Use
from launch.planner.cost.overhead import idle_bytes, process_bytes
from launch.planner.cost.timing import PhaseTime, replay
from launch.planner.hardware.profile import Hardware, load_hardware
from launch.planner.model import load_model
from launch.planner.simulation import run as ghost
from launch.planner.simulation.recorder import BOTH, GPU, HOST, OPTIMIZER, PARAMETERS, Peak, Phase

PROCESS, WORKERS, CUDA = "Python and libraries", "data workers", "CUDA's libraries"
CONTEXT, CACHED = "CUDA and NCCL context", "cached by the allocator"
TRAINING, VALIDATION = ("forward", "backward", "optimizer"), ("evaluate",)  # the phases of each
#: The first cards that compute bf16: Ampere.
BF16 = (8, 0)
#: Optimizer steps that a ds_config's schedule is resolved for; no size depends on it.
_STEPS = 1000


def plan(model: str | StackConfig, ds_config: Path | str | dict, hardware: str | Hardware = "a5000x2",
         seq_length: int | None = None, micro_batch: int | None = None, ranks: int | None = None,
         changes: dict[str, Any] | None = None, advice: bool = False, largest: bool = False,
         data: Path | None = None, epochs: int | None = None, quick: bool = False) -> dict[str, Any]:
    """Predict memory and time.

    Args:
        model: a preset, a YAML file, the folder of a Hugging Face model (its config.json is enough), or a StackConfig.
        ds_config: a file, or its content; values of "auto" are resolved.
        hardware: a profile, a YAML file, ``this``, or a Hardware.
        seq_length: text tokens; as many as the preset reads if None.
        micro_batch: in place of the ds_config's.
        ranks: as many as the hardware has cards if None.
        changes: dotted keys of the ds_config.
        advice: also look for changes that fit or are faster, a ghost run each.
        largest: also look for the largest micro-batch and the longest text that fit, a handful of ghost runs each.
        quick: by two runs of shortened stacks (`launch.planner.quick`), where that is less.
        data: a built dataset; how long ``epochs`` of it take is told too (as many as launch/train.py runs if None).

    Returns:
        ``fits``; ``gpu`` (one card), ``host`` and ``nvme`` (all ranks of one machine), each with ``peak_bytes``,
        ``limit_bytes``, ``phase`` and ``parts``, cards and host also with ``training_bytes`` and ``validation_bytes``,
        the peaks of these phases alone; ``time`` of one optimizer step, of one batch of a validation, and of a
        checkpoint; ``recipe``, the whole training; and what was asked. Bytes and seconds.

    Raises:
        ConfigError: what is asked cannot run.
    """
    if quick and (advice or largest):
        raise ConfigError("--quick tells of one plan: not with --advice or --largest, whose runs are whole")
    machine = load_hardware(hardware) if isinstance(hardware, str) else hardware
    job = make_job(model, ds_config, machine, seq_length, micro_batch, ranks, changes)
    if quick:
        from launch.planner.quick import quick_plan
        found = quick_plan(job, machine)
    else:
        found = assemble(ghost.run(job), job, machine)
    if data is not None:
        found["recipe"] = recipe(found, data, epochs or TrainConfig.epochs)
    if largest:
        from launch.planner.largest import largest_of
        found["largest"] = largest_of(model, ds_config, machine)
    if advice:
        from launch.planner.advice import advise
        found["advice"] = advise(found, job, machine, model, ds_config, seq_length=seq_length, ranks=ranks)
    return found


def make_job(model: str | StackConfig, ds_config: Path | str | dict, machine: Hardware, seq_length: int | None = None,
             micro_batch: int | None = None, ranks: int | None = None, changes: dict[str, Any] | None = None
             ) -> ghost.Job:
    """The ghost run behind `plan`."""
    stack = model if isinstance(model, StackConfig) else load_model(model, seq_length)
    ranks = ranks or machine.gpus
    changes = dict(changes or {})
    if micro_batch is not None:
        changes["train_micro_batch_size_per_gpu"] = micro_batch
    if isinstance(ds_config, dict):
        raw = json.loads(json.dumps(ds_config))
        for key, value in changes.items():
            set_dotted(raw, key, value)
    else:
        raw = read_ds_config(Path(ds_config), changes)
    if micro_batch is not None:
        raw.pop("train_batch_size", None)
    facts, has_bf16 = model_facts(stack), machine.is_cpu or tuple(machine.capability) >= BF16
    raise_problems(check(raw, world_size=ranks, facts=facts, machine=False, has_bf16=has_bf16),
                   "the ds_config" if isinstance(ds_config, dict) else f"--ds_config {ds_config}")
    raw = settle_precision(raw, has_bf16)
    micro, _ = batch_sizes(raw, ranks)
    resolved = resolve(raw, world_size=ranks, nvme_folder=Path("/nvme"), total_steps=_STEPS,
                       largest_parameter=facts.largest, hidden_size=facts.hidden_size)
    return ghost.Job({"stack": dataclasses.asdict(stack)}, resolved, ranks, micro, seq_length,
                     tuple(machine.capability), machine.gpu_memory_bytes, TrainConfig.eval_micro_batch,
                     expandable=expandable_segments(), rounding=locked_rounding())


def recipe(found: dict[str, Any], data: Path, epochs: int) -> dict[str, Any]:
    """Optimizer steps and days of ``epochs`` of a dataset, validations and checkpoints not counted.

    Raises:
        ConfigError: not a dataset.
    """
    try:
        counts = json.loads((data / "manifest.json").read_text())["counts"]["train"]
        records = sum(kind["records"] for kind in counts.values())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--data {data}: not a built dataset ({error}); `astrobio data build sample --out {data}` "
                          "builds one") from None
    batch = found["micro_batch"] * found["accumulation"] * found["ranks"]
    steps = math.ceil(epochs * records / batch)
    return {"records": records, "epochs": epochs, "steps": steps, "days": steps * found["time"]["step_s"] / 86400}


@dataclass
class Reserved:
    """What the caching allocator takes from a card: its ``peak``, the most in each phase, and whether there is as much.
    Bytes; ``pools``: as `launch.planner.cost.allocator.CachingAllocator` has them."""

    peak: int
    by_phase: dict[str, int]
    fits: bool
    pools: dict[str, dict[tuple[bool, int], Use]] = field(default_factory=dict)


def reserve(blocks: list[tuple[int, int, int]], limit: int | None, expandable: bool) -> Reserved:
    """The blocks of a ghost run in a card with room for ``limit`` bytes, or as many as it takes; ``expandable``: in
    expandable segments."""
    kind = ExpandableSegments if expandable else CachingAllocator
    try:
        allocator, fits = kind(limit).replay(blocks), True
    except OutOfMemory:
        allocator, fits = kind().replay(blocks), False
    return Reserved(allocator.peak_reserved, allocator.by_phase, fits, allocator.pools)


def assemble(result: ghost.Result, job: ghost.Job, machine: Hardware, timed: list[PhaseTime] | None = None,
             reserved: Reserved | None = None) -> dict[str, Any]:
    """The plan that a ghost run and the hardware make together; ``timed`` and ``reserved``: in place of what the run's
    trace and blocks say."""
    local = machine.on_one_machine(job.ranks)
    gpu = None if machine.is_cpu else _gpu(result, machine, reserved or reserve(
        result.blocks, machine.gpu_memory_bytes - machine.context_bytes, job.expandable))
    process, worker = idle_bytes()
    if machine.is_cpu:
        process = process_bytes(precision(job.ds_config), machine)
    host, nvme = _host(result, machine, local, process, worker), _nvme(result, machine, local)
    time = _time(result, job, machine, timed or replay(result.trace, machine, job.ranks))
    sides = [side for side in (gpu, host, nvme) if side is not None]
    return {
        "model": job.workload.get("stack", {}).get("name", job.workload.get("function")), "hardware": machine.name,
        "ranks": job.ranks, "micro_batch": job.micro_batch, "accumulation": result.accumulation,
        "tokens": result.tokens, "parameters": result.parameters, "trainable": result.trainable,
        "fits": all(side["fits"] for side in sides), "gpu": gpu, "host": host, "nvme": nvme,
        "time": time, "checkpoint_bytes": job.ranks * result.checkpoint_bytes,
        "quick": False, "recipe": None, "largest": None, "advice": []}


def _largest(phases: list[Phase], device: str) -> tuple[str, Peak]:
    """The phase that holds the most on a device, and what."""
    phase = max(phases, key=lambda phase: phase.peaks[device].bytes)
    return phase.name, phase.peaks[device]


def peaks_by_phase(phases: list[Phase], device: str) -> dict[str, int]:
    """The most bytes that a device holds in each phase."""
    found: dict[str, int] = {}
    for phase in phases:
        found[phase.name] = max(found.get(phase.name, 0), phase.peaks[device].bytes)
    found.pop("end", None)
    return found


def _apart(by_phase: dict[str, int]) -> dict[str, int | None]:
    """The peaks of training and of a validation, from those of the phases: the whole one may be neither's."""
    return {key: max((by_phase[name] for name in phases if name in by_phase), default=None)
            for key, phases in (("training_bytes", TRAINING), ("validation_bytes", VALIDATION))}


def _gpu(result: ghost.Result, machine: Hardware, reserved: Reserved) -> dict[str, Any]:
    name, peak = _largest(result.phases, GPU)
    parts = {**_sorted(peak.parts), CACHED: max(0, reserved.peak - peak.bytes), CONTEXT: machine.context_bytes}
    return {"peak_bytes": reserved.peak + machine.context_bytes, "limit_bytes": machine.gpu_memory_bytes,
            "fits": reserved.fits, "phase": name, "module": peak.module, "parts": parts, "allocated_bytes": peak.bytes,
            "reserved_bytes": reserved.peak, "resident_bytes": _micro_steps(result.phases)[1][-1].end.get(GPU, 0),
            "phases": peaks_by_phase(result.phases, GPU), "reserved_by_phase": reserved.by_phase,
            **_apart({phase: size + machine.context_bytes for phase, size in reserved.by_phase.items()})}


def _host(result: ghost.Result, machine: Hardware, local: int, process: int, worker: int) -> dict[str, Any]:
    """Host memory of all ranks; ``process``: bytes of one beside its tensors; ``worker``: of one that reads ahead."""
    device = BOTH if machine.is_cpu else HOST
    name, peak = _largest(result.phases, device)
    beside = {PROCESS: process, WORKERS: TrainConfig().data_workers * worker,
              CUDA: machine.context_host_bytes}  # the tensors, in each rank
    parts = {part: local * size for part, size in {**_sorted(peak.parts), **_sorted(beside)}.items()}
    total = local * (peak.bytes + sum(beside.values()))
    phases = {key: local * (size + sum(beside.values())) for key, size in peaks_by_phase(result.phases, device).items()}
    return {"peak_bytes": total, "limit_bytes": machine.host_memory_bytes, "fits": total <= machine.host_memory_bytes,
            "phase": name, "module": peak.module, "parts": parts, "phases": phases, **_apart(phases)}


def _nvme(result: ghost.Result, machine: Hardware, local: int) -> dict[str, Any]:
    resident = local * result.nvme_resident
    optimizer = local * result.nvme_optimizer
    within, last = _micro_steps(result.phases)
    more = result.accumulation - 1
    read, written = (local * (more * sum(getattr(p, key) for p in within) + sum(getattr(p, key) for p in last))
                     for key in ("nvme_read", "nvme_written"))
    return {"peak_bytes": resident, "limit_bytes": machine.nvme_bytes, "fits": resident <= machine.nvme_bytes,
            "phase": "optimizer" if resident else "", "read_bytes_per_step": read, "written_bytes_per_step": written,
            "parts": {OPTIMIZER: optimizer, PARAMETERS: resident - optimizer} if resident else {}}


def _micro_steps(phases: list) -> tuple[list, list]:
    """The phases of a micro-step within an accumulation, and of the last one with the optimizer step."""
    phases = [phase for phase in phases if phase.name in ("forward", "backward", "optimizer")]
    return phases[3:5], phases[-3:]


def _time(result: ghost.Result, job: ghost.Job, machine: Hardware, timed: list[PhaseTime]) -> dict[str, Any]:
    """Seconds of one optimizer step, all its micro-steps together."""
    within, last = _micro_steps(timed)
    more = result.accumulation - 1
    seconds = {phase.name: phase.seconds for phase in last}
    busy = sum((phase.busy for phase in last), start=type(last[0].busy)())
    for phase in within if more else ():
        seconds[phase.name] += more * phase.seconds
        for resource, amount in phase.busy.items():
            busy[resource] += more * amount
    step = sum(seconds.values())
    flops = 3 * last[0].flops * result.accumulation  # a backward pass is two forward passes; recomputation not counted
    return {"forward_s": seconds["forward"], "backward_s": seconds["backward"], "optimizer_s": seconds["optimizer"],
            "step_s": step, "tokens_per_s": result.tokens * result.accumulation * job.ranks / step,
            "mfu": flops / (step * machine.peak_flops_per_s), "bound_by": max(busy, key=busy.get),
            "busy_s": _sorted(busy), "init_s": timed[0].seconds,
            **{f"{phase.name}_s": phase.seconds for phase in timed if phase.name in ("evaluate", "save", "load")}}


def _sorted(parts: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(((key, value) for key, value in parts.items() if value), key=lambda item: -item[1]))
