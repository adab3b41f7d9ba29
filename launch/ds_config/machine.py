"""What this machine has for a ds_config: libaio, a compiler, room on disks and in memory, cards."""

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
from launch.ds_config.facts import ModelFacts
from launch.ds_config.finding import Finding, remark
from launch.ds_config.strategy import AUTO, nvme_paths, strategy
from launch.ds_config.unsupported import unsupported_on_cpu, without_builder
from launch.memory import GB, free_bytes, locked_limit, memory_limit, swap_bytes, total_bytes

#: Bytes of each parameter that trains, at the least: the fp32 master copy and Adam's two moments; its fp32 gradient.
OPTIMIZER_STATE, GRADIENT = 12, 4
CAP_IPC_LOCK = 14  # linux/capability.h
#: File systems that are memory, or elsewhere.
IN_MEMORY, REMOTE = (
    ("tmpfs", "ramfs", "devtmpfs"),
    ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "lustre", "ceph", "9p", "beegfs", "glusterfs"),
)


def machine_findings(config: dict, world_size: int, facts: ModelFacts | None = None) -> list[Finding]:
    """Of a config without ``"auto"`` paths. Room is only judged where the model is known, and by lower bounds: what is
    refused cannot run. `astrobio plan` says what a run takes."""
    found = [
        *_devices(config, world_size),
        *_compiler(config),
        *_toolkit(config),
        *_disks(config, facts),
        *_memory(config, world_size, facts),
        *_locked_memory(config, world_size, facts),
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
    if strategy(config).precision == "bf16" and not accelerator.is_bf16_supported():
        found.append(Finding("bf16.enabled", True, "this device does not compute bf16", "take a ds_config with fp16"))
    card, zero = accelerator.total_memory(), config.get("zero_optimization") or {}
    width = 4 if strategy(config).precision == "fp32" else 2
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
    found = []
    if strategy(config).optimizer_device != "none" or get_accelerator().device_name() == "cpu":
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
    if strategy(config).uses_nvme and not _has_libaio():
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
    """DeepSpeed compiles a test; it says no where stderr is no file (a notebook, a test)."""
    with contextlib.redirect_stderr(sys.__stderr__):
        return deepspeed.ops.op_builder.AsyncIOBuilder().is_compatible(verbose=False)


def _toolkit(config: dict) -> list[Finding]:
    """CUDA's compiler, where DeepSpeed compiles something for the card with it, by DeepSpeed's own rule."""
    if get_accelerator().device_name() != "cuda":
        return []
    where, optimizer = strategy(config), config.get("optimizer") or {}
    kind, params = str(optimizer.get("type", "")).lower(), optimizer.get("params") or {}
    needs = []
    if where.optimizer_device == "none" and kind in ("adam", "adamw", "lamb", "lion") and not params.get("torch_adam"):
        needs.append(
            (
                f"optimizer.type = {optimizer['type']} on the card",
                ", or optimizer.params.torch_adam: true"
                if kind.startswith("adam")
                else ", or AdamW with torch_adam: true",
            )
        )
    if where.uses_nvme and (config.get("aio") or {}).get("use_gds"):
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


def _disks(config: dict, facts: ModelFacts | None) -> list[Finding]:
    """Each nvme_path: that it can be written, in what kind of file system it is, and what is free there."""
    found, needs = [], {}
    where = strategy(config)
    for key, path in nvme_paths(config):
        if not path or path == AUTO:
            continue
        folder = next(place for place in (Path(path).absolute(), *Path(path).absolute().parents) if place.exists())
        try:
            direct = _takes_direct_writes(folder)
        except OSError as error:
            found.append(
                Finding(
                    key,
                    str(path),
                    f"cannot be written ({error.strerror.lower()})",
                    f"give a folder you own, with --set ds_config.{key}=DIR",
                )
            )
            continue
        kind = file_system(folder)
        if kind in IN_MEMORY:
            found.append(
                remark(
                    key,
                    str(path),
                    f"is in memory ({kind}): what is swapped out there frees nothing",
                    "give a folder on a disk",
                )
            )
        elif not direct:
            found.append(
                Finding(
                    key,
                    str(path),
                    f"its file system ({kind}) takes no direct writes (O_DIRECT), which DeepSpeed's offload needs",
                    "give a folder on ext4 or xfs",
                )
            )
        elif kind in REMOTE:
            found.append(
                remark(
                    key,
                    str(path),
                    f"is on a network file system ({kind}): every step waits for it",
                    "give a folder on a local disk",
                )
            )
        elif kind.startswith("overlay"):
            found.append(
                remark(
                    key,
                    str(path),
                    "is in a container's overlay: its room is that of the image's disk",
                    "mount a disk there",
                )
            )
        if facts is not None:
            each = (
                2 * facts.parameters
                if "offload_param" in key
                else (OPTIMIZER_STATE + GRADIENT) * facts.trainable
                if where.optimizer_device == "nvme"
                else 0
            )
            device = os.stat(folder).st_dev
            needs[device] = (needs.get(device, (0,))[0] + each, key, folder)
    for need, key, folder in needs.values():
        free = shutil.disk_usage(folder).free
        if free < need:
            found.append(
                Finding(
                    key,
                    str(folder),
                    f"{free / GB:.1f} GB are free there, the model takes {need / GB:.1f}",
                    "give a folder on a larger disk",
                )
            )
    return found


def _takes_direct_writes(folder: Path) -> bool:
    probe = folder / f".writable-{os.getpid()}"
    try:
        probe.touch()
        try:
            os.close(os.open(probe, os.O_WRONLY | getattr(os, "O_DIRECT", 0)))
        except OSError:
            return False
        return True
    finally:
        probe.unlink(missing_ok=True)


def file_system(path: Path) -> str:
    """Its kind, as ``/proc/mounts`` has it: ext4, tmpfs, nfs4 …"""
    path, best, kind = path.resolve(), "", "unknown"
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return kind
    for line in lines:
        _, mount, name, *_ = line.split()
        mount = mount.replace("\\040", " ")
        if path.is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, name
    return kind


def host_bytes(config: dict, facts: ModelFacts, world_size: int) -> dict[str, int]:
    """The least that all ranks together keep in host memory, by part."""
    where, zero, parts = strategy(config), config.get("zero_optimization") or {}, {}
    on_cpu = get_accelerator().device_name() == "cpu"  # what would be on cards is in host memory too
    width = 4 if where.precision == "fp32" else 2
    fp16 = config.get("fp16") or {}
    if where.optimizer_device == "cpu" or on_cpu and where.optimizer_device == "none":
        short = fp16.get("fp16_master_weights_and_grads") or (config.get("bf16") or {}).get("bf16_optimizer_states")
        parts["optimizer state"] = (6 if short else OPTIMIZER_STATE) * facts.trainable
        parts["gradients"] = (2 if short else GRADIENT) * facts.trainable
    if where.param_device == "cpu" or on_cpu and where.param_device == "none":
        parts["parameters"] = width * facts.parameters
    if where.param_device == "nvme":
        param = zero["offload_param"]
        size = param.get("buffer_size", 100_000_000)
        parts["parameter swap buffers"] = (
            0 if size == AUTO else int(world_size * param.get("buffer_count", 5) * size * width)
        )
    return parts


def _memory(config: dict, world_size: int, facts: ModelFacts | None) -> list[Finding]:
    limit, what = memory_limit()
    found = []
    if what.startswith("the cgroup"):
        found.append(
            remark(
                "host memory",
                f"{limit / GB:.1f} GB",
                f"is what the cgroup allows of the machine's "
                f"{total_bytes() / GB:.1f}: past it the kernel kills without a word",
            )
        )
    if facts is None:
        return found
    share = min(1.0, _local_ranks(world_size) / world_size)  # of the ranks, on this machine
    parts = {name: int(share * size) for name, size in host_bytes(config, facts, world_size).items()}
    need, free = sum(parts.values()), free_bytes()
    told = " + ".join(f"{size / GB:.1f} {name}" for name, size in parts.items())
    swap = 0 if what.startswith("the cgroup") else swap_bytes()
    if need > limit + swap:
        found.append(
            Finding(
                "host memory",
                f"{limit / GB:.1f} GB",
                f"{what}; the run keeps at least {need / GB:.1f} GB there ({told})",
                "take a smaller --model, or a ds_config that keeps more on NVMe",
            )
        )
    elif need > free:
        found.append(
            remark(
                "host memory",
                f"{free / GB:.1f} GB free",
                f"the run keeps at least {need / GB:.1f} GB there ({told})",
                "end what else takes memory",
            )
        )
    locked, zero = locked_limit(), config.get("zero_optimization") or {}
    pins = [
        block
        for block in ("offload_optimizer", "offload_param")
        if (zero.get(block) or {}).get("pin_memory", True) and (zero.get(block) or {}).get("device", "none") != "none"
    ]
    if (
        pins
        and os.environ.get("DS_PIN_MEMORY_BACKEND") == "native"
        and locked is not None
        and locked < need
        and os.geteuid() != 0
    ):
        found.append(
            remark(
                "ulimit -l",
                f"{locked / GB:.2f} GB",
                f"{', '.join(pins)} lock more memory than that",
                "ulimit -l unlimited, or pin_memory: false",
            )
        )
    return found


def locked_bytes(config: dict, facts: ModelFacts, world_size: int) -> dict[str, int]:
    """What a rank locks (mlock) to swap through, at the least, by part: `new_cpu_locked_tensor` in DeepSpeed's
    runtime/swap_tensor. A buffer of the optimizer's holds the largest sub-group in fp32."""
    where, zero, parts = strategy(config), config.get("zero_optimization") or {}, {}
    if where.param_device == "nvme":
        param, width = zero["offload_param"], 4 if where.precision == "fp32" else 2
        size = param.get("buffer_size", 100_000_000)
        size = facts.largest // world_size if size == AUTO else size
        parts["parameter swap buffers"] = int(param.get("buffer_count", 5) * size * width)
    if where.optimizer_device == "nvme":
        group = min(zero.get("sub_group_size", 1_000_000_000), facts.trainable // world_size)
        parts["optimizer swap buffers"] = int(4 * group * zero["offload_optimizer"].get("buffer_count", 4))
    return parts


def _locked_memory(config: dict, world_size: int, facts: ModelFacts | None) -> list[Finding]:
    """Where a rank may lock less, DeepSpeed 0.19.8 gets no buffer and aborts."""
    limit = locked_limit()
    if facts is None or limit is None or _may_lock_all():
        return []
    parts = locked_bytes(config, facts, world_size)
    need = sum(parts.values())
    if need <= limit:
        return []
    told = " + ".join(f"{size / GB:.2f} {name}" for name, size in parts.items())
    return [
        Finding(
            "ulimit -l",
            f"{limit / GB:.3f} GB",
            f"offloading to nvme locks {need / GB:.2f} GB a rank ({told})",
            "ulimit -l unlimited (docker run --ulimit memlock=-1; memlock in /etc/security/limits.conf), or "
            "smaller buffer_count, buffer_size and sub_group_size",
        )
    ]


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


def _may_lock_all(status: Path = Path("/proc/self/status")) -> bool:
    """Whether this process has CAP_IPC_LOCK, which root has but for most containers'."""
    try:
        capabilities = int(status.read_text().split("CapEff:")[1].split()[0], 16)
    except (OSError, IndexError, ValueError):
        return False
    return bool(capabilities >> CAP_IPC_LOCK & 1)


def driver_version() -> int | None:
    """CUDA version that the driver knows, as 12040 for 12.4; None without a driver or a CUDA build of torch.

    The driver itself says it, without a context on a card; torch does not in every version.
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
