"""Parameters on NVMe: what DeepSpeed 0.19.8 gets wrong about them."""

import contextlib
import functools
from collections.abc import Iterator

import torch
from deepspeed.runtime.swap_tensor.partitioned_param_swapper import AsyncPartitionedParameterSwapper
from deepspeed.runtime.swap_tensor.utils import swap_in_tensors
from torch import Tensor


def mend_prefetch() -> None:
    """Let DeepSpeed read frozen parameters ahead from NVMe.

    Report: with ``offload_param: nvme``, activation checkpointing and frozen layers, the second step dies with "param
    52 already assigned swap buffer id 6". From that step on `PartitionedParameterCoordinator` reads ahead along the
    recorded order of use. A frozen layer has no gradient of its own to wait for: its recomputation and its backward
    pass stand side by side in that order, so a look ahead meets the same parameter twice, lists it twice, and
    `AsyncPartitionedParameterSwapper.swap_in` assigns its buffers in one go, after the only check. The cure upstream
    is a set in `__prefetch_nvme_param_partitions`; here the list is freed of repetitions where it arrives.
    Reproduction: tests/launch/zero/upstream_cases.py, `upstream_nvme_prefetch`.
    """
    swap_in = AsyncPartitionedParameterSwapper.swap_in
    if hasattr(swap_in, "__wrapped__"):
        return

    @functools.wraps(swap_in)
    def once_each(self, params, *args, **kwargs):
        return swap_in(self, list(dict.fromkeys(params)), *args, **kwargs)

    AsyncPartitionedParameterSwapper.swap_in = once_each


@contextlib.contextmanager
def read_apart(parameter) -> Iterator[Tensor]:
    """A rank's share of a parameter on NVMe, read into memory of its own: after a validation DeepSpeed's buffers may
    all be taken for a backward pass that does not come, and its `swap_in` fails with "Not enough buffers"."""
    swapper, numel = parameter.nvme_swapper, parameter.ds_tensor.ds_numel
    handle = swapper.aio_read_handle
    buffer = handle.new_cpu_locked_tensor(swapper._io_aligned_numel(numel), torch.empty(0, dtype=swapper.dtype))
    try:
        swap_in_tensors(handle, [buffer], swapper._get_swap_paths([parameter], must_exist=True))
        handle.wait()
        yield buffer.narrow(0, 0, numel)
    finally:
        handle.free_cpu_locked_tensor(buffer)
