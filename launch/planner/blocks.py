"""The blocks that a ghost run takes from a card and returns, in order and without the names of their storages.

So those of one run can go on where those of another one ended, and be compared: in most pools of the caching allocator
a stack with more layers takes and returns what a shorter one does, but for a few stretches that come once more, those
of the layers it has more. A stack with as many more again has them twice more, and so on (`unrolled`). How much a pool
is scattered depends on every block that came before, and can only be told from such a complete sequence.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator

from launch.planner.allocator import SMALL

#: The bytes of a block that is taken, -1, and the stream; those of one that is returned, and how many others of that
#: size and stream are younger; or the name of a phase that begins, empty for `torch.cuda.empty_cache`, 0 and 0.
Step = tuple[int | str, int, int]
#: Whether it is that of small blocks, and the number of its stream.
Pool = tuple[bool, int]


def steps(events: list[tuple]) -> list[Step]:
    """Of what `launch.planner.allocator.CachingAllocator.replay` takes."""
    found: list[Step] = []
    alive: dict[tuple[int, int], list] = defaultdict(list)
    where: dict = {}
    for key, size, stream in events:
        if size > 0:
            where[key] = size, stream
            alive[size, stream].append(key)
            found.append((size, -1, stream))
        elif size == 0:
            found.append((key, 0, 0))
        elif key in where:
            size, stream = where.pop(key)
            others = alive[size, stream]
            age = others[::-1].index(key)
            del others[len(others) - 1 - age]
            found.append((size, age, stream))
    return found


def events(steps: list[Step]) -> Iterator[tuple]:
    """The other way round. A block that is not there is not returned."""
    alive: dict[tuple[int, int], list[int]] = defaultdict(list)
    for number, (size, age, stream) in enumerate(steps):
        if isinstance(size, str):
            yield size, 0, 0
        elif age < 0:
            alive[size, stream].append(number)
            yield number, size, stream
        elif age < len(others := alive[size, stream]):
            yield others.pop(len(others) - 1 - age), -size, stream


def by_pool(steps: list[Step]) -> dict[Pool, list[Step]]:
    """Those of each pool, and in all of them what begins. Streams are numbered in the order they were made, which runs
    have in common."""
    streams = {stream: number for number, stream in enumerate(sorted({s for _, age, s in steps if age < 0}))}
    found: dict[Pool, list[Step]] = {}
    begun: list[Step] = []
    for size, age, stream in steps:
        if isinstance(size, str):
            begun.append((size, 0, 0))
            for sequence in found.values():
                sequence.append((size, 0, 0))
        else:
            stream = streams[stream]
            found.setdefault((size <= SMALL, stream), [*begun]).append((size, age, stream))
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
    begins = [number for number, (size, _, _) in enumerate(steps) if isinstance(size, str)]
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
        # What comes once more ends where the longer one is as the shorter one goes on, for as long as possible.
        ends = [(_alike(short, done, long, end), -end) for end in range(at + 1, len(long)) if long[end] == short[done]]
        if not ends:
            return None
        end = -max(ends)[1]
        whole += times * long[at:end]
        at = end


def _alike(few: list[Step], i: int, more: list[Step], j: int) -> int:
    """How many steps the two have in common from there on."""
    same = 0
    for one, other in zip(itertools.islice(few, i, None), itertools.islice(more, j, None), strict=False):
        if one != other:
            break
        same += 1
    return same


def _possible(steps: list[Step]) -> bool:
    """Whether only what has been taken is returned."""
    alive: Counter[int | str] = Counter()
    for size, age, _ in steps:
        if age < 0:
            alive[size] += 1
        elif not isinstance(size, str):
            if age >= alive[size]:
                return False
            alive[size] -= 1
    return True
