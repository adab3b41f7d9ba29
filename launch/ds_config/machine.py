"""Whether this machine has what a ds_config needs: cards and their driver, compilers, libaio, and `room`."""

import contextlib
import ctypes
import os
import shutil
import sys
from pathlib import Path

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.op_builder.builder import CUDAMismatchException, MissingCUDAException, assert_no_cuda_mismatch
from torch.utils.cpp_extension import CUDA_HOME

from launch import keeps_unrounded
from launch.ds_config.config import DsConfig
from launch.ds_config.facts import ModelFacts
from launch.ds_config.finding import Finding, remark
from launch.ds_config.room import disk_findings, locked_memory_findings, memory_findings
from launch.ds_config.unsupported import unsupported_on_cpu, without_builder
from launch.memory import GB


def machine_findings(config: dict, world_size: int, facts: ModelFacts | None = None) -> list[Finding]:
    """Of a config without ``"auto"`` paths. Room is checked only where the model is known, against lower bounds: a run
    that is refused cannot fit. `astrobio plan` predicts what a run takes."""
    found = [
        *_devices(config, world_size),
        *_compiler(config),
        *_toolkit(config),
        *disk_findings(config, facts),
        *memory_findings(config, world_size, _local_ranks(world_size), facts),
        *locked_memory_findings(config, world_size, facts),
        *_allocator(),
    ]
    return found + cuda_findings(torch.version.cuda, driver_version())


def usual_ranks() -> int:
    """One for each of this machine's devices; two on a CPU."""
    accelerator = get_accelerator()
    return 2 if accelerator.device_name() == "cpu" else max(1, accelerator.device_count())


def _devices(config: dict, world_size: int) -> list[Finding]:
    accelerator, found, local = get_accelerator(), without_builder(config), _local_ranks(world_size)
    if accelerator.device_name() == "cpu":
        return found + unsupported_on_cpu(config)
    if local > accelerator.device_count():
        found.append(
            Finding(
                "--num_gpus", local, f"this machine has {accelerator.device_count()} devices", "start as many ranks"
            )
        )
    where = DsConfig.parse(config)
    if where.precision == "bf16" and not accelerator.is_bf16_supported():
        found.append(Finding("bf16.enabled", True, "this device does not compute bf16", "take a ds_config with fp16"))
    card, zero = accelerator.total_memory(), config.get("zero_optimization") or {}
    width = 4 if where.precision == "fp32" else 2
    return found + bucket_findings(zero, card, width)


def _local_ranks(world_size: int) -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size)


def bucket_findings(zero: dict, card: int, width: int) -> list[Finding]:
    """Buckets that a card of so many bytes cannot hold; each element takes ``width`` bytes, twice where communication
    overlaps (runtime/zero/stage_1_and_2.py)."""
    found = []
    for key in ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size"):
        size = zero.get(key)
        if not isinstance(size, int | float) or isinstance(size, bool):
            continue
        copies = 2 if key == "reduce_bucket_size" and zero.get("overlap_comm", zero.get("stage") == 3) else 1
        takes = int(size * width * copies)
        if takes > card:
            found.append(
                Finding(
                    f"zero_optimization.{key}",
                    size,
                    f"takes {takes / GB:.1f} GB in elements of {width} bytes, a card has {card / GB:.1f}",
                    "5e7 is usual",
                )
            )
    return found


def _compiler(config: dict) -> list[Finding]:
    found, where = [], DsConfig.parse(config)
    if where.optimizer_offload.device != "none" or get_accelerator().device_name() == "cpu":
        for program, package in (("g++", "g++"), ("ninja", "ninja-build")):
            if shutil.which(os.environ.get("CXX", program) if program == "g++" else program) is None:
                found.append(
                    Finding(
                        program,
                        "(not found)",
                        "DeepSpeed compiles its CPU optimizers with it",
                        f"apt-get install {package}",
                    )
                )
    if where.uses_nvme and not _has_libaio():
        found.append(
            Finding(
                "libaio",
                "(not found)",
                "offload to nvme needs libaio and its headers, which are not installed",
                "`apt-get install libaio-dev` (Debian, Ubuntu) or `dnf install libaio-devel` (Fedora)",
            )
        )
    return found


