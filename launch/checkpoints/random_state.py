"""The state of this rank's random number generators, as JSON.

That of a device's generator means something to devices of its kind only: 16 bytes on CUDA, 5 kB on a CPU.
"""

import base64
import random
from typing import Any

import numpy as np
import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from launch.zero.accelerator import on_cpu


def random_state() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    state = np.random.get_state(legacy=False)
    return {
        "python": [version, list(numbers), gauss],
        "numpy": [
            state["bit_generator"],
            state["state"]["key"].tolist(),
            state["state"]["pos"],
            state["has_gauss"],
            state["gauss"],
        ],
        "torch": _text(torch.get_rng_state()),
        "device_type": get_accelerator().device_name(),
        "device": _text(get_accelerator().get_rng_state()),
    }


def set_random_state(state: dict[str, Any], seed: int) -> None:
    """Restore ``state``; on another kind of device than it was saved on, seed that device's generator with ``seed``."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, key, *rest = state["numpy"]
    np.random.set_state((kind, np.array(key, dtype=np.uint32), *rest))
    torch.set_rng_state(_bytes(state["torch"]))
    if same_device(state):
        get_accelerator().set_rng_state(_bytes(state["device"]))
    elif not on_cpu():  # a CPU has one generator, which is set by now
        get_accelerator().manual_seed(seed)


def is_restored(state: dict[str, Any]) -> bool:
    """Whether the generators are where ``state`` says, as far as they are of its kind."""
    now = random_state()
    return all(
        now[key] == value for key, value in state.items() if same_device(state) or key not in ("device", "device_type")
    )


def same_device(state: dict[str, Any]) -> bool:
    return state.get("device_type", get_accelerator().device_name()) == get_accelerator().device_name()


def _text(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
