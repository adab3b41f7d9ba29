"""The names of devices, and of the parts that memory is counted by: a storage belongs to the code that made it."""

import functools
import sys
import types

GPU = "gpusim"  # the simulated GPU's device type
HOST = "cpu"
BOTH = "both"  # what a CPU accelerator holds, whose device is the host

PARAMETERS, GATHERED, GRADIENTS = "partitioned parameters", "gathered parameters", "gradients and buckets"
ACTIVATIONS, LOGITS, TEMPORARIES = "activations", "logits", "operator temporaries"
OPTIMIZER, SWAP, OTHER = "optimizer state", "swap buffers", "other"
KEPT = "freed, kept by glibc"

#: Part of what a function of DeepSpeed 0.19.8 allocates, by (file, function); the innermost one on the stack counts.
MAKERS: dict[tuple[str, str], str] = {
    **{("partition_parameters.py", name): PARAMETERS for name in ("_partition_param", "_partition_param_sec")},
    **{
        ("partition_parameters.py", name): GATHERED
        for name in (
            "_all_gather_dtype",
            "_all_gather_sequential",
            "_all_gather_coalesced",
            "_all_gather",
            "all_gather_coalesced",
            "_allgather_param",
            "_allgather_param_coalesced",
            "_allgather_params",
            "wait",
        )
    },
    **{
        ("stage3.py", name): PARAMETERS
        for name in (
            "_create_param_groups_fp16_flat_cpu_memory",
            "_create_fp16_partitions_with_defragmentation",
            "_move_to_flat_buffer",
        )
    },
    ("utils.py", "defragment"): PARAMETERS,
    **{("stage3.py", name): OPTIMIZER for name in ("_create_fp32_partitions", "_optimizer_step", "_prepare_sub_group")},
    **{
        ("stage3.py", name): GRADIENTS
        for name in (
            "_setup_for_real_optimizer",
            "initialize_optimizer_states",
            "__avg_scatter_grads",
            "partition_grads",
            "__avg_scatter_contiguous_grads",
            "_offload_grad_partition_at_boundary",
            "_prepare_fp32_grad_for_sub_group",
            "__add_grad_to_ipg_bucket",
            "__reduce_and_partition_ipg_grads",
            "reduce_scatter_coalesced",
        )
    },
    ("coalesced_collectives.py", "reduce_scatter_coalesced"): GRADIENTS,
    **{
        ("stage_1_and_2.py", name): GRADIENTS
        for name in (
            "initialize_optimizer_states",
            "setup_buckets",
            "average_tensor",
            "get_flat_partition",
            "_setup_cpu_offload_buffers",
            "async_accumulate_grad_in_cpu_via_gpu",
            "copy_grads_in_partition",
            "update_overflow_tracker_for_param_grad",
            "reduce_ipg_grads",
            "reduce_independent_p_g_buckets_and_remove_grads",
            "create_param_mapping",
            "setup_grad_accumulation",
            "buffered_reduce_fallback",
            "get_grad_position",
        )
    },
    **{("cpu_adam.py", name): OPTIMIZER for name in ("step", "step_subgroup")},
    **{("compressed_adamw.py", name): OPTIMIZER for name in ("empty", "decode")},
    **{
        ("compressed_stage3.py", name): OPTIMIZER
        for name in ("initialize_optimizer_states", "_setup_for_real_optimizer")
    },
    ("lean_stage3.py", "_setup_for_real_optimizer"): GRADIENTS,
    ("fused_adam.py", "step"): OPTIMIZER,
    ("cpu_adagrad.py", "step"): OPTIMIZER,
    ("cpu_lion.py", "step"): OPTIMIZER,
    ("fused_lion.py", "step"): OPTIMIZER,
}
_SWAP_FILES = (
    "partitioned_param_swapper.py",
    "partitioned_optimizer_swapper.py",
    "pipelined_optimizer_swapper.py",
    "optimizer_utils.py",
    "async_swapper.py",
)


def part_of_caller() -> str | None:
    """The part that the innermost function of DeepSpeed on the stack allocates, if it is in `MAKERS`."""
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None:
        part = _part_of(frame.f_code)
        if part is not None:
            return part
        frame = frame.f_back
    return None


@functools.cache
def _part_of(code: types.CodeType) -> str | None:
    file = code.co_filename.rpartition("/")[2]
    return MAKERS.get((file, code.co_name), SWAP if file in _SWAP_FILES else None)
