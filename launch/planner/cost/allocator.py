"""A replica of CUDA's caching allocator: bytes that torch reserves for the blocks that a run allocates and frees.

The rules and sizes of c10/cuda/CUDACachingAllocator.cpp (torch 2.13.0): blocks of up to 1 MiB come out of 2 MiB
segments, up to 10 MiB out of 20 MiB ones, larger ones out of segments of their own in steps of 2 MiB; best fit among
the free blocks of the same pool and stream; what is left over is split off; neighbours merge; cached segments are given
back only when the card is full. With ``expandable_segments:True`` a pool is one range of addresses, into which the
card's memory is mapped page by page where it is needed.
"""

import bisect
from dataclasses import dataclass

from launch.planner.simulation.trace import Allocated, AllocationEvent, CacheEmptied, Freed, PhaseBegins

MIB = 1 << 20
SMALL, SMALL_SEGMENT = MIB, 2 * MIB
LARGE, LARGE_SEGMENT, ROUND_LARGE = 10 * MIB, 20 * MIB, 2 * MIB
GRANULE = 512


class OutOfMemory(Exception):
    """No room for a block: ``wanted`` bytes, with ``allocated`` in use and ``reserved`` taken from the card."""

    def __init__(self, wanted: int, allocated: int, reserved: int):
        super().__init__(wanted, allocated, reserved)
        self.wanted, self.allocated, self.reserved = wanted, allocated, reserved


@dataclass(eq=False)
class Block:
    """A part of a segment; ``before`` and ``after`` are its neighbours in it. Of free blocks of one size the one at the
    lowest ``address`` is taken, as by torch; where the card puts segments nobody knows: here one after the other."""

    size: int
    pool: tuple[bool, int]  # whether small ones; the stream
    address: int
    free: bool = False
    before: "Block | None" = None
    after: "Block | None" = None
    mapped: bool = True  # whether there is memory behind the addresses

    def split(self, size: int) -> "Block":
        """Keep ``size`` bytes; returns a block of the rest, mapped alike, not free."""
        rest = Block(self.size - size, self.pool, self.address + size, False, self, self.after, self.mapped)
        if self.after is not None:
            self.after.before = rest
        self.after, self.size = rest, size
        return rest

    def swallow(self) -> None:
        """Merge with the block after this one."""
        swallowed = self.after
        assert swallowed is not None
        self.size += swallowed.size
        self.after = swallowed.after
        if self.after is not None:
            self.after.before = self


