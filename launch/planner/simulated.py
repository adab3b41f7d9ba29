"""A GPU, its streams, its links and its disk, without any of them: what DeepSpeed sees in a ghost run.

torch's Python backend for PrivateUse1 stands for the card and `FakeTensorMode` for its memory: tensors have shapes,
dtypes and a device, but no data. What DeepSpeed asks of CUDA, NCCL, libaio and its compiled Adams is answered here and
written into the `Ledger`. Written for torch 2.13.0 and deepspeed 0.19.8. It changes both for good: one process runs one
simulation (`launch.planner.ghost`).
"""

import contextlib
import functools
import itertools
import os
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from launch.planner import values
from launch.planner.autocast import prepare_autocast
from launch.planner.ledger import GPU, SWAP, Ledger

_setup_privateuseone_for_python_backend(rename=GPU)
getattr(torch, GPU).get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]

import deepspeed  # noqa: E402  must find the device registered
import deepspeed.runtime.zero.partitioned_param_coordinator as coordinator  # noqa: E402
import torch.distributed as dist  # noqa: E402
from deepspeed.accelerator import cuda_accelerator, set_accelerator  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402

_numbers = itertools.count(1)


class Event:
    """A CUDA event; its time is found when the trace is replayed."""

    ledger: Ledger

    def __init__(self, *args, **kwargs):
        self.number = next(_numbers)

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
        self.number = next(_numbers) if number is None else number

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

    def __init__(self, ledger: Ledger, capability: tuple[int, int], memory: int):
        super().__init__()
        self.ledger, self.capability, self.memory = ledger, capability, memory
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
        pass

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
        return self.capability >= (8, 0)

    def is_fp16_supported(self):
        return self.capability >= (7, 0)

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


class Handle:
    """A collective on its way; `wait` makes the current stream wait for it, as NCCL's does."""

    def __init__(self, ledger: Ledger, number: int):
        self.ledger, self.number = ledger, number

    def wait(self, *args, **kwargs):
        self.ledger.trace.append(("wait_collective", self.ledger.stream, self.number))
        return True

    def is_completed(self):
        return True


class Links:
    """Stands before DeepSpeed's communication backend and answers its collectives without moving anything."""

    #: Collective → which argument's bytes are the whole message of one rank, gathered or yet to be scattered.
    WHOLE = {"all_reduce": ("tensor", 0), "inference_all_reduce": ("tensor", 0), "broadcast": ("tensor", 0),
             "reduce": ("tensor", 0), "all_gather_into_tensor": ("output_tensor", 0), "all_gather_base":
             ("output_tensor", 0), "reduce_scatter_tensor": ("input_tensor", 1), "all_gather": ("tensor_list", 0),
             "reduce_scatter": ("input_list", 1), "all_to_all_single": ("output", 0)}

    def __init__(self, backend, ledger: Ledger):
        self._backend, self._ledger = backend, ledger

    def __getattr__(self, name):
        if name in self.WHOLE:
            return functools.partial(self._collective, name)
        return getattr(self._backend, name)

    def get_all_gather_function(self):
        return functools.partial(self._collective, "all_gather_into_tensor")

    def get_reduce_scatter_function(self):
        return functools.partial(self._collective, "reduce_scatter_tensor")

    def barrier(self, *args, **kwargs):
        self._ledger.trace.append(("host_wait_all",))

    def _collective(self, name, *args, group=None, async_op=False, **kwargs):
        key, place = self.WHOLE[name]
        message = kwargs[key] if key in kwargs else args[place]
        size = sum(t.nbytes for t in message) if isinstance(message, (list, tuple)) else message.nbytes
        handle = Handle(self._ledger, next(_numbers))
        ranks = self._backend.get_world_size(group)
        self._ledger.trace.append(("collective", self._ledger.stream, handle.number, name, size, ranks))
        if not async_op:
            handle.wait()
            return None
        return handle


class AioHandle:
    """libaio by name only: what is read and written is counted, and nothing moves."""

    ledger: Ledger

    def __init__(self, block_size=1 << 20, queue_depth=8, single_submit=False, overlap_events=True,
                 intra_op_parallelism=1):
        self.block_size, self.queue_depth = block_size, queue_depth
        self.intra_op_parallelism = intra_op_parallelism
        self.number, self.pending = next(_numbers), 0

    def async_pread(self, buffer, path, offset=0):
        self.ledger.read(str(path), buffer.nbytes, self.number)
        self.pending += 1
        return 0

    def async_pwrite(self, buffer, path, offset=0):
        self.ledger.write(str(path), buffer.nbytes, self.number)
        self.pending += 1
        return 0

    def sync_pread(self, buffer, path, offset=0):
        self.async_pread(buffer, path)
        return self.wait()

    def sync_pwrite(self, buffer, path, offset=0):
        self.async_pwrite(buffer, path)
        return self.wait()

    pread = read = sync_pread
    pwrite = write = sync_pwrite

    def wait(self):
        self.ledger.trace.append(("host_wait_disk", self.number))
        done, self.pending = self.pending, 0
        return done

    def new_cpu_locked_tensor(self, count, example):
        """csrc/aio/py_lib/deepspeed_pin_tensor.cpp: posix_memalign and mlock, no rounding to powers of two."""
        tensor = torch.empty(int(count), dtype=example.dtype, device="cpu")
        self.ledger.add(tensor, SWAP)
        self.ledger.lock(tensor)
        return tensor

    def free_cpu_locked_tensor(self, tensor):
        return True

    def is_pinned(self, tensor):
        return self.ledger.is_pinned(tensor)

    def get_block_size(self):
        return self.block_size


