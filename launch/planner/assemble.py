"""Assembles a plan from a simulation and the hardware."""

import dataclasses
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from launch.options import TrainConfig
from launch.planner.cost.allocator import CachingAllocator, ExpandableSegments, OutOfMemory
from launch.planner.cost.overhead import idle_bytes, process_bytes
from launch.planner.cost.timing import PhaseTime, replay
from launch.planner.hardware import Hardware
from launch.planner.job import Job
from launch.planner.simulation import pool
from launch.planner.simulation.parts import BOTH, GPU, HOST, OPTIMIZER, PARAMETERS
from launch.planner.simulation.spec import Peak, Phase, Result, Simulation

PROCESS, WORKERS, CUDA = "Python and libraries", "data workers", "CUDA's libraries"
CONTEXT, CACHED = "CUDA and NCCL context", "cached by the allocator"
TRAINING, VALIDATION = ("forward", "backward", "optimizer"), ("evaluate",)  # the phases of each


@dataclass(kw_only=True)
class Memory:
    """Peak use of one kind of memory, in bytes."""

    peak_bytes: int
    limit_bytes: int
    fits: bool
    phase: str  # of the peak
    parts: dict[str, int]  # of the peak, the largest first


@dataclass(kw_only=True)
class HostMemory(Memory):
    """Host memory of one machine, for all its ranks together."""

    module: str  # that runs at the peak
    phases: dict[str, int]  # peaks by phase
    training_bytes: int | None  # the peak of training alone …
    validation_bytes: int | None  # … and of a validation


@dataclass(kw_only=True)
class CardMemory(HostMemory):
    """Memory of one card. ``phases`` are the peaks of allocated bytes."""

    allocated_bytes: int  # of torch's allocator at its peak, without what it caches
    reserved_bytes: int  # with what it caches
    resident_bytes: int  # allocated between steps
    reserved_by_phase: dict[str, int]


@dataclass(kw_only=True)
class Disk(Memory):
    """The swap files of one machine's ranks."""

    read_bytes_per_step: int
    written_bytes_per_step: int


@dataclass(kw_only=True)
class Time:
    """Seconds of one optimizer step with all its micro-steps, and of validation, save and load."""

    forward_s: float
    backward_s: float
    optimizer_s: float
    step_s: float
    tokens_per_s: float
    mfu: float  # model FLOPs utilisation, recomputation not counted
    bound_by: str
    busy_s: dict[str, float]  # by resource
    init_s: float
    evaluate_s: float | None = None  # a batch of a validation
    save_s: float | None = None
    load_s: float | None = None


@dataclass(kw_only=True)
class Plan:
    """What a model under a ds_config costs on given hardware; everything is a prediction."""

    model: str
    hardware: str
    ranks: int
    micro_batch: int
    accumulation: int
    tokens: int  # of one micro-batch
    parameters: int
    trainable: int
    fits: bool
    gpu: CardMemory | None  # None on a machine without cards
    host: HostMemory
    nvme: Disk
    time: Time
    checkpoint_bytes: int
    recipe: dict[str, Any] | None = None  # the whole training on a dataset, `launch.planner.plan.training_time`
    largest: dict[str, int] | None = None  # `launch.planner.search.largest`
    advice: list[dict[str, Any]] = field(default_factory=list)  # `launch.planner.search.advise`

    @property
    def sides(self) -> dict[str, Memory]:
        """Cards, host and NVMe, as far as the machine has them."""
        return {name: side for name in ("gpu", "host", "nvme") if (side := getattr(self, name)) is not None}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


@dataclass
class Reserved:
    """Bytes that the caching allocator reserves on a card: the peak, and the peak of each phase."""

    peak: int
    by_phase: dict[str, int]
    fits: bool


def reserve(result: Result, limit: int, expandable: bool) -> Reserved:
    """Replay a simulation's allocations on a card of ``limit`` bytes, or on an unlimited one if they do not fit."""
    kind = ExpandableSegments if expandable else CachingAllocator
    try:
        allocator, fits = kind(limit).replay(result.allocations), True
    except OutOfMemory:
        allocator, fits = kind().replay(result.allocations), False
    return Reserved(allocator.peak_reserved, allocator.by_phase, fits)


def plan_of(job: Job) -> Plan:
    """Simulate a job and assemble its plan.

    Raises:
        ConfigError: it cannot run.
    """
    return plans_of({"": job})[""]


def plans_of(jobs: dict[str, Job], beyond_training: bool = True) -> dict[str, Plan]:
    """Plans of several jobs by name; with ``beyond_training`` they also validate, save and load.

    Raises:
        ConfigError: of the first that cannot run.
    """
    simulations = {name: job.simulation(beyond_training) for name, job in jobs.items()}
    results = pool.run_all(simulations)
    return {name: assemble(results[name], simulations[name], job.hardware) for name, job in jobs.items()}


def assemble(result: Result, simulation: Simulation, hardware: Hardware) -> Plan:
    """The plan for a simulation on the hardware."""
    local = hardware.on_one_machine(simulation.ranks)
    gpu = None if hardware.is_cpu else _card(result, simulation, hardware)
    host, nvme = _host(result, simulation, hardware, local), _nvme(result, hardware, local)
    plan = Plan(
        model=simulation.model,
        hardware=hardware.name,
        ranks=simulation.ranks,
        micro_batch=simulation.micro_batch,
        accumulation=result.accumulation,
        tokens=result.tokens,
        parameters=result.parameters,
        trainable=result.trainable,
        fits=False,
        gpu=gpu,
        host=host,
        nvme=nvme,
        time=_time(result, simulation, replay(result.trace, hardware, simulation.ranks), hardware),
        checkpoint_bytes=simulation.ranks * result.checkpoint_bytes,
    )
    plan.fits = all(side.fits for side in plan.sides.values())
    return plan