class CachingAllocator:
    """Replays allocations; ``peak_reserved`` is what `torch.cuda.max_memory_reserved` would say."""

    def __init__(self, limit: int | None = None):
        self.limit = limit  # bytes that torch may take; None: no end
        self.reserved = self.peak_reserved = 0
        self.allocated = 0
        self.by_phase: dict[str, int] = {}  # largest reserved in each
        self._end = 0  # of the last segment
        self._free: dict[tuple[bool, int], list[tuple[int, int, Block]]] = {}
        self._blocks: dict[int, Block] = {}

    def replay(self, events: list[AllocationEvent]) -> "CachingAllocator":
        """Replay the allocations of a simulated run, in order.

        Raises:
            OutOfMemory: with a ``limit``, a block that does not fit even after all cached segments were given back.
        """
        phase = "init"
        for event in events:
            match event:
                case Allocated(storage, size, stream):
                    self._blocks[storage] = self._take(size, stream)
                    self.by_phase[phase] = max(self.by_phase.get(phase, 0), self.reserved)
                case Freed(storage):
                    if storage in self._blocks:
                        self._give(self._blocks.pop(storage))
                case PhaseBegins(phase):
                    pass
                case CacheEmptied():
                    self._give_back()
        return self

    def _take(self, size: int, stream: int) -> Block:
        size = -(-size // GRANULE) * GRANULE
        pool = (size <= SMALL, stream)
        block = self._best_fit(pool, size) or self._more(pool, size)
        if block is None:
            self._give_back()
            block = self._more(pool, size)
        if block is None:
            raise OutOfMemory(size, self.allocated, self.reserved)
        if self._splits(pool, block.size - size):
            self._wait(block.split(size))
        block.free = False
        self.allocated += block.size
        return block

    def _best_fit(self, pool: tuple[bool, int], size: int) -> Block | None:
        """Take the smallest free block that is large enough."""
        waiting = self._free.setdefault(pool, [])
        place = bisect.bisect_left(waiting, (size, 0))
        return waiting.pop(place)[2] if place < len(waiting) else None

    def _more(self, pool: tuple[bool, int], size: int) -> Block | None:
        """A new segment, or None where the card is full."""
        segment = _segment(size)
        if not self._reserve(segment):
            return None
        self._end += segment
        return Block(segment, pool, self._end - segment)

    def _reserve(self, size: int) -> bool:
        """Reserve bytes on the card, or return them if negative; False where the card is full."""
        if self.limit is not None and self.reserved + size > self.limit:
            return False
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return True

    def _splits(self, pool: tuple[bool, int], rest: int) -> bool:
        return rest >= GRANULE if pool[0] else rest > SMALL

    def _wait(self, block: Block) -> None:
        block.free = True
        bisect.insort(self._free.setdefault(block.pool, []), (block.size, block.address, block))

    def _unwait(self, block: Block) -> None:
        waiting = self._free[block.pool]
        waiting.pop(bisect.bisect_left(waiting, (block.size, block.address)))

    def _give(self, block: Block) -> None:
        self.allocated -= block.size
        self._merge(block)

    def _merge(self, block: Block) -> Block:
        """Merge a free block with its free neighbours."""
        if block.after is not None and block.after.free:
            self._unwait(block.after)
            block.swallow()
        if block.before is not None and block.before.free:
            self._unwait(block.before)
            block = block.before
            block.swallow()
        self._wait(block)
        return block

    def _give_back(self) -> None:
        """Return every segment that is free as a whole."""
        for pool, waiting in self._free.items():
            kept = []
            for item in waiting:
                if item[2].before is None and item[2].after is None:
                    self._reserve(-item[0])
                else:
                    kept.append(item)
            self._free[pool] = kept


class ExpandableSegments(CachingAllocator):
    """With ``expandable_segments:True``: a pool is one segment that grows, in pages as large as its smallest segment
    would be. What is free is unmapped, page by page, only when the card is full."""

    def __init__(self, limit: int | None = None):
        super().__init__(limit)
        self._unmapped: dict[tuple[bool, int], list[Block]] = {}  # of each pool, the lowest first; the last has no end

    def _best_fit(self, pool, size):
        """A block counts as large as it could grow into the unmapped addresses after it."""
        waiting = self._free.setdefault(pool, [])
        place = bisect.bisect_left(waiting, (size, 0))
        if place == len(waiting):
            return None
        while place + 1 < len(waiting) and _room(waiting[place + 1][2]) < _room(waiting[place][2]):
            place += 1
        return waiting.pop(place)[2]

    def _more(self, pool, size):
        """Map what is missing behind the lowest free or unmapped addresses that are enough in a row."""
        wanted = _segment(size)
        for gap in self._unmapped.setdefault(pool, [Block(_ENDLESS, pool, 0, mapped=False)]):
            block = gap.before if gap.before is not None and gap.before.free else gap
            if _in_a_row(block, wanted):
                break
        while not block.mapped or block.size < wanted:
            behind = block.after if block.mapped else block
            assert behind is not None  # `_in_a_row` has seen it
            mapped = self._map(behind, min(wanted - (block.size if block.mapped else 0), behind.size))
            if mapped is None:
                return None
            block = mapped
        self._unwait(block)
        return block

    def _map(self, gap: Block, size: int) -> Block | None:
        """Put memory behind the first ``size`` unmapped bytes; returns the free block that they are then part of."""
        page = SMALL_SEGMENT if gap.pool[0] else LARGE_SEGMENT
        size = min(-(-size // page) * page, gap.size)
        if not self._reserve(size):
            return None
        gaps = self._unmapped[gap.pool]
        place = gaps.index(gap)
        gaps[place : place + 1] = [gap.split(size)] if size < gap.size else []
        gap.mapped = True
        return self._merge(gap)

    def _splits(self, pool, rest):
        return rest >= GRANULE

    def _give_back(self):
        """Unmap every page that is free as a whole."""
        for pool, waiting in self._free.items():
            page = SMALL_SEGMENT if pool[0] else LARGE_SEGMENT
            for _, _, block in list(waiting):
                first, last = -(-block.address // page) * page, (block.address + block.size) // page * page
                if first < last:
                    self._unmap(block, first, last)
            self._unmapped[pool].sort(key=lambda gap: gap.address)

    def _unmap(self, block: Block, first: int, last: int) -> None:
        self._unwait(block)
        self._reserve(first - last)
        if last < block.address + block.size:
            self._wait(block.split(last - block.address))
        if first > block.address:
            gap = block.split(first - block.address)
            self._wait(block)
        else:
            gap, block.free = block, False
        gap.mapped = False
        gaps = self._unmapped[block.pool]
        if gap.after is not None and not gap.after.mapped:
            gaps.remove(gap.after)
            gap.swallow()
        if gap.before is not None and not gap.before.mapped:
            gap.before.swallow()
        else:
            gaps.append(gap)


_ENDLESS = 1 << 60


def _segment(size: int) -> int:
    """Size of the segment that torch requests from the card for a block of ``size`` bytes."""
    if size <= SMALL:
        return SMALL_SEGMENT
    return LARGE_SEGMENT if size < LARGE else -(-size // ROUND_LARGE) * ROUND_LARGE


def _room(block: Block) -> int:
    return block.size + (block.after.size if block.after is not None and not block.after.mapped else 0)


def _in_a_row(block: Block | None, wanted: int) -> bool:
    """Whether so many bytes from the block on are free or unmapped."""
    while block is not None and (block.free or not block.mapped):
        wanted -= block.size
        if wanted <= 0:
            return True
        block = block.after
    return False
