"""A deep stack's blocks from those of two shallow ones, beside its own."""

import itertools
import random

import pytest

from launch.planner.cost.allocator import MIB, CachingAllocator
from launch.planner.unrolled import blocks_of, steps, unrolled

POOL = (False, 0)


def stack(layers: int, others: int = 4, stream: int = 0) -> list[tuple]:
    """The blocks of a forward and a backward pass: each layer is gathered while the one before it still computes, and
    leaves an activation. Two kinds of layers, and names of storages that are used again, as Python's are."""
    names = itertools.count()
    unused: list[int] = []
    blocks: list[tuple] = []

    def take(size: int) -> tuple[int, int]:
        name = unused.pop(random.randrange(len(unused))) if unused else next(names)
        blocks.append((name, size, stream))
        return name, size

    def give(block: tuple[int, int]) -> None:
        blocks.append((block[0], -block[1], stream))
        unused.append(block[0])

    sizes = [30 * MIB] * layers + [70 * MIB] * others
    last = take(5 * MIB)
    blocks.append(("forward", 0, 0))
    activations, gathered = [], take(sizes[0])
    for size in [*sizes[1:], 11 * MIB]:
        ahead = take(size)
        activations.append(take(gathered[1] // 2))
        give(gathered)
        gathered = ahead
    blocks.append(("backward", 0, 0))
    for activation in reversed(activations):
        work = take(2 * activation[1])
        give(activation)
        give(work)
    give(gathered)
    give(last)
    return blocks


def test_what_comes_once_more_comes_as_often_as_there_are_layers():
    random.seed(0)
    whole = stack(3 + 7 * 2, 4 + 7 * 3)
    short, long = (steps(stack(3 + 2 * n, 4 + 3 * n, stream=5 + n))[POOL] for n in (0, 1))
    found = unrolled(short, long, 7)
    assert found == steps(whole)[POOL]
    assert len(found) > 2 * len(long) > 2 * len(short)
    assert CachingAllocator().replay(blocks_of(found, POOL)).pools == CachingAllocator().replay(whole).pools


def test_a_stretch_may_begin_anywhere_in_a_layer():
    """Taken and returned in another order, the same blocks come out."""
    layer, end = [(4, -1), (2, -1), (4, 0)], [(4, -1), (2, -1), (3, -1)]
    found = unrolled([*layer, *end], [*layer * 2, *end], 3)
    assert found == [*layer * 4, *end]


@pytest.mark.parametrize("short, long", [
    ([(2, -1), (4, -1)], [(2, -1), (8, -1)]),  # a block that grows with the stack
    ([(2, -1), (4, -1)], [(2, -1)]),  # one that there is no more
    ([(2, -1), ("forward", 0)], [(2, -1)]),  # another number of phases
    ([(2, -1), (2, -1), (4, -1)], [(2, -1), (2, -1), (2, 0), (4, -1)]),  # three returned of two
])
def test_what_is_not_the_same_with_stretches_between_is_told(short, long):
    assert unrolled(short, long, 3) is None


def test_each_pool_has_its_own_steps_and_all_phases():
    found = steps([(1, 12 * MIB, 7), ("forward", 0, 0), (2, 600, 9), (3, 600, 9), ("", 0, 0), (2, -600, 9),
                   (4, -600, 9)])  # 4 was not seen to come
    assert found == {(False, 0): [(12 * MIB, -1), ("forward", 0), ("", 0)],
                     (True, 1): [("forward", 0), (1024, -1), (1024, -1), ("", 0), (1024, 1)]}
