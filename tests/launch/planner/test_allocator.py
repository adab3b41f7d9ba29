"""The caching allocator's rules, and the replay of a trace in time, on work small enough to count by hand."""

import dataclasses
import json
import os
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from launch.planner.cost.allocator import MIB, CachingAllocator, ExpandableSegments, OutOfMemory
from launch.planner.cost.timing import replay
from launch.planner.hardware.profile import load_hardware, profile_names
from launch.planner.hardware.profile import measure as this_machine
from launch.planner.simulation.recorder import HOST, Ledger


def reserved(*events) -> int:
    return CachingAllocator().replay(list(events)).peak_reserved


def test_segments():
    assert reserved((1, 600, 0)) == 2 * MIB  # small ones share a segment …
    assert reserved((1, 600, 0), (2, MIB, 0)) == 2 * MIB
    assert reserved((1, 2 * MIB, 0)) == 20 * MIB  # … as do those up to 10 MiB …
    assert reserved((1, 11 * MIB, 0)) == 12 * MIB  # … and larger ones have their own
    assert reserved((1, 600, 0), (2, 600, 1)) == 4 * MIB, "streams do not share"


def test_freed_blocks_are_used_again():
    assert reserved((1, 100 * MIB, 0), (1, -100 * MIB, 0), (2, 60 * MIB, 0), (3, 40 * MIB, 0)) == 100 * MIB
    # The neighbours 2 and 3 merge.
    assert reserved((1, 100 * MIB, 0), (1, -100 * MIB, 0), (2, 60 * MIB, 0), (3, 40 * MIB, 0), (2, -60 * MIB, 0),
                    (3, -40 * MIB, 0), (4, 100 * MIB, 0)) == 100 * MIB
    # A hole of 60 MiB does not hold 80.
    assert reserved((1, 60 * MIB, 0), (2, 40 * MIB, 0), (1, -60 * MIB, 0), (3, 80 * MIB, 0)) == 180 * MIB


def test_a_full_card_gives_back_what_is_cached_before_it_gives_up():
    events = [(1, 60 * MIB, 0), (1, -60 * MIB, 0), (2, 80 * MIB, 0)]
    assert CachingAllocator(100 * MIB).replay(events).reserved == 80 * MIB
    with pytest.raises(OutOfMemory) as error:
        CachingAllocator(100 * MIB).replay([(1, 60 * MIB, 0), (2, 80 * MIB, 0)])
    assert (error.value.wanted, error.value.allocated) == (80 * MIB, 60 * MIB)


def test_a_replay_is_the_same_each_time():
    """Of free blocks of one size the lowest is taken, whatever Python's own addresses are."""
    allocator = CachingAllocator().replay([(key, 12 * MIB, 0) for key in range(3)])
    allocator.replay([(2, -12 * MIB, 0), (0, -12 * MIB, 0), (3, 12 * MIB, 0)])
    assert allocator._blocks[3].address == 0 and allocator.reserved == 36 * MIB


def expanded(*events, limit: int | None = None) -> ExpandableSegments:
    return ExpandableSegments(limit).replay(list(events))


def test_expandable_segments_grow_page_by_page():
    assert expanded((1, 600, 0), (2, MIB, 0)).peak_reserved == 2 * MIB
    assert expanded((1, 11 * MIB, 0)).peak_reserved == 20 * MIB
    assert expanded((1, 11 * MIB, 0), (2, 9 * MIB, 0)).peak_reserved == 20 * MIB
    almost = 20 * MIB - 512
    assert (expanded((1, almost, 0)).allocated, CachingAllocator().replay([(1, almost, 0)]).allocated) == (
        almost, 20 * MIB), "what is left of a page is split off, however small"
    assert expanded((1, 11 * MIB, 0), (2, 11 * MIB, 0)).peak_reserved == 40 * MIB
    assert expanded((1, 600, 0), (2, 600, 1)).peak_reserved == 4 * MIB, "streams do not share"


def test_expandable_segments_fit_a_larger_block_where_a_smaller_one_was():
    larger = (1, 60 * MIB, 0), (1, -60 * MIB, 0), (2, 80 * MIB, 0)
    assert (reserved(*larger), expanded(*larger).peak_reserved) == (140 * MIB, 80 * MIB)
    # But a hole of 60 MiB between others does not hold 80; one beside it does, together.
    hole = (1, 60 * MIB, 0), (2, 40 * MIB, 0), (3, 20 * MIB, 0), (1, -60 * MIB, 0)
    assert expanded(*hole, (4, 80 * MIB, 0)).peak_reserved == 200 * MIB
    assert expanded(*hole, (2, -40 * MIB, 0), (4, 80 * MIB, 0)).peak_reserved == 120 * MIB


