"""The quick form of a plan: two ghost runs of shortened stacks, and a straight line through them.

Where layers repeat, what a run holds, moves and waits for grows by the same amount with each. So two stacks with some
of its layers tell of the whole: it is as far beyond the second as the second beyond the first, a few times over
(`way`). All kinds of layers are shortened at once, so that one line holds for all of them.

One thing is no straight line: how much the caching allocator keeps beside what is allocated. It depends on all blocks
that came before. Those of the whole stack are known in most of its pools (`launch.planner.unrolled`); in the others it
keeps what it does in the longer of the two runs.
"""

import copy
import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from launch.planner.cost.allocator import Use
from launch.planner.cost.timing import PhaseTime, replay
from launch.planner.hardware.profile import Hardware
from launch.planner.plan import Reserved, assemble, peaks_by_phase, reserve
from launch.planner.simulation import run as ghost
from launch.planner.simulation.recorder import GPU, Peak, Phase, locked_bytes
from launch.planner.unrolled import Pool, Step, blocks_of, steps, unrolled

#: What configs of language models call their number of layers.
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def quick_plan(job: ghost.Job, machine: Hardware) -> dict[str, Any]:
    """What `launch.planner.plan.plan` returns, in the quick form if the stack is deep enough for it: ``quick`` says."""
    jobs = cut(job)
    if jobs[0].workload == jobs[1].workload:
        return assemble(ghost.run(job), job, machine)
    names = "a shortened stack", "a longer one"
    results, phases, taken = {}, {}, {}
    for name, result in ghost.run_each(dict(zip(names, jobs, strict=True))):  # the first while the second still runs
        results[name], phases[name] = result, replay(result.trace, machine, job.ranks)
        taken[name] = steps(result.blocks)
    line = Line(way(job)[0], job.rounding)
    whole = line.result(*(results[name] for name in names))
    if any(results[names[0]].parameters < limit <= whole.parameters for limit in limits(job)):
        return assemble(ghost.run(job), job, machine)
    timed = [line.time(*pair) for pair in zip(*(phases[name] for name in names), strict=True)]
    reserved = None if machine.is_cpu else line.reserved(whole, *(taken[name] for name in names), machine,
                                                         job.expandable)
    return assemble(whole, job, machine, timed, reserved) | {"quick": True}


def way(job: ghost.Job) -> tuple[int, Callable[[int], int]]:
    """As many times as the longer stack is beyond the shorter one, the whole is beyond the shorter one; and how many
    layers more of a kind the longer one has, by how many there are."""
    zero = job.ds_config.get("zero_optimization", {})
    if zero.get("stage") != 3:  # several layers share a reduce bucket: one does not tell of the next
        return 7, lambda depth: depth // 8 if depth >= 16 else 0
    if zero.get("stage3_max_reuse_distance") == 0:  # each is fetched alike, in whatever proportion the kinds are
        return 10, lambda depth: (depth - 1) // 10
    # How many parameters are kept for later, and fetched ahead, depends on all that came before. In another proportion,
    # or in a much shorter stack, more of them would be.
    return 7, lambda depth: depth // 8


def limits(job: ghost.Job) -> list[int]:
    """From how many parameters on DeepSpeed treats a model in another way: no line leads past one of them."""
    zero = DeepSpeedZeroConfig(**job.ds_config.get("zero_optimization", {}))
    found = [zero.reduce_bucket_size]
    if zero.stage == 3:
        found += zero.max_live_parameters, zero.prefetch_bucket_size, zero.sub_group_size * job.ranks
        if zero.offload_param and zero.offload_param.device == "nvme":
            found.append(zero.offload_param.max_in_cpu * job.ranks)
    return found


