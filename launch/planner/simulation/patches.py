"""Every patch of torch, DeepSpeed, transformers and our own code that a simulation makes in its process.

Each is a function with the versions it was written for and the reason in its docstring;
tests/launch/planner/simulation/test_patches.py simulates without one at a time, and fails if nothing changes.
"""

import functools
from collections.abc import Callable

import cpuinfo
import deepspeed.comm.comm as comm
import deepspeed.ops.adam.fused_adam as fused_adam
import deepspeed.runtime.zero.partition_parameters as partition_parameters
import deepspeed.runtime.zero.partitioned_param_coordinator as coordinator
import torch
import torch.nn.functional as F
from deepspeed.accelerator import get_accelerator
from deepspeed.ops import op_builder
from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from torch._subclasses.fake_tensor import FakeTensor
from transformers import masking_utils

from launch.planner.simulation import backends, trace
from launch.planner.simulation.parts import GPU
from launch.planner.simulation.recorder import Recorder
from launch.planner.simulation.spec import Simulation
from launch.zero import weights
from launch.zero.compressed_adamw import CompressedAdamWBuilder

Patch = Callable[[Recorder, Simulation], None]
PATCHES: dict[str, Patch] = {}


def patch(version: str) -> Callable[[Patch], Patch]:
    """Add a function to `PATCHES`; ``version``: the package's that it was written for, for the reader."""

    def add(function: Patch) -> Patch:
        PATCHES[function.__name__] = function
        return function

    return add


def apply(recorder: Recorder, simulation: Simulation) -> None:
    """Apply all of them, in the order of this file."""
    for function in PATCHES.values():
        function(recorder, simulation)


# DeepSpeed ------------------------------------------------------------------------------------------------------------


@patch("deepspeed 0.19.8")
def collectives(recorder, simulation):
    """Collectives are recorded; there are no other ranks to answer them."""
    comm.cdb = backends.Collectives(comm.cdb, recorder)


@patch("deepspeed 0.19.8")
def ranks_agree(recorder, simulation):
    """ZeRO-3 compares its fetch order with the other ranks', which do not exist."""
    coordinator.assert_ints_same_as_other_ranks = lambda *args, **kwargs: None


@patch("deepspeed 0.19.8")
def compiled_ops(recorder, simulation):
    """Compiled optimizers and libaio are recorded: they would read memory that fake tensors do not have."""
    for name, library in backends.op_libraries(recorder).items():
        own = CompressedAdamWBuilder if name == CompressedAdamWBuilder.__name__ else None
        for builder in {getattr(op_builder, name, own), get_accelerator().get_op_builder(name)} - {None}:
            builder.load = lambda self, verbose=True, library=library: library
            builder.is_compatible = lambda self, verbose=False: True
    fused_adam.multi_tensor_applier = lambda op, overflow, lists, *args: op(
        0, overflow, lists, *args
    )  # its kernels make no temporaries


@patch("deepspeed 0.19.8")
def hooks(recorder, simulation):
    """ZeRO-3's hooks take host time that no operator accounts for (benchmarks/hooks.py): each is recorded."""

    def noted(function):
        @functools.wraps(function)
        def run(*args, **kwargs):
            recorder.trace.append(trace.Hook())
            return function(*args, **kwargs)

        return run

    for owner, names in (
        (
            DeepSpeedZeRoOffload,
            (
                "pre_sub_module_forward_function",
                "post_sub_module_forward_function",
                "pre_sub_module_backward_function",
                "post_sub_module_backward_function",
            ),
        ),
        (DeepSpeedZeroOptimizer_Stage3, ("reduce_ready_partitions_and_remove_grads",)),
    ):
        for name in names:
            setattr(owner, name, noted(getattr(owner, name)))


@patch("deepspeed 0.19.8")
def nothing_to_release(recorder, simulation):
    """For speed, a third of a simulation: DeepSpeed searches the coming modules for the parameters of each module that
    it leaves, and most modules have none to release."""
    cls = coordinator.PartitionedParameterCoordinator
    search = cls._PartitionedParameterCoordinator__params_to_release

    def params_to_release(self, module, step):
        own = coordinator.iter_params(module, recurse=coordinator.z3_leaf_module(module))
        return set() if all(param.ds_persist for param in own) else search(self, module, step)

    cls._PartitionedParameterCoordinator__params_to_release = params_to_release


