"""Fake tensors whose device torch's C++ code knows by itself.

By itself a `FakeTensor` stands on a tensor of the meta device, and C++ code asks Python whenever it wants to know where
it really is: in a ghost run more often than operators run. Here a fake tensor has its device from the beginning and no
memory behind it, so that nothing asks. `FakeTensorMode`, which counts on meta tensors, is given twins of its own kind.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _DisableTorchDispatch
from torch._C._dynamo.guards import _reinterpret_tensor  # type: ignore[attr-defined]  # missing from its stub
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.utils._pytree import tree_map_only


def fresh(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, attributes: dict[str, Any]) -> FakeTensor:
    """A fake tensor with a storage of its own; ``attributes``: as `Attributes` has them for its device."""
    device = attributes.get("_fake_device") or attributes["fake_device"]  # the latter in torch 2.11
    made = Tensor._make_wrapper_subclass(FakeTensor, size, stride, dtype=dtype, device=device)
    made.__dict__.update(attributes)
    return made


def view(
    source: FakeTensor,
    size: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype,
    offset: int,
    attributes: dict[str, Any],
) -> FakeTensor:
    """A fake tensor on the storage of ``source``, ``offset`` elements behind its beginning."""
    if source.dtype is not dtype:
        before = source.storage_offset()
        longest = max(source.itemsize, dtype.itemsize)
        length = source.untyped_storage().nbytes() // longest * longest // source.itemsize
        with _DisableTorchDispatch():
            source = _reinterpret_tensor(source, (length,), (1,), -before).view(dtype)
        offset += int(before)
    made = Tensor._make_subclass(FakeTensor, _reinterpret_tensor(source, size, stride, offset), False)
    made.__dict__.update(attributes)
    return made


class Attributes(dict[torch.device, dict[str, Any]]):
    """Those of a new fake tensor on each device. They belong to the active `Mode`."""

    def __missing__(self, device: torch.device) -> dict[str, Any]:
        with _DisableTorchDispatch():
            empty = torch.empty(0, device="meta")
        mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
        found = self[device] = vars(FakeTensor(mode, empty, device))
        return found


class Metas:
    """Meta tensors in place of fake ones; those that share a storage share one here."""

    def __init__(self):
        self._storages: dict[int, torch.UntypedStorage] = {}

    def of(self, tensor: FakeTensor) -> Tensor:
        storage = tensor.untyped_storage()
        meta = self._storages.get(storage._cdata)
        if meta is None:
            meta = self._storages[storage._cdata] = torch.UntypedStorage(storage.nbytes(), device="meta")
        with _DisableTorchDispatch():
            return torch.empty(0, dtype=tensor.dtype, device="meta").set_(
                meta, tensor.storage_offset(), tensor.shape, tensor.stride()
            )


class Mode(FakeTensorMode):
    """`FakeTensorMode` for tensors of this kind."""

    _asking = False  # in the middle of an answer, a part of which it asks itself for

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._asking:
            return super().__torch_dispatch__(func, types, args, kwargs)
        if func._overloadpacket is torch.ops.aten.set_:
            with in_kernel_invocation_manager(self):
                return func(*args, **kwargs)
        metas, twins = Metas(), {}  # id: (tensor, twin)

        def twin(tensor: FakeTensor) -> FakeTensor:
            if tensor.layout is not torch.strided:
                return tensor
            if id(tensor) not in twins:
                twins[id(tensor)] = tensor, FakeTensor(self, metas.of(tensor), tensor.fake_device, tensor.constant)
            return twins[id(tensor)][1]

        asked = tree_map_only(FakeTensor, twin, (args, kwargs))
        self._asking = True
        try:
            out = super().__torch_dispatch__(func, types, *asked)
        finally:
            self._asking = False
        for tensor, changed in twins.values():
            if changed.shape != tensor.shape or changed.stride() != tensor.stride():
                with _DisableTorchDispatch():
                    tensor.as_strided_(changed.shape, changed.stride(), changed.storage_offset())
        return tree_map_only(FakeTensor, lambda t: _own(t, twins.values()), out)


def _own(tensor: FakeTensor, twins) -> FakeTensor:
    """In place of one that `FakeTensorMode` made: the one it is the twin of, or one like it; what is sparse stays."""
    if tensor.layout is not torch.strided:
        return tensor
    storage = tensor.untyped_storage()._cdata
    size, stride, dtype = tensor.shape, tensor.stride(), tensor.dtype
    for original, twin in twins:
        if tensor is twin:
            return original
        if twin.untyped_storage()._cdata == storage:
            offset = tensor.storage_offset() - twin.storage_offset()
            return view(original, size, stride, dtype, offset, vars(tensor))
    return fresh(size, stride, dtype, vars(tensor))
