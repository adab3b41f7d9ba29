"""Which device DeepSpeed computes on, and what its CPU accelerator needs."""

import ctypes
import functools
import os
import warnings
from pathlib import Path

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator, set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

from launch.zero.compiled import keep_compiled


class HostAccelerator(CPU_Accelerator):
    """DeepSpeed's CPU accelerator, with fp16.

    deepspeed 0.19.8 refuses fp16 on a CPU without native fp16 arithmetic (`CPU_Accelerator.is_fp16_supported`),
    though torch computes it on any CPU. With this, a config with dynamic loss scaling runs unchanged on a machine
    without a GPU: slowly, but with the same numbers.
    """

    def is_fp16_supported(self) -> bool:
        return True


#: Freed blocks from this size on go back to the system at once.
LARGE_BLOCK = 4 << 20
#: The same once a CPU trains. Each block costs its page faults anew: with 4 MiB, which activations of ``tiny`` are
#: above, a step took twice as long.
LARGE_ACTIVATION = 16 << 20
_M_MMAP_THRESHOLD = -3  # malloc.h
#: Operators of aten that a CPU computes in fp32 where their arguments are fp16.
IN_FP32 = ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm")


def prepare_accelerator():
    """Select the accelerator: without a card, the CPU with fp16. Call it before anything asks DeepSpeed."""
    _give_back_freed(LARGE_BLOCK)
    keep_compiled()
    if get_accelerator().device_name() == "cpu" and not isinstance(get_accelerator(), HostAccelerator):
        set_accelerator(HostAccelerator())
        _compute_fp16_in_fp32()
    _share_cores()
    return get_accelerator()


def join_ranks() -> None:
    """Start `deepspeed.init_distributed` on this rank's own card; on a CPU, clean up its files.

    There the ranks of a machine reduce through shared memory, 66 MB each, in files that deepspeed 0.19.8 removes only
    at a clean end (csrc/cpu/comm/shm.cpp): every killed run would keep its share of the memory until the next boot, and
    the next run at the same port would find its counters. Once all ranks have the memory nobody needs its name.
    """
    if not on_cpu():
        get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed()
    deepspeed.comm.barrier()
    address, port, rank = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], os.environ["LOCAL_RANK"]
    for path in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{address}_{port}_{rank}"):
        path.unlink(missing_ok=True)


def keep_freed_activations() -> None:
    """On a CPU, let each micro-step reuse the memory that the last one freed. Call it once the engine is built."""
    if on_cpu():
        _give_back_freed(LARGE_ACTIVATION)


def _give_back_freed(size: int) -> None:
    """Keep glibc from keeping freed blocks of ``size`` bytes and more. By itself it raises that size to 32 MB, most
    weights of a large model: after building the 17B stack half of a rank's resident memory was such blocks."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # not in musl or on macOS
        libc.mallopt(_M_MMAP_THRESHOLD, size)


def _share_cores() -> None:
    """Give each rank its share of the cores: ranks that all use every core spend their time waiting for each other.
    With a GPU too, whose ranks step their offloaded optimizers at the same time."""
    ranks = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))


def _compute_fp16_in_fp32() -> None:
    """Let the CPU multiply fp16 matrices, attend, and convolve in 3-D, in fp32 and round the result: what a GPU's
    tensor cores, which accumulate in fp32, do too.

    torch 2.13.0 has no fast fp16 kernels for them on most CPUs: they take 20 to 100 times as long as fp32.
    """
    library = torch.library.Library("aten", "IMPL")
    for name in IN_FP32:
        kernel = torch.library.get_kernel(f"aten::{name}", "CPU")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a kernel is replaced is the point
            library.impl(name, functools.partial(_in_fp32, kernel), "CPU", with_keyset=True, allow_override=True)
    _libraries.append(library)

    convolve = torch.nn.Conv3d._conv_forward

    def convolve_in_fp32(self, x, weight, bias):
        if x.dtype is not torch.float16 or x.device.type != "cpu":
            return convolve(self, x, weight, bias)
        return convolve(self, x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)

    torch.nn.Conv3d._conv_forward = convolve_in_fp32  # type: ignore[method-assign]  # torch has no hook for it

    attend = torch.nn.functional.scaled_dot_product_attention

    def attend_in_fp32(query, key, value, attn_mask=None, *args, **kwargs):
        if query.dtype is not torch.float16 or query.device.type != "cpu":
            return attend(query, key, value, attn_mask, *args, **kwargs)
        if attn_mask is not None and attn_mask.is_floating_point():
            attn_mask = attn_mask.float()
        return attend(query.float(), key.float(), value.float(), attn_mask, *args, **kwargs).half()

    torch.nn.functional.scaled_dot_product_attention = attend_in_fp32


_libraries: list[torch.library.Library] = []  # a library takes its kernels back when it is freed


def _in_fp32(kernel, keyset, *args, **kwargs):
    if args[0].dtype is not torch.float16:
        return kernel.call_boxed(keyset, *args, **kwargs)
    wide = [arg.float() if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg for arg in args]
    return kernel.call_boxed(keyset, *wide, **kwargs).half()


def same_randomness_after():
    """Context that restores this rank's random generators, the CPU's and the device's, at its end."""
    if on_cpu():
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(
        devices=[get_accelerator().current_device()], device_type=get_accelerator().device_name()
    )


def on_cpu() -> bool:
    return get_accelerator().device_name() == "cpu"
