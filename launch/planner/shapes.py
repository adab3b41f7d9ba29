"""What an operator makes of shapes, found out once.

A large model asks the same few hundred questions ten thousand times each, and `FakeTensorMode` takes about 0.2 ms for
an answer. Here it is remembered with the operator, shapes, strides, dtypes, devices and other arguments.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


@dataclass
class Answer:
    """How to make the outputs of an operator: fresh, views of an argument, the argument itself, or plain values."""

    single: bool
    outputs: list[tuple]
    work: Any = field(default=None)  # what the ledger remembers of it
    known: bool = False  # whether ``work`` is set


_SLICE = torch.ops.aten.slice.Tensor
_NO_WORK = Answer(True, [], known=True)


class Shapes:
    """Runs operators on fake tensors; `__call__` gives the output and its `Answer`, or None where it is not one to
    remember."""

    def __init__(self):
        self._answers: dict[tuple, Answer | None] = {}
        self._templates: dict[torch.device, dict] = {}

    def __call__(self, func, args: tuple, kwargs: dict) -> tuple[Any, Answer | None]:
        if func is _SLICE and not kwargs and len(args) == 4 and args[0].constant is None:
            return self._slice(*args)  # there are as many answers as there are offsets
        tensors: list[FakeTensor] = []
        key = _key(func, args, kwargs, tensors)
        if key is None:
            return func(*args, **kwargs), None
        answer = self._answers.get(key, ...)
        if answer is ...:
            out = func(*args, **kwargs)
            answer = self._answers[key] = self._learn(out, tensors)
            return out, answer
        if answer is None:
            return func(*args, **kwargs), None
        if answer.single:
            return self._make(answer.outputs[0], tensors), answer
        return tuple(self._make(output, tensors) for output in answer.outputs), answer

    def _slice(self, source: FakeTensor, dim: int, start: int, stop: int) -> tuple[Tensor, Answer]:
        """``source[start:stop]`` along ``dim``, which does no work."""
        size, stride = list(source.shape), source.stride()
        length, dim = size[dim], dim % len(size)
        start, stop = (min(max(place + length if place < 0 else place, 0), length) for place in (start, stop))
        size[dim] = max(0, stop - start)
        self._templates.setdefault(source.fake_device, {**vars(source), "_real_value": None})
        output = ("view", size, stride, source.dtype, source.fake_device, 0, start * stride[dim])
        return self._make(output, [source]), _NO_WORK

    def _learn(self, out: Any, tensors: list[FakeTensor]) -> Answer | None:
        single = isinstance(out, Tensor)
        outs = [out] if single else out
        if not isinstance(outs, (list, tuple)) or not all(t is None or type(t) in (FakeTensor, int) for t in outs):
            return None
        storages = [t.untyped_storage()._cdata for t in tensors]
        outputs: list[tuple] = []
        for t in outs:
            if t is None or isinstance(t, int):
                outputs.append(("value", t))
                continue
            if t.constant is not None or t.is_sparse:
                return None
            same = next((i for i, argument in enumerate(tensors) if argument is t), None)
            storage = t.untyped_storage()._cdata
            if same is not None:
                outputs.append(("same", same))
            elif storage in storages:
                base = storages.index(storage)
                outputs.append(("view", t.size(), t.stride(), t.dtype, t.fake_device, base,
                                t.storage_offset() - tensors[base].storage_offset()))
            else:
                outputs.append(("fresh", t.size(), t.stride(), t.dtype, t.fake_device))
            self._templates.setdefault(t.fake_device, {**vars(t), "_real_value": None})
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


def _key(func, args: tuple, kwargs: dict, tensors: list) -> tuple | None:
    """What decides about the shapes of the outputs; None if that cannot be told."""
    parts: list = [func]
    for value in args:
        if not _describe(value, parts, tensors):
            return None
    for name, value in kwargs.items():
        parts.append(name)
        if not _describe(value, parts, tensors):
            return None
    return tuple(parts)


def _describe(value: Any, parts: list, tensors: list) -> bool:
    if type(value) is FakeTensor or isinstance(value, FakeTensor):
        tensors.append(value)
        parts += (value.shape, value.stride(), value.dtype, value.fake_device)
        return value.constant is None
    if isinstance(value, _PLAIN):
        parts += (type(value), value)
        return True
    if isinstance(value, (list, tuple)):
        parts.append(len(value))
        return all(_describe(item, parts, tensors) for item in value)
    return False
