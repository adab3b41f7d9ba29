"""Builds the stack under the ds_config's ZeRO stage and hands it to DeepSpeed."""

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

from astrobio.config import StackConfig
from astrobio.stack import AstrobioStack
from launch.ds_config.config import DsConfig
from launch.zero.accelerator import keep_freed_activations
from launch.zero.activation import apply_activation_checkpointing
from launch.zero.nvme import mend_prefetch
from launch.zero.optimizer import own_optimizer
from launch.zero.weights import PutOff, load_whole, shard


def build_engine(config: StackConfig, ds_config: DsConfig, seed: int):
    """The stack inside a `deepspeed.DeepSpeedEngine`; under ZeRO-3 no rank ever holds the whole stack.

    Weights depend on ``seed`` alone: not on the number of ranks, the ZeRO stage or the precision they are rounded to.
    """
    if ds_config.parameter_offload.device == "nvme":
        mend_prefetch()
    stack = build_stack(config, ds_config, seed)
    apply_activation_checkpointing(stack, ds_config)
    with own_optimizer(ds_config):
        engine, *_ = deepspeed.initialize(
            model=stack, config=ds_config.raw, model_parameters=[p for p in stack.parameters() if p.requires_grad]
        )
    keep_freed_activations()
    torch.manual_seed(seed + 1 + deepspeed.comm.get_rank())  # from here on each rank draws its own masks and noise
    return engine


def build_stack(config: StackConfig, ds_config: DsConfig, seed: int) -> AstrobioStack:
    """The stack with its first weights, random or from each part's ``init_from``; sharded where the stage is 3."""
    torch.manual_seed(seed)
    put_off = PutOff(seed)
    with put_off:
        stack = AstrobioStack(config)
    if ds_config.stage == 3:
        shard(stack, put_off, ds_config)
    else:
        put_off.fill_all()
        load_whole(stack)
    return stack


def meta_stack(config: StackConfig) -> AstrobioStack:
    """The stack on the meta device: all of its shapes, none of its numbers."""
    with torch.device("meta"):
        return AstrobioStack(config)


def device() -> torch.device:
    return torch.device(get_accelerator().current_device_name())
