"""Short checks of this machine's device, some seconds each: the first that `astrobio acceptance` runs.

    python -m launch.experiments.device_checks CHECK --model NAME --data DIR     # one of `CHECKS`; prints JSON

Each runs in its own process, so that a kernel that faults costs one check only.
"""

import argparse
import ctypes
import itertools
import json
import math
import os
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from astrobio.batch import Batch
from astrobio.config import load_preset
from astrobio.dataset import AstrobioDataset
from astrobio.stack import AstrobioStack
from launch import ROOT
from launch.checkpoints.random_state import random_state, set_random_state
from launch.experiments.precision import ALLOWED, deviation, parts_of, shallow
from launch.planner.model import WithoutData, nominal_batch
from launch.zero.accelerator import prepare_accelerator, same_randomness_after
from launch.zero.engine import meta_stack

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = (torch.float16, torch.bfloat16)
#: `torch.nn.attention.SDPBackend`
KERNELS = {0: "formula", 1: "FlashAttention", 2: "memory-efficient", 3: "cuDNN", 4: "overrideable"}
#: Operators for which the host waits for a card, as their result is a number or a size.
WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.equal.default,
}


@dataclass
class Truth:
    """One thing that was looked at: whether it ``holds`` (None: it is only told), what was ``seen``, and what had to be
    (``expected``)."""

    what: str
    holds: bool | None
    seen: str
    expected: str = ""


# Attention ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attention:
    """Shapes of one call of `scaled_dot_product_attention`."""

    query: tuple[int, ...]
    key: tuple[int, ...]
    mask: tuple[int, ...] | bool  # False: none
    causal: bool
    grouped: bool

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        query, key, value = (
            torch.randn(shape, device=DEVICE, dtype=dtype, requires_grad=True)
            for shape in (self.query, self.key, self.key)
        )
        mask = torch.zeros(self.mask, device=DEVICE, dtype=dtype) if self.mask else None
        return query, key, value, mask

    def __str__(self) -> str:
        batch, heads, tokens, size = self.query
        return (
            f"{heads} heads of {size}, {tokens} onto {self.key[2]}"
            + (", causal" if self.causal else "")
            + (", with a bias" if self.mask else "")
        )


