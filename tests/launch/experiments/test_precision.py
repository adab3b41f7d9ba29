"""Each part of the stack in 16 bits beside itself in fp32, on real records, in every preset."""

import functools

import pytest
import torch
from torch.nn import functional as F

from astrobio.config import PARTS, load_preset
from astrobio.datacube import PatchEmbedding
from astrobio.dataset import AstrobioDataset
from launch.experiments.precision import ALLOWED, deviation, shallow

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: torch's fp16 kernels for a CPU take up to 100 times as long as others; there large presets are run in bf16 only.
CASES = [
    *((preset, dtype) for preset in ("tiny", "small") for dtype in (torch.bfloat16, torch.float16)),
    *(
        pytest.param(preset, dtype, marks=pytest.mark.slow)
        for preset in ("1b", "17b")
        for dtype in ((torch.bfloat16, torch.float16) if DEVICE == "cuda" else (torch.bfloat16,))
    ),
]


@functools.cache
def batch(folder):
    dataset = AstrobioDataset(folder, "train", max_text_tokens=64)
    whole = [i for i in range(len(dataset)) if all(dataset[i]["present"].values())][:2]
    return dataset.collate([dataset[i] for i in whole]).to(DEVICE)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("preset, dtype", CASES, ids=lambda value: str(value).removeprefix("torch."))
def test_a_part_computes_in_16_bits_what_it_does_in_32(mini_dataset, preset, part, dtype):
    config = shallow(preset) if preset in ("1b", "17b") else load_preset(preset)
    outputs, gradients = deviation(config, part, batch(mini_dataset), dtype)
    allowed_outputs, allowed_gradients = ALLOWED[dtype]
    assert outputs < allowed_outputs
    assert gradients < allowed_gradients


def test_patches_are_embedded_as_a_convolution_would():
    torch.manual_seed(0)
    embed = PatchEmbedding(8, (5, 8, 8), 64).double()
    x = torch.randn(2, 8, 10, 32, 64, dtype=torch.double)
    kernel = embed.weight.view(64, 8, 5, 8, 8)
    expected = F.conv3d(x, kernel, embed.bias, stride=(5, 8, 8)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(x), expected)
