"""What the recorder counts: operators, copies that the host waits for, and memory as glibc takes and keeps it."""

from types import SimpleNamespace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from launch.planner.simulation import trace
from launch.planner.simulation.parts import BOTH, HOST, KEPT
from launch.planner.simulation.recorder import Recorder
from launch.zero.accelerator import LARGE_BLOCK


def test_operators_that_launch_nothing_are_counted_together():
    with FakeTensorMode(), Recorder(HOST) as recorder:
        x = torch.empty(4, 4)
        x = x.view(16).view(2, 8)
        x + x
        x.view(16)
    assert [type(event) for event in recorder.trace] == [trace.Operators, trace.Kernel, trace.Operators]
    assert [event.number for event in recorder.trace[::2]] == [3, 1]


def test_the_host_waits_for_copies_from_memory_that_cuda_did_not_lock():
    """DeepSpeed's swap buffers are locked by the kernel alone (csrc/aio/py_lib/deepspeed_pin_tensor.cpp)."""
    recorder = Recorder(HOST)
    page_locked, locked = torch.empty(8), torch.empty(8)
    recorder.add(page_locked, pinned=True)
    recorder.add(locked)
    recorder.lock(locked)
    assert recorder.is_locked(locked) and recorder.is_locked(page_locked)
    assert recorder.is_pinned(page_locked) and not recorder.is_pinned(locked)
    card = torch.empty(8)
    for source, waits in ((page_locked, False), (locked, True)):  # and these are pageable
        answer = SimpleNamespace(known=True, work=("up", source.nbytes))
        recorder._record(torch.ops.aten.copy_.default, (card, source, True), {}, card, answer)
        copy = recorder.trace.pop()
        assert type(copy) is trace.Copy
        assert copy == trace.Copy(direction="up", stream=0, size=32, host_waits=waits, pageable=waits)


def test_glibc_keeps_small_blocks_that_are_freed_and_gives_large_ones_back():
    recorder, small, large = Recorder(HOST), LARGE_BLOCK // 4, 4 * LARGE_BLOCK

    def block(size):
        tensor = torch.empty(size, dtype=torch.uint8)
        recorder.add(tensor)
        return tensor

    held = [block(small), block(small), block(large)]
    assert recorder.live[BOTH] == 2 * small + large and not recorder.parts[HOST][KEPT]
    held.clear()
    assert recorder.live[BOTH] == recorder.parts[HOST][KEPT] == 2 * small
    held = [block(small)]
    assert recorder.live[BOTH] == 2 * small and recorder.parts[HOST][KEPT] == small
    held += [block(small), block(small)]
    assert recorder.live[BOTH] == 3 * small and not recorder.parts[HOST][KEPT]


def test_a_large_block_takes_memory_as_far_as_it_is_written():
    recorder = Recorder(HOST)
    buffer = torch.empty(2 * LARGE_BLOCK, dtype=torch.uint8)
    recorder.add(buffer, written=False)
    assert not recorder.live[BOTH]
    recorder.touch(buffer[200:300])
    recorder.touch(buffer[:100])
    assert recorder.live[BOTH] == recorder.peaks[BOTH].bytes == 300
    recorder.touch(buffer[-1:])
    assert recorder.live[BOTH] == 2 * LARGE_BLOCK
    del buffer
    assert not recorder.live[BOTH] and not recorder.parts[HOST][KEPT]