def _has_libaio() -> bool:
    """DeepSpeed compiles a test, which fails where stderr is no file (a notebook, a test)."""
    with contextlib.redirect_stderr(sys.__stderr__):
        return deepspeed.ops.op_builder.AsyncIOBuilder().is_compatible(verbose=False)


def _toolkit(config: dict) -> list[Finding]:
    """CUDA's compiler, where DeepSpeed compiles something for the card with it, by DeepSpeed's own rule."""
    if get_accelerator().device_name() != "cuda":
        return []
    where, needs = DsConfig.parse(config), []
    optimizer, kind = where.optimizer, str(where.optimizer.type).lower()
    compiled = kind in ("adam", "adamw", "lamb", "lion") and not optimizer.params.get("torch_adam")
    if compiled and where.optimizer_offload.device == "none":
        needs.append(
            (
                f"optimizer.type = {optimizer.type} on the card",
                ", or optimizer.params.torch_adam: true"
                if kind.startswith("adam")
                else ", or AdamW with torch_adam: true",
            )
        )
    if where.uses_nvme and where.aio.use_gds:
        needs.append(("aio.use_gds", ", or aio.use_gds: false, which g++ alone compiles"))
    if not needs:
        return []
    try:
        assert_no_cuda_mismatch()
    except (MissingCUDAException, CUDAMismatchException) as error:
        return [
            Finding(
                "nvcc",
                CUDA_HOME or "(not found)",
                f"DeepSpeed compiles with it what "
                f"{' and '.join(what for what, _ in needs)} takes ({str(error).strip('>- ')})",
                f"install the CUDA toolkit {torch.version.cuda or ''} that torch was built with, and let "
                f"CUDA_HOME name its folder{''.join(other for _, other in needs)}",
            )
        ]
    return []


def _allocator() -> list[Finding]:
    if get_accelerator().device_name() == "cpu" or not keeps_unrounded():
        return []
    return [
        Finding(
            "PYTORCH_ALLOC_CONF",
            "pinned_max_round_threshold_mb",
            "torch keeps blocks of page-locked memory "
            "that are not rounded, and hands them out for larger ones: numbers would be overwritten",
            "set pinned_max_cached_size_mb, to no more, in its place or beside it",
        )
    ]


def driver_version() -> int | None:
    """CUDA version that the driver supports, as 12040 for 12.4; None without a driver or a CUDA build of torch.

    Asked of the driver itself: that opens no context on a card, and not every version of torch returns it.
    """
    if torch.version.cuda is None:
        return None
    version = ctypes.c_int()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return version.value if driver.cuDriverGetVersion(ctypes.byref(version)) == 0 else None


def cuda_findings(
    built: str | None, driver: int | None, cards: Path = Path("/proc/driver/nvidia/version")
) -> list[Finding]:
    """torch's CUDA version (``"12.8"``, or None) against the driver's (as 12040, or None)."""
    if built is None:
        if cards.exists():
            return [
                remark(
                    "torch",
                    torch.__version__,
                    "is built without CUDA, and this machine has an NVIDIA driver: the run would compute on the CPU",
                    "install torch from https://pytorch.org for CUDA",
                )
            ]
        return []
    if driver is None:
        return [
            remark(
                "CUDA driver",
                "(not found)",
                f"torch is built for CUDA {built}: the run would compute on the CPU",
                "install NVIDIA's driver, or give the container --gpus all",
            )
        ]
    major, minor = driver // 1000, driver % 1000 // 10
    if (major, minor) < tuple(map(int, built.split(".")[:2])):
        # Within a major version newer libraries run on older drivers ("minor version compatibility").
        same = major == int(built.split(".")[0])
        return [
            Finding(
                "CUDA driver",
                f"{major}.{minor}",
                f"is older than the CUDA {built} that torch is built for",
                "update the driver, or install torch for an older CUDA",
                problem=not same,
            )
        ]
    return []
