"""What an operator makes of shapes, found out once.

A large model asks the same few hundred questions ten thousand times each, and `FakeTensorMode` takes about 0.2 ms for
an answer. Here it is remembered with the operator, shapes, strides, dtypes, devices and other arguments.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_impls import op_implementations_checks
from torch._subclasses.fake_tensor import FakeTensor, in_kernel_invocation_manager

aten = torch.ops.aten
_PLAIN = {int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format}


@dataclass
class Answer:
    """How to make the outputs of an operator: fresh, views of an argument, the argument itself, or plain values."""

    single: bool
    outputs: list[tuple]
    work: Any = field(default=None)  # what the ledger remembers of it
    known: bool = False  # whether ``work`` is set


_SLICE, _TO_COPY = aten.slice.Tensor, aten._to_copy.default
_NO_WORK = Answer(True, [], known=True)


class Shapes:
    """Runs operators on fake tensors; `__call__` gives the output and its `Answer`, or None where it is not one to
    remember."""

    def __init__(self):
        self._answers: dict[tuple, Answer | None] = {}
        self._templates: dict[torch.device, dict] = {}  # the attributes of a fake tensor there

    def __call__(self, func, args: tuple, kwargs: dict) -> tuple[Any, Answer | None]:
        if func is _SLICE and not kwargs and len(args) == 4 and args[0].constant is None \
                and args[0].fake_device in self._templates:
            return self._slice(*args)  # there are as many answers as there are offsets
        tensors: list[FakeTensor] = []
        key = _key(func, args, kwargs, tensors)
        if key is None:
            return func(*args, **kwargs), None
        answer = self._answers.get(key, ...)
        if answer is ...:
            answer = self._answers[key] = self._of_meta(func, args, kwargs, tensors)
            if answer is None:
                out = func(*args, **kwargs)
                answer = self._answers[key] = self._learn(out, tensors)
                return out, answer
        elif answer is None:
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
        if device not in self._templates:
            return None
        with in_kernel_invocation_manager(tensors[0].fake_mode):
            out = func(*args, **kwargs)
        return self._learn(out, tensors, device)

    def _slice(self, source: FakeTensor, dim: int, start: int, stop: int) -> tuple[Tensor, Answer]:
        """``source[start:stop]`` along ``dim``, which does no work."""
        size, stride = list(source.shape), source.stride()
        length, dim = size[dim], dim % len(size)
        start, stop = (min(max(place + length if place < 0 else place, 0), length) for place in (start, stop))
        size[dim] = max(0, stop - start)
        output = ("view", size, stride, source.dtype, source.fake_device, 0, start * stride[dim])
        return self._make(output, [source]), _NO_WORK

    def _learn(self, out: Any, tensors: list[FakeTensor], device: torch.device | None = None) -> Answer | None:
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
            if device is None:
                self._templates.setdefault(t.fake_device, {**vars(t), "_real_value": None})
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
        with torch._C._DisableTorchDispatch():
            if base:
                source = tensors[base[0]]
                elem = torch.empty(0, dtype=dtype, device="meta")
                elem.set_(source.untyped_storage(), source.storage_offset() + base[1], size, stride)
            else:
                elem = torch.empty_strided(size, stride, dtype=dtype, device="meta")
        made = Tensor._make_subclass(FakeTensor, elem, False, dispatch_device=True, device_for_backend_keys=device)
        made.__dict__.update(self._templates[device])
        return made


@functools.cache
def _own_way(func) -> bool:
    """Whether `FakeTensorMode` answers the operator by itself, other than more slowly."""
    return func not in (_TO_COPY, aten.view.default, aten._unsafe_view.default, aten.select.int) and any(
        applies(func) for applies, _ in op_implementations_checks)


def _key(func, args: tuple, kwargs: dict, tensors: list) -> tuple | None:
    """What decides about the shapes of the outputs; None if that cannot be told."""
    parts: list = [func]
    if not _describe(args, parts, tensors):
        return None
    if kwargs:
        parts += kwargs
        if not _describe(kwargs.values(), parts, tensors):
            return None
    return tuple(parts)


def _describe(values: Iterable, parts: list, tensors: list) -> bool:
    for value in values:
        kind = type(value)
        if kind in _PLAIN:
            parts += (kind, value)
        elif isinstance(value, FakeTensor):
            if value.constant is not None:
                return False
            tensors.append(value)
            parts += (value.shape, value.stride(), value.dtype, value.fake_device)
        elif isinstance(value, (list, tuple)):
            parts.append(len(value))
            if not _describe(value, parts, tensors):
                return False
        else:
            return False
    return True
