"""Each part of a stack in 16 bits beside itself in fp32: forward and gradient, on the same weights and records.

A kernel that is wrong in one precision trains, only worse, and nothing else says so.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from astrobio.batch import Batch
from astrobio.config import PARTS, StackConfig, load_preset
from astrobio.stack import AstrobioStack

ENCODERS = ("planet", "climate", "metabolism", "spectrum")
#: Relative error of all outputs, and of all gradients, of a part: a few roundings (2⁻⁹ and 2⁻¹²) of each layer.
ALLOWED = {torch.bfloat16: (0.02, 0.04), torch.float16: (0.003, 0.006)}
#: One layer of each kind has all the shapes of a preset; whole large stacks fit neither a small machine nor a card.
ONE_LAYER = {"language.config.num_hidden_layers": 1, **{f"{part}.depth": 1 for part in (*ENCODERS, "fusion")}}


def shallow(model: str) -> StackConfig:
    """The preset with one layer of each kind."""
    whole = load_preset(model)
    return load_preset(
        model, {key: value for key, value in ONE_LAYER.items() if getattr(whole, key.split(".")[0]) is not None}
    )


def parts_of(config: StackConfig) -> list[str]:
    return [part for part in PARTS if getattr(config, part) is not None]


def deviation(config: StackConfig, part: str, batch: Batch, dtype: torch.dtype) -> tuple[float, float]:
    """Relative error of the part's outputs and of its parameters' gradients in ``dtype``, where ``batch`` is.

    The weights are those that ``dtype`` can hold in both, so that only the arithmetic differs; compare with `ALLOWED`.
    """
    if part in ENCODERS:  # the other encoders, and the heads that read them, only take memory
        others: dict[str, Any] = {name: None for name in ENCODERS if name != part}
        config = dataclasses.replace(config, tasks=None, **others)
    torch.manual_seed(0)
    stack = AstrobioStack(config).eval().to(batch.tokens.device, dtype)
    found = _outputs_and_gradients(stack, part, batch, dtype)
    stack.zero_grad()
    expected = _outputs_and_gradients(stack.float(), part, batch, torch.float32)
    outputs, gradients = (_relative_error(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    return outputs, gradients


def _outputs_and_gradients(
    stack: AstrobioStack, part: str, batch: Batch, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    outputs = tree_leaves(_calls(stack, batch, dtype)[part]())
    torch.manual_seed(2)
    sum((x.float() * torch.randn(x.shape).to(x.device)).sum() / x.numel() ** 0.5 for x in outputs).backward()
    return (
        [x.detach().float() for x in outputs],
        [p.grad.float() for p in getattr(stack, part).parameters() if p.grad is not None],
    )


def _calls(stack: AstrobioStack, batch: Batch, dtype: torch.dtype) -> dict:
    """Part → its forward pass over ``batch``; what it reads of other parts is random."""
    torch.manual_seed(1)
    width, rows, device = stack.language.hidden_size, len(batch), batch.tokens.device
    tokens = [
        torch.randn(rows, getattr(stack.config, name).tokens, width).to(device, dtype) for name in stack.modalities
    ]
    states = torch.randn(rows, batch.tokens.shape[1], width).to(device, dtype)

    def fusion():
        present, quality = (
            torch.stack([of[name] for name in stack.modalities], dim=1) for of in (batch.present, batch.quality)
        )
        return stack.fusion(tokens, states, present, quality, batch.real)

    parts = dict(stack.named_children())
    return {
        "planet": lambda: parts["planet"](batch.planet, batch.planet_known),
        "climate": lambda: parts["climate"](batch.climate_levels, batch.climate_surface),
        "metabolism": lambda: parts["metabolism"](batch.graphs),
        "spectrum": lambda: parts["spectrum"](batch.spectrum, batch.spectrum_spread),
        "language": lambda: stack.language(torch.cat(tokens, dim=1) if tokens else None, batch.tokens)[:2],
        "fusion": fusion,
    }


def _relative_error(found: list[Tensor], expected: list[Tensor]) -> float:
    if not expected or len(found) != len(expected):
        raise ValueError(f"{len(found)} tensors in 16 bits, {len(expected)} in fp32")
    off, whole = (
        sum(float(x.square().sum()) for x in xs) ** 0.5
        for xs in ([a - b for a, b in zip(found, expected, strict=True)], expected)
    )
    return off / whole
