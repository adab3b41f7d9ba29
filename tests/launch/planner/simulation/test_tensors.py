"""Fake tensors that have their device in C++, and what `FakeTensorMode` makes of them."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from launch.planner.simulation.tensors import Attributes, Mode, fresh, view

CPU = torch.device("cpu")


def a_fake(*size: int, dtype: torch.dtype = torch.float32) -> FakeTensor:
    """Under an active `Mode`."""
    return fresh(size, torch.empty(size, device="meta").stride(), dtype, Attributes()[CPU])


class Counting(TorchDispatchMode):
    """How often Python is asked where a tensor is."""

    asked = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.asked += func is torch.ops.prim.device.default
        return func(*args, **(kwargs or {}))


def test_nobody_asks_for_the_device():
    def ask(tensor: torch.Tensor) -> int:
        with Counting() as counting:
            assert tensor.is_cpu and tensor.device == CPU
            tensor.narrow(0, 1, 2)
        return counting.asked

    with FakeTensorMode():
        assert ask(torch.empty(4, 5)) > 0
    with Mode():
        assert ask(torch.empty(4, 5)) == ask(a_fake(4, 5)) == 0


def test_it_has_a_storage_and_no_memory():
    with Mode():
        tensor = a_fake(1 << 20, 1 << 20)  # 4 TiB
        assert tensor.untyped_storage().nbytes() == 1 << 42
        assert tensor.is_contiguous() and not tensor.requires_grad


@pytest.mark.parametrize(
    "dtype, size, stride, offset",
    [(torch.float32, (3, 2), (4, 2), 5), (torch.uint8, (11,), (1,), 3), (torch.float64, (4, 2), (2, 1), 2)],
)
def test_a_view_is_on_the_storage_of_its_source(dtype, size, stride, offset):
    with Mode():
        source = a_fake(5, 4)
        made = view(source, size, stride, dtype, offset, Attributes()[CPU])
        again = view(made, (1,), (1,), torch.float32, 0, Attributes()[CPU])
        assert made.untyped_storage()._cdata == source.untyped_storage()._cdata == again.untyped_storage()._cdata
        assert (made.shape, made.stride(), made.dtype) == (size, stride, dtype)
        assert (made.storage_offset(), again.storage_offset()) == (offset, offset)


def test_operators_that_only_fake_tensor_mode_answers():
    with Mode():
        x, y = torch.empty(4, 6), torch.empty(4, 6, dtype=torch.half)
        assert x.copy_(y) is x and x.mul_(2) is x
        part = x[1:3]
        assert part.untyped_storage()._cdata == x.untyped_storage()._cdata and part.storage_offset() == 6
        assert part.unsqueeze_(0) is part and part.shape == (1, 2, 6) and part.storage_offset() == 6
        x.set_(y.float().untyped_storage(), 2, (3,), (2,))
        assert (x.shape, x.stride(), x.storage_offset()) == ((3,), (2,), 2)
        one, other = torch.empty(8).split(4)
        assert one.untyped_storage()._cdata == other.untyped_storage()._cdata and other.storage_offset() == 4
        with pytest.raises(RuntimeError, match="broadcast"):
            x + torch.empty(7)


def test_gradients():
    with Mode():
        weight = torch.nn.Parameter(torch.empty(6, 3, dtype=torch.half))
        loss = (torch.empty(2, 6, dtype=torch.half) @ weight).float().pow(2).sum()
        loss.backward()
        assert type(weight.grad) is FakeTensor and (weight.grad.shape, weight.grad.dtype) == ((6, 3), torch.half)
