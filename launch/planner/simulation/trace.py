"""What a simulated run does, in program order: work and waits, and allocations on the card.

`launch.planner.cost.timing` replays the work on given hardware, `launch.planner.cost.allocator` the allocations. Sizes
are in bytes; ``stream``, ``event``, ``handle`` and ``number`` are numbers that `next_number` has given out; stream 0 is
the default stream.
"""

import itertools
from typing import NamedTuple

import torch

_numbers = itertools.count(1)


def next_number() -> int:
    """A new number for a stream, an event, a collective or a disk handle."""
    return next(_numbers)


class PhaseBegins(NamedTuple):
    name: str


# Work -----------------------------------------------------------------------------------------------------------------


class Kernel(NamedTuple):
    stream: int
    flops: int
    size: int  # of memory traffic
    dtype: torch.dtype


class Copy(NamedTuple):
    """Between card and host."""

    direction: str  # "up" or "down"
    stream: int
    size: int
    host_waits: bool
    pageable: bool  # the host's side is not page-locked


class Collective(NamedTuple):
    stream: int
    number: int
    name: str
    size: int  # of the whole message
    ranks: int


class HostWork(NamedTuple):
    size: int  # of memory traffic


class CpuOptimizer(NamedTuple):
    parameters: int


class CompressedOptimizer(NamedTuple):
    """launch/zero/compressed_adamw.cpp"""

    parameters: int
    size: int  # of memory traffic


class DiskRead(NamedTuple):
    handle: int
    size: int


class DiskWrite(NamedTuple):
    handle: int
    size: int


class Operators(NamedTuple):
    """Operators that launch nothing."""

    number: int


class Hook(NamedTuple):
    """One of ZeRO-3's hooks around a module's passes."""


# Waits ----------------------------------------------------------------------------------------------------------------


class RecordEvent(NamedTuple):
    stream: int
    event: int


class StreamWaitsForEvent(NamedTuple):
    stream: int
    event: int


class StreamWaitsForStream(NamedTuple):
    stream: int
    other: int


class StreamWaitsForCollective(NamedTuple):
    stream: int
    number: int


class HostWaitsForEvent(NamedTuple):
    event: int


class HostWaitsForStream(NamedTuple):
    stream: int


class HostWaitsForDisk(NamedTuple):
    handle: int


class HostWaitsForAll(NamedTuple):
    pass


# Allocations on the card ----------------------------------------------------------------------------------------------


class Allocated(NamedTuple):
    storage: int
    size: int
    stream: int


class Freed(NamedTuple):
    storage: int


class CacheEmptied(NamedTuple):
    """`torch.cuda.empty_cache`."""


WorkEvent = (
    PhaseBegins
    | Kernel
    | Copy
    | Collective
    | HostWork
    | CpuOptimizer
    | CompressedOptimizer
    | DiskRead
    | DiskWrite
    | Operators
    | Hook
    | RecordEvent
    | StreamWaitsForEvent
    | StreamWaitsForStream
    | StreamWaitsForCollective
    | HostWaitsForEvent
    | HostWaitsForStream
    | HostWaitsForDisk
    | HostWaitsForAll
)
AllocationEvent = PhaseBegins | Allocated | Freed | CacheEmptied
