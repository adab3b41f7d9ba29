"""Space for a run on this machine: on disk, in memory, and in lockable memory."""

import os
import shutil
from pathlib import Path

from deepspeed.accelerator import get_accelerator

from launch.ds_config.config import SUB_GROUP, DsConfig, value_of
from launch.ds_config.facts import ModelFacts
from launch.ds_config.finding import Finding, remark
from launch.memory import GB, free_bytes, locked_limit, memory_limit, swap_bytes, total_bytes

#: Bytes of each parameter that trains, at the least: the fp32 master copy and Adam's two moments; its fp32 gradient.
OPTIMIZER_STATE, GRADIENT = 12, 4
CAP_IPC_LOCK = 14  # linux/capability.h
#: File systems in memory, and on other machines.
IN_MEMORY, REMOTE = (
    ("tmpfs", "ramfs", "devtmpfs"),
    ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "lustre", "ceph", "9p", "beegfs", "glusterfs"),
)


def disk_findings(config: dict, facts: ModelFacts | None) -> list[Finding]:
    """Problems of each nvme_path: not writable, wrong file system, too little free space."""
    found, where = [], DsConfig.parse(config)
    needs: dict[int, tuple[int, str, Path]] = {}  # device → bytes, the first key and folder on it
    for key, path in where.nvme_paths.items():
        folder = next(place for place in (Path(path).absolute(), *Path(path).absolute().parents) if place.exists())
        try:
            direct = _takes_direct_writes(folder)
        except OSError as error:
            found.append(
                Finding(
                    key,
                    str(path),
                    f"cannot be written ({(error.strerror or str(error)).lower()})",
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
                else swapped_bytes(where) * facts.trainable
                if where.optimizer_offload.device == "nvme"
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


def swapped_bytes(where: DsConfig) -> int:
    """Of each parameter that trains, in the files of an optimizer on NVMe."""
    return state_bytes(where) + (0 if where.lean_gradients else GRADIENT)


def state_bytes(where: DsConfig) -> int:
    """Of the optimizer's state, at the least, of each parameter that trains; compressed, a remainder and two codes."""
    return OPTIMIZER_STATE if where.compression is None else where.compression.remainder_bits // 8 + 2


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
    """Its kind, as in ``/proc/mounts``: ext4, tmpfs, nfs4 …"""
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


def memory_findings(config: dict, world_size: int, local_ranks: int, facts: ModelFacts | None) -> list[Finding]:
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
    share = min(1.0, local_ranks / world_size)
    parts = {name: int(share * size) for name, size in host_bytes(config, facts, world_size).items()}
    need, free = sum(parts.values()), free_bytes()
    parts_text = " + ".join(f"{size / GB:.1f} {name}" for name, size in parts.items())
    swap = 0 if what.startswith("the cgroup") else swap_bytes()
    if need > limit + swap:
        found.append(
            Finding(
                "host memory",
                f"{limit / GB:.1f} GB",
                f"{what}; the run keeps at least {need / GB:.1f} GB there ({parts_text})",
                "take a smaller --model, or a ds_config that keeps more on NVMe",
            )
        )
    elif need > free:
        found.append(
            remark(
                "host memory",
                f"{free / GB:.1f} GB free",
                f"the run keeps at least {need / GB:.1f} GB there ({parts_text})",
                "end what else takes memory",
            )
        )
    locked, where = locked_limit(), DsConfig.parse(config)
    offloads = {"offload_optimizer": where.optimizer_offload, "offload_param": where.parameter_offload}
    pins = [block for block, offload in offloads.items() if offload.pin_memory and offload.device != "none"]
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


def host_bytes(config: dict, facts: ModelFacts, world_size: int) -> dict[str, int]:
    """The least that all ranks together hold in host memory, by part."""
    where, parts = DsConfig.parse(config), {}
    optimizer, param = where.optimizer_offload, where.parameter_offload
    on_cpu = get_accelerator().device_name() == "cpu"  # the state of cards is in host memory too
    width = 4 if where.precision == "fp32" else 2
    if optimizer.device == "cpu" or on_cpu and optimizer.device == "none":
        keys = "fp16.fp16_master_weights_and_grads", "bf16.bf16_optimizer_states"
        short = any(value_of(config, key) for key in keys)
        parts["optimizer state"] = (6 if short else state_bytes(where)) * facts.trainable
        parts["gradients"] = (2 if short else width if where.lean_gradients else GRADIENT) * facts.trainable
    if param.device == "cpu" or on_cpu and param.device == "none":
        parts["parameters"] = width * facts.parameters
    if param.device == "nvme":
        parts["parameter swap buffers"] = int(world_size * param.buffer_count * param.buffer_size * width)
    return parts


def locked_memory_findings(config: dict, world_size: int, facts: ModelFacts | None) -> list[Finding]:
    """Where a rank may lock less than its swap buffers take, DeepSpeed 0.19.8 aborts."""
    limit = locked_limit()
    if facts is None or limit is None or _may_lock_all():
        return []
    parts = locked_bytes(config, facts, world_size)
    need = sum(parts.values())
    if need <= limit:
        return []
    parts_text = " + ".join(f"{size / GB:.2f} {name}" for name, size in parts.items())
    return [
        Finding(
            "ulimit -l",
            f"{limit / GB:.3f} GB",
            f"offloading to nvme locks {need / GB:.2f} GB a rank ({parts_text})",
            "ulimit -l unlimited (docker run --ulimit memlock=-1; memlock in /etc/security/limits.conf), or "
            "smaller buffer_count, buffer_size and sub_group_size",
        )
    ]


def locked_bytes(config: dict, facts: ModelFacts, world_size: int) -> dict[str, int]:
    """The least that a rank locks (mlock) for swap buffers, by part: `new_cpu_locked_tensor` in DeepSpeed's
    runtime/swap_tensor. Each buffer of the optimizer holds the largest sub-group in fp32."""
    where, parts = DsConfig.parse(config), {}
    optimizer, param = where.optimizer_offload, where.parameter_offload
    if param.device == "nvme":
        width = 4 if where.precision == "fp32" else 2
        parts["parameter swap buffers"] = int(param.buffer_count * param.buffer_size * width)
    if optimizer.device == "nvme":
        group = min(where.sub_group_size or SUB_GROUP, facts.trainable // world_size)
        state = 4 if where.compression is None else state_bytes(where)
        parts["optimizer swap buffers"] = int(state * group * optimizer.buffer_count)
    return parts


def _may_lock_all(status: Path = Path("/proc/self/status")) -> bool:
    """Whether this process has CAP_IPC_LOCK, as root has, except in most containers."""
    try:
        capabilities = int(status.read_text().split("CapEff:")[1].split()[0], 16)
    except (OSError, IndexError, ValueError):
        return False
    return bool(capabilities >> CAP_IPC_LOCK & 1)
