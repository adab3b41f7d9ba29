"""A GPU, its streams, its links and its disk, without any of them: what DeepSpeed sees in a ghost run.

torch's Python backend for PrivateUse1 stands for the card and `FakeTensorMode` for its memory: tensors have shapes,
dtypes and a device, but no data. What DeepSpeed asks of CUDA, NCCL, libaio and its compiled Adams is answered here and
written into the `Ledger`. Written for torch 2.13.0 and deepspeed 0.19.8. It changes both for good: one process runs one
simulation (`launch.planner.simulation.run`).
"""

import contextlib
import functools
import inspect
import os

import cpuinfo
import torch
import torch._library.simple_registry as simple_registry
import torch.nn.functional as F
from torch.autograd.function import _is_setup_context_defined
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from launch.planner.simulation.autocast import prepare_autocast
from launch.planner.simulation.backends import Links, attend, count_hooks, op_libraries, read_unpacked, replace_ops
from launch.planner.simulation.recorder import GPU, HOST, Ledger, numbers
from launch.planner.simulation.shortcuts import take_shortcuts
from launch.planner.simulation.tensors import Mode
from launch.zero.accelerator import HostAccelerator, _compute_fp16_in_fp32

_setup_privateuseone_for_python_backend(rename=GPU)
getattr(torch, GPU).get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]

import deepspeed  # noqa: E402  must find the device registered
import deepspeed.runtime.zero.partition_parameters as partition_parameters  # noqa: E402
import deepspeed.runtime.zero.partitioned_param_coordinator as coordinator  # noqa: E402
import torch.distributed as dist  # noqa: E402
from deepspeed.accelerator import cuda_accelerator, set_accelerator  # noqa: E402
from deepspeed.runtime.engine import DeepSpeedEngine  # noqa: E402
from deepspeed.utils import nvtx  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402


class Event:
    """A CUDA event; its time is found when the trace is replayed."""

    ledger: Ledger

    def __init__(self, *args, **kwargs):
        self.number = next(numbers)

    def record(self, stream=None):
        self.ledger.trace.append(("record", stream.number if stream else self.ledger.stream, self.number))

    def wait(self, stream=None):
        self.ledger.trace.append(("wait_event", stream.number if stream else self.ledger.stream, self.number))

    def synchronize(self):
        self.ledger.trace.append(("host_wait_event", self.number))

    def query(self):
        return True

    def elapsed_time(self, other):
        return 1.0


class Stream:
    """A CUDA stream; 0 is the default one."""

    ledger: Ledger

    def __init__(self, *args, number: int | None = None, **kwargs):
        self.number = next(numbers) if number is None else number

    def wait_stream(self, other):
        self.ledger.trace.append(("wait_stream", self.number, other.number))

    def wait_event(self, event):
        event.wait(self)

    def synchronize(self):
        self.ledger.trace.append(("host_wait_stream", self.number))

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def query(self):
        return True


class SimulatedGPU(cuda_accelerator.CUDA_Accelerator):
    """DeepSpeed's CUDA accelerator on the simulated card: asynchronous, with streams, events and page-locked memory."""

    def __init__(self, ledger: Ledger, memory: int):
        super().__init__()
        self.ledger, self.memory = ledger, memory
        self._communication_backend_name = "fake"
        Event.ledger = Stream.ledger = ledger

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
        self.ledger.trace.append(("host_wait_all",))

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
        before, self.ledger.stream = self.ledger.stream, stream.number if stream is not None else self.ledger.stream
        try:
            yield
        finally:
            self.ledger.stream = before

    def current_stream(self, device_index=None):
        return Stream(number=self.ledger.stream)

    def default_stream(self, device_index=None):
        return Stream(number=0)

    @property
    def Event(self):
        return Event

    # Memory
    def empty_cache(self):
        self.ledger.blocks.append(("", 0, 0))

    def memory_allocated(self, device_index=None):
        return self.ledger.live[GPU]

    max_memory_allocated = memory_cached = max_memory_cached = memory_reserved = max_memory_reserved = memory_allocated

    def reset_peak_memory_stats(self, device_index=None):
        pass

    reset_max_memory_allocated = reset_max_memory_cached = reset_peak_memory_stats

    def memory_stats(self, device_index=None):
        return {"num_alloc_retries": 0}

    def total_memory(self, device_index=None):
        return self.memory

    def available_memory(self, device_index=None):
        return self.memory - self.ledger.live[GPU]

    def _torch_pin_memory(self, tensor):
        return tensor if self.ledger.is_pinned(tensor) else self.ledger.pin(tensor)

    def _torch_empty_pinned(self, tensor, shape):
        return torch.empty(shape, dtype=tensor.dtype, device="cpu", pin_memory=True)

    def _torch_is_pinned(self, tensor):
        return self.ledger.is_pinned(tensor)

    # Precision
    def is_bf16_supported(self):
        return self.ledger.capability >= (8, 0)

    def is_fp16_supported(self):
        return self.ledger.capability >= (7, 0)

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


