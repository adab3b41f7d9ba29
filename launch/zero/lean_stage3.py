"""ZeRO-3 with an offloaded optimizer in 14 bytes of host memory a parameter, where DeepSpeed 0.19.8 takes 18 and more.

DeepSpeed keeps an fp32 gradient of every parameter beside the 16-bit one that it accumulates into: page-locked host
memory, or files on NVMe. Only the optimizer's step reads it, one sub-group at a time. Here one buffer of the largest
sub-group's size holds the fp32 gradient while its sub-group steps. Updates are the same, bit for bit, but for three
faults of DeepSpeed, all of a parameter that takes no part in some micro-step of an accumulation window:

- in none: its fp32 gradient stays as it was, and Adam applies it again; after an overflow its 16-bit one stays infinite
  and the next step overflows too. Here both are zero.
- not in the first: its gradient is added to the last window's sum. Here it begins at zero.
- not in the last: its gradient never reaches the optimizer. Here it does.

Reproduction: tests/launch/zero/lean_cases.py, `absent_gradients`.
"""

import itertools

import deepspeed.comm as dist
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor

#: Elements that the overflow check looks at in one go; its temporaries are 3 bytes each.
PIECE = 1 << 22


def starts_of(numels: list[int]) -> list[int]:
    """Where each sub-group begins among the accumulated gradients."""
    return list(itertools.accumulate(numels, initial=0))


