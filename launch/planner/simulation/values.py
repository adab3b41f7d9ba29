"""Whole numbers that a ghost run must know although its tensors have no data.

How many nodes a graph has, which text is padding: sizes and kernels depend on such values. So integer and boolean
tensors carry their real values along as an attribute, from the batch through every operator that is fed by nothing
else.
"""

from typing import Any

import torch
from torch import Tensor
from torch._C import _DisableTorchDispatch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

from launch.planner.simulation.shapes import Answer, Shapes
from launch.planner.simulation.tensors import Attributes, fresh

aten = torch.ops.aten
_REAL = "_real_value"
setattr(FakeTensor, _REAL, None)
_LARGEST = 1 << 20  # elements; larger ones (random masks, optimizer flags) are not followed
_INDEX, _LIFT_FRESH, _NONZERO = aten.index, aten.lift_fresh, aten.nonzero
#: Operators whose output has a size that depends on values.
_SIZED_BY_VALUES = {
    aten.nonzero,
    aten.masked_select,
    aten.repeat_interleave,
    aten.unique_consecutive,
    aten._unique2,
    aten.bincount,
}
_FACTORIES = {aten.arange, aten.full, aten.ones, aten.zeros, aten.eye, aten.tril_indices, aten.triu_indices}


def known(tensor: Tensor) -> Tensor | None:
    """The values of ``tensor``, if they are known."""
    if not isinstance(tensor, FakeTensor):
        return tensor
    value = getattr(tensor, _REAL, None)
    return tensor.constant if value is None else value


def remember(fake: Tensor, value: Tensor) -> None:
    """Keep the ``value`` of a fake tensor, if it is one to follow."""
    if isinstance(fake, FakeTensor) and _worth_following(value):
        setattr(fake, _REAL, value)


def without_data(tensor: Tensor) -> FakeTensor:
    """A fake tensor like the real ``tensor``; whole numbers keep their values."""
    with _DisableTorchDispatch():
        size, stride, dtype, device = tensor.shape, tensor.stride(), tensor.dtype, tensor.device
    fake = fresh(size, stride, dtype, Attributes()[device])
    remember(fake, tensor)
    return fake


def scalar(tensor: Tensor) -> bool | int | float:
    """What ``tensor.item()`` says. Where nobody knows: nothing overflows, and a norm is 1."""
    value = known(tensor)
    if value is not None:
        with _disable_current_modes():
            return value.item()
    return False if tensor.dtype is torch.bool else 1.0 if tensor.is_floating_point() else 0


def run(func, args: tuple, kwargs: dict, shapes: Shapes) -> tuple[Any, Answer | None]:
    """The operator on fake tensors, and on the real values where all of its inputs have them: its output, and how it
    was answered."""
    packet = func._overloadpacket
    if packet is _INDEX and any(i is not None and i.dtype is torch.bool for i in args[1]):
        return _index(func, args[0], args[1], shapes), None
    if args and type(args[0]) is FakeTensor and known(args[0]) is None:  # as nearly always
        inputs, follow = [], False
    else:
        inputs = tensors_of(*args, *kwargs.values())
        follow = all(known(t) is not None for t in inputs) if inputs else packet in _FACTORIES
    if not follow:
        if packet is _NONZERO:  # of a mask that nobody knows: everywhere true
            mask = args[0]
            return shapes(
                aten.empty.memory_format, ([mask.numel(), mask.dim()],), {"dtype": torch.long, "device": mask.device}
            )
        out, answer = shapes(func, args, kwargs)
        if func._schema.is_mutable and isinstance(out, FakeTensor):
            setattr(out, _REAL, None)
        return out, answer
    if packet is _LIFT_FRESH and type(args[0]) is Tensor:  # a constant of the program
        return without_data(args[0]), None
    answer = None
    if packet in _SIZED_BY_VALUES:
        with _disable_current_modes():
            real = _on_host(func, args, kwargs)
        out = tree_map(lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=inputs[0].device), real)
    else:
        out, answer = shapes(func, args, kwargs)
        fakes = tensors_of(out)
        if not fakes or any(not _worth_following(t) for t in fakes):
            return out, answer
        with _disable_current_modes():
            real = _on_host(func, args, kwargs)
    for fake, value in zip(tensors_of(out), tensors_of(real), strict=True):
        remember(fake, value)
    return out, answer


def tensors_of(*given: Any) -> list[Tensor]:
    """The tensors among an operator's arguments or results, also those in lists: what `tree_leaves` finds, in less
    time."""
    found = []
    for value in given:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_of(*value)
    return found


def _worth_following(tensor: Tensor) -> bool:
    """Whole numbers, and single numbers of any kind."""
    return tensor.numel() == 1 or not tensor.is_floating_point() and tensor.numel() <= _LARGEST


def _on_host(func, args, kwargs):
    return func(*_real(args), **{key: _real(value) for key, value in kwargs.items()})


def _real(value: Any) -> Any:
    """In place of an argument, what it is on the host and with its numbers."""
    if isinstance(value, Tensor):
        return known(value)
    if type(value) in (list, tuple):
        return type(value)(map(_real, value))
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _index(func, tensor: Tensor, indices: list, shapes: Shapes) -> Tensor:
    """``tensor[mask]`` as CUDA runs it: the mask becomes the indices of what is true in it."""
    spread: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype is torch.bool:
            places, _ = run(aten.nonzero.default, (index,), {}, shapes)
            spread += run(aten.unbind.int, (places, 1), {}, shapes)[0]
        else:
            spread.append(index)
    return shapes(func, (tensor, spread), {})[0]
