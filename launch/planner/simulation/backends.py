"""NCCL, libaio, DeepSpeed's compiled optimizers and CUDA's attention kernels in a simulation: nothing moves, and the
`Recorder` writes down what they would do.
"""

import functools
from types import SimpleNamespace

import torch

from launch.planner.simulation import trace
from launch.planner.simulation.parts import SWAP
from launch.planner.simulation.recorder import Recorder
from launch.zero.compressed_adamw import CompressedAdamWBuilder


class Handle:
    """A running collective; `wait` makes the current stream wait for it, as NCCL's does."""

    def __init__(self, recorder: Recorder, number: int):
        self.recorder, self.number = recorder, number

    def wait(self, *args, **kwargs):
        self.recorder.trace.append(trace.StreamWaitsForCollective(self.recorder.stream, self.number))
        return True

    def is_completed(self):
        return True


class Collectives:
    """DeepSpeed's communication backend: collectives are recorded and move no data."""

    #: Collective → which argument's bytes are the whole message of one rank, gathered or yet to be scattered.
    WHOLE = {
        "all_reduce": ("tensor", 0),
        "inference_all_reduce": ("tensor", 0),
        "broadcast": ("tensor", 0),
        "reduce": ("tensor", 0),
        "all_gather_into_tensor": ("output_tensor", 0),
        "all_gather_base": ("output_tensor", 0),
        "reduce_scatter_tensor": ("input_tensor", 1),
        "all_gather": ("tensor_list", 0),
        "reduce_scatter": ("input_list", 1),
        "all_to_all_single": ("output", 0),
    }

    def __init__(self, backend, recorder: Recorder):
        self._backend, self._recorder = backend, recorder
        self._sizes: dict[object, int] = {}  # of each group

    def __getattr__(self, name):
        if name in self.WHOLE:
            return functools.partial(self._collective, name)
        return getattr(self._backend, name)

    def is_initialized(self):
        return True

    def get_rank(self, group=None):
        return self._backend.get_rank(group) if group is not None else 0

    def get_world_size(self, group=None):
        if group not in self._sizes:
            self._sizes[group] = self._backend.get_world_size(group)
        return self._sizes[group]

    def get_all_gather_function(self):
        return functools.partial(self._collective, "all_gather_into_tensor")

    def get_reduce_scatter_function(self):
        return functools.partial(self._collective, "reduce_scatter_tensor")

    def barrier(self, *args, **kwargs):
        self._recorder.trace.append(trace.HostWaitsForAll())

    def _collective(self, name, *args, group=None, async_op=False, **kwargs):
        key, place = self.WHOLE[name]
        message = kwargs[key] if key in kwargs else args[place]
        size = sum(t.nbytes for t in message) if isinstance(message, (list, tuple)) else message.nbytes
        for tensor in message if isinstance(message, (list, tuple)) else (message,):
            self._recorder.touch(tensor)
        handle = Handle(self._recorder, trace.next_number())
        ranks = self.get_world_size(group)
        self._recorder.trace.append(trace.Collective(self._recorder.stream, handle.number, name, size, ranks))
        if not async_op:
            handle.wait()
            return None
        return handle


class AioHandle:
    """libaio: reads and writes are recorded and move no data."""

    recorder: Recorder

    def __init__(
        self, block_size=1 << 20, queue_depth=8, single_submit=False, overlap_events=True, intra_op_parallelism=1
    ):
        self.block_size, self.queue_depth = block_size, queue_depth
        self.intra_op_parallelism = intra_op_parallelism
        self.number, self.pending = trace.next_number(), 0

    def async_pread(self, buffer, path, offset=0):
        self.recorder.read(str(path), buffer.nbytes, self.number)
        self.recorder.touch(buffer)
        self.pending += 1
        return 0

    def async_pwrite(self, buffer, path, offset=0):
        self.recorder.write(str(path), buffer.nbytes, self.number)
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
        self.recorder.trace.append(trace.HostWaitsForDisk(self.number))
        done, self.pending = self.pending, 0
        return done

    def new_cpu_locked_tensor(self, count, example):
        """csrc/aio/py_lib/deepspeed_pin_tensor.cpp: posix_memalign and mlock, no rounding to powers of two."""
        tensor = torch.empty(int(count), dtype=example.dtype, device="cpu")
        self.recorder.add(tensor, SWAP)
        self.recorder.lock(tensor)
        return tensor

    def free_cpu_locked_tensor(self, tensor):
        return True

    def is_pinned(self, tensor):
        return self.recorder.is_locked(tensor)

    def get_block_size(self):
        return self.block_size


