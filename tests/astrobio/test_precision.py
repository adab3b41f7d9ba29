"""Each part of the stack in 16 bits beside itself in fp32: forward and gradient, on real records, in every preset.

A kernel that is wrong in one precision trains, only worse, and nothing else says so.
"""

import functools

import pytest
import torch
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from astrobio.config import load_preset
from astrobio.datacube import PatchEmbedding
from astrobio.dataset import AstrobioDataset
from astrobio.stack import AstrobioStack

#: One layer of each kind has all the shapes of a preset; whole large stacks do not fit a small machine.
ONE_LAYER = {"language.config.num_hidden_layers": 1, **{f"{part}.depth": 1 for part in
                                                        ("planet", "climate", "metabolism", "spectrum", "fusion")}}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: torch's fp16 kernels for a CPU take up to 100 times as long as others; there large presets are run in bf16 only.
CASES = [*((preset, dtype) for preset in ("tiny", "small") for dtype in (torch.bfloat16, torch.float16)),
         *(pytest.param(preset, dtype, marks=pytest.mark.slow) for preset in ("1b", "17b")
           for dtype in ((torch.bfloat16, torch.float16) if DEVICE == "cuda" else (torch.bfloat16,)))]
#: Relative error of all outputs, and of all gradients, of a part: a few roundings (2⁻⁹ and 2⁻¹²) of each layer.
ALLOWED = {torch.bfloat16: (0.02, 0.04), torch.float16: (0.003, 0.006)}


@functools.cache
def batch(folder):
    dataset = AstrobioDataset(folder, "train", max_text_tokens=64)
    whole = [i for i in range(len(dataset)) if all(dataset[i]["present"].values())][:2]
    return dataset.collate([dataset[i] for i in whole]).to(DEVICE)


def calls(stack: AstrobioStack, batch, dtype: torch.dtype) -> dict:
    """Part → its forward pass over ``batch``; what it reads of other parts is random."""
    torch.manual_seed(1)
    width, rows = stack.language.hidden_size, len(batch)
    tokens = [torch.randn(rows, getattr(stack.config, name).tokens, width).to(DEVICE, dtype)
              for name in stack.modalities]
    states = torch.randn(rows, batch.tokens.shape[1], width).to(DEVICE, dtype)
    present, quality = (torch.stack([of[name] for name in stack.modalities], dim=1)
                        for of in (batch.present, batch.quality))
    return {"planet": lambda: stack.planet(batch.planet, batch.planet_known),
            "climate": lambda: stack.climate(batch.climate_levels, batch.climate_surface),
            "metabolism": lambda: stack.metabolism(batch.graphs),
            "spectrum": lambda: stack.spectrum(batch.spectrum),
            "language": lambda: stack.language(torch.cat(tokens, dim=1), batch.tokens),
            "fusion": lambda: stack.fusion(tokens, states, present, quality, batch.real)}


def outputs_and_gradients(stack: AstrobioStack, part: str, batch, dtype: torch.dtype):
    outputs = tree_leaves(calls(stack, batch, dtype)[part]())
    torch.manual_seed(2)
    sum((x.float() * torch.randn(x.shape).to(DEVICE)).sum() / x.numel() ** 0.5 for x in outputs).backward()
    return ([x.detach().float() for x in outputs],
            [p.grad.float() for p in getattr(stack, part).parameters() if p.grad is not None])


def error(found: list, expected: list) -> float:
    assert len(found) == len(expected) > 0
    off, whole = (sum(float(x.square().sum()) for x in xs) ** 0.5
                  for xs in ([a - b for a, b in zip(found, expected, strict=True)], expected))
    return off / whole


@pytest.mark.parametrize("part", ["planet", "climate", "metabolism", "spectrum", "language", "fusion"])
@pytest.mark.parametrize("preset, dtype", CASES, ids=lambda value: str(value).removeprefix("torch."))
def test_a_part_computes_in_16_bits_what_it_does_in_32(mini_dataset, preset, part, dtype):
    """With the same weights, those of 16 bits, so that only the arithmetic differs."""
    encoders = ("planet", "climate", "metabolism", "spectrum")
    changes = ONE_LAYER if preset in ("1b", "17b") else {}
    if part in encoders:  # the other encoders only take memory
        changes = {**{k: v for k, v in changes.items() if k.split(".")[0] not in encoders or k.startswith(part)},
                   **{name: None for name in encoders if name != part}}
    torch.manual_seed(0)
    stack = AstrobioStack(load_preset(preset, changes)).eval().to(DEVICE, dtype)
    found = outputs_and_gradients(stack, part, batch(mini_dataset), dtype)
    stack.zero_grad()
    expected = outputs_and_gradients(stack.float(), part, batch(mini_dataset), torch.float32)
    for what, ours, theirs, allowed in zip(("outputs", "gradients"), found, expected, ALLOWED[dtype], strict=True):
        assert error(ours, theirs) < allowed, what


def test_patches_are_embedded_as_a_convolution_would():
    torch.manual_seed(0)
    embed = PatchEmbedding(8, (5, 8, 8), 64).double()
    x = torch.randn(2, 8, 10, 32, 64, dtype=torch.double)
    kernel = embed.weight.view(64, 8, 5, 8, 8)
    expected = F.conv3d(x, kernel, embed.bias, stride=(5, 8, 8)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(x), expected)
