"""Batches from one process to another, and to a card, in one piece.

PyTorch sends each tensor between processes as a file of its own, with a handshake each: for the seventy small tensors
of a batch that takes longer than reading it. Here they travel as one tensor of bytes, and are views of it on the other
side.
"""

import io
import pickle
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 16  # bytes; a view of a type must begin at a multiple of its size


class _Pickler(pickle.Pickler):
    """Leaves the tensors out, and remembers them."""

    def __init__(self, file):
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []

    def persistent_id(self, item: Any) -> int | None:
        if type(item) is not Tensor or item.device.type != "cpu" or item.requires_grad:
            return None
        self.tensors.append(item)
        return len(self.tensors) - 1


class _Unpickler(pickle.Unpickler):
    """Puts the tensors in again."""

    def __init__(self, file, tensors: list[Tensor]):
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        return self._tensors[number]


def packed(state: Any, pinned: bool = False) -> tuple[bytes, list[tuple[torch.dtype, torch.Size]], Tensor]:
    """Any picklable ``state`` as what is not a tensor, each tensor's dtype and shape, and all their bytes; ``pinned``:
    in page-locked memory, which a card copies by itself."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(state)
    layout = [(tensor.dtype, tensor.shape) for tensor in pickler.tensors]
    starts, total = _starts(layout)
    content = torch.empty(total, dtype=torch.uint8, pin_memory=pinned)
    for tensor, start in zip(pickler.tensors, starts, strict=True):
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        content[start : start + len(flat)] = flat
    return file.getvalue(), layout, content


def unpacked(skeleton: bytes, layout: list[tuple[torch.dtype, torch.Size]], content: Tensor) -> Any:
    """The inverse of `packed`; the tensors are views of ``content``."""
    starts, _ = _starts(layout)
    tensors = [
        content[start : start + _size(dtype, shape)].view(dtype).view(shape)
        for (dtype, shape), start in zip(layout, starts, strict=True)
    ]
    return _Unpickler(io.BytesIO(skeleton), tensors).load()


def _size(dtype: torch.dtype, shape: torch.Size) -> int:
    return shape.numel() * dtype.itemsize


def _starts(layout: list[tuple[torch.dtype, torch.Size]]) -> tuple[list[int], int]:
    sizes = [-(-_size(dtype, shape) // _ALIGNMENT) * _ALIGNMENT for dtype, shape in layout]
    *starts, total = accumulate(sizes, initial=0)
    return starts, total
