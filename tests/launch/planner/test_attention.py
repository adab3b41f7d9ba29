"""The attention kernel that a card would choose, by shapes alone (aten's sdp_utils.cpp)."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from astrobio.config import load_preset, preset_names
from astrobio.language import language_config
from launch.planner.stand_ins import attend

AMPERE, VOLTA, TURING = (8, 6), (7, 0), (7, 5)
FLASH, EFFICIENT, FORMULA = "flash", "efficient", "formula"
HALF, BF16, SINGLE = torch.float16, torch.bfloat16, torch.float32


class Operators(TorchDispatchMode):
    """The names of all operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype, head, masked, capability, kernel", [
    (HALF, 64, False, AMPERE, FLASH), (BF16, 128, False, AMPERE, FLASH), (HALF, 68, False, AMPERE, FLASH),
    (HALF, 64, True, AMPERE, EFFICIENT), (HALF, 68, True, AMPERE, FORMULA), (BF16, 64, True, AMPERE, EFFICIENT),
    (HALF, 64, False, TURING, EFFICIENT), (HALF, 68, False, VOLTA, FORMULA), (BF16, 64, False, VOLTA, FORMULA),
    (SINGLE, 68, False, AMPERE, EFFICIENT), (SINGLE, 66, False, AMPERE, FORMULA), (SINGLE, 66, False, VOLTA, EFFICIENT),
])
def test_the_kernel_follows_from_type_head_size_mask_and_card(dtype, head, masked, capability, kernel):
    query, key, value = (torch.empty(2, 4, 16, head, dtype=dtype, device="meta") for _ in range(3))
    mask = torch.empty(2, 1, 1, 16, dtype=torch.bool, device="meta") if masked else None
    with Operators() as run:
        out = attend(query, key, value, mask, capability=capability)
    assert out.shape == query.shape
    names = " ".join(run.names)
    found = [name for name in (FLASH, EFFICIENT) if f"_scaled_dot_product_{name}_attention" in names] or [FORMULA]
    assert found == [kernel]
    assert ("bmm" in names or "matmul" in names) is (kernel == FORMULA)


@pytest.mark.parametrize("preset", preset_names())
def test_no_preset_has_heads_that_a_kernel_refuses(preset):
    config = load_preset(preset)
    language = language_config(config.language)
    sizes = {"language": getattr(language, "head_dim", None) or language.hidden_size // language.num_attention_heads,
             **{name: part.hidden_size // part.heads for name in ("climate", "metabolism", "spectrum", "fusion")
                if (part := getattr(config, name))}}
    assert {name: size for name, size in sizes.items() if size % 8} == {}