@patch("deepspeed 0.19.8")
def processor_not_asked(recorder, simulation):
    """For speed, a quarter of a small simulation: CPU Adam starts a process that describes the processor, for a
    warning."""
    cpuinfo.get_cpu_info = dict


# torch ----------------------------------------------------------------------------------------------------------------


@patch("torch 2.13.0")
def uncompiled(recorder, simulation):
    """Dynamo cannot trace through the recorder; Muon's Newton-Schulz steps are compiled. Uncompiled they do as much."""
    torch.compiler.set_stance("force_eager")


@patch("torch 2.13.0")
def data_on_another_device(recorder, simulation):
    """``tensor.data = value`` changes the device: torch refuses that between PrivateUse1 and CPU tensors, though not
    between CUDA and CPU ones."""
    base = FakeTensor.data if "data" in vars(FakeTensor) else torch.Tensor.data

    def set_data(tensor, value):
        if isinstance(value, FakeTensor) and value.fake_device.type != tensor.fake_device.type:
            moved = value.detach().requires_grad_(tensor.requires_grad)
            torch._C._swap_tensor_impl(tensor, moved)
            tensor.fake_device, moved.fake_device = value.fake_device, tensor.fake_device
        else:
            base.__set__(tensor, value)

    FakeTensor.data = property(base.__get__, set_data)


@patch("torch 2.13.0")
def module_apply(recorder, simulation):
    """`Module._apply` treats fake tensors in a way of its own, which loses DeepSpeed's attributes."""

    def apply(module, function, recurse=True):
        for child in module.children() if recurse else ():
            child._apply(function)
        for parameter in module._parameters.values():
            if parameter is not None:
                parameter.data = function(parameter.data)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = function(buffer)
        return module

    torch.nn.Module._apply = apply


@patch("torch 2.13.0")
def constants(recorder, simulation):
    """A constant is made on the host and copied to the card, as CUDA does it."""
    make = torch.tensor

    def tensor(data, *, device=None, **kwargs):
        made = make(data, device="cpu", **kwargs)
        return made if device is None or torch.device(device).type == "cpu" else made.to(device)

    def as_tensor(data, dtype=None, device=None):
        return (
            data.to(device=device, dtype=dtype)
            if isinstance(data, torch.Tensor)
            else tensor(data, dtype=dtype, device=device)
        )

    torch.tensor, torch.as_tensor = tensor, as_tensor
    partition_parameters._orig_torch_tensor = tensor  # zero.Init has a reference to the one before


@patch("torch 2.13.0")
def record_stream(recorder, simulation):
    """Fake tensors have no storage that a stream could use."""
    torch.Tensor.record_stream = lambda self, stream: None


@patch("torch 2.13.0")
def resized_storages(recorder, simulation):
    """torch refuses to resize a storage without memory; DeepSpeed makes it as large again before it uses it."""

    def resize_(storage, size):
        recorder.resized(storage, size)
        return storage

    torch.UntypedStorage.resize_ = resize_


@patch("torch 2.13.0")
def attention(recorder, simulation):
    """The attention kernel that CUDA would choose; `FakeTensorMode` takes the formula on a device it does not know."""
    if recorder.device == GPU:
        F.scaled_dot_product_attention = functools.partial(backends.attend, capability=simulation.capability)


# transformers ---------------------------------------------------------------------------------------------------------


@patch("transformers 5.20")
def texts_in_rows_of_their_own(recorder, simulation):
    """transformers looks at the positions for texts that share a row, and the host waits for that. Of tensors without
    data it assumes that there are some, and makes a mask, with which no card would take FlashAttention."""

    def find_packed_sequence_indices(position_ids):
        recorder.trace.append(trace.HostWaitsForStream(recorder.stream))

    masking_utils.find_packed_sequence_indices = find_packed_sequence_indices


# astrobio -------------------------------------------------------------------------------------------------------------


@patch("astrobio")
def weights_in_this_thread(recorder, simulation):
    """Fake tensor modes do not follow into the threads that draw weights ahead."""
    weights._ahead = lambda make, items, doing: map(make, items)


@patch("astrobio")
def weights_not_drawn(recorder, simulation):
    """Nothing is drawn from NumPy into tensors without data: zeros write as much."""
    weights.Fill.draw = lambda self, out, start=0: out.zero_()
