"""Products of grouped matrices, of which mixtures of experts are made: what torch's tools without data lack of them."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

GROUPED_MM = torch.ops.aten._grouped_mm


def grouped_mm(a: Tensor, b: Tensor, offs: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
    """What the operator makes of tensors on the meta device. torch's own kernel there takes bfloat16 only, those of
    CPUs and cards float16 and float32 too (ATen/native/GroupedMMUtils.h, torch 2.13.0)."""
    from torch._meta_registrations import _create_grouped_mm_output_tensor

    return _create_grouped_mm_output_tensor(a, b, offs, a.dtype)


@register_flop_formula(GROUPED_MM)
def _flops(a: torch.Size, b: torch.Size, *_: Any, **__: Any) -> int:
    """Each row of one belongs to one group, however large the groups are; without groups there are ``a[0]`` products
    of whole matrices."""
    return (a[0] if len(a) == len(b) == 3 else 1) * 2 * a[-2] * a[-1] * b[-1]


def groups(a: Tensor, b: Tensor, offs: Tensor | None = None, *_: Any, **__: Any) -> int:
    """How many there are."""
    return len(a) if offs is None else len(offs)


def at_once(dtype: torch.dtype, capability: tuple[int, int]) -> bool:
    """Whether a card has one kernel for all groups. Others multiply one after the other, and the host waits for the
    groups' sizes (ATen/native/cuda/GroupedBlas.cpp: use_fast_path)."""
    return dtype is torch.bfloat16 and capability[0] in (9, 10)
