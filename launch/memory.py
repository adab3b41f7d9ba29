"""What this process, its control group and its machine hold in memory, and may hold; all in bytes."""

import contextlib
import resource
from dataclasses import dataclass
from pathlib import Path

import psutil

GB = 1e9


@dataclass(frozen=True)
class CgroupMemory:
    """Bytes that this process's control group uses, without the file cache that the kernel would give up first, and
    may use; None where there is no such group or no limit."""

    used: int | None
    limit: int | None


def cgroup_memory(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> CgroupMemory:
    """The tightest limit on the way up from this process's own group, by cgroup v1 or v2; use is of that group."""
    tightest = CgroupMemory(None, None)
    for folder, use, limit in _memory_files(proc, root):
        try:
            used, most = int((folder / use).read_text()), (folder / limit).read_text().strip()
            used -= _inactive_cache(folder)
        except (OSError, ValueError):
            continue
        most = None if most == "max" or int(most) >= 1 << 60 else int(most)
        if tightest.used is None or most is not None and (tightest.limit is None or most < tightest.limit):
            tightest = CgroupMemory(used, most)
    return tightest


def _inactive_cache(folder: Path) -> int:
    try:
        lines = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(lines.get("total_inactive_file", lines.get("inactive_file", 0)))


def _memory_files(proc: Path, root: Path):
    """(folder, file of use, file of limit) of each group that this process is in."""
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            base, names = root / "memory", ("memory.usage_in_bytes", "memory.limit_in_bytes")
        elif number == "0":
            base, names = root, ("memory.current", "memory.max")
        else:
            continue
        folder = base / path.lstrip("/")
        # Inside a container the path is often the host's; its own group is then mounted at the base.
        for place in (folder, *folder.parents) if folder.is_dir() else (base,):
            yield place, *names
            if place == base:
                break


def total_bytes() -> int:
    """The machine's memory."""
    return psutil.virtual_memory().total


def available_bytes() -> int:
    """What the machine can give without swapping, by the kernel's estimate."""
    return psutil.virtual_memory().available


def swap_bytes() -> int:
    """The machine's swap, used or not."""
    return psutil.swap_memory().total


def free_bytes() -> int:
    """What is available, and left below the control group's limit."""
    group = cgroup_memory()
    return available_bytes() if group.limit is None else min(available_bytes(), group.limit - (group.used or 0))


def memory_limit() -> tuple[int, str]:
    """The most that the processes of this machine may take, and what limits them."""
    total, limit = total_bytes(), cgroup_memory().limit
    return (limit, "the cgroup's limit") if limit is not None and limit < total else (total, "the machine's memory")


def page_locked_bytes(size: int, rounding: int | None = None) -> int:
    """The bytes that torch takes for ``size`` bytes of page-locked memory: it rounds up to a power of two, up to
    ``rounding`` bytes, or always if None (`CachingHostAllocatorImpl::allocate` in ATen/core/CachingHostAllocator.h)."""
    if rounding is not None and size > rounding:
        return size
    return 1 << (size - 1).bit_length() if size else 0


def locked_limit() -> int | None:
    """What this process may lock (``ulimit -l``); None: no limit."""
    return _soft_limit(resource.RLIMIT_MEMLOCK)


def _soft_limit(number: int) -> int | None:
    soft, _ = resource.getrlimit(number)
    return None if soft == resource.RLIM_INFINITY else soft


def resident_bytes() -> int:
    """Of this process (RSS)."""
    return psutil.Process().memory_info().rss


def peak_resident_bytes() -> int:
    """The most that was resident of this process since it began, or since `forget_peak` (VmHWM)."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def forget_peak() -> None:
    """Let `peak_resident_bytes` begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def oom_kills() -> int | None:
    """How often the kernel has killed for want of memory since this machine started."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/vmstat").read_text().split("oom_kill ")[1].split()[0])
    return None


def host_sample() -> dict[str, int | None]:
    """Host memory of this process, of its control group and of its machine, as a black box records it."""
    process, machine, group = psutil.Process().memory_info(), psutil.virtual_memory(), cgroup_memory()
    return {
        "rss": process.rss,
        "address_space": process.vms,
        "address_space_limit": _soft_limit(resource.RLIMIT_AS),
        "available": machine.available,
        "total": machine.total,
        "cgroup_used": group.used,
        "cgroup_limit": group.limit,
        "oom_kills": oom_kills(),
    }
