"""The work of an operator on the simulated device: what kind, how many FLOPs and bytes."""

import torch
from torch.utils.flop_counter import flop_registry

from launch.planner.simulation import experts, values
from launch.planner.simulation.parts import GPU

aten = torch.ops.aten
#: Operators that do no work on the device, and write nothing.
FREE = {
    getattr(packet, name)
    for packet in (
        aten.empty,
        aten.empty_strided,
        aten.empty_like,
        aten.new_empty,
        aten.new_empty_strided,
        aten.detach,
        aten.lift_fresh,
        aten.set_,
        aten.resize_,
    )
    for name in packet.overloads()
}
#: Bytes from which host work counts.
_HOST_WORK = 1 << 16


def work_of(func, args: tuple, kwargs: dict, out, device: str) -> tuple | None:
    """("kernel", FLOPs, bytes, dtype), ("groups", number of them, FLOPs, bytes, dtype), ("host", bytes), a copy ("up"
    or "down", bytes), or None for no work; ``device``: where the model computes."""
    packet = func._overloadpacket
    outs = values.tensors_of(out)
    if func.is_view or func in FREE or not outs:
        return None
    tensors = values.tensors_of(*args, *kwargs.values())
    if packet in (aten.copy_, aten._to_copy):
        destination, source = (args[0], args[1]) if packet is aten.copy_ else (out, args[0])
        if destination.device.type != source.device.type:
            return ("up" if destination.device.type == GPU else "down"), source.nbytes
    size = sum(t.nbytes for t in tensors if not any(t is o for o in outs)) + sum(t.nbytes for t in outs)
    if outs[0].device.type == device:
        count = flop_registry.get(packet)
        what = ("groups", experts.groups(*args, **kwargs)) if packet is experts.GROUPED_MM else ("kernel",)
        return *what, count(*args, **kwargs, out_val=out) if count else 0, size, outs[0].dtype
    return ("host", size) if size > _HOST_WORK else None
