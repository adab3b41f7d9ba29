"""The outputs of operators on fake tensors, worked out once.

A large model asks the same few thousand questions a hundred times each, and `FakeTensorMode` takes about 0.2 ms for an
answer. Here an answer is cached with the operator, shapes, strides, dtypes, devices and other arguments.
"""

import functools
import itertools
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._C import _DisableTorchDispatch
from torch._subclasses.fake_impls import op_implementations_checks
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map_only

from launch.planner.simulation.experts import GROUPED_MM, grouped_mm
from launch.planner.simulation.tensors import Attributes, Metas, fresh, view

aten = torch.ops.aten
_PLAIN = {int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}


@dataclass
class Answer:
    """How to make the outputs of an operator: fresh, views of an argument, the argument itself, or plain values."""

    single: bool
    outputs: list[tuple]
    work: Any = field(default=None)  # the recorder's, of `launch.planner.simulation.work`
    known: bool = False  # whether ``work`` is set


_EMPTY, _TO_COPY = aten.empty.memory_format, aten._to_copy.default
_SLICE, _VIEW = aten.slice.Tensor, aten.view.default
#: Half of all operators of a ghost run, which do no work.
VIEWS = aten.detach.default, _SLICE, _VIEW
OF_EMPTY = {"dtype", "device"}  # the usual arguments of an empty tensor besides its size
_NO_WORK = Answer(True, [], known=True)


class Shapes:
    """Runs operators on fake tensors; `__call__` gives the output and its `Answer`, or None where it is not one to
    remember."""

    def __init__(self):
        self.answers: dict[tuple, Answer | None] = {}
        self._attributes = Attributes()

    def __call__(self, func, args: tuple, kwargs: dict) -> tuple[Any, Answer | None]:
        if func is _EMPTY and kwargs.keys() == OF_EMPTY:  # there are as many answers as there are sizes
            return self.empty(args[0], **kwargs), _NO_WORK
        tensors: list[FakeTensor] = []
        key = _key(func, args, kwargs, tensors)
        if key is None:
            return func(*args, **kwargs), None
        if key not in self.answers:
            self.answers[key] = self._of_meta(func, args, kwargs, tensors)
            if self.answers[key] is None:
                out = func(*args, **kwargs)
                self.answers[key] = answer = self._learn(out, tensors)
                return out, answer
        answer = self.answers[key]
        if answer is None:
            return func(*args, **kwargs), None
        if answer.single:
            return self._make(answer.outputs[0], tensors), answer
        return tuple(self._make(output, tensors) for output in answer.outputs), answer

    def _of_meta(self, func, args: tuple, kwargs: dict, tensors: list[FakeTensor]) -> Answer | None:
        """What the operator's kernel for the meta device answers. `FakeTensorMode` ends there too, but takes ten times
        as long; what it treats in ways of its own, or refuses, is left to it: None."""
        if not tensors or func._schema.is_mutable or _own_way(func):
            return None
        device = tensors[0].fake_device
        if any(t.fake_device != device for t in tensors):
            return None
        if kwargs.get("device") is not None:
            if func is not _TO_COPY:
                return None
            device = kwargs["device"]
            kwargs = {**kwargs, "device": None}
        metas = Metas()
        twins = [metas.of(t) for t in tensors]
        waiting = iter(twins)
        args, kwargs = tree_map_only(FakeTensor, lambda _: next(waiting), (args, kwargs))
        with _DisableTorchDispatch():
            out = (grouped_mm if func is GROUPED_MM.default else func)(*args, **kwargs)
        return self._learn(out, twins, device)

    def empty(self, size: Sequence[int], dtype: torch.dtype, device: torch.device) -> FakeTensor:
        return fresh(size, contiguous(size), dtype, self._attributes[device])

    def view(self, func, source: Tensor, *args) -> FakeTensor | None:
        """The output of one of `VIEWS` of a tensor whose numbers nobody knows, worked out; None where there is more to
        it than is done here."""
        if type(source) is not FakeTensor:
            return None
        size: Sequence[int] = source.shape
        stride: Sequence[int] = source.stride()
        offset = 0
        if func is _SLICE:
            if len(args) != 3:
                return None
            dim, start, stop = args
            length = size[dim]
            start = min(start, length) if start >= 0 else max(start + length, 0)
            stop = min(stop, length) if stop >= 0 else max(stop + length, 0)
            size, offset = list(size), start * stride[dim]
            size[dim] = max(stop - start, 0)
        elif func is _VIEW:
            wanted = viewed(source.shape, tuple(args[0]))
            if wanted is None or not source.is_contiguous():
                return None
            size, stride = wanted, contiguous(wanted)
        return view(source, size, stride, source.dtype, offset, self._attributes[source.fake_device])

    def _learn(self, out: Any, tensors: Sequence[Tensor], device: torch.device | None = None) -> Answer | None:
        """``device``: of outputs that are on the meta device, in place of their own."""
        single = isinstance(out, Tensor)
        outs = [out] if single else out
        kinds = (FakeTensor, int) if device is None else (Tensor, int)
        if not isinstance(outs, (list, tuple)) or not all(t is None or type(t) in kinds for t in outs):
            return None
        storages = [t.untyped_storage()._cdata for t in tensors]
        outputs: list[tuple] = []
        for t in outs:
            if t is None or isinstance(t, int):
                outputs.append(("value", t))
                continue
            if t.is_sparse or device is None and t.constant is not None:
                return None
            same = next((i for i, argument in enumerate(tensors) if argument is t), None)
            storage = t.untyped_storage()._cdata
            if same is not None:
                outputs.append(("same", same))
                continue
            made = t.size(), t.stride(), t.dtype, device or t.fake_device
            if storage in storages:
                base = storages.index(storage)
                outputs.append(("view", *made, base, t.storage_offset() - tensors[base].storage_offset()))
            else:
                outputs.append(("fresh", *made))
        return Answer(single, outputs)

    def _make(self, output: tuple, tensors: list[FakeTensor]) -> Tensor | int | None:
        if output[0] == "value":
            return output[1]
        if output[0] == "same":
            return tensors[output[1]]
        _, size, stride, dtype, device, *base = output
        attributes = self._attributes[device]
        if not base:
            return fresh(size, stride, dtype, attributes)
        return view(tensors[base[0]], size, stride, dtype, base[1], attributes)


