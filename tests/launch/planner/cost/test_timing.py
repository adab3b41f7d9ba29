"""The replay of a trace in time, on work small enough to count by hand."""

import dataclasses
import typing

import pytest
import torch

from launch.planner.cost import timing
from launch.planner.cost.timing import replay
from launch.planner.hardware import Hardware, load_hardware
from launch.planner.simulation.trace import (
    Collective,
    CompressedOptimizer,
    Copy,
    CpuOptimizer,
    DiskRead,
    DiskWrite,
    Hook,
    HostWaitsForDisk,
    HostWaitsForEvent,
    HostWaitsForStream,
    HostWork,
    Kernel,
    Operators,
    PhaseBegins,
    RecordEvent,
    StreamWaitsForCollective,
    StreamWaitsForEvent,
    StreamWaitsForStream,
    WorkEvent,
)


@pytest.fixture
def machine() -> Hardware:
    """Round numbers."""
    return dataclasses.replace(
        load_hardware("a5000x2"),
        fp16_flops_per_s=1e12,
        memory_bytes_per_s=1e9,
        operator_s=0,
        launch_s=0,
        hook_s=0,
        pcie_bytes_per_s=1e9,
        link_bytes_per_s=1e9,
        link_latency_s=0,
        host_memory_bytes_per_s=4e9,
        cpu_adam_parameters_per_s=2e9,
        nvme_read_bytes_per_s=2e9,
        nvme_write_bytes_per_s=1e9,
    )


def seconds(machine: Hardware, *trace: WorkEvent, ranks: int = 1) -> float:
    return sum(phase.seconds for phase in replay([PhaseBegins("forward"), *trace], machine, ranks))


def kernel(flops: float = 0, size: float = 0) -> Kernel:
    return Kernel(0, flops, size, torch.float16)


def upload(size: float, stream: int = 0, host_waits: bool = False, pageable: bool = False) -> Copy:
    return Copy("up", stream, size, host_waits, pageable)


def test_every_kind_of_event_is_replayed():
    assert set(timing._METHODS) == set(typing.get_args(WorkEvent)) - {PhaseBegins}


def test_the_roofline(machine):
    assert seconds(machine, kernel(2e12, 1e9)) == pytest.approx(2)
    assert seconds(machine, kernel(1e12, 3e9)) == pytest.approx(3)


def test_streams_overlap_until_one_waits(machine):
    work, copy = kernel(2e12), upload(1e9, stream=7)
    assert seconds(machine, copy, work) == pytest.approx(2)
    assert seconds(machine, copy, StreamWaitsForStream(0, 7), work) == pytest.approx(3)
    copied = copy, RecordEvent(7, 1)
    assert seconds(machine, *copied, StreamWaitsForEvent(0, 1), work) == pytest.approx(3)
    blocking = upload(1e9, stream=7, host_waits=True)
    assert seconds(machine, blocking, work) == pytest.approx(3), "a blocking copy holds the host"
    assert seconds(machine, *copied, HostWaitsForEvent(1), work) == pytest.approx(3)
    assert seconds(machine, copy, HostWaitsForStream(7), work) == pytest.approx(3)
    pageable = upload(1e9, stream=7, host_waits=True, pageable=True)
    assert seconds(machine, pageable) == pytest.approx(2), "from pageable memory, at half the rate"


def test_the_host_pays_for_every_operator_call_and_hook(machine):
    """Of a trace without work on the card only the host's time is left."""
    machine = dataclasses.replace(machine, operator_s=1, launch_s=10, hook_s=100)
    assert seconds(machine, Operators(7)) == pytest.approx(7), "views and the like"
    assert seconds(machine, kernel()) == pytest.approx(11), "an operator that launches a kernel"
    assert seconds(machine, upload(0)) == pytest.approx(11)
    collective = Collective(0, 1, "broadcast", 0, 1), StreamWaitsForCollective(0, 1)
    assert seconds(machine, *collective) == pytest.approx(51), "its stream waits for an event; a kernel, another event"
    waits = RecordEvent(0, 1), StreamWaitsForEvent(3, 1), StreamWaitsForStream(0, 3)
    assert seconds(machine, *waits) == pytest.approx(40)
    assert seconds(machine, Hook()) == pytest.approx(100)
    busy = replay([PhaseBegins("forward"), Hook(), Operators(5), kernel()], machine, 1)[-1].busy
    assert (busy["DeepSpeed's hooks"], busy["operators on the host"], busy["launching"]) == (100, 6, 10)


def test_work_on_the_card_hides_behind_a_slow_host_and_the_host_behind_a_slow_card(machine):
    machine = dataclasses.replace(machine, operator_s=1)
    assert seconds(machine, *[kernel(0.1e12)] * 10) == pytest.approx(10.1)
    assert seconds(machine, *[kernel(5e12)] * 10) == pytest.approx(51)


def test_a_cpu_hides_nothing(machine):
    """It computes in the thread that calls the operator."""
    machine = dataclasses.replace(machine, operator_s=1, capability=[0, 0])
    assert seconds(machine, *[kernel(5e12)] * 10) == pytest.approx(60)


def test_collectives_disks_and_the_host(machine):
    # Two ranks: each sends half of what is gathered, and all of what is reduced.
    gather = Collective(0, 1, "all_gather_into_tensor", 2e9, 2)
    assert seconds(machine, gather, StreamWaitsForCollective(0, 1), ranks=2) == pytest.approx(1)
    assert seconds(machine, Collective(0, 1, "all_reduce", 2e9, 2), ranks=2) == pytest.approx(2)
    read = DiskRead(5, 1e9), HostWaitsForDisk(5)
    assert seconds(machine, *read) == pytest.approx(0.5)
    assert seconds(machine, *read, ranks=2) == pytest.approx(1), "a shared disk"
    assert seconds(machine, DiskWrite(5, 1e9), HostWaitsForDisk(5), ranks=2) == pytest.approx(2)
    assert seconds(machine, CpuOptimizer(1e9), ranks=2) == pytest.approx(1), "shared cores"
    step = CompressedOptimizer(parameters=1e9, size=14e9)
    many, few = (dataclasses.replace(machine, host_cores=cores) for cores in (1000, 1))
    assert seconds(many, step, ranks=2) == pytest.approx(14 * seconds(many, HostWork(1e9), ranks=2)), "bound by memory"
    assert seconds(few, step) > 1, "bound by a core"
    assert seconds(machine, HostWork(1e9), ranks=2) == pytest.approx(0.5), "shared memory"
