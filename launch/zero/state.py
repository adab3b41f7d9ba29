"""The training state inside a DeepSpeed engine, by parameter name: what a checkpoint saves and restores.

DeepSpeed keeps fp32 weights and moments in flat buffers of its own, each of one sub-group (ZeRO-3) or of one param
group's share (ZeRO-1 and 2), perhaps on NVMe. Its `load_checkpoint` restores them as such, and wrongly: an optimizer on
NVMe gets no moments, no step counter and no loss scale, and sub-groups too small to be swapped keep their first random
weights; its universal checkpoint drops frozen weights and buffers and gives all param groups the first one's settings
(deepspeed 0.19.8, runtime/engine.py and runtime/zero/stage3.py). Here every flat buffer is opened, its parts are named,
and they are read or written one by one.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import deepspeed.comm as dist
import torch
from deepspeed.runtime.swap_tensor.partitioned_param_swapper import PartitionedParamStatus
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

from launch.zero.compressed_stage3 import CompressedStage3
from launch.zero.nvme import read_apart

MASTER, FROZEN = "fp32", "frozen"  # kinds of state; the others are the optimizer's own: exp_avg, exp_avg_sq, …

#: What changes in a dynamic loss scaler; the ds_config sets the rest.
LOSS_SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
COUNTERS = ("global_steps", "global_samples", "skipped_steps", "micro_steps")


@dataclass(frozen=True)
class Part:
    """Elements ``start`` to ``stop`` of parameter ``name``, flat, which lie at ``offset`` of a rank's buffer."""

    name: str
    start: int
    stop: int
    offset: int

    def of(self, flat: Tensor) -> Tensor:
        return flat.narrow(0, self.offset, self.stop - self.start)


@dataclass(frozen=True)
class Group:
    """One flat buffer of this rank: which parts of which parameters it holds, and whose settings apply to it."""

    index: int
    param_group: int
    parts: tuple[Part, ...]


@dataclass
class Opened:
    """A group's buffers in memory: fp32 weights and their optimizer state."""

    master: Tensor
    state: dict[str, Any]
    #: Round both in place to what a compressed optimizer keeps of them; None where all of it is kept.
    round: Callable[[], None] | None = None

    def moments(self) -> dict[str, Tensor]:
        return {key: value for key, value in self.state.items() if torch.is_tensor(value) and value.dim() == 1}

    def scalars(self) -> dict[str, float]:
        """Scalars of the optimizer's state, such as Adam's ``step``."""
        return {
            key: float(value)
            for key, value in self.state.items()
            if isinstance(value, int | float) or (torch.is_tensor(value) and value.dim() == 0)
        }


