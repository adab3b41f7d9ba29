"""Finds the module that a non-finite number comes from."""

import contextlib
from collections.abc import Iterator

import deepspeed.comm as dist
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from astrobio.batch import Batch


def nonfinite_forward(engine, batches: list[Batch]) -> str | None:
    """Run the batches again; the first module, over all ranks, that makes a non-finite output of finite inputs.

    All ranks call it with equally many batches.
    """
    found: list[str] = []
    with _watched(engine.module, forward=found), torch.no_grad():
        for batch in batches:
            engine.module(batch)
    return _first_of_any_rank(found)


class GradientWatch:
    """While armed, notes the modules whose output's gradient is not finite, in the order of the backward pass.

    Armed only for a step whose overflow would be told, because every look waits for the device.
    """

    def __init__(self, module: torch.nn.Module):
        self.module = module
        self.found: list[str] = []
        self._stack: contextlib.ExitStack | None = None

    def arm(self) -> None:
        if self._stack is None:
            self._stack = contextlib.ExitStack()
            self._stack.enter_context(_watched(self.module, backward=self.found))

    def disarm(self) -> None:
        if self._stack is not None:
            self._stack.close()
            self._stack = None
        self.found.clear()

    def origin(self) -> str | None:
        """The first module noted on any rank since the last call. All ranks call it."""
        name = _first_of_any_rank(self.found)
        self.found.clear()
        return name


@contextlib.contextmanager
def _watched(
    module: torch.nn.Module, forward: list[str] | None = None, backward: list[str] | None = None
) -> Iterator[None]:
    """Hooks on every named module below ``module`` that append its name to the lists."""

    def look(name: str):
        def hook(_, inputs, outputs):
            outputs = [t for t in tree_leaves(outputs) if isinstance(t, Tensor) and t.is_floating_point()]
            if (
                forward is not None
                and not all(_finite(t) for t in outputs)
                and all(_finite(t) for t in tree_leaves(inputs))
            ):
                forward.append(name)
            if backward is not None:
                for tensor in outputs:
                    if tensor.requires_grad:
                        tensor.register_hook(lambda grad: None if _finite(grad) else backward.append(name))

        return hook

    handles = [child.register_forward_hook(look(name)) for name, child in module.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _finite(value) -> bool:
    return not (isinstance(value, Tensor) and value.is_floating_point()) or bool(torch.isfinite(value).all())


def _first_of_any_rank(names: list[str]) -> str | None:
    gathered: list = [None] * dist.get_world_size()
    torch.distributed.all_gather_object(gathered, names[:1])
    for rank, first in enumerate(gathered):
        if first:
            return f"{first[0]} (rank {rank})"
    return None
