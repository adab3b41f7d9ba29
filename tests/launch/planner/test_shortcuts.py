"""What is made past torch's dispatcher is what the dispatcher makes, and the ledger is told the same of it."""

import json
import subprocess
import sys

from launch.planner.simulation import run as ghost

BOTH_WAYS = """
import json, sys
from launch.planner.simulation.imports import import_libraries
import_libraries()
import torch
from torch import Tensor
from torch.utils._python_dispatch import _pop_mode_temporarily
from launch.planner.simulation.device import simulate
from launch.planner.simulation.recorder import Ledger

mode, ledger = simulate(2, (8, 6), 24 << 30, 0)
dispatched, dispatch = 0, Ledger.__torch_dispatch__

def counting(self, func, types, args=(), kwargs=None):
    global dispatched
    dispatched += func is not torch.ops.prim.device.default
    return dispatch(self, func, types, args, kwargs)

Ledger.__torch_dispatch__ = counting
CARD, HALF = torch.device("gpusim:0"), torch.half

def seen(make, x):
    "What a way says: the tensor, what the ledger has heard, and whether the dispatcher was asked."
    operators, live, asked = ledger.operators, ledger.live["gpusim"], dispatched
    ledger.begin("")
    try:
        out = make(x)
    except (RuntimeError, IndexError) as error:
        return [type(error).__name__], True
    facts = [list(out.shape), list(out.stride()), out.storage_offset(), str(out.dtype), str(out.device),
             out.requires_grad, out.untyped_storage()._cdata == x.untyped_storage()._cdata, type(out).__name__,
             str(torch._C._dispatch_keys(out)), getattr(out, "_real_value", None) is not None]
    facts += ledger.operators - operators, ledger.live["gpusim"] - live, str(ledger.trace[-1])
    return facts, dispatched > asked

WAYS = {
    "narrow": (lambda x: x.narrow(0, 2, 3), lambda x: Tensor.narrow(x, 0, 2, 3)),
    "narrow to the end": (lambda x: x.narrow(-1, 5, 1), lambda x: Tensor.narrow(x, -1, 5, 1)),
    "narrow to nothing": (lambda x: x.narrow(1, 6, 0), lambda x: Tensor.narrow(x, 1, 6, 0)),
    "narrow from the end": (lambda x: x.narrow(0, -2, 1), lambda x: Tensor.narrow(x, 0, -2, 1)),
    "narrow too far": (lambda x: x.narrow(0, 4, 9), lambda x: Tensor.narrow(x, 0, 4, 9)),
    "view": (lambda x: x.view(2, -1), lambda x: Tensor.view(x, 2, -1)),
    "view of a size": (lambda x: x.view(torch.Size((6, 8))), lambda x: Tensor.view(x, torch.Size((6, 8)))),
    "view as bytes": (lambda x: x.view(torch.uint8), lambda x: Tensor.view(x, torch.uint8)),
    "view that does not fit": (lambda x: x.view(5), lambda x: Tensor.view(x, 5)),
    "detach": (lambda x: x.detach(), Tensor.detach),
    "data": (lambda x: x.data, Tensor.data.__get__),
    "empty": (lambda x: torch.empty(5, dtype=HALF, device=CARD), lambda x: torch.empty([5], dtype=HALF, device=CARD)),
    "empty without a size": (lambda x: torch.empty(0, dtype=HALF, device=x.device),
                             lambda x: torch.empty([0], dtype=HALF, device=x.device)),
}
found = {}
with mode, ledger:
    plain = torch.empty(8, 6, dtype=HALF, device=CARD)
    whole = torch.arange(48, device=CARD).view(8, 6)
    for what, x, grad in (("plain", plain, False), ("turned", plain.t().view_as(plain.t())[:, :6], False),
                          ("parameter", torch.nn.Parameter(plain), False),
                          ("parameter, with gradients", torch.nn.Parameter(plain), True), ("whole", whole, False)):
        for name, ways in WAYS.items():
            with torch.set_grad_enabled(grad):
                found[f"{what}: {name}"] = [seen(way, x) for way in ways]
    operators = ledger.operators
    with _pop_mode_temporarily():  # as in the middle of an answer
        plain.detach(), plain.narrow(0, 1, 2), torch.empty(0, dtype=HALF, device=CARD)
    found["unasked"] = ledger.operators - operators
json.dump(found, sys.stderr)
"""


def test_the_two_ways_say_the_same(tmp_path):
    said = subprocess.run([sys.executable, "-c", BOTH_WAYS], cwd=ghost.ROOT, capture_output=True, text=True,
                          timeout=300, env={**ghost.environment(), "ASTROBIO_CACHE": str(tmp_path)})
    found = json.loads(said.stderr.splitlines()[-1])
    assert found.pop("unasked") == 0 and len(found) == 65
    for name, ((short, _), (long, always)) in found.items():
        assert (name, short) == (name, long) and always
    taken = {name for name, ((_, asked), _) in found.items() if not asked}
    assert {f"plain: {name}" for name in ("narrow", "view", "detach", "data", "empty")} <= taken
    assert not any(name.startswith("parameter, with gradients: narrow") for name in taken)
    assert not any(name.startswith("whole: ") and "empty" not in name for name in taken)
