"""The caching allocator's rules, on blocks few enough to count by hand."""

import pytest

from launch.planner.cost.allocator import MIB, CachingAllocator, ExpandableSegments, OutOfMemory
from launch.planner.simulation.trace import Allocated, CacheEmptied, Freed, PhaseBegins


def block(storage: int, size: int, stream: int = 0) -> Allocated:
    return Allocated(storage, size, stream)


def reserved(*events) -> int:
    return CachingAllocator().replay(list(events)).peak_reserved


def test_segments():
    assert reserved(block(1, 600)) == 2 * MIB  # small ones share a segment …
    assert reserved(block(1, 600), block(2, MIB)) == 2 * MIB
    assert reserved(block(1, 2 * MIB)) == 20 * MIB  # … as do those up to 10 MiB …
    assert reserved(block(1, 11 * MIB)) == 12 * MIB  # … and larger ones have their own
    assert reserved(block(1, 600), block(2, 600, stream=1)) == 4 * MIB, "streams do not share"


def test_freed_blocks_are_used_again():
    assert reserved(block(1, 100 * MIB), Freed(1), block(2, 60 * MIB), block(3, 40 * MIB)) == 100 * MIB
    # The neighbours 2 and 3 merge.
    assert (
        reserved(
            block(1, 100 * MIB),
            Freed(1),
            block(2, 60 * MIB),
            block(3, 40 * MIB),
            Freed(2),
            Freed(3),
            block(4, 100 * MIB),
        )
        == 100 * MIB
    )
    # A hole of 60 MiB does not hold 80.
    assert reserved(block(1, 60 * MIB), block(2, 40 * MIB), Freed(1), block(3, 80 * MIB)) == 180 * MIB


def test_a_full_card_gives_back_what_is_cached_before_it_gives_up():
    assert CachingAllocator(100 * MIB).replay([block(1, 60 * MIB), Freed(1), block(2, 80 * MIB)]).reserved == 80 * MIB
    with pytest.raises(OutOfMemory) as error:
        CachingAllocator(100 * MIB).replay([block(1, 60 * MIB), block(2, 80 * MIB)])
    assert (error.value.wanted, error.value.allocated) == (80 * MIB, 60 * MIB)


def test_a_replay_is_the_same_each_time():
    """Of free blocks of one size the lowest is taken, whatever Python's own addresses are."""
    allocator = CachingAllocator().replay([block(storage, 12 * MIB) for storage in range(3)])
    allocator.replay([Freed(2), Freed(0), block(3, 12 * MIB)])
    assert allocator._blocks[3].address == 0 and allocator.reserved == 36 * MIB


def test_each_phase_has_its_own_peak():
    allocator = CachingAllocator().replay(
        [
            block(1, 100 * MIB),
            Freed(1),
            PhaseBegins("forward"),
            CacheEmptied(),
            block(2, 60 * MIB),
            Freed(2),
            PhaseBegins("backward"),
            block(3, 40 * MIB),
            block(4, 40 * MIB),
        ]
    )
    assert allocator.by_phase == {"init": 100 * MIB, "forward": 60 * MIB, "backward": 100 * MIB}


def expanded(*events, limit: int | None = None) -> ExpandableSegments:
    return ExpandableSegments(limit).replay(list(events))


def test_expandable_segments_grow_page_by_page():
    assert expanded(block(1, 600), block(2, MIB)).peak_reserved == 2 * MIB
    assert expanded(block(1, 11 * MIB)).peak_reserved == 20 * MIB
    assert expanded(block(1, 11 * MIB), block(2, 9 * MIB)).peak_reserved == 20 * MIB
    almost = 20 * MIB - 512
    assert (expanded(block(1, almost)).allocated, CachingAllocator().replay([block(1, almost)]).allocated) == (
        almost,
        20 * MIB,
    ), "what is left of a page is split off, however small"
    assert expanded(block(1, 11 * MIB), block(2, 11 * MIB)).peak_reserved == 40 * MIB
    assert expanded(block(1, 600), block(2, 600, stream=1)).peak_reserved == 4 * MIB, "streams do not share"


def test_expandable_segments_fit_a_larger_block_where_a_smaller_one_was():
    larger = block(1, 60 * MIB), Freed(1), block(2, 80 * MIB)
    assert (reserved(*larger), expanded(*larger).peak_reserved) == (140 * MIB, 80 * MIB)
    # But a hole of 60 MiB between others does not hold 80; one beside it does, together.
    hole = block(1, 60 * MIB), block(2, 40 * MIB), block(3, 20 * MIB), Freed(1)
    assert expanded(*hole, block(4, 80 * MIB)).peak_reserved == 200 * MIB
    assert expanded(*hole, Freed(2), block(4, 80 * MIB)).peak_reserved == 120 * MIB


def test_the_last_block_is_left_to_grow():
    """Among free blocks torch takes the one before unmapped addresses for as large as it could become."""
    events = block(1, 40 * MIB), block(2, 20 * MIB), block(3, 20 * MIB), Freed(1), Freed(3)
    allocator = expanded(*events, block(4, 15 * MIB), block(5, 60 * MIB))
    assert allocator._blocks[4].address == 0 and allocator.peak_reserved == 120 * MIB


def test_a_full_card_unmaps_the_pages_that_are_free():
    events = block(1, 30 * MIB), block(2, 30 * MIB), Freed(1), block(3, 60 * MIB, stream=1)
    allocator = expanded(*events, limit=100 * MIB)
    # Of 60 MiB mapped the first page is free as a whole; the second is shared with the block that stays.
    assert allocator.reserved == 100 * MIB
    with pytest.raises(OutOfMemory):
        expanded(*events, block(4, 20 * MIB, stream=1), limit=100 * MIB)
    # What was unmapped is mapped again.
    allocator.replay([Freed(3), CacheEmptied(), block(5, 30 * MIB)])
    assert (allocator.reserved, allocator._blocks[5].address) == (60 * MIB, 0)


def test_unmapped_neighbours_become_one():
    allocator = expanded(block(1, 20 * MIB), block(2, 20 * MIB), block(3, 20 * MIB))
    for storage, left, gaps in ((1, 40, 2), (2, 20, 2), (3, 0, 1)):  # the last gap is what was never mapped
        allocator.replay([Freed(storage), CacheEmptied()])
        assert (allocator.reserved, len(allocator._unmapped[False, 0])) == (left * MIB, gaps)
    assert allocator.replay([block(4, 100 * MIB), block(5, 100 * MIB)]).reserved == 200 * MIB