class LeanStage3(DeepSpeedZeroOptimizer_Stage3):
    """Written for deepspeed 0.19.8, runtime/zero/stage3.py. `grad_partitions_flat_buffer` holds the accumulated
    gradients in the order of the sub-groups."""

    def _setup_for_real_optimizer(self):
        """Accumulate into memory that is page-locked from the start, where DeepSpeed copies its first buffer there and
        holds both for a while."""
        pins, self.offload_optimizer_pin_memory = self.offload_optimizer_pin_memory, False  # type: ignore[has-type]
        super()._setup_for_real_optimizer()
        self.offload_optimizer_pin_memory = pins
        if not pins:
            return
        numel = sum(self.fp16_partitioned_groups_flat_numel)
        shares = self._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition
        places = {key: (share.storage_offset(), share.numel()) for key, share in shares.items()}
        self.__dict__.pop("grad_partitions_flat_buffer")
        shares.clear()
        locked = (
            get_accelerator()
            .pin_memory(torch.empty(numel, dtype=self.gradient_accumulation_dtype), make_copy=False)
            .zero_()
        )
        self.grad_partitions_flat_buffer = locked
        shares |= {key: locked.narrow(0, *place) for key, place in places.items()}

    def initialize_optimizer_states(self):
        """Allocate the gradient of one sub-group, in place of one for each."""
        numels = self.fp16_partitioned_groups_flat_numel
        self._starts = starts_of(numels)
        self._gradient = torch.empty(max(numels), dtype=self.master_weights_and_grads_dtype, device=self.device)
        for index, flat in enumerate(self.fp16_partitioned_groups_flat):
            if flat is None:  # 16-bit weights on NVMe, still to be written from the fp32 ones
                swapped = self._swappable_optimizer_subgroup(index)
                if swapped:
                    self._optimizer_states_and_gradient_swap_in(index)
                self._partitioned_params_swap_out(index)
                if swapped:
                    self._optimizer_states_and_gradient_swap_out(index)

    # Accumulation

    def partition_grads(self, params_to_release, grad_partitions):
        if self.micro_step_id > 0:  # DeepSpeed adds
            for param in params_to_release:
                self._accumulated(param)
        return super().partition_grads(params_to_release, grad_partitions)

    def _offload_grad_partition_at_boundary(self, param, grad_buffer, offload_fp32_gradients, offload_fp32_offsets):
        """Record the norm; the gradient stays where it was accumulated."""
        self.norm_for_param_grads[self.get_param_id(param)] = self._constant_buffered_norm2(grad_buffer)

    def _accumulated(self, param) -> Tensor:
        """This rank's share of a parameter's gradient as accumulated in this window, flat; zero where there is none."""
        index, offset, numel = self.grad_position[self.get_param_id(param)]
        accumulated = self.grad_partitions_flat_buffer.narrow(0, self._starts[index] + offset, numel)
        if param.ds_id not in self._offload_boundary_param_ids:
            self._offload_boundary_param_ids.add(param.ds_id)
            accumulated.zero_()
        return accumulated

    # Step

    def _pre_step(self):
        for param in itertools.chain.from_iterable(self.fp16_groups):
            number = self.get_param_id(param)
            if number not in self.norm_for_param_grads:  # absent from the last micro-step, or from all
                share = self._accumulated(param).to(get_accelerator().current_device_name())
                self.norm_for_param_grads[number] = self._constant_buffered_norm2(share)
        super()._pre_step()

    def has_overflow(self, partition_gradients=True):
        for piece in self.grad_partitions_flat_buffer.split(PIECE):
            self.inf_or_nan_tracker.logical_or_(torch.isfinite(piece).all().logical_not())
        overflow = self.inf_or_nan_tracker.to(get_accelerator().current_device_name(), torch.uint8, copy=True)
        self.inf_or_nan_tracker.zero_()
        dist.all_reduce(overflow, op=dist.ReduceOp.MAX, group=self.dp_process_group)
        self._model_parallel_all_reduce(tensor=overflow, op=dist.ReduceOp.MAX)
        return bool(overflow.item())

    def _prepare_sub_group(self, sub_group_id, timer_names):
        super()._prepare_sub_group(sub_group_id, timer_names)
        accumulated = self._accumulated_of_sub_group(sub_group_id)
        gradient = self._gradient.narrow(0, 0, accumulated.numel())
        gradient.copy_(accumulated)
        master = self.fp32_partitioned_groups_flat[sub_group_id]
        master.grad = gradient.to(master.device)  # a card, where offload_optimizer.ratio is below 1

    def _accumulated_of_sub_group(self, index: int) -> Tensor:
        numel = self.fp16_partitioned_groups_flat_numel[index]
        return self.grad_partitions_flat_buffer.narrow(0, self._starts[index], numel)

    def _release_sub_group(self, sub_group_id, timer_names):
        self.fp32_partitioned_groups_flat[sub_group_id].grad = None
        super()._release_sub_group(sub_group_id, timer_names)

    def _post_step(self, timer_names):
        if self.persistent_parameters:
            # In one collective; DeepSpeed, which then finds nothing left to gather, starts one for each parameter.
            self.persistent_parameters[0].all_gather_coalesced(self.persistent_parameters).wait()
        super()._post_step(timer_names)

    # `deepspeed.utils.safe_get_full_grad` and its like, between backward and step

    def get_fp32_grad_partitions(self):
        gradients: dict[int, dict[int, Tensor]] = {}
        for index, group in enumerate(self.fp16_groups):
            gradients[index] = {i: self._accumulated(param).float() for i, param in enumerate(group)}
        return gradients

    def _get_fp32_grad_state_partition(self, param, release_swap_buffers):
        """The accumulated gradient itself: what is written to it is rounded to its dtype."""
        return self._accumulated(param), self.grad_position[self.get_param_id(param)][0]

    def _writeback_swap_state(self, sub_group_id, write_opt_state, write_gradients):
        """There are no gradients on NVMe to write back, and none were read."""
        if write_opt_state:
            super()._writeback_swap_state(sub_group_id, write_opt_state, write_gradients)

    def update_fp32_grad_for_param_vectorized(self, update_func, param_list):
        for param in param_list:
            if param.requires_grad:
                part = self._accumulated(param)
                whole = update_func(self._fp32_state_allgather(param, part), param).flatten()
                start = part.numel() * self._get_param_partition_rank(param)
                part.copy_(whole.narrow(0, start, part.numel()))
