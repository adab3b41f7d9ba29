"""The CUDA caching allocator: what torch reserves on the card for the blocks that a run allocates and frees.

The rules and sizes of c10/cuda/CUDACachingAllocator.cpp (torch 2.13.0, no PYTORCH_CUDA_ALLOC_CONF): blocks of up to
1 MiB come out of 2 MiB segments, up to 10 MiB out of 20 MiB ones, larger ones out of segments of their own in steps of
2 MiB; best fit among the free blocks of the same pool and stream; what is left over is split off; neighbours merge;
cached segments are given back only when the card is full.
"""

import bisect
from dataclasses import dataclass

MIB = 1 << 20
SMALL, SMALL_SEGMENT = MIB, 2 * MIB
LARGE, LARGE_SEGMENT, ROUND_LARGE = 10 * MIB, 20 * MIB, 2 * MIB
GRANULE = 512


class OutOfMemory(Exception):
    """A block found no room: ``wanted`` bytes, with ``allocated`` in use and ``reserved`` taken from the card."""

    def __init__(self, wanted: int, allocated: int, reserved: int):
        super().__init__(wanted, allocated, reserved)
        self.wanted, self.allocated, self.reserved = wanted, allocated, reserved


@dataclass(eq=False)
class Block:
    """A part of a segment; ``before`` and ``after`` are its neighbours in it. Of free blocks of one size the one at the
    lowest ``address`` is taken, as by torch; where the card puts segments nobody knows: here one after the other."""

    size: int
    pool: tuple[bool, int]
    address: int
    free: bool = False
    before: "Block | None" = None
    after: "Block | None" = None


class CachingAllocator:
    """Replays allocations; ``peak_reserved`` is what `torch.cuda.max_memory_reserved` would say."""

    def __init__(self, limit: int | None = None):
        self.limit = limit  # bytes that torch may take; None: no end
        self.allocated = self.reserved = self.peak_reserved = 0
        self.by_phase: dict[str, int] = {}  # largest reserved in each
        self._end = 0  # of the last segment
        self._free: dict[tuple[bool, int], list[tuple[int, int, Block]]] = {}
        self._blocks: dict[int, Block] = {}

    def replay(self, events: list[tuple]) -> "CachingAllocator":
        """(storage, +bytes or -bytes, stream) in order; with 0 bytes the first is the name of a phase that begins, or
        empty for `torch.cuda.empty_cache`.

        Raises:
            OutOfMemory: with a ``limit``, a block that does not fit even after all cached segments were given back.
        """
        phase = "init"
        for key, size, stream in events:
            if size > 0:
                self._blocks[key] = self._take(size, stream)
                self.by_phase[phase] = max(self.by_phase.get(phase, 0), self.reserved)
            elif size < 0:
                if key in self._blocks:
                    self._give(self._blocks.pop(key))
            elif key:
                phase = key
            else:
                self._give_back()
        return self

    def _take(self, size: int, stream: int) -> Block:
        size = -(-size // GRANULE) * GRANULE
        pool = (size <= SMALL, stream)
        waiting = self._free.setdefault(pool, [])
        place = bisect.bisect_left(waiting, (size, 0))
        if place < len(waiting):
            block = waiting.pop(place)[2]
        else:
            segment = SMALL_SEGMENT if size <= SMALL else LARGE_SEGMENT if size < LARGE else \
                -(-size // ROUND_LARGE) * ROUND_LARGE
            if self.limit is not None and self.reserved + segment > self.limit:
                self._give_back()
                if self.reserved + segment > self.limit:
                    raise OutOfMemory(size, self.allocated, self.reserved)
            self.reserved += segment
            self.peak_reserved = max(self.peak_reserved, self.reserved)
            block = Block(segment, pool, self._end)
            self._end += segment
        rest = block.size - size
        if rest >= GRANULE if pool[0] else rest > SMALL:
            left = Block(rest, pool, block.address + size, True, block, block.after)
            if block.after is not None:
                block.after.before = left
            block.after, block.size = left, size
            self._wait(left)
        block.free = False
        self.allocated += block.size
        return block

    def _wait(self, block: Block) -> None:
        block.free = True
        bisect.insort(self._free.setdefault(block.pool, []), (block.size, block.address, block))

    def _unwait(self, block: Block) -> None:
        waiting = self._free[block.pool]
        waiting.pop(bisect.bisect_left(waiting, (block.size, block.address)))

    def _give(self, block: Block) -> None:
        self.allocated -= block.size
        for other in (block.before, block.after):
            if other is not None and other.free:
                self._unwait(other)
                first, second = (other, block) if other is block.before else (block, other)
                first.size += second.size
                first.after = second.after
                if second.after is not None:
                    second.after.before = first
                block = first
        self._wait(block)

    def _give_back(self) -> None:
        """Return every segment that is free as a whole."""
        for pool, waiting in self._free.items():
            kept = []
            for item in waiting:
                if item[2].before is None and item[2].after is None:
                    self.reserved -= item[0]
                else:
                    kept.append(item)
            self._free[pool] = kept