def test_the_last_block_is_left_to_grow():
    """Among free blocks torch takes the one before unmapped addresses for as large as it could become."""
    events = (1, 40 * MIB, 0), (2, 20 * MIB, 0), (3, 20 * MIB, 0), (1, -40 * MIB, 0), (3, -20 * MIB, 0)
    allocator = expanded(*events, (4, 15 * MIB, 0), (5, 60 * MIB, 0))
    assert allocator._blocks[4].address == 0 and allocator.peak_reserved == 120 * MIB


def test_a_full_card_unmaps_the_pages_that_are_free():
    events = (1, 30 * MIB, 0), (2, 30 * MIB, 0), (1, -30 * MIB, 0), (3, 60 * MIB, 1)
    allocator = expanded(*events, limit=100 * MIB)
    # Of 60 MiB mapped the first page is free as a whole; the second is shared with the block that stays.
    assert allocator.reserved == 100 * MIB
    with pytest.raises(OutOfMemory):
        expanded(*events, (4, 20 * MIB, 1), limit=100 * MIB)
    # What was unmapped is mapped again.
    allocator.replay([(3, -60 * MIB, 1), ("", 0, 0), (5, 30 * MIB, 0)])
    assert (allocator.reserved, allocator._blocks[5].address) == (60 * MIB, 0)


def test_unmapped_neighbours_become_one():
    allocator = expanded((1, 20 * MIB, 0), (2, 20 * MIB, 0), (3, 20 * MIB, 0))
    for key, reserved, gaps in ((1, 40, 2), (2, 20, 2), (3, 0, 1)):  # the last gap is what was never mapped
        allocator.replay([(key, -20 * MIB, 0), ("", 0, 0)])
        assert (allocator.reserved, len(allocator._unmapped[False, 0])) == (reserved * MIB, gaps)
    assert allocator.replay([(4, 100 * MIB, 0), (5, 100 * MIB, 0)]).reserved == 200 * MIB


@pytest.fixture
def machine():
    """Round numbers."""
    return dataclasses.replace(load_hardware("a5000x2"), fp16_flops_per_s=1e12, memory_bytes_per_s=1e9,
                               operator_s=0, launch_s=0, hook_s=0, pcie_bytes_per_s=1e9, link_bytes_per_s=1e9,
                               link_latency_s=0, cpu_adam_parameters_per_s=2e9, nvme_read_bytes_per_s=2e9)


def seconds(machine, *trace, ranks=1) -> float:
    return sum(phase.seconds for phase in replay([("phase", "forward"), *trace], machine, ranks))


def test_the_roofline(machine):
    assert seconds(machine, ("kernel", 0, 2e12, 1e9, torch.float16)) == pytest.approx(2)
    assert seconds(machine, ("kernel", 0, 1e12, 3e9, torch.float16)) == pytest.approx(3)


def test_streams_overlap_until_one_waits(machine):
    kernel, copy = ("kernel", 0, 2e12, 0, torch.float16), ("up", 7, 1e9, False, False)
    assert seconds(machine, copy, kernel) == pytest.approx(2)
    assert seconds(machine, copy, ("wait_stream", 0, 7), kernel) == pytest.approx(3)
    assert seconds(machine, ("up", 7, 1e9, True, False), kernel) == pytest.approx(3), "a blocking copy holds the host"
    assert seconds(machine, ("up", 7, 1e9, True, True)) == pytest.approx(2), "from pageable memory, at half the rate"


def test_the_host_pays_for_every_operator_call_and_hook(machine):
    """Of a trace without work on the card only the host's time is left."""
    machine = dataclasses.replace(machine, operator_s=1, launch_s=10, hook_s=100)
    kernel = ("kernel", 0, 0, 0, torch.float16)
    assert seconds(machine, ("operators", 7)) == pytest.approx(7), "views and the like"
    assert seconds(machine, kernel) == pytest.approx(11), "an operator that launches a kernel"
    assert seconds(machine, ("up", 0, 0, False, False)) == pytest.approx(11)
    collective = ("collective", 0, 1, "broadcast", 0, 1), ("wait_collective", 0, 1)
    assert seconds(machine, *collective) == pytest.approx(51), "its stream waits for an event; a kernel, another event"
    assert seconds(machine, ("record", 0, 1), ("wait_event", 3, 1), ("wait_stream", 0, 3)) == pytest.approx(40)
    assert seconds(machine, ("hook",)) == pytest.approx(100)
    busy = replay([("phase", "forward"), ("hook",), ("operators", 5), kernel], machine, 1)[-1].busy
    assert (busy["DeepSpeed's hooks"], busy["operators on the host"], busy["launching"]) == (100, 6, 10)


def test_work_on_the_card_hides_behind_a_slow_host_and_the_host_behind_a_slow_card(machine):
    machine = dataclasses.replace(machine, operator_s=1)
    small, large = ("kernel", 0, 0.1e12, 0, torch.float16), ("kernel", 0, 5e12, 0, torch.float16)
    assert seconds(machine, *[small] * 10) == pytest.approx(10.1)
    assert seconds(machine, *[large] * 10) == pytest.approx(51)