def _largest(phases: list[Phase], device: str) -> tuple[str, Peak]:
    phase = max(phases, key=lambda phase: phase.peaks[device].bytes)
    return phase.name, phase.peaks[device]


def peaks_by_phase(phases: list[Phase], device: str) -> dict[str, int]:
    """Peak bytes on a device in each phase."""
    peaks: dict[str, int] = {}
    for phase in phases:
        peaks[phase.name] = max(peaks.get(phase.name, 0), phase.peaks[device].bytes)
    peaks.pop("end", None)
    return peaks


def _apart(by_phase: dict[str, int]) -> dict[str, int | None]:
    """The peaks of training and of a validation: the peak of the whole run may be in neither."""
    return {
        key: max((by_phase[name] for name in phases if name in by_phase), default=None)
        for key, phases in (("training_bytes", TRAINING), ("validation_bytes", VALIDATION))
    }


def _card(result: Result, simulation: Simulation, hardware: Hardware) -> CardMemory:
    reserved = reserve(result, hardware.gpu_memory_bytes - hardware.context_bytes, simulation.expandable)
    name, peak = _largest(result.phases, GPU)
    _, last = _micro_steps(result.phases)
    return CardMemory(
        peak_bytes=reserved.peak + hardware.context_bytes,
        limit_bytes=hardware.gpu_memory_bytes,
        fits=reserved.fits,
        phase=name,
        module=peak.module,
        parts={**_sorted(peak.parts), CACHED: max(0, reserved.peak - peak.bytes), CONTEXT: hardware.context_bytes},
        allocated_bytes=peak.bytes,
        reserved_bytes=reserved.peak,
        resident_bytes=last[-1].end.get(GPU, 0),
        phases=peaks_by_phase(result.phases, GPU),
        reserved_by_phase=reserved.by_phase,
        **_apart({phase: size + hardware.context_bytes for phase, size in reserved.by_phase.items()}),
    )


def _host(result: Result, simulation: Simulation, hardware: Hardware, local: int) -> HostMemory:
    process, worker = idle_bytes()
    if hardware.is_cpu:
        process = process_bytes(simulation.ds_config.precision, hardware)
    device = BOTH if hardware.is_cpu else HOST
    name, peak = _largest(result.phases, device)
    beside = {PROCESS: process, WORKERS: TrainConfig().data_workers * worker, CUDA: hardware.context_host_bytes}
    fixed = sum(beside.values())
    phases = {key: local * (size + fixed) for key, size in peaks_by_phase(result.phases, device).items()}
    total = local * (peak.bytes + fixed)
    return HostMemory(
        peak_bytes=total,
        limit_bytes=hardware.host_memory_bytes,
        fits=total <= hardware.host_memory_bytes,
        phase=name,
        module=peak.module,
        phases=phases,
        **_apart(phases),
        parts={part: local * size for part, size in {**_sorted(peak.parts), **_sorted(beside)}.items()},
    )


def _nvme(result: Result, hardware: Hardware, local: int) -> Disk:
    resident, optimizer = local * result.nvme_resident, local * result.nvme_optimizer
    within, last = _micro_steps(result.phases)
    more = result.accumulation - 1

    def per_step(key: str) -> int:
        return local * (more * sum(getattr(p, key) for p in within) + sum(getattr(p, key) for p in last))

    return Disk(
        peak_bytes=resident,
        limit_bytes=hardware.nvme_bytes,
        fits=resident <= hardware.nvme_bytes,
        phase="optimizer" if resident else "",
        read_bytes_per_step=per_step("nvme_read"),
        written_bytes_per_step=per_step("nvme_written"),
        parts={OPTIMIZER: optimizer, PARAMETERS: resident - optimizer} if resident else {},
    )


def _micro_steps(phases: list) -> tuple[list, list]:
    """The phases of a micro-step within an accumulation (none without), and of the last one with its optimizer step.

    A simulation runs `launch.planner.simulation.spec.MICRO_STEPS`: the first micro-step is not counted."""
    training = [phase for phase in phases if phase.name in TRAINING]
    ends = [number for number, phase in enumerate(training) if phase.name == "optimizer"]
    first, last = ends[0] + 1, ends[-1] + 1
    return training[first : last - 3], training[last - 3 : last]


def _time(result: Result, simulation: Simulation, timed: list[PhaseTime], hardware: Hardware) -> Time:
    within, last = _micro_steps(timed)
    more = result.accumulation - 1
    seconds = {phase.name: phase.seconds for phase in last}
    for phase in within:
        seconds[phase.name] += more * phase.seconds
    busy: dict[str, float] = defaultdict(float)
    for phase, times in [(phase, 1) for phase in last] + [(phase, more) for phase in within]:
        for resource, amount in phase.busy.items():
            busy[resource] += times * amount
    step = sum(seconds.values())
    flops = 3 * last[0].flops * result.accumulation  # a backward pass is two forward passes; recomputation not counted
    beside = {f"{phase.name}_s": phase.seconds for phase in timed if phase.name in ("evaluate", "save", "load")}
    return Time(
        forward_s=seconds["forward"],
        backward_s=seconds["backward"],
        optimizer_s=seconds["optimizer"],
        step_s=step,
        tokens_per_s=result.tokens * result.accumulation * simulation.ranks / step,
        mfu=flops / (step * hardware.peak_flops_per_s),
        bound_by=max(busy, key=lambda resource: busy[resource]),
        busy_s=_sorted(busy),
        init_s=timed[0].seconds,
        **beside,
    )


def _sorted(parts: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(((key, value) for key, value in parts.items() if value), key=lambda item: -item[1]))
