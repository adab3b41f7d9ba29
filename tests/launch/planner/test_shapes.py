"""What an operator makes of shapes: asked once of the meta device and remembered, as `FakeTensorMode` says it."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from launch.planner.shapes import Shapes

OPERATORS = {
    "view": lambda x, w: x.view(8, -1),
    "copied": lambda x, w: x.t().contiguous(),
    "matmul": lambda x, w: x @ w,
    "half": lambda x, w: x.to(torch.float16),
    "moved": lambda x, w: x.to("meta"),
    "slice": lambda x, w: x[2:5, -3:],
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
        return self.shapes(func, args, kwargs or {})[0]


def facts(out: torch.Tensor, source: torch.Tensor) -> tuple:
    shares = out.device == source.device and out.untyped_storage()._cdata == source.untyped_storage()._cdata
    return out.shape, out.stride(), out.dtype, out.device, out.storage_offset(), shares


@pytest.mark.parametrize("name", OPERATORS)
def test_answers_are_those_of_fake_tensors(name):
    shapes = Shapes()
    with FakeTensorMode():
        x, w = torch.empty(8, 16), torch.empty(16, 16)
        expected = facts(OPERATORS[name](x, w), x)
        with Asking(shapes):
            torch.empty(1)
            assert facts(OPERATORS[name](x, w), x) == expected  # found out …
            assert facts(OPERATORS[name](x, w), x) == expected  # … and remembered


def test_mistakes_are_refused_as_ever():
    with FakeTensorMode(), Asking(Shapes()):
        x = torch.empty(8, 16)
        with pytest.raises(RuntimeError, match="reduction dim"):
            x @ x
        with pytest.raises(RuntimeError, match="device"):
            x + torch.empty(8, 16, device="meta")