def cut(job: ghost.Job) -> tuple[ghost.Job, ghost.Job]:
    """The job with a shortened stack and with a longer one. DeepSpeed goes other ways where a card is almost full, so
    that the card shrinks with them."""
    times, more = way(job)
    return tuple(dataclasses.replace(job, workload={"stack": stack}, memory=part * job.memory // (times + 1))
                 for part, stack in enumerate(shortened(job.workload["stack"], times, more), 1))


def shortened(stack: dict[str, Any], times: int, more: Callable[[int], int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The stack, a `StackConfig` as nested dicts, with some of its layers, and with some more, as `way` says."""
    shorter = copy.deepcopy(stack), copy.deepcopy(stack)
    for (part, key), *others in zip(_depths(stack), *map(_depths, shorter), strict=True):
        depth, step = part[key], more(part[key])
        for (other, _), layers in zip(others, (depth - times * step, depth - (times - 1) * step), strict=True):
            for name, value in other.items():
                if isinstance(value, (list, tuple)) and len(value) == depth:  # one entry for each layer
                    other[name] = value[:layers]
            other[key] = layers
    return shorter


def _depths(stack: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Where the stack says how many layers of each kind it has."""
    language = stack["language"]["config"]
    yield from ((language, key) for key in _LAYERS if key in language)
    yield from ((part, "depth") for part in stack.values() if isinstance(part, dict) and "depth" in part)


@dataclass(frozen=True)
class Line:
    """Through a shortened stack and a longer one, to the whole, ``times`` as far beyond the first."""

    times: int
    rounding: int | None = None  # of page-locked memory, see `locked_bytes`

    def at(self, short: float, long: float) -> float:
        return short + self.times * (long - short)

    def amount(self, short: float, long: float) -> float:
        """On the line, but never below nothing."""
        return max(0, self.at(short, long))

    def each(self, short: dict, long: dict) -> dict:
        return {key: self.amount(short.get(key, 0), long.get(key, 0)) for key in {**short, **long}}

    def result(self, short: ghost.Result, long: ghost.Result) -> ghost.Result:
        optimizer = self.amount(short.nvme_optimizer, long.nvme_optimizer)
        return dataclasses.replace(
            long, phases=[self._phase(*pair) for pair in zip(short.phases, long.phases, strict=True)],
            trace=[], blocks=[],
            files={"/optimizer/": optimizer,
                   "/parameters/": self.amount(short.nvme_resident, long.nvme_resident) - optimizer},
            operators=self.at(short.operators, long.operators),
            parameters=self.at(short.parameters, long.parameters), trainable=self.at(short.trainable, long.trainable),
            checkpoint_bytes=self.at(short.checkpoint_bytes, long.checkpoint_bytes))

    def peak(self, short: Peak, long: Peak) -> Peak:
        peak = Peak(self.amount(short.bytes, long.bytes), self.each(short.parts, long.parts), long.module)
        for part, more in self._rounding(short, long).items():
            peak.bytes += more
            peak.parts[part] = peak.parts.get(part, 0) + more
        return peak

    def _rounding(self, short: Peak, long: Peak) -> Counter:
        """By how much page-locked memory leaves the line, by part: it is rounded up to powers of two. A place in
        DeepSpeed that made as many blocks in both runs makes larger ones of the whole, and each is rounded by itself;
        else it makes more of them, and their number is on the line."""
        more: Counter = Counter()
        shorts, longs = (_by_maker(peak) for peak in (short, long))
        for maker, blocks in longs.items():
            if len(blocks) == len(shorts[maker]):
                for (small, _), (large, part) in zip(shorts[maker], blocks, strict=True):
                    on_the_line = self.at(*(locked_bytes(size, self.rounding) for size in (small, large)))
                    more[part] += locked_bytes(self.amount(small, large), self.rounding) - on_the_line
        return more

    def _phase(self, short: Phase, long: Phase) -> Phase:
        peaks = {device: self.peak(short.peaks[device], peak) for device, peak in long.peaks.items()}
        return Phase(long.name, peaks, self.each(short.end, long.end), self.amount(short.nvme_read, long.nvme_read),
                     self.amount(short.nvme_written, long.nvme_written))

    def time(self, short: PhaseTime, long: PhaseTime) -> PhaseTime:
        return PhaseTime(long.name, self.amount(short.seconds, long.seconds),
                         Counter(self.each(short.busy, long.busy)), self.at(short.flops, long.flops))

    def reserved(self, whole: ghost.Result, short: dict[Pool, list[Step]], long: dict[Pool, list[Step]],
                 machine: Hardware, expandable: bool) -> Reserved:
        """What the allocator takes for the whole stack, from its pools in the two runs. A full card gives back what is
        cached, so that what is allocated decides whether it fits."""
        room = machine.gpu_memory_bytes - machine.context_bytes
        fits = max(peaks_by_phase(whole.phases, GPU).values()) <= room
        pools = {pool: self._pool_by_phase(pool, short.get(pool, []), its_steps, expandable)
                 for pool, its_steps in long.items()}
        begun = [what for what, _ in next(iter(long.values())) if isinstance(what, str) and what]
        taken: Counter = Counter()  # by each pool so far: it keeps what it has
        by_phase = {}
        for name in dict.fromkeys(["init", *begun]):
            for pool, reserved in pools.items():
                taken[pool] = max(taken[pool], reserved.get(name, 0))
            by_phase[name] = min(taken.total(), room) if fits else taken.total()
        return Reserved(max(by_phase.values()), by_phase, fits)

    def _pool_by_phase(self, pool: Pool, short: list[Step], long: list[Step], expandable: bool) -> dict[str, int]:
        """The most bytes that a pool of the whole stack takes in each phase."""
        def uses(its_steps: list[Step]) -> dict[str, Use]:
            reserved = reserve(blocks_of(its_steps, pool), None, expandable)
            return {phase: by_pool[pool] for phase, by_pool in reserved.pools.items() if pool in by_pool}

        whole = unrolled(short, long, self.times)
        if whole:
            return {phase: use.reserved for phase, use in uses(whole).items()}
        few = uses(short)
        return {phase: self._pool(few.get(phase, Use()), more) for phase, more in uses(long).items()}

    def _pool(self, few: Use, more: Use) -> int:
        """Where a pool's blocks grow with the stack they are on the line; beside them it keeps what it does in the
        longer stack."""
        if more.allocated <= few.allocated:
            return more.reserved
        return self.at(few.allocated, more.allocated) + more.reserved - more.allocated


def _by_maker(peak: Peak) -> dict[str, list[tuple[int, str]]]:
    """Bytes and part of the page-locked blocks that each line of DeepSpeed made, the smallest first."""
    found = defaultdict(list)
    for maker, part, size in sorted(peak.locked, key=lambda block: block[2]):
        found[maker].append((size, part))
    return found
