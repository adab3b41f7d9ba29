"""Activation checkpointing as the JSON block says, for every part of the stack."""

import functools
import inspect

import deepspeed
import torch.utils.checkpoint

from astrobio.stack import AstrobioStack
from launch.ds_config.config import DsConfig
from launch.zero.accelerator import on_cpu


def apply_activation_checkpointing(stack: AstrobioStack, ds_config: DsConfig) -> None:
    """Checkpoint activations where ``ds_config`` has the block, keep them where it has not.

    The block alone does nothing in DeepSpeed (deepspeed 0.19.8, DeepSpeed #5704): `deepspeed.checkpointing.configure`
    must be called and the model must call `deepspeed.checkpointing.checkpoint`.

    On the CPU accelerator activations are in host memory already, and `cpu_checkpointing` would move them to where they
    are: ``.cpu()`` returns the same storage, which DeepSpeed then empties (deepspeed 0.19.8).
    """
    if not ds_config.activation_checkpointing:
        stack.set_activation_checkpointing(None)
        return
    in_cpu = False if on_cpu() else None  # None: as the block says
    deepspeed.checkpointing.configure(None, deepspeed_config=ds_config.raw, checkpoint_in_cpu=in_cpu)
    stack.set_activation_checkpointing(checkpoint)


def checkpoint(function, *args, **kwargs):
    """`deepspeed.checkpointing.checkpoint`, for functions that return one tensor or several.

    transformers calls it with options of its own (``use_reentrant``, ``preserve_rng_state``) that DeepSpeed would hand
    on to the function; they are left out.
    """
    options = {name: value for name, value in kwargs.items() if name not in _TORCH_OPTIONS}
    return deepspeed.checkpointing.checkpoint(functools.partial(function, **options) if options else function, *args)


def _torch_options() -> set[str]:
    return set(inspect.signature(torch.utils.checkpoint.checkpoint).parameters) - {"function", "args", "kwargs"}


_TORCH_OPTIONS = _torch_options()