for _name, _dtype in (("BFloat16", torch.bfloat16), ("Byte", torch.uint8), ("Double", torch.double),
                      ("Float", torch.float), ("Half", torch.half), ("Int", torch.int), ("Long", torch.long)):
    setattr(SimulatedGPU, f"{_name}Tensor",
            property(lambda self, dtype=_dtype: functools.partial(torch.tensor, dtype=dtype, device=GPU)))


class SimulatedHost(HostAccelerator):
    """The CPU accelerator, whose device is the host."""

    def __init__(self, ledger: Ledger):
        super().__init__()
        self.ledger = ledger

    def memory_allocated(self, device_index=None):
        return self.ledger.live[HOST]

    max_memory_allocated = memory_allocated


def simulate(ranks: int, capability: tuple[int, int], memory: int, vocabulary: int, rounding: int | None = None
             ) -> tuple[Mode, Ledger]:
    """Make this process rank 0 of ``ranks`` on the simulated card, or on a CPU machine where ``capability`` is (0, 0);
    both modes returned must be active to run anything."""
    on_host = capability == (0, 0)
    ledger = Ledger(HOST if on_host else GPU, vocabulary, capability, rounding)
    set_accelerator(SimulatedHost(ledger) if on_host else SimulatedGPU(ledger, memory))
    torch.cuda.get_device_capability = lambda *args, **kwargs: capability
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT="29999", DS_ACCELERATOR="cpu" if on_host else "cuda")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    deepspeed.init_distributed(dist_backend="fake", auto_mpi_discovery=False)
    deepspeed.comm.comm.cdb = Links(deepspeed.comm.comm.cdb, ledger)
    replace_ops(op_libraries(ledger))
    coordinator.assert_ints_same_as_other_ranks = lambda *args, **kwargs: None  # there are no others
    _keep_devices_true(ledger)
    _be_quick()
    take_shortcuts(ledger)
    prepare_autocast()
    read_unpacked(ledger)
    count_hooks(lambda: ledger.trace.append(("hook",)))
    if on_host:
        _compute_fp16_in_fp32()
    else:
        F.scaled_dot_product_attention = functools.partial(attend, capability=capability)
    return Mode(allow_non_fake_inputs=True), ledger


