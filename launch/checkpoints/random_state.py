"""The state of this rank's random number generators, as JSON."""

import base64
import random
from typing import Any

import numpy as np
import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor


def random_state() -> dict[str, Any]:
    version, numbers, gauss = random.getstate()
    kind, key, *rest = np.random.get_state()
    return {"python": [version, list(numbers), gauss], "numpy": [kind, key.tolist(), *rest],
            "torch": _text(torch.get_rng_state()), "device": _text(get_accelerator().get_rng_state())}


def set_random_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, key, *rest = state["numpy"]
    np.random.set_state((kind, np.array(key, dtype=np.uint32), *rest))
    torch.set_rng_state(_bytes(state["torch"]))
    get_accelerator().set_rng_state(_bytes(state["device"]))


def _text(state: Tensor) -> str:
    return base64.b64encode(state.cpu().numpy().tobytes()).decode()


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
