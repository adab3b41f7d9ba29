"""Tensors made past torch's dispatcher.

More than half of all operators of a ghost run are views and empty tensors that DeepSpeed asks for where autograd has
nothing to do. What they are is told in half the time that the way through the dispatcher and back to Python takes.
"""

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack
from torch._subclasses.fake_tensor import FakeTensor

from launch.planner.simulation.recorder import Ledger
from launch.planner.simulation.shapes import OF_EMPTY, VIEWS

_DETACH, _SLICE, _VIEW = VIEWS


def take_shortcuts(ledger: Ledger) -> None:
    """From now on the plainest of them are made here, and the ledger is told. All others go torch's way."""
    empty_of_torch, data_of_torch = torch.empty, Tensor.data

    def asked() -> bool:
        """Whether the ledger would be: its mode and the fake tensors' are active, and it is not in an answer."""
        return _len_torch_dispatch_stack() == 2

    def untracked(tensor: Tensor) -> bool:
        return asked() and not torch.is_grad_enabled() and not tensor.requires_grad

    def data(tensor: Tensor) -> Tensor:
        out = ledger.view(_DETACH, tensor) if asked() else None
        return data_of_torch.__get__(tensor) if out is None else out

    def detach(tensor: Tensor) -> Tensor:
        out = ledger.view(_DETACH, tensor) if asked() else None
        return Tensor.detach(tensor) if out is None else out

    def narrow(tensor: Tensor, dim: int, start: int | Tensor, length: int) -> Tensor:
        out = None
        if untracked(tensor) and type(start) is int and 0 <= start <= start + length <= tensor.shape[dim]:
            out = ledger.view(_SLICE, tensor, dim, start, start + length)
        return Tensor.narrow(tensor, dim, start, length) if out is None else out

    def view(tensor: Tensor, *size, **kwargs) -> Tensor:
        out = None
        if untracked(tensor) and not kwargs and all(type(n) is int for n in size):
            out = ledger.view(_VIEW, tensor, size)
        return Tensor.view(tensor, *size, **kwargs) if out is None else out

    def empty(*size, **kwargs) -> Tensor:
        if len(size) == 1 and type(size[0]) is int and kwargs.keys() == OF_EMPTY and asked() \
                and type(kwargs["device"]) is torch.device:
            return ledger.empty(size, **kwargs)
        return empty_of_torch(*size, **kwargs)

    FakeTensor.data = property(data, FakeTensor.data.fset)
    FakeTensor.detach, FakeTensor.narrow, FakeTensor.view = detach, narrow, view
    torch.empty = empty