def attention_of(model: str, micro_batch: int = 1) -> list[Attention]:
    """Every kind of attention in a forward pass of the preset, with as much text as it reads."""
    config, found, attend = shallow(model), [], F.scaled_dot_product_attention

    def note(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        found.append(
            Attention(
                tuple(query.shape),
                tuple(key.shape),
                attn_mask is not None and tuple(attn_mask.shape),
                is_causal,
                enable_gqa,
            )
        )
        return attend(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

    stack = meta_stack(config).half().requires_grad_(False)
    batch = nominal_batch(config, micro_batch, device="meta")
    with mock.patch.object(F, "scaled_dot_product_attention", note), WithoutData():
        stack(batch)
    return list(dict.fromkeys(found))


def attention(model: str, data: Path) -> list[Truth]:
    """Which kernel torch takes for the attention of the stack, and what it holds at its peak beside its arguments: one
    that writes its scores down, as the formula does, needs heads × tokens² of them."""
    found = []
    for name in dict.fromkeys((model, "17b")):
        for call in attention_of(name):
            kernels, told = zip(*(_kernel(call, dtype) for dtype in HALF), strict=True)
            scores = math.prod(call.query[:3]) * call.key[2] * 2
            # A CPU's activations nobody is short of.
            found.append(
                Truth(
                    f"{name}: {call}",
                    None if DEVICE == "cpu" else KERNELS[0] not in kernels,
                    "; ".join(told),
                    f"no formula, whose scores are {scores / 1e6:.1f} MB",
                )
            )
    return found


def _kernel(call: Attention, dtype: torch.dtype) -> tuple[str, str]:
    """The kernel's name, and a line about it."""
    query, key, value, mask = call.tensors(dtype)
    options: dict[str, Any] = {"attn_mask": mask, "is_causal": call.causal, "enable_gqa": call.grouped}
    kernel = KERNELS[torch._fused_sdp_choice(query, key, value, **options)]
    if DEVICE == "cpu":
        return kernel, f"{kernel} in {_short(dtype)}"
    held = _peak(lambda: F.scaled_dot_product_attention(query, key, value, **options).sum().backward())
    return kernel, f"{kernel} in {_short(dtype)}, {held / 1e6:.1f} MB at its peak"


def _peak(work: Callable[[], object]) -> int:
    """Bytes that ``work`` holds on the card beside what is there."""
    work()  # libraries' workspaces stay
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


# Precision ------------------------------------------------------------------------------------------------------------


def precision(model: str, data: Path) -> list[Truth]:
    """Each part of the stack in 16 bits beside fp32, in the shapes of ``model`` and, on a card, of 17b."""
    found = []
    for name in dict.fromkeys((model, "17b") if DEVICE == "cuda" else (model,)):
        config = shallow(name) if name in ("1b", "17b") else load_preset(name)
        batch = whole_batch(data, config.language.max_text_tokens)
        for part, dtype in itertools.product(parts_of(config), HALF):
            outputs, gradients = deviation(config, part, batch, dtype)
            most, steepest = ALLOWED[dtype]
            found.append(
                Truth(
                    f"{name}: {part} in {_short(dtype)} beside fp32",
                    outputs < most and gradients < steepest,
                    f"outputs {outputs:.1e}, gradients {gradients:.1e} off",
                    f"below {most:g} and {steepest:g}",
                )
            )
    return found


def whole_batch(data: Path, tokens: int, size: int = 2) -> Batch:
    """The first records that have all modalities, on the device."""
    dataset = AstrobioDataset(data, "train", tokens)
    whole = (item for item in map(dataset.__getitem__, range(len(dataset))) if all(item["present"].values()))
    return dataset.collate(list(itertools.islice(whole, size))).to(DEVICE)


# Random numbers -------------------------------------------------------------------------------------------------------


def randomness(model: str, data: Path) -> list[Truth]:
    """The device's generator goes on where a checkpoint left it, and an evaluation leaves it where it was."""
    prepare_accelerator()

    def draw() -> Tensor:
        return torch.rand(1000, device=DEVICE)

    saved = json.loads(json.dumps(random_state()))  # as it is stored
    first, second = draw(), draw()
    set_random_state(saved, seed=0)
    resumed = torch.equal(draw(), first)
    with same_randomness_after():
        draw()
    undisturbed = torch.equal(draw(), second)
    return [
        Truth(
            f"random numbers of the device after {what}",
            same,
            "the same" if same else "others",
            "those that would have come",
        )
        for what, same in (("a resume", resumed), ("an evaluation", undisturbed))
    ]


# Copies ---------------------------------------------------------------------------------------------------------------


def copies(model: str, data: Path) -> list[Truth]:
    """Rates between host and device, from memory that is pageable, locked by the kernel (mlock) as DeepSpeed's swap
    buffers are, and page-locked by CUDA; only the last can be copied while the host does something else."""
    size = 256 << 20
    target = torch.empty(size, dtype=torch.uint8, device=DEVICE)
    kinds = {"pageable": torch.ones(size, dtype=torch.uint8), "locked by mlock": torch.ones(size, dtype=torch.uint8)}
    locked = not ctypes.CDLL(None, use_errno=True).mlock(
        ctypes.c_void_p(kinds["locked by mlock"].data_ptr()), ctypes.c_size_t(size)
    )
    if not locked:
        del kinds["locked by mlock"]
    if DEVICE == "cuda":
        kinds["page-locked by CUDA"] = torch.ones(size, dtype=torch.uint8).pin_memory()
    found, waited = [], {}
    for kind, source in kinds.items():
        rates = {}
        for way, (to, of) in {"to the device": (target, source), "from the device": (source, target)}.items():
            to.copy_(of)
            _wait()
            start = time.perf_counter()
            to.copy_(of, non_blocking=True)
            asked = time.perf_counter() - start
            _wait()
            took = time.perf_counter() - start
            rates[way], waited[kind] = size / took, asked / took
        found.append(
            Truth(f"copies, {kind}", None, ", ".join(f"{rate / 1e9:.1f} GB/s {way}" for way, rate in rates.items()))
        )
    if not locked:
        found.append(
            Truth(
                "copies, locked by mlock",
                None,
                f"{size / 1e6:.0f} MB could not be locked: {os.strerror(ctypes.get_errno())} (ulimit -l)",
            )
        )
    if DEVICE == "cuda":
        share = waited["page-locked by CUDA"]
        found.append(
            Truth(
                "a copy from page-locked memory",
                share < 0.5,
                f"the host waits for {share:.0%} of it",
                "the host goes on",
            )
        )
    return found


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


# Waits ----------------------------------------------------------------------------------------------------------------


def waits(model: str, data: Path) -> list[Truth]:
    """Where the host waits for the device in one micro-step of the stack, from the batch to the gradients. On a card
    torch tells (`set_sync_debug_mode`); on a CPU the operators count whose results the host needs."""
    torch.manual_seed(0)
    config = load_preset(model)
    stack = AstrobioStack(config).to(DEVICE, torch.bfloat16)
    batch = whole_batch(data, config.language.max_text_tokens)
    stack(batch).loss.backward()  # what is made once
    _wait()
    lines: Counter[str] = Counter()
    with _noting(lines):
        stack(batch).loss.backward()
    ours = {line: count for line, count in lines.items() if line.startswith("astrobio/")}
    return [
        Truth(f"{model}: waits of the host in the stack's own code", not ours, _listed(ours) or "none", "none"),
        Truth(f"{model}: other waits of the host in a micro-step", None, _listed(lines - Counter(ours)) or "none"),
    ]


def _listed(lines: dict[str, int]) -> str:
    return ", ".join(f"{count} × {line}" for line, count in Counter(lines).most_common(8))


@contextmanager
def _noting(lines: Counter) -> Iterator[None]:
    if DEVICE != "cuda":
        with _Waiting(lines):
            yield
        return

    def note(message, *_, **__):
        if "synchronizing" in str(message):
            lines[_line()] += 1

    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class _Waiting(TorchDispatchMode):
    def __init__(self, lines: Counter):
        super().__init__()
        self.lines = lines

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        boolean = func is torch.ops.aten.index.Tensor and any(t is not None and t.dtype is torch.bool for t in args[1])
        if func in WAITING or boolean:
            self.lines[_line()] += 1
        return func(*args, **(kwargs or {}))


def _line() -> str:
    """The innermost line outside torch that is being run."""
    for frame in reversed(traceback.extract_stack()):
        folder, _, name = frame.filename.rpartition(f"site-packages{os.sep}")
        if frame.filename != __file__ and not name.startswith(f"torch{os.sep}"):
            path = Path(frame.filename)
            return f"{name if folder else path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{frame.lineno}"
    return "elsewhere"


# An exported model ----------------------------------------------------------------------------------------------------


def exported(model: str, data: Path) -> list[Truth]:
    """What ``astrobio checkpoint export`` wrote (``model`` is its folder) reads the dataset."""
    stack = AstrobioStack.from_pretrained(model, torch.float32).eval().to(DEVICE)
    with torch.no_grad():
        loss = stack(whole_batch(data, stack.config.language.max_text_tokens)).loss.item()
    return [
        Truth(
            "the exported model computes a loss",
            bool(torch.isfinite(torch.tensor(loss))),
            f"{loss:.4f}",
            "a finite one",
        )
    ]


def _short(dtype: torch.dtype) -> str:
    return {torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]


CHECKS = {check.__name__: check for check in (attention, precision, randomness, copies, waits, exported)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("check", choices=CHECKS)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    found = CHECKS[args.check](args.model, args.data)
    print("\n" + json.dumps([asdict(truth) for truth in found]), flush=True)


if __name__ == "__main__":
    main()