def _op_libraries(ledger: Ledger) -> dict[str, object]:
    """What the compiled ops of DeepSpeed are replaced with, by the name of their builder."""
    def on_host(*args):
        tensors = [t for t in args if isinstance(t, torch.Tensor)]
        ledger.trace.append(("cpu_adam", tensors[0].numel()))

    def on_card(chunk, overflow, lists, *args):
        tensors = [t for group in lists for t in group]
        ledger.trace.append(("kernel", ledger.stream, 0, 2 * sum(t.nbytes for t in tensors), torch.float32))

    def nothing(*args):
        return None

    AioHandle.ledger = ledger
    host = SimpleNamespace(create_adam=nothing, destroy_adam=nothing, adam_update=on_host, adam_rollback=on_host,
                           create_adagrad=nothing, destroy_adagrad=nothing, adagrad_update=on_host,
                           create_lion=nothing, destroy_lion=nothing, lion_update=on_host)
    card = SimpleNamespace(multi_tensor_adam=on_card, multi_tensor_lion=on_card, lamb=on_card)
    return {"CPUAdamBuilder": host, "CPUAdagradBuilder": host, "CPULionBuilder": host,
            "FusedAdamBuilder": card, "FusedLionBuilder": card, "FusedLambBuilder": card,
            "AsyncIOBuilder": SimpleNamespace(aio_handle=AioHandle)}


def _multi_tensor_apply(chunk):
    """`MultiTensorApply` hands on the lists of tensors; a multi-tensor kernel makes no temporaries."""
    return lambda op, overflow, lists, *args: op(chunk, overflow, lists, *args)


def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False, *,
           capability: tuple[int, int]):
    """`scaled_dot_product_attention` with the kernel that CUDA would choose.

    aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: FlashAttention for half types on compute capability 8.0 and
    newer, head size up to 256 and no mask; else the memory-efficient kernel, which takes a mask but no grouped heads;
    else the formula, with its score matrix.
    """
    half = query.dtype in (torch.float16, torch.bfloat16)
    if query.dim() == 4 and half and attn_mask is None and capability >= (8, 0) and query.shape[-1] <= 256:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal,
                                                                  return_debug_mask=False, scale=scale)[0]
    grouped = enable_gqa and query.shape[1] != key.shape[1]
    bf16_before_ampere = query.dtype is torch.bfloat16 and capability < (8, 0)
    if query.dim() == 4 and capability >= (5, 0) and not grouped and not bf16_before_ampere:
        if attn_mask is not None:
            attn_mask = attn_mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
            if attn_mask.dtype is torch.bool:
                attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
        needed = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, needed, dropout_p,
                                                                      is_causal, scale=scale)[0]
    return torch.ops.aten._scaled_dot_product_attention_math(query, key, value, attn_mask, dropout_p, is_causal,
                                                             scale=scale, enable_gqa=enable_gqa)[0]


def simulate(ranks: int, capability: tuple[int, int], memory: int, vocabulary: int) -> tuple[FakeTensorMode, Ledger]:
    """Make this process rank 0 of ``ranks`` on the simulated card; both modes returned must be active to run anything.
    """
    ledger = Ledger(vocabulary)
    accelerator = SimulatedGPU(ledger, capability, memory)
    set_accelerator(accelerator)
    torch.cuda.get_device_capability = lambda *args, **kwargs: capability
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(ranks), LOCAL_SIZE=str(ranks), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT="29999", DS_ACCELERATOR="cuda")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    deepspeed.init_distributed(dist_backend="fake", auto_mpi_discovery=False)
    deepspeed.comm.comm.cdb = Links(deepspeed.comm.comm.cdb, ledger)
    _replace_ops(_op_libraries(ledger))
    coordinator.assert_ints_same_as_other_ranks = lambda *args, **kwargs: None  # there are no others
    _keep_devices_true(ledger)
    prepare_autocast()
    F.scaled_dot_product_attention = functools.partial(attend, capability=capability)
    return FakeTensorMode(allow_non_fake_inputs=True), ledger


def _replace_ops(libraries: dict[str, object]) -> None:
    import deepspeed.ops.adam.fused_adam as fused_adam
    from deepspeed.accelerator import get_accelerator
    from deepspeed.ops import op_builder
    accelerator = get_accelerator()
    accelerator._lazy_init_class_dict()
    for name, library in libraries.items():
        for builder in {getattr(op_builder, name, None), accelerator.class_dict.get(name)} - {None}:
            builder.load = lambda self, verbose=True, library=library: library
            builder.is_compatible = lambda self, verbose=False: True
    fused_adam.multi_tensor_applier = _multi_tensor_apply(2048 * 32)


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
        """A constant keeps its value; by itself `FakeTensorMode` would compute with it on the simulated device."""
        made = make(data, *args, device="cpu", **kwargs)
        if isinstance(made, FakeTensor) and made.constant is not None:
            values.remember(made, made.constant)
            made.constant = None
        return made if device is None or torch.device(device).type == "cpu" else made.to(device)

    def as_tensor(data, dtype=None, device=None):
        return data.to(device=device, dtype=dtype) if isinstance(data, torch.Tensor) \
            else tensor(data, dtype=dtype, device=device)

    torch.tensor, torch.as_tensor = tensor, as_tensor
    resize = torch.UntypedStorage.resize_

    def resize_(storage, size):
        result = resize(storage, size)
        ledger.resized(storage)
        return result

    torch.UntypedStorage.resize_ = resize_
