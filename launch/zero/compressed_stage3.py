"""ZeRO-3 with an offloaded AdamW whose state is compressed (`launch.zero.compressed_adamw`).

To DeepSpeed the compressed state of a sub-group is its fp32 master weight: a flat fp32 tensor that it keeps in memory,
or swaps to NVMe. The optimizer that it builds, its CPU Adam, has the settings and the step counter; it never steps.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import ClassVar

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.swap_tensor.partitioned_param_swapper import PartitionedParamStatus
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch import Tensor

from launch.ds_config.config import Compression
from launch.zero.compressed_adamw import CompressedAdamW, Share
from launch.zero.lean_stage3 import LeanStage3, starts_of
from launch.zero.nvme import read_apart


class CompressedStage3(LeanStage3):
    """Written for deepspeed 0.19.8, runtime/zero/stage3.py."""

    compression: ClassVar[Compression]

    # Set-up

    @functools.cached_property
    def _sub_groups(self) -> list[CompressedAdamW]:
        # Not DeepSpeed's number, which depends on what the process built before.
        numbers = {parameter: number for number, parameter in enumerate(self.module.parameters())}
        made = []
        for parameters in self.fp16_groups:
            shares, at = [], 0
            for parameter in parameters:
                size = parameter.partition_numel()
                first = size * self._get_param_partition_rank(parameter)
                # The last rank's share may end with padding.
                numel = max(min(size, parameter.ds_numel - first), 0)
                shares.append(Share(at, numel, first, numbers[parameter]))
                at += size
            made.append(CompressedAdamW(shares, at, self.compression.block_size, self.compression.remainder_bits))
        return made

    def _configure_tensor_swapping(self, offload_optimizer_config, aio_config):
        """The swapper's buffers hold the largest state, where DeepSpeed takes the largest sub-group."""
        numels = self.fp16_partitioned_groups_flat_numel  # type: ignore[has-type]
        self.fp16_partitioned_groups_flat_numel = [sub_group.state_numel for sub_group in self._sub_groups]
        super()._configure_tensor_swapping(offload_optimizer_config, aio_config)
        self.fp16_partitioned_groups_flat_numel = numels

    def _swappable_optimizer_subgroup(self, sub_group_id):
        return self.swap_optimizer and self.optimizer_swapper.is_swappable_tensor(
            None, numel=self._sub_groups[sub_group_id].state_numel
        )

    def _create_fp32_partitions(self):
        for index, sub_group in enumerate(self._sub_groups):
            contents, swapped = sub_group.empty(), self._swappable_optimizer_subgroup(index)
            state = self._named(torch.empty(0) if swapped else contents, index)
            if swapped:
                self.optimizer_swapper.initialize_parameters(parameters=[state], src_tensors=[contents])
            self.fp32_partitioned_groups_flat.append(state)
            self.optimizer.state[state] = {"step": 0}
        for param_group in self.optimizer.param_groups:
            param_group["params"] = []

    def _named(self, state: Tensor, index: int) -> Tensor:
        members = self.fp16_partitioned_groups_flat_id[index]
        state.__dict__["ds_id"] = f"{members[0]}_{members[-1]}"  # DeepSpeed's name of the sub-group, on NVMe
        return state

    def initialize_optimizer_states(self):
        """Allocate a place for 16-bit weights that are not on the host."""
        numels = self.fp16_partitioned_groups_flat_numel
        self._starts = starts_of(numels)
        elsewhere = [
            numel
            for flat, numel in zip(self.fp16_partitioned_groups_flat, numels, strict=True)
            if flat is None or flat.device.type != "cpu"
        ]
        self._staged = torch.empty(max(elsewhere, default=0), dtype=self.dtype)

    def _setup_for_real_optimizer(self):
        super()._setup_for_real_optimizer()
        if self.offload_optimizer_pin_memory and self._staged.numel():
            self._staged = get_accelerator().pin_memory(self._staged, make_copy=False)

    # Step

    def _prepare_sub_group(self, sub_group_id, timer_names):
        """The gradient is read where it was accumulated."""
        DeepSpeedZeroOptimizer_Stage3._prepare_sub_group(self, sub_group_id, timer_names)

    def unscale_and_clip_grads(self, sub_group_id, total_norm):
        """The kernel does both: only the factor."""
        clip = max((float(total_norm) / self.loss_scale + 1e-6) / self.clip_grad, 1.0) if self.clip_grad > 0 else 1.0
        self._gradient_scale = 1 / (clip * self.loss_scale)

    def _optimizer_step(self, sub_group_id):
        state = self.fp32_partitioned_groups_flat[sub_group_id]
        group = self.optimizer.param_groups[self.sub_group_to_group_id[sub_group_id]]
        number = self.optimizer.state[state]["step"] = self.optimizer.state[state]["step"] + 1
        gradient = self._accumulated_of_sub_group(sub_group_id)
        with self._weight(sub_group_id, write=True) as weight:
            self._sub_groups[sub_group_id].step(state, weight, gradient, self._gradient_scale, number, group)

    def _reassign_or_swap_out_partitioned_parameters(self, sub_group_id):
        """`_weight` has written them."""

    @contextlib.contextmanager
    def _weight(self, index: int, write: bool = False) -> Iterator[Tensor]:
        """The 16-bit weights of a sub-group on the host, wherever they are kept."""
        flat = self.fp16_partitioned_groups_flat[index]
        if flat is not None and flat.device.type == "cpu":
            yield flat
            return
        staged = self._staged.narrow(0, 0, self.fp16_partitioned_groups_flat_numel[index])
        if flat is not None:
            staged.copy_(flat)
        else:
            self._read_weights(index, staged)
        yield staged
        if write and flat is not None:
            flat.copy_(staged)
        elif write:
            self._write_weights(index, staged)

    def _read_weights(self, index: int, staged: Tensor) -> None:
        offset = 0
        for parameter, share in zip(self.fp16_groups[index], self.fp16_partitioned_groups[index], strict=True):
            target = staged.narrow(0, offset, share.ds_numel)
            offset += share.ds_numel
            parameter.nvme_swapper.synchronize_reads()
            if share.status == PartitionedParamStatus.AVAILABLE:
                target.copy_(share.data)
                continue
            with read_apart(parameter) as values:
                target.copy_(values)

    def _write_weights(self, index: int, staged: Tensor) -> None:
        offset, swapped, sources = 0, [], []
        for parameter, share in zip(self.fp16_groups[index], self.fp16_partitioned_groups[index], strict=True):
            source = staged.narrow(0, offset, share.ds_numel)
            offset += share.ds_numel
            if share.status == PartitionedParamStatus.AVAILABLE:
                share.data.copy_(source)
            else:
                swapped.append(parameter)
                sources.append(source)
        if swapped:
            swapped[0].nvme_swapper.swap_out_partitioned_params(dst_fp16_params=swapped, src_fp32_params=sources)

    # The state in fp32: for checkpoints and for DeepSpeed's `safe_get_…` and `safe_set_…`

    @contextlib.contextmanager
    def decoded(self, index: int, write: bool = False) -> Iterator[dict[str, Tensor]]:
        """The fp32 weights and moments of a sub-group, by their names in a checkpoint; ``write`` compresses what they
        are at the end."""
        swapped = self._swappable_optimizer_subgroup(index)
        if swapped:
            self._optimizer_states_and_gradient_swap_in(index)
        state, sub_group = self.fp32_partitioned_groups_flat[index], self._sub_groups[index]
        try:
            with self._weight(index, write) as weight:
                values = sub_group.decode(state, weight)
                yield values
                if write:
                    sub_group.encode(state, weight, *values.values())
        except BaseException:
            if swapped:
                self._release_swap_buffers(index)
            raise
        if swapped and write:
            self._optimizer_states_and_gradient_swap_out(index)
        elif swapped:
            self._release_swap_buffers(index)

    def as_kept(self, index: int, values: dict[str, Tensor]) -> None:
        """Round decoded values in place to what compression keeps of them."""
        sub_group = self._sub_groups[index]
        state, weight = sub_group.empty(), torch.empty(sub_group.numel, dtype=self.dtype)
        sub_group.encode(state, weight, *values.values())
        for key, value in sub_group.decode(state, weight).items():
            values[key].copy_(value)

    def _get_fp32_opt_state_partition(self, param, release_swap_buffers, optim_state_key=None):
        """A copy: what is written to it is lost."""
        index, offset, numel = self.grad_position[self.get_param_id(param)]
        with self.decoded(index) as values:
            return values[optim_state_key or "fp32"].narrow(0, offset, numel), index

    def set_full_hp_param(self, value, param, optim_state_key=None):
        if param.requires_grad:
            size = param.partition_numel()
            padded = torch.nn.functional.pad(value.flatten(), (0, size * self.partition_count - value.numel()))
            own = padded.narrow(0, size * self._get_param_partition_rank(param), size)
            self.set_local_hp_param(own, param, optim_state_key)

    def set_local_hp_param(self, value, param, optim_state_key=None):
        if param.requires_grad:
            index, offset, numel = self.grad_position[self.get_param_id(param)]
            with self.decoded(index, write=True) as values:
                values[optim_state_key or "fp32"].narrow(0, offset, numel).copy_(value.flatten())

    def state_dict(self):
        raise NotImplementedError(
            "DeepSpeed's own checkpoints cannot hold a compressed optimizer; launch.checkpoints can"
        )

    load_state_dict = state_dict
