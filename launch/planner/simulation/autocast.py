"""`torch.autocast` on the simulated GPU: the casts that CUDA's has (aten/src/ATen/autocast_mode.h, torch 2.13.0)."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from launch.planner.simulation.parts import GPU

_KEY = "AutocastPrivateUse1"
#: Computed in the autocast dtype.
_LOWER = (
    "linear",
    "matmul",
    "mm",
    "mv",
    "bmm",
    "addmm",
    "baddbmm",
    "conv1d",
    "conv2d",
    "conv3d",
    "convolution",
    "conv_transpose1d",
    "conv_transpose3d.input",
    "prelu",
)
#: Computed in float32.
_FLOAT = (
    "layer_norm",
    "native_layer_norm",
    "group_norm",
    "softmax.int",
    "log_softmax.int",
    "nll_loss",
    "nll_loss_nd",
    "cross_entropy_loss",
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "kl_div",
    "exp",
    "expm1",
    "log",
    "log1p",
    "rsqrt",
    "pow.Tensor_Scalar",
    "pow.Tensor_Tensor",
    "softplus",
    "cumsum",
    "sum",
    "sum.dim_IntList",
    "prod",
    "norm.Scalar",
)
_libraries: list[torch.library.Library] = []  # a library takes its kernels back when it is freed


def prepare_autocast() -> None:
    """Register the casts, and let every other operator through."""
    rest = torch.library.Library("_", "IMPL", _KEY)
    rest.fallback(torch.library.fallthrough_kernel)
    casts = torch.library.Library("aten", "IMPL", _KEY)
    for names, lower in ((_LOWER, True), (_FLOAT, False)):
        for name in names:
            packet, _, overload = name.partition(".")
            operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
            casts.impl(operator, _cast(operator, lower))
    _libraries.extend((rest, casts))


def _cast(operator, lower: bool):
    def run(*args, **kwargs):
        dtype = torch.get_autocast_dtype(GPU) if lower else torch.float32

        def convert(value):
            wanted = (
                isinstance(value, Tensor)
                and value.device.type == GPU
                and value.is_floating_point()
                and value.dtype is not torch.float64
            )
            return value.to(dtype) if wanted else value

        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _KEY))):
            args, kwargs = tree_map(convert, (args, kwargs))
            return operator(*args, **kwargs)

    return run
