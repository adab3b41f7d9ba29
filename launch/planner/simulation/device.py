"""The simulated GPU that DeepSpeed sees: streams, events and memory without hardware.

torch's Python backend for PrivateUse1 stands for the card and `FakeTensorMode` for its memory: tensors have shapes,
dtypes and a device, but no data. What DeepSpeed asks of CUDA is answered here and written down by the `Recorder`; NCCL,
libaio and compiled optimizers are in `launch.planner.simulation.backends`. Written for torch 2.13.0 and deepspeed
0.19.8.
"""

import contextlib
import functools
import os
from collections.abc import Callable

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from launch.planner.simulation.parts import GPU, HOST
from launch.planner.simulation.recorder import Recorder

_setup_privateuseone_for_python_backend(rename=GPU)
getattr(torch, GPU).get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]

import deepspeed  # noqa: E402  must find the device registered
import torch.distributed as dist  # noqa: E402
from deepspeed.accelerator import cuda_accelerator, set_accelerator  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402

from launch.planner.simulation import patches, trace  # noqa: E402
from launch.planner.simulation.autocast import prepare_autocast  # noqa: E402
from launch.planner.simulation.spec import Simulation  # noqa: E402
from launch.planner.simulation.tensors import Mode  # noqa: E402
from launch.zero.accelerator import HostAccelerator, _compute_fp16_in_fp32  # noqa: E402


class Event:
    """A CUDA event; the replay of the trace gives its time."""

    recorder: Recorder

    def __init__(self, *args, **kwargs):
        self.number = trace.next_number()

    def record(self, stream=None):
        self.recorder.trace.append(trace.RecordEvent(stream.number if stream else self.recorder.stream, self.number))

    def wait(self, stream=None):
        self.recorder.trace.append(
            trace.StreamWaitsForEvent(stream.number if stream else self.recorder.stream, self.number)
        )

    def synchronize(self):
        self.recorder.trace.append(trace.HostWaitsForEvent(self.number))

    def query(self):
        return True

    def elapsed_time(self, other):
        return 1.0


class Stream:
    """A CUDA stream; 0 is the default one."""

    recorder: Recorder

    def __init__(self, *args, number: int | None = None, **kwargs):
        self.number = trace.next_number() if number is None else number

    def wait_stream(self, other):
        self.recorder.trace.append(trace.StreamWaitsForStream(self.number, other.number))

    def wait_event(self, event):
        event.wait(self)

    def synchronize(self):
        self.recorder.trace.append(trace.HostWaitsForStream(self.number))

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def query(self):
        return True