def test_a_cpu_hides_nothing(machine):
    """It computes in the thread that calls the operator."""
    machine = dataclasses.replace(machine, operator_s=1, capability=[0, 0])
    assert seconds(machine, *[("kernel", 0, 5e12, 0, torch.float16)] * 10) == pytest.approx(60)


def test_operators_that_launch_nothing_are_counted_together():
    with FakeTensorMode(), Ledger(HOST) as ledger:
        x = torch.empty(4, 4)
        x = x.view(16).view(2, 8)
        x + x
        x.view(16)
    assert [event[0] for event in ledger.trace] == ["operators", "kernel", "operators"]
    assert [event[1] for event in ledger.trace[::2]] == [3, 1]


def test_collectives_disks_and_the_host(machine):
    # Two ranks: each sends half of what is gathered, and all of what is reduced.
    gather = ("collective", 0, 1, "all_gather_into_tensor", 2e9, 2)
    assert seconds(machine, gather, ("wait_collective", 0, 1), ranks=2) == pytest.approx(1)
    assert seconds(machine, ("collective", 0, 1, "all_reduce", 2e9, 2), ranks=2) == pytest.approx(2)
    assert seconds(machine, ("read", 5, 1e9), ("host_wait_disk", 5)) == pytest.approx(0.5)
    assert seconds(machine, ("read", 5, 1e9), ("host_wait_disk", 5), ranks=2) == pytest.approx(1), "a shared disk"
    assert seconds(machine, ("cpu_adam", 1e9), ranks=2) == pytest.approx(1), "shared cores"


def test_every_number_of_every_profile_has_a_source():
    for name in profile_names():
        machine = load_hardware(name)
        assert machine.sources and all(len(source) > 4 for source in machine.sources.values())
        assert machine.peak_flops_per_s >= machine.fp16_flops_per_s


def test_this_machine_is_measured_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ASTROBIO_CACHE", str(tmp_path))
    machine = load_hardware("this")
    assert machine.host_memory_bytes > 1e9 and machine.nvme_read_bytes_per_s > 1e6 and machine.fp32_flops_per_s > 1e8
    told = capsys.readouterr()
    assert "measuring" in told.err and not told.out  # where a plan's JSON goes
    assert load_hardware("this") == machine and "measuring" not in capsys.readouterr().err
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0, 0))
    next(tmp_path.glob("hardware-*.json")).unlink()
    machine = load_hardware("this")
    assert not torch.cuda.is_initialized()
    assert "load 3.0" in capsys.readouterr().err
    kept = next(tmp_path.glob("hardware-*.json"))
    fields = json.loads(kept.read_text())
    kept.write_text(json.dumps({key: value for key, value in fields.items() if key != "hook_s"}))
    monkeypatch.setattr(this_machine, "_measure_apart", lambda folder: fields)
    assert load_hardware("this") == machine, "what an earlier version kept, without a field, is measured anew"


def test_another_card_or_torch_is_another_machine(tmp_path, monkeypatch):
    """Rented boxes share names. The folder has what NVIDIA's driver writes there."""
    def with_card(name: str) -> str:
        folder = tmp_path / name.replace(" ", "_") / "0000:01:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t {name}\nIRQ:   \t\t 79\n")
        return known(folder.parent)

    def known(folder) -> str:
        return this_machine._parts(this_machine.card_names(folder))

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = [known(tmp_path / "none"), with_card("NVIDIA RTX A5000"), with_card("NVIDIA H100")]
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu128")
    found.append(known(tmp_path / "NVIDIA_H100"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found.append(known(tmp_path / "NVIDIA_H100"))
    assert len(set(found)) == len(found)


def test_the_host_waits_for_copies_from_memory_that_cuda_did_not_lock():
    """DeepSpeed's swap buffers are locked by the kernel alone (csrc/aio/py_lib/deepspeed_pin_tensor.cpp)."""
    ledger = Ledger(HOST)
    page_locked, locked = torch.empty(8), torch.empty(8)
    ledger.add(page_locked, pinned=True)
    ledger.add(locked)
    ledger.lock(locked)
    assert ledger.is_locked(locked) and ledger.is_locked(page_locked)
    assert ledger.is_pinned(page_locked) and not ledger.is_pinned(locked)
    card = torch.empty(8)
    for source, waits in ((page_locked, False), (locked, True)):  # and these are pageable
        answer = SimpleNamespace(known=True, work=("up", source.nbytes))
        ledger._record(torch.ops.aten.copy_.default, (card, source, True), {}, card, answer)
        assert ledger.trace.pop() == ("up", 0, 32, waits, waits)
