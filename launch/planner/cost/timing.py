"""Seconds that a ghost run's work takes on given hardware, by replaying its trace.

Streams, the links between cards, PCIe in each direction, the disk and the host each have a clock. The host spends time
on every operator, view or not, on every call to the card's driver and on ZeRO-3's hooks: small work is bound by it. A
kernel starts when the host has launched it and its stream is free, and takes what the roofline says (Williams, Waterman
& Patterson 2009): the longer of its arithmetic at the card's matrix rate and its bytes at the memory rate. Streams wait
for each other, and the host for them, where DeepSpeed makes them.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from launch.planner.hardware.profile import Hardware
from launch.planner.simulation import trace

#: Bytes that each rank sends over its link in a ring, as a multiple of the message: NCCL's "bus bandwidth" convention
#: (nccl-tests, doc/PERFORMANCE.md). Those not named here move (n - 1) / n of it.
_RING = {"all_reduce": 2.0, "inference_all_reduce": 2.0}
#: Rate of a copy from or to pageable memory, as a share of page-locked memory's: the driver takes it through a buffer
#: of its own. 12.9 of 23.9 GB/s up and 12.3 of 26.6 down on an RTX 4090 (NVlabs/cuda-oxide, pull request 976: 64 and 16
#: MiB), 5 to 6 of 11 to 12 on PCIe 3.0 (rapidsai/dask-cuda, pull request 98).
_PAGEABLE = 0.5
#: Parameters a second and core of the compressed AdamW's kernel: benchmarks/compressed_adamw.py, on one core of an AMD
#: EPYC of the fourth generation.
_COMPRESSED_PER_CORE = 6e8


@dataclass
class PhaseTime:
    """Seconds of one phase, and the busy seconds of each resource in it."""

    name: str
    seconds: float = 0.0
    busy: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    flops: int = 0


def replay(events: list[trace.WorkEvent], hardware: Hardware, ranks: int) -> list[PhaseTime]:
    """The time of each phase of a trace; the first has what comes before any `PhaseBegins`."""
    clock = _Clock(hardware, ranks)
    phases = [PhaseTime("init")]
    clock.phase = phases[0]
    began = 0.0
    for event in events:
        if type(event) is trace.PhaseBegins:
            clock.host_waits_for_all()  # as DeepSpeed's wall_clock_breakdown does, so that a phase has its own work
            phases[-1].seconds = clock.now - began
            began = clock.now
            phases.append(PhaseTime(event.name))
            clock.phase = phases[-1]
        else:
            _METHODS[type(event)](clock, *event)
    clock.host_waits_for_all()
    phases[-1].seconds = clock.now - began
    return phases


class _Clock:
    def __init__(self, hardware: Hardware, ranks: int):
        self.hardware, self.ranks = hardware, ranks
        self.now = 0.0
        self.streams: dict[int, float] = defaultdict(float)
        self.links = 0.0
        self.pcie = {"up": 0.0, "down": 0.0}
        self.disk: dict[int, float] = {}
        self.disk_free = 0.0
        self.events: dict[int, float] = {}
        self.collectives: dict[int, float] = {}
        self.phase: PhaseTime
        self.share = hardware.on_one_machine(ranks)  # ranks that share the host and its disks …
        self.device_share = self.share if hardware.is_cpu else 1  # … and its cores, where those are the device

    def kernel(self, stream, flops, size, dtype):
        rate = self.hardware.flops_per_s(dtype)
        arithmetic, traffic = (
            self.device_share * amount for amount in (flops / rate, size / self.hardware.memory_bytes_per_s)
        )
        self.phase.flops += flops
        seconds, resource = max(arithmetic, traffic), "arithmetic" if arithmetic > traffic else "card memory"
        self.operators(1)
        self._call_driver()
        self.streams[stream] = max(self.streams[stream], self.now) + seconds
        self.phase.busy[resource] += seconds
        if self.hardware.is_cpu:  # the host is the device: nothing runs beside it
            self.now = self.streams[stream]

    def copy(self, direction, stream, size, waits, pageable):
        seconds = size / (self.hardware.pcie_bytes_per_s * (_PAGEABLE if pageable else 1))
        self.operators(1)
        self._call_driver()
        start = max(self.streams[stream], self.now, self.pcie[direction])
        self.streams[stream] = self.pcie[direction] = start + seconds
        self.phase.busy["PCIe"] += seconds
        if waits:
            self.now = self.streams[stream]

    def collective(self, stream, number, name, size, ranks):
        self.operators(1)
        self._call_driver(4)  # ProcessGroupNCCL: an event, NCCL's stream waits for it, the kernel, another event
        seconds = 0.0
        if ranks > 1:
            moved = _RING.get(name, 1.0) * (ranks - 1) / ranks * size
            seconds = self.hardware.link_latency_s + moved / self.hardware.link_bytes_per_s
        start = max(self.streams[stream], self.now, self.links)
        self.links = self.collectives[number] = start + seconds
        self.phase.busy["links between cards"] += seconds

    def stream_waits_for_collective(self, stream, number):
        self._call_driver()
        self.streams[stream] = max(self.streams[stream], self.collectives.pop(number, 0.0))

    def record_event(self, stream, event):
        self._call_driver()
        self.events[event] = max(self.streams[stream], self.now)

    def stream_waits_for_event(self, stream, event):
        self._call_driver()
        self.streams[stream] = max(self.streams[stream], self.events.get(event, 0.0))

    def stream_waits_for_stream(self, stream, other):
        self._call_driver(2)  # an event, and to wait for it
        self.streams[stream] = max(self.streams[stream], self.streams[other])

    def host_waits_for_event(self, event):
        self.now = max(self.now, self.events.get(event, 0.0))

    def host_waits_for_stream(self, stream):
        self.now = max(self.now, self.streams[stream])

    def host_waits_for_all(self):
        self.now = max(self.now, self.links, *self.streams.values(), *self.pcie.values())

    def _on_host(self, seconds, resource):
        self.now += seconds
        self.phase.busy[resource] += seconds

    def host_work(self, size):
        self._on_host(size * self.share / self.hardware.host_memory_bytes_per_s, "host memory")

    def operators(self, number):
        self._on_host(number * self.hardware.operator_s, "operators on the host")

    def _call_driver(self, times=1):
        self._on_host(times * self.hardware.launch_s, "launching")

    def hook(self):
        self._on_host(self.hardware.hook_s, "DeepSpeed's hooks")

    def cpu_optimizer(self, parameters):
        self._on_host(parameters * self.share / self.hardware.cpu_adam_parameters_per_s, "CPU Adam")

    def compressed_optimizer(self, parameters, size):
        memory = size / self.hardware.host_memory_bytes_per_s
        cores = parameters / (self.hardware.host_cores * _COMPRESSED_PER_CORE)
        self._on_host(max(memory, cores) * self.share, "compressed AdamW")

    def read(self, handle, size):
        self._transfer(handle, size / (self.hardware.nvme_read_bytes_per_s / self.share))

    def write(self, handle, size):
        self._transfer(handle, size / (self.hardware.nvme_write_bytes_per_s / self.share))

    def _transfer(self, handle, seconds):
        start = max(self.disk_free, self.now)
        self.disk_free = self.disk[handle] = start + seconds
        self.phase.busy["NVMe"] += seconds

    def host_waits_for_disk(self, handle):
        self.now = max(self.now, self.disk.get(handle, 0.0))


_METHODS: dict[type, Callable[..., None]] = {
    trace.Kernel: _Clock.kernel,
    trace.Copy: _Clock.copy,
    trace.Collective: _Clock.collective,
    trace.HostWork: _Clock.host_work,
    trace.CpuOptimizer: _Clock.cpu_optimizer,
    trace.CompressedOptimizer: _Clock.compressed_optimizer,
    trace.DiskRead: _Clock.read,
    trace.DiskWrite: _Clock.write,
    trace.Operators: _Clock.operators,
    trace.Hook: _Clock.hook,
    trace.RecordEvent: _Clock.record_event,
    trace.StreamWaitsForEvent: _Clock.stream_waits_for_event,
    trace.StreamWaitsForStream: _Clock.stream_waits_for_stream,
    trace.StreamWaitsForCollective: _Clock.stream_waits_for_collective,
    trace.HostWaitsForEvent: _Clock.host_waits_for_event,
    trace.HostWaitsForStream: _Clock.host_waits_for_stream,
    trace.HostWaitsForDisk: _Clock.host_waits_for_disk,
    trace.HostWaitsForAll: _Clock.host_waits_for_all,
}