def _be_quick() -> None:
    """Leave out, or do quicker, what takes a ghost run's time and has no effect on it."""
    nvtx.enable_nvtx = False  # ranges for a profiler
    torch.Tensor.__repr__ = lambda self, **_: "…"  # DeepSpeed words all parameters in messages that nobody reads
    cpuinfo.get_cpu_info = dict  # starts a process, for a warning
    for name in [name for name in vars(partition_parameters) if name.startswith("debug_param2name")]:
        setattr(partition_parameters, name, lambda param: "")  # for messages that nobody reads
    torch.autograd.Function.apply = classmethod(_apply)
    check = torch._check_with  # imports sympy, for sizes that are formulas
    torch._check_with = lambda error, condition, message: condition is True or check(error, condition, message)
    make_grads = torch.autograd._make_grads

    def made_grads(outputs, grads, is_grads_batched):
        """torch's imports sympy too, to compare shapes."""
        made = not is_grads_batched and all(
            isinstance(output, torch.Tensor) and isinstance(grad, torch.Tensor) and output.shape == grad.shape
            and output.is_complex() == grad.is_complex() for output, grad in zip(outputs, grads, strict=True))
        return tuple(grads) if made else make_grads(outputs, grads, is_grads_batched)

    torch.autograd._make_grads = made_grads
    # a profiler's and torch.library's rules for each operator: there are none
    simple_registry.find_torch_dispatch_rule = lambda op, mode: None
    own: dict[tuple, tuple] = {}

    def iter_params(module, recurse=False):
        """DeepSpeed asks this a million times for a model of 2400 parameters, to find out what it may release."""
        external = len(vars(module).get("_external_params", ()))
        found = own.get((module, external, recurse))
        if found is None:
            found = own[module, external, recurse] = tuple(parameters(module, recurse))
        return found

    parameters = coordinator.iter_params
    coordinator.iter_params = iter_params
    coordinator.z3_leaf_module = leaf = lambda module: vars(module).get("_z3_leaf", False)
    of_order = coordinator.PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release

    def params_to_release(self, module, step):
        """DeepSpeed searches the coming modules for the parameters of each, and most have none to release."""
        if all(param.ds_persist for param in iter_params(module, leaf(module))):
            return set()
        return of_order(self, module, step)

    coordinator.PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release = params_to_release
    DeepSpeedEngine._check_for_duplicates = lambda self, optimizer: None  # compares each parameter with all others


def _apply(cls, *args, **kwargs):
    """`torch.autograd.Function.apply` without functorch. It looks up the signature at each call, for the defaults of
    what is not given."""
    if _is_setup_context_defined(cls.setup_context) and (kwargs or len(args) < _arguments(cls.forward)):
        bound = inspect.signature(cls.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        args, kwargs = bound.args, bound.kwargs
    return super(torch.autograd.Function, cls).apply(*args, **kwargs)


@functools.cache
def _arguments(forward) -> int:
    return len(inspect.signature(forward).parameters)


def _keep_devices_true(ledger: Ledger) -> None:
    """What `FakeTensor` does not follow by itself: a device that changes with ``.data``, a constant's device, resized
    and recorded storages."""
    base = torch.Tensor.data

    def set_data(tensor, value):
        if isinstance(value, FakeTensor) and value.fake_device.type != tensor.fake_device.type:
            # torch takes a PrivateUse1 tensor and a CPU tensor to be of different kinds, unlike a CUDA one.
            moved = value.detach().requires_grad_(tensor.requires_grad)
            torch._C._swap_tensor_impl(tensor, moved)
            tensor.fake_device, moved.fake_device = value.fake_device, tensor.fake_device
        else:
            base.__set__(tensor, value)

    FakeTensor.data = property(base.__get__, set_data)
    torch.Tensor.record_stream = lambda self, stream: None

    def apply(module, function, recurse=True):
        """`Module._apply` as it treats tensors that are not fake."""
        for child in module.children() if recurse else ():
            child._apply(function)
        for parameter in module._parameters.values():
            if parameter is not None:
                parameter.data = function(parameter.data)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = function(buffer)
        return module

    torch.nn.Module._apply = apply
    make = torch.tensor

    def tensor(data, *args, device=None, **kwargs):
        """A constant is made on the host."""
        made = make(data, *args, device="cpu", **kwargs)
        return made if device is None or torch.device(device).type == "cpu" else made.to(device)

    def as_tensor(data, dtype=None, device=None):
        return data.to(device=device, dtype=dtype) if isinstance(data, torch.Tensor) \
            else tensor(data, dtype=dtype, device=device)

    torch.tensor, torch.as_tensor = tensor, as_tensor
    partition_parameters._orig_torch_tensor = tensor  # zero.Init has kept the one it found

    def resize_(storage, size):
        """torch refuses to resize a storage that has no memory; who resizes one makes it as large again before it is
        used."""
        ledger.resized(storage, size)
        return storage

    torch.UntypedStorage.resize_ = resize_