def contiguous(size: Sequence[int]) -> list[int]:
    """The strides of a contiguous tensor of that size."""
    return [*itertools.accumulate((max(n, 1) for n in size[:0:-1]), operator.mul, initial=1)][::-1] if size else []


@functools.cache
def viewed(shape: torch.Size, size: tuple[int, ...]) -> tuple[int, ...] | None:
    """``size`` as a view of ``shape``, with the number that -1 stands for; None if there is no such view."""
    if -1 in size:
        rest = -math.prod(size)
        size = tuple(shape.numel() // rest if n == -1 else n for n in size) if rest else size
    return size if math.prod(size) == shape.numel() and -1 not in size else None


@functools.cache
def _own_way(func) -> bool:
    """Whether `FakeTensorMode` answers the operator by itself, other than more slowly."""
    return func not in (_TO_COPY, aten.view.default, aten._unsafe_view.default, aten.select.int) and any(
        applies(func) for applies, _ in op_implementations_checks
    )


def _key(func, args: tuple, kwargs: dict, tensors: list) -> tuple | None:
    """All that the shapes of the outputs depend on; None if there is more than a key can hold."""
    parts: list = [func]
    if not _describe(args, parts, tensors):
        return None
    if kwargs:
        parts += kwargs
        if not _describe(kwargs.values(), parts, tensors):
            return None
    if not tensors:
        parts.append(torch.get_default_dtype())
    return tuple(parts)


def _describe(values: Iterable, parts: list, tensors: list) -> bool:
    for value in values:
        kind = type(value)
        if kind is FakeTensor:
            if value.constant is not None:
                return False
            tensors.append(value)
            parts += (value.shape, value.stride(), value.dtype, value.fake_device)
        elif kind in _PLAIN:
            parts += (kind, value)
        elif isinstance(value, (list, tuple)):
            parts.append(len(value))
            if not _describe(value, parts, tensors):
                return False
        else:
            return False
    return True
