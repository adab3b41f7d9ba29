"""Parameters on NVMe: what DeepSpeed 0.19.8 gets wrong about them."""

import functools

from deepspeed.runtime.swap_tensor.partitioned_param_swapper import AsyncPartitionedParameterSwapper


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