def op_libraries(recorder: Recorder) -> dict[str, object]:
    """Replacements of DeepSpeed's compiled ops, by the name of their builder."""

    def on_host(*args):
        tensors = [t for t in args if isinstance(t, torch.Tensor)]
        recorder.trace.append(trace.CpuOptimizer(tensors[0].numel()))

    def compressed(weight, state, segments, count, numel, *settings):
        def step(gradient, *settings):
            # Reads all, and writes weights and state.
            size = 2 * (weight.nbytes + state.nbytes) + gradient.nbytes
            recorder.trace.append(trace.CompressedOptimizer(numel, size))

        def convert(*values):
            size = weight.nbytes + state.nbytes + sum(value.nbytes for value in values)
            recorder.trace.append(trace.HostWork(size))

        return SimpleNamespace(step=step, decode=convert, encode=convert)

    def on_card(chunk, overflow, lists, *args):
        tensors = [t for group in lists for t in group]
        recorder.trace.append(trace.Kernel(recorder.stream, 0, 2 * sum(t.nbytes for t in tensors), torch.float32))

    def nothing(*args):
        return None

    AioHandle.recorder = recorder
    host = SimpleNamespace(
        create_adam=nothing,
        destroy_adam=nothing,
        adam_update=on_host,
        adam_rollback=on_host,
        create_adagrad=nothing,
        destroy_adagrad=nothing,
        adagrad_update=on_host,
        create_lion=nothing,
        destroy_lion=nothing,
        lion_update=on_host,
    )
    card = SimpleNamespace(multi_tensor_adam=on_card, multi_tensor_lion=on_card, lamb=on_card)
    return {
        "CPUAdamBuilder": host,
        "CPUAdagradBuilder": host,
        "CPULionBuilder": host,
        "FusedAdamBuilder": card,
        "FusedLionBuilder": card,
        "FusedLambBuilder": card,
        "AsyncIOBuilder": SimpleNamespace(aio_handle=AioHandle),
        CompressedAdamWBuilder.__name__: SimpleNamespace(Compressed=compressed),
    }


def attend(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    scale=None,
    enable_gqa=False,
    *,
    capability: tuple[int, int],
):
    """`scaled_dot_product_attention` with the kernel that CUDA would choose.

    aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: FlashAttention for half types on compute capability 8.0 and
    newer, head size up to 256 and no mask; else the memory-efficient kernel, which takes a mask, but no grouped heads
    and only heads that are aligned (`head_alignment`); else the formula, with its score matrix.
    """
    half = query.dtype in (torch.float16, torch.bfloat16)
    if query.dim() == 4 and half and attn_mask is None and capability >= (8, 0) and query.shape[-1] <= 256:
        return torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, return_debug_mask=False, scale=scale
        )[0]
    grouped = enable_gqa and query.shape[1] != key.shape[1]
    bf16_before_ampere = query.dtype is torch.bfloat16 and capability < (8, 0)
    aligned = all(t.shape[-1] % head_alignment(t.dtype, capability) == 0 for t in (query, value))
    if query.dim() == 4 and capability >= (5, 0) and aligned and not grouped and not bf16_before_ampere:
        if attn_mask is not None:
            attn_mask = attn_mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
            if attn_mask.dtype is torch.bool:
                attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
        needed = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, needed, dropout_p, is_causal, scale=scale
        )[0]
    return torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]


def head_alignment(dtype: torch.dtype, capability: tuple[int, int]) -> int:
    """What the memory-efficient kernel's head sizes must be a multiple of: 16 bytes where it uses tensor cores
    (`minimum_gemm_alignment`, ibid.)."""
    half = dtype in (torch.float16, torch.bfloat16)
    in_tensor_cores = capability >= ((7, 0) if half else (8, 0))
    return max(4 if capability >= (8, 0) else 1, 16 // dtype.itemsize if in_tensor_cores else 1)