class SimulatedGPU(cuda_accelerator.CUDA_Accelerator):
    """DeepSpeed's CUDA accelerator on the simulated card: asynchronous, with streams, events and page-locked memory."""

    def __init__(self, recorder: Recorder, memory: int):
        super().__init__()
        self.recorder, self.memory = recorder, memory
        self._communication_backend_name = "fake"
        Event.recorder = Stream.recorder = recorder

    # Device
    def device_name(self, device_index=None):
        return GPU if device_index is None else f"{GPU}:{device_index}"

    def device(self, device_index=None):
        return contextlib.nullcontext()

    def set_device(self, device_index):
        pass

    def current_device(self):
        return 0

    def current_device_name(self):
        return f"{GPU}:0"

    def device_count(self):
        return 1

    def is_available(self):
        return True

    def on_accelerator(self, tensor):
        return tensor.device.type == GPU

    def synchronize(self, device_index=None):
        self.recorder.trace.append(trace.HostWaitsForAll())

    def communication_backend_version(self):
        return (2, 27, 3)

    # Random numbers: there are none
    def set_rng_state(self, new_state, device_index=None):
        pass

    def get_rng_state(self, device_index=None):
        return torch.empty(16, dtype=torch.uint8)

    def manual_seed(self, seed):
        pass

    def manual_seed_all(self, seed):
        pass

    def initial_seed(self):
        return 0

    def lazy_call(self, callback):
        pass

    # Streams
    @property
    def Stream(self):
        return Stream

    @contextlib.contextmanager
    def stream(self, stream):
        before = self.recorder.stream
        self.recorder.stream = before if stream is None else stream.number
        try:
            yield
        finally:
            self.recorder.stream = before

    def current_stream(self, device_index=None):
        return Stream(number=self.recorder.stream)

    def default_stream(self, device_index=None):
        return Stream(number=0)

    @property
    def Event(self):
        return Event

    # Memory
    def empty_cache(self):
        self.recorder.allocations.append(trace.CacheEmptied())

    def memory_allocated(self, device_index=None):
        return self.recorder.live[GPU]

    max_memory_allocated = memory_cached = max_memory_cached = memory_reserved = max_memory_reserved = memory_allocated

    def reset_peak_memory_stats(self, device_index=None):
        pass

    reset_max_memory_allocated = reset_max_memory_cached = reset_peak_memory_stats

    def memory_stats(self, device_index=None):
        return {"num_alloc_retries": 0}

    def total_memory(self, device_index=None):
        return self.memory

    def available_memory(self, device_index=None):
        return self.memory - self.recorder.live[GPU]

    def _torch_pin_memory(self, tensor):
        return tensor if self.recorder.is_pinned(tensor) else self.recorder.pin(tensor)

    def _torch_empty_pinned(self, tensor, shape):
        return torch.empty(shape, dtype=tensor.dtype, device="cpu", pin_memory=True)

    def _torch_is_pinned(self, tensor):
        return self.recorder.is_pinned(tensor)

    # Precision
    def is_bf16_supported(self):
        return self.recorder.capability >= (8, 0)

    def is_fp16_supported(self):
        return self.recorder.capability >= (7, 0)

    def is_triton_supported(self):
        return False

    def prefer_triton_grouped_mm(self):
        return False

    def range_push(self, msg, domain=None, category=None):
        pass

    def range_pop(self, domain=None):
        pass

    def is_current_stream_capturing(self):
        return False


def _constructor(dtype: torch.dtype, accelerator: SimulatedGPU) -> Callable:
    return functools.partial(torch.tensor, dtype=dtype, device=GPU)  # `torch.tensor` as it is then: it is patched


for _name, _dtype in (
    ("BFloat16", torch.bfloat16),
    ("Byte", torch.uint8),
    ("Double", torch.double),
    ("Float", torch.float),
    ("Half", torch.half),
    ("Int", torch.int),
    ("Long", torch.long),
):
    setattr(SimulatedGPU, f"{_name}Tensor", property(functools.partial(_constructor, _dtype)))


class SimulatedHost(HostAccelerator):
    """The CPU accelerator, whose device is the host."""

    def __init__(self, recorder: Recorder):
        super().__init__()
        self.recorder = recorder

    def memory_allocated(self, device_index=None):
        return self.recorder.live[HOST]

    max_memory_allocated = memory_allocated


def simulate(simulation: Simulation) -> tuple[Mode, Recorder]:
    """Make this process rank 0 of the simulation's ranks on the simulated card, or on a CPU machine where the
    ``capability`` is (0, 0); both modes returned must be active to run anything."""
    on_host = simulation.capability == (0, 0)
    recorder = Recorder(HOST if on_host else GPU, simulation.vocabulary, simulation.capability, simulation.rounding)
    set_accelerator(SimulatedHost(recorder) if on_host else SimulatedGPU(recorder, simulation.memory))
    os.environ.update(
        RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE=str(simulation.ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="29999",
        DS_ACCELERATOR="cpu" if on_host else "cuda",
    )
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=simulation.ranks)
    deepspeed.init_distributed(dist_backend="fake", auto_mpi_discovery=False)
    patches.apply(recorder, simulation)
    prepare_autocast()
    if on_host:
        _compute_fp16_in_fp32()
    return Mode(allow_non_fake_inputs=True), recorder
