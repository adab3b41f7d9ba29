"""The hardware profile of the machine this runs on: measured once, in seconds, and cached in ~/.cache/astrobio.

python -m launch.planner.hardware.measure FOLDER    # measure, and print the numbers as JSON; FOLDER is on the disk
"""

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from astrobio.config import ConfigError
from astrobio.files import cache_root, write_whole
from launch import ROOT
from launch.memory import total_bytes
from launch.planner.hardware.profile import NUMBERS, Hardware, load_profile, parse_hardware
from launch.subprocesses import environment

MIB = 1 << 20
#: Seconds of a small addition on the core that the profile cpu has its `operator_s` and `hook_s` from.
_ADDITION_S = 2.3e-6


def this_machine() -> Hardware:
    """The cached profile, or a new one; delete the file to measure again."""
    folder = cache_root()
    kept = folder / f"hardware-{os.uname().nodename}-{_parts(card_names())}.json"
    if not kept.is_file() or set(json.loads(kept.read_text())) != set(NUMBERS):  # an earlier version's has other fields
        print(f"measuring this machine (once; kept in {kept})", file=sys.stderr, flush=True)
        if (load := os.getloadavg()[0]) > 1:
            print(
                f"other work is running (load {load:.1f}), so that its rates will be too low: delete the file to "
                "measure again",
                file=sys.stderr,
                flush=True,
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(kept, json.dumps(_measure_apart(folder), indent=1) + "\n")
    machine = parse_hardware(json.loads(kept.read_text()), kept)
    machine.name = "this"
    return machine


def card_names(cards: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """Names of NVIDIA's cards, from the driver: asking torch would open a context on one."""
    return [
        file.read_text().partition("Model:")[2].split("\n")[0].strip() for file in sorted(cards.glob("*/information"))
    ]


def _parts(cards: list[str]) -> str:
    """A hash of what the rates depend on: torch's build, the cards and which of them may be used. Machines of one name
    differ in it: containers, rented boxes, one that got a new card."""
    known = [torch.__version__, cards, os.environ.get("CUDA_VISIBLE_DEVICES")]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:8]


def _measure_apart(folder: Path) -> dict[str, dict]:
    """`measure` in a process of its own: the context on card 0 that it opens is gone with it, and whoever asked can
    still fork."""
    done = subprocess.run(
        [sys.executable, "-m", "launch.planner.hardware.measure", str(folder)],
        text=True,
        stdout=subprocess.PIPE,
        env=environment(),
        cwd=ROOT,
    )
    if done.returncode:
        raise ConfigError(f"--hardware this: measuring failed with status {done.returncode}; see above")
    return json.loads(done.stdout.splitlines()[-1])


def measure(folder: Path) -> dict[str, dict]:
    """Every field of `Hardware` as ``{value, source}``; the disk is the one that ``folder`` is on. Links between cards
    and latencies are those of a shipped profile: measuring them takes a job of several ranks."""
    cards = torch.cuda.device_count()
    like = load_profile("a5000x2" if cards else "cpu")
    host = _host()
    measured = {**host, **_disk(folder), **(_card() if cards else _as_device(host))}
    shipped = {
        key: {"value": getattr(like, key), "source": f"profile {like.name}: {like.sources[key]}"} for key in NUMBERS
    }
    return {
        **shipped,
        **{key: {"value": value, "source": "measured on this machine"} for key, value in measured.items()},
    }


def _rate(amount: float, work: Callable[[], object], device: str = "cpu") -> float:
    """``amount`` per second of the fastest of a few runs."""
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return amount / best


def _products(device: str, size: int) -> dict[str, float]:
    def product(a: torch.Tensor) -> torch.Tensor:
        # launch.zero.accelerator: CPUs multiply fp16 in fp32.
        return a @ a if a.dtype is not torch.float16 or device != "cpu" else (a.float() @ a.float()).half()

    rates = {}
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a = torch.ones(size, size, dtype=dtype, device=device)
        rates[f"{name}_flops_per_s"] = _rate(2 * size**3, functools.partial(product, a), device)
    return rates


def _host() -> dict[str, float]:
    data = torch.ones(64 * MIB // 4)
    other = data.clone()  # a new one each time would measure how fast the system hands out pages
    traffic = _rate(2 * data.nbytes, lambda: other.copy_(data))
    few, core = torch.ones(16), load_profile("cpu")
    slower = 1 / _rate(1000, lambda: [few + 1 for _ in range(1000)]) / _ADDITION_S  # than that core
    # DeepSpeed's CPU Adam moves 28 bytes a parameter: it reads four numbers and writes three.
    return {
        "host_memory_bytes": total_bytes(),
        "host_cores": len(os.sched_getaffinity(0)),
        "host_memory_bytes_per_s": traffic,
        "cpu_adam_parameters_per_s": traffic / 28,
        "operator_s": core.operator_s * slower,
        "hook_s": core.hook_s * slower,
    }


def _as_device(host: dict[str, float]) -> dict[str, float]:
    rates = _products("cpu", 1024)
    return {
        **rates,
        "peak_flops_per_s": max(rates.values()),
        "gpu_memory_bytes": host["host_memory_bytes"],
        "memory_bytes_per_s": host["host_memory_bytes_per_s"],
        "gpus": 1,
    }


def _card() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    rates, block = _products("cuda", 4096), torch.ones(256 * MIB // 4, device="cuda")
    page_locked = torch.ones(256 * MIB // 4).pin_memory()
    return {
        **rates,
        "peak_flops_per_s": max(rates.values()),
        "gpu": properties.name,
        "gpus": torch.cuda.device_count(),
        "gpu_memory_bytes": properties.total_memory,
        "capability": [properties.major, properties.minor],
        "memory_bytes_per_s": _rate(2 * block.nbytes, lambda: block.clone(), "cuda"),
        "pcie_bytes_per_s": _rate(block.nbytes, lambda: block.copy_(page_locked, non_blocking=True), "cuda"),
    }


def _disk(folder: Path) -> dict[str, float]:
    """A file of 256 MiB, written through to the disk, and read back past the page cache."""
    content = os.urandom(16 * MIB) * 16
    with tempfile.NamedTemporaryFile(dir=folder) as file:

        def write():
            file.seek(0)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

        def read():
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            file.read()

        return {
            "nvme_write_bytes_per_s": _rate(len(content), write),
            "nvme_read_bytes_per_s": _rate(len(content), read),
            "nvme_bytes": shutil.disk_usage(folder).free,
        }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
