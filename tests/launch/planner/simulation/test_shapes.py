"""What an operator makes of shapes: asked once of the meta device and cached, as `FakeTensorMode` says it."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from launch.planner.simulation.shapes import VIEWS, Shapes
from launch.planner.simulation.tensors import Mode

OPERATORS = {
    "view": lambda x, w: x.view(8, -1),
    "copied": lambda x, w: x.t().contiguous(),
    "matmul": lambda x, w: x @ w,
    "half": lambda x, w: x.to(torch.float16),
    "moved": lambda x, w: x.to("meta"),
    "flattened": lambda x, w: x.view(-1),
    "part of a part": lambda x, w: x[2:].view(-1)[5:40],
    "slice": lambda x, w: x[2:5, -3:],
    "empty slice": lambda x, w: x[9:],
    "backwards": lambda x, w: x[5:2],
    "every other": lambda x, w: x[::2],
    "transposed": lambda x, w: x.t()[:, 1:3],
    "detached": lambda x, w: x[3:].detach(),
    "empty": lambda x, w: torch.empty(3, 0, 5, dtype=torch.half, device="meta"),
    "select": lambda x, w: x[1],
    "normed": lambda x, w: F.layer_norm(x, (16,)),
    "softmax": lambda x, w: x.softmax(-1),
    "cat and split": lambda x, w: torch.cat(x.split(3)),
    "in place": lambda x, w: x.mul_(2),
    "index": lambda x, w: x[torch.zeros(3, dtype=torch.long)],
    "where": lambda x, w: torch.where(x > 0, x, w[:1, :1]),
    "norm": lambda x, w: torch.linalg.vector_norm(x),
    "like": lambda x, w: torch.zeros_like(x, dtype=torch.bool),
    "expanded": lambda x, w: x[:1].expand(5, 16),
    "convolved": lambda x, w: F.conv1d(x[None], w[:, :8, None]),
}


class Asking(TorchDispatchMode):
    def __init__(self, shapes: Shapes):
        super().__init__()
        self.shapes = shapes

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        view = self.shapes.view(func, *args) if func in VIEWS else None
        return self.shapes(func, args, kwargs or {})[0] if view is None else view


def facts(out: torch.Tensor, source: torch.Tensor) -> tuple:
    shares = out.device == source.device and out.untyped_storage()._cdata == source.untyped_storage()._cdata
    return out.shape, out.stride(), out.dtype, out.device, out.storage_offset(), shares


@pytest.mark.parametrize("name", OPERATORS)
def test_answers_are_those_of_fake_tensors(name):
    shapes = Shapes()
    with FakeTensorMode():
        x, w = torch.empty(8, 16), torch.empty(16, 16)
        expected = facts(OPERATORS[name](x, w), x)
    with Mode():
        x, w = torch.empty(8, 16), torch.empty(16, 16)
        assert facts(OPERATORS[name](x, w), x) == expected  # what is not cached
        with Asking(shapes):
            assert facts(OPERATORS[name](x, w), x) == expected  # worked out …
            assert facts(OPERATORS[name](x, w), x) == expected  # … and cached


def test_mistakes_are_refused_as_ever():
    with Mode(), Asking(Shapes()):
        x = torch.empty(8, 16)
        with pytest.raises(RuntimeError, match="reduction dim"):
            x @ x
        with pytest.raises(RuntimeError, match="device"):
            x + torch.empty(8, 16, device="meta")
