"""What a stack allocates on a card, from what two shortened ones do.

In most pools of the caching allocator a stack with more layers takes and returns the same blocks in the same order, but
for a few stretches of them that come once more: those of the layers it has more. A stack with as many more again has
them twice more, and so on. How much a pool is scattered, which depends on every block that came before, can only be
told from such a complete sequence.
"""

import itertools
from collections import Counter, defaultdict

from launch.planner.cost.allocator import GRANULE, SMALL

#: The bytes of a block that is taken, and -1; those of one that is returned, and how many blocks of the same size have
#: been taken after it and are still there; or what begins, as in the blocks of a ghost run, and 0.
Step = tuple[int | str, int]
#: Whether it is that of small blocks, and the number of its stream.
Pool = tuple[bool, int]


def steps(blocks: list[tuple]) -> dict[Pool, list[Step]]:
    """The ``blocks`` of a ghost run by pool, without the names of storages. Streams are numbered in the order they were
    made, which runs have in common."""
    streams = {stream: number for number, stream in enumerate(sorted({s for _, size, s in blocks if size}))}
    found: dict[Pool, list[Step]] = defaultdict(list)
    begun: list[Step] = []
    where: dict = {}
    alive: dict[tuple, list] = defaultdict(list)
    for key, size, stream in blocks:
        if size > 0:
            size = -(-size // GRANULE) * GRANULE
            pool = size <= SMALL, streams[stream]
            if pool not in found:
                found[pool] += begun
            where[key] = pool, size
            alive[pool, size].append(key)
            found[pool].append((size, -1))
        elif size < 0:
            if key in where:
                pool, size = where.pop(key)
                others = alive[pool, size]
                age = others[::-1].index(key)
                del others[len(others) - 1 - age]
                found[pool].append((size, age))
        else:
            begun.append((key, 0))
            for sequence in found.values():
                sequence.append((key, 0))
    return found


def unrolled(short: list[Step], long: list[Step], times: int) -> list[Step] | None:
    """The steps of a stack that is ``times`` as far beyond the shorter one as the longer one is; None if the longer
    one's are not the shorter one's with stretches between them."""
    shorts, longs = _phases(short), _phases(long)
    if len(shorts) != len(longs):
        return None
    whole: list[Step] = []
    for few, more in zip(shorts, longs, strict=True):
        phase = _unrolled(few, more, times)
        if phase is None:
            return None
        whole += phase
    return whole if _possible(whole) else None


def _phases(steps: list[Step]) -> list[list[Step]]:
    """Each with what begins it."""
    begins = [number for number, (size, _) in enumerate(steps) if isinstance(size, str)]
    return [steps[start:end] for start, end in itertools.pairwise([0, *begins, len(steps)])]


def _unrolled(short: list[Step], long: list[Step], times: int) -> list[Step] | None:
    whole: list[Step] = []
    done = at = 0  # in the shorter one, in the longer one
    while True:
        same = _alike(short, done, long, at)
        whole += short[done:done + same]
        done, at = done + same, at + same
        if done == len(short):
            return whole + times * long[at:]
        ends = [end for end in range(at + 1, len(long)) if long[end] == short[done] and _goes_on(long, at, end)]
        if not ends:
            return None
        # Where several would do: the one from which the two are alike for longest.
        end = max(ends, key=lambda end: (_alike(short, done, long, end), -end))
        whole += times * long[at:end]
        at = end


def _goes_on(steps: list[Step], start: int, end: int) -> bool:
    """Whether the stretch repeats what is before it."""
    return any(steps[start] == steps[start - period] and steps[end - 1] == steps[end - 1 - period]
               and steps[start:end] == steps[start - period:end - period]
               for period in range(1, min(start, end - start) + 1))


def _alike(few: list[Step], i: int, more: list[Step], j: int) -> int:
    """How many steps the two have in common from there on."""
    most = min(len(few) - i, len(more) - j)
    return next((same for same in range(most) if few[i + same] != more[j + same]), most)


def _possible(steps: list[Step]) -> bool:
    """Whether only what has been taken is returned."""
    alive: Counter[int | str] = Counter()
    for size, age in steps:
        if age < 0:
            alive[size] += 1
        elif not isinstance(size, str):
            if age >= alive[size]:
                return False
            alive[size] -= 1
    return True


def blocks_of(steps: list[Step], pool: Pool) -> list[tuple]:
    """The steps in a pool as blocks of a ghost run, for `launch.planner.cost.allocator.CachingAllocator.replay`."""
    alive: dict[int, list[int]] = defaultdict(list)
    blocks: list[tuple] = []
    for number, (size, age) in enumerate(steps):
        if isinstance(size, str):
            blocks.append((size, 0, 0))
        elif age < 0:
            alive[size].append(number)
            blocks.append((number, size, pool[1]))
        else:
            others = alive[size]
            blocks.append((others.pop(len(others) - 1 - age), -size, pool[1]))
    return blocks
