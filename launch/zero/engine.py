"""Builds the stack under the ds_config's ZeRO stage and hands it to DeepSpeed."""

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator

from astrobio.config import StackConfig
from astrobio.stack import AstrobioStack
from launch.zero.activation import apply_activation_checkpointing
from launch.zero.ds_config import strategy


def build_engine(config: StackConfig, ds_config: dict, seed: int):
    """The stack inside a `deepspeed.DeepSpeedEngine`, partitioned from the first parameter on under ZeRO-3.

    Weights depend on ``seed`` alone, not on the number of ranks: DeepSpeed takes each parameter from rank 0.
    """
    torch.manual_seed(seed)
    stage3 = strategy(ds_config).stage == 3
    with deepspeed.zero.Init(config_dict_or_path=ds_config, enabled=stage3):
        stack = AstrobioStack(config)
    if stage3:
        _initialise_language_weights(stack)
    apply_activation_checkpointing(stack, ds_config)
    engine, *_ = deepspeed.initialize(model=stack, config=ds_config,
                                      model_parameters=[p for p in stack.parameters() if p.requires_grad])
    torch.manual_seed(seed + 1 + deepspeed.comm.get_rank())  # from here on each rank draws its own masks and noise
    return engine


def _initialise_language_weights(stack: AstrobioStack) -> None:
    """Draw the language model's weights again.

    `transformers` initialises a model as a whole, after its modules exist; under `deepspeed.zero.Init` they are empty
    shards by then, and keep torch's defaults (embeddings of standard deviation 1 in place of 0.02). Its own ZeRO-3
    integration has the function that gathers each module first, but calls it only under its own `HfDeepSpeedConfig`
    (transformers 5.23); the marks of the first, vain pass must go before it does anything.
    """
    from transformers.integrations.deepspeed import initialize_weights_zero3
    for part in (*stack.language.model.modules(), *stack.language.model.parameters()):
        part.__dict__.pop("_is_hf_initialized", None)
    initialize_weights_zero3(stack.language.model)
    stack.language.model.tie_weights()


def parameter_counts(config: StackConfig) -> tuple[int, int]:
    """Elements of all parameters, and of the largest one, from the meta device."""
    with torch.device("meta"):
        sizes = [p.numel() for p in AstrobioStack(config).parameters()]
    return sum(sizes), max(sizes)


def device() -> torch.device:
    return torch.device(get_accelerator().current_device_name())
