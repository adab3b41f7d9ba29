"""Everything that runs: the training script, its loop, and what is particular to DeepSpeed (launch.zero)."""

import os
import re
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DS_CONFIGS = ROOT / "ds_configs"  # the shipped ones

#: Who sets one of these decides; torch reads them when it is imported, or first allocates on a card.
_SETTINGS = "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"
#: Of page-locked host memory, by torch 2.13's names: larger blocks than the one are not rounded up to a power of two,
#: larger ones than the other are neither rounded nor cached when they are freed.
_ROUNDED, _KEPT = "pinned_max_round_threshold_mb", "pinned_max_cached_size_mb"

# By itself torch cuts a card's memory into segments for blocks of one size, and ZeRO gathers and reduces in ever other
# sizes: of the 17B stack's 11 GB under zero3_offload more than 4 would lie idle (`astrobio plan`). Segments that grow
# fit them all. Page-locked blocks it would round up to powers of two, a sixth of the 17B stack's host memory, and keep
# when they are freed: ZeRO-3 makes one for each parameter before it gathers them in one. A batch is below 8 MiB.
if not any(name in os.environ for name in _SETTINGS):
    os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
    if tuple(int(part) for part in re.findall(r"\d+", version("torch"))[:2]) >= (2, 13):
        os.environ["PYTORCH_ALLOC_CONF"] += f",{_KEPT}:8"


def _settings() -> str:
    return next((os.environ[name] for name in _SETTINGS if name in os.environ), "").replace(" ", "").lower()


def expandable_segments() -> bool:
    """Whether torch is to have expandable segments on a card."""
    return "expandable_segments:true" in _settings()


def locked_rounding() -> int | None:
    """Bytes up to which torch rounds page-locked blocks up to a power of two; None: whatever their size."""
    limits = [int(size) << 20 for _, size in re.findall(rf"({_ROUNDED}|{_KEPT}):(\d+)", _settings())]
    return min(limits, default=None)


def keeps_unrounded() -> bool:
    """Whether torch is set to cache page-locked blocks that it has not rounded. 2.13.0 hands such a one out again for
    all sizes up to the next power of two (`get_free_block` in ATen/core/CachingHostAllocator.h): writes go past its
    end."""
    sizes = dict(re.findall(rf"({_ROUNDED}|{_KEPT}):(\d+)", _settings()))
    return _ROUNDED in sizes and int(sizes.get(_KEPT, 1 << 40)) > int(sizes[_ROUNDED])