class EngineState:
    """The state of one engine, group by group. All ranks create one and go through it together."""

    def __init__(self, engine):
        """
        Raises:
            NotImplementedError: an optimizer whose buffers are not known here.
        """
        self.engine, self.optimizer = engine, engine.optimizer
        self.names = {parameter: name for name, parameter in engine.module.named_parameters()}
        if isinstance(self.optimizer, DeepSpeedZeroOptimizer_Stage3):
            self.groups = [self._stage3_group(index) for index in range(len(self.optimizer.fp16_groups))]
        elif isinstance(self.optimizer, DeepSpeedZeroOptimizer):
            self.groups = [self._stage2_group(index) for index in range(len(self.optimizer.bit16_groups))]
        else:
            raise NotImplementedError(
                f"checkpoints of {type(self.optimizer).__name__} are not known: "
                "zero_optimization.stage must be 1, 2 or 3"
            )
        self.sharded = isinstance(self.optimizer, DeepSpeedZeroOptimizer_Stage3)

    def _stage3_group(self, index: int) -> Group:
        parts, offset = [], 0
        for parameter in self.optimizer.fp16_groups[index]:
            start, stop = _share(
                parameter.ds_numel, parameter.partition_numel(), self.optimizer._get_param_partition_rank(parameter)
            )
            parts.append(Part(self.names[parameter], start, stop, offset))
            offset += parameter.partition_numel()
        return Group(index, self.optimizer.sub_group_to_group_id[index], tuple(parts))

    def _stage2_group(self, index: int) -> Group:
        parts = []
        for parameter in self.optimizer.bit16_groups[index]:
            mapping = parameter._hp_mapping
            if mapping is not None:
                here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
                parts.append(Part(self.names[parameter], here.start, here.start + here.numel, there.start))
        return Group(index, index, tuple(parts))

    @contextlib.contextmanager
    def opened(self, group: Group, write: bool = False) -> Iterator[Opened]:
        """The buffers of ``group``, brought into memory if they are on NVMe; ``write`` keeps what is changed in them,
        and hands the new weights to the model."""
        optimizer, index = self.optimizer, group.index
        if not self.sharded:
            master = optimizer.single_partition_of_fp32_groups[index]
            yield Opened(master.detach(), self._state_of(master))
            return
        if isinstance(optimizer, CompressedStage3):
            with self._decompressed(optimizer, index, write) as opened:
                yield opened
            return
        swapped = optimizer._swappable_optimizer_subgroup(index)
        if swapped:
            optimizer._optimizer_states_and_gradient_swap_in(index)
        master = optimizer.fp32_partitioned_groups_flat[index]
        try:
            yield Opened(master.detach(), self._state_of(master))
        except BaseException:
            if swapped:
                optimizer._release_swap_buffers(index)
            raise
        if write:
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
            if swapped:
                optimizer._optimizer_states_and_gradient_swap_out(index)
        elif swapped:
            optimizer._release_swap_buffers(index)

    @contextlib.contextmanager
    def _decompressed(self, optimizer: CompressedStage3, index: int, write: bool) -> Iterator[Opened]:
        state = self._state_of(optimizer.fp32_partitioned_groups_flat[index])
        with optimizer.decoded(index, write) as values:
            moments = {key: value for key, value in values.items() if key != MASTER}
            # To read, none before the first step, as without compression.
            shown = state | (moments if write or state["step"] else {})
            opened = Opened(values[MASTER], shown, lambda: optimizer.as_kept(index, values))
            yield opened
            if write:
                state["step"] = int(opened.state["step"])

    def _state_of(self, master: Tensor) -> dict[str, Any]:
        """The optimizer's own dictionary: empty before its first step, which discards earlier entries."""
        return self.optimizer.optimizer.state[master]

    def layout(self, group: Group) -> tuple[torch.dtype, dict[str, torch.dtype], dict[str, float]]:
        """Dtype of the fp32 weights, dtypes of the moments and the scalars of ``group``, without opening it."""
        masters = (
            self.optimizer.fp32_partitioned_groups_flat
            if self.sharded
            else self.optimizer.single_partition_of_fp32_groups
        )
        if isinstance(self.optimizer, CompressedStage3):
            state = self._state_of(masters[group.index])
            moments = {"exp_avg": torch.float32, "exp_avg_sq": torch.float32} if state["step"] else {}
            return torch.float32, moments, {"step": float(state["step"])}
        closed = Opened(masters[group.index], self.optimizer.optimizer.state.get(masters[group.index], {}))
        return (
            masters[group.index].dtype,
            {key: value.dtype for key, value in closed.moments().items()},
            closed.scalars(),
        )

    def set_moments(self, opened: Opened, dtypes: dict[str, torch.dtype], scalars: dict[str, float]) -> None:
        """Create a group's moments, to be filled, as its optimizer does at its first step."""
        torchs_own = type(self.optimizer.optimizer).__module__.startswith("torch.optim")
        for key, dtype in dtypes.items():
            if key not in opened.state:
                opened.state[key] = torch.zeros_like(opened.master, dtype=dtype)
        for key, value in scalars.items():
            if torch.is_tensor(opened.state.get(key)):
                opened.state[key].fill_(value)
            elif torchs_own:
                opened.state[key] = torch.tensor(value, dtype=torch.float32)
            else:
                opened.state[key] = int(value)

    def moment_dtype(self, opened: Opened) -> torch.dtype:
        """Dtype of the optimizer's moments, existing or to come."""
        for moment in opened.moments().values():
            return moment.dtype
        return (
            torch.float32 if getattr(self.optimizer.optimizer, "fp32_optimizer_states", False) else opened.master.dtype
        )

    def begin_loading(self) -> None:
        """Call before groups are opened for writing."""
        if self.sharded:
            self.optimizer.checkpoint_event_prologue()

    def end_loading(self) -> None:
        """Call after loading: copies the fp32 weights into the model's own."""
        if self.sharded:
            self.optimizer.checkpoint_event_epilogue()
        else:
            self.optimizer.update_lp_params()
            self.link_fragments()

    def link_fragments(self) -> None:
        """Let DeepSpeed's ``safe_get_…`` functions find the moments of all param groups: it links them after the first
        group's first step, when the others have none yet (deepspeed 0.19.8, stage_1_and_2.py `_optimizer_step`)."""
        if not self.sharded and all(self.layout(group)[1] for group in self.groups):
            self.optimizer._hp_optimizer_states_linked = False
            self.optimizer._lazy_init_hp_params_optimizer_state()

    # Parameters that are not trained

    def frozen(self) -> list[tuple[nn.Parameter, Part]]:
        """Frozen parameters, with this rank's share of each."""
        rank, ranks = dist.get_rank(), dist.get_world_size()
        found = []
        for parameter, name in self.names.items():
            if not parameter.requires_grad:
                if self.sharded:
                    size = parameter.partition_numel()
                    share = _share(parameter.ds_numel, size, dist.get_rank(group=parameter.ds_process_group))
                else:  # each rank has the whole, and saves as much as the others
                    size = -(-parameter.numel() // ranks)
                    share = _share(parameter.numel(), size, rank)
                found.append((parameter, Part(name, *share, 0)))
        return found

    def parameter_shape(self, parameter: nn.Parameter) -> tuple[int, ...]:
        return tuple(parameter.ds_shape if self.sharded else parameter.shape)

    @contextlib.contextmanager
    def frozen_values(self, parameter: nn.Parameter, write: bool = False) -> Iterator[Tensor]:
        """This rank's share of a frozen parameter, flat; the whole parameter where ZeRO does not shard."""
        if not self.sharded:
            yield parameter.detach().view(-1)
            return
        held = parameter.ds_tensor
        swapper: Any = getattr(parameter, "nvme_swapper", None)
        if swapper is not None:
            swapper.synchronize_reads()  # what is read ahead is there, or not begun
        swapped = held.status == PartitionedParamStatus.NOT_AVAILABLE
        if swapped and not write and not swapper.available_swap_in_buffers():
            with read_apart(parameter) as values:
                yield values
            return
        if swapped:
            swapper.swap_in([parameter], async_op=False)
        try:
            yield held.data.view(-1)
            if swapped and write:
                swapper.swap_out_and_release([parameter])
                swapped = False
        finally:
            if swapped:
                swapper.remove_partition_and_release_buffers([parameter])

    def buffers(self) -> dict[str, Tensor]:
        """The persistent buffers of this rank's model, by name."""
        kept = set()
        for prefix, module in self.engine.module.named_modules():
            kept |= {
                f"{prefix}.{name}" if prefix else name
                for name, buffer in module._buffers.items()
                if buffer is not None and name not in module._non_persistent_buffers_set
            }
        return {name: buffer for name, buffer in self.engine.module.named_buffers() if name in kept}

    # Settings and counters, the same on all ranks

    def param_groups(self) -> list[dict]:
        """Each param group's settings, and the names of its parameters."""
        members: dict[int, list[str]] = {}
        lists = self.optimizer.fp16_groups if self.sharded else self.optimizer.bit16_groups
        for index, parameters in enumerate(lists):
            group = self.optimizer.sub_group_to_group_id[index] if self.sharded else index
            members.setdefault(group, []).extend(self.names[parameter] for parameter in parameters)
        return [
            {
                "settings": {key: value for key, value in group.items() if key != "params"},
                "parameters": members.get(index, []),
            }
            for index, group in enumerate(self.optimizer.optimizer.param_groups)
        ]

    def set_param_group(self, index: int, settings: dict[str, Any]) -> None:
        group = self.optimizer.optimizer.param_groups[index]
        for key, value in settings.items():
            if key in group and key != "params":
                group[key] = tuple(value) if isinstance(value, list) else value

    def counters(self) -> dict[str, int]:
        return {name: int(getattr(self.engine, name)) for name in COUNTERS}

    def set_counters(self, counters: dict[str, int]) -> None:
        """Restore the counters; micro-steps start again in this run's own accumulation."""
        for name in COUNTERS:
            setattr(self.engine, name, counters[name])
        self.engine.micro_steps = self.engine.global_steps * self.engine.gradient_accumulation_steps()

    def scheduler(self) -> dict | None:
        return None if self.engine.lr_scheduler is None else self.engine.lr_scheduler.state_dict()

    def set_scheduler(self, state: dict, changed: bool) -> None:
        """``changed``: it has other settings than the one that was saved; the learning rate follows the new ones."""
        self.engine.lr_scheduler.load_state_dict(state)
        if changed:
            for group, rate in zip(
                self.optimizer.optimizer.param_groups, self.engine.lr_scheduler.get_lr(), strict=True
            ):
                group["lr"] = rate

    def loss_scale(self) -> dict[str, float] | None:
        """State of the dynamic loss scaler; None where the precision needs none or the scale is fixed."""
        scaler = self.optimizer.loss_scaler
        return {key: getattr(scaler, key) for key in LOSS_SCALE} if getattr(scaler, "dynamic", False) else None

    def set_loss_scale(self, state: dict[str, float]) -> None:
        for key, value in state.items():
            setattr(self.optimizer.loss_scaler, key, value)


def _share(numel: int, size: int, rank: int) -> tuple[int, int]:
    """Start and stop of a rank's share of ``numel`` elements, ``size`` each."""
    return min(rank * size, numel), min((rank + 1) * size, numel)
