"""`--model auto`: the largest shipped preset that a ds_config can train on this machine, by ghost runs."""

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path

import psutil
from filelock import FileLock

from astrobio.config import SIZES, ConfigError
from astrobio.files import write_whole
from launch.memory import cgroup_memory
from launch.planner.hardware.profile import Hardware, load_hardware
from launch.planner.plan import plan

#: On a machine without a GPU nothing larger is taken: a CPU computes it in hours, not years.
LARGEST_ON_CPU = "small"


def choose_model(ds_config: dict, world_size: int, disk: Path) -> tuple[str, str]:
    """The preset's name and why, the same on all ranks of a launch: the first one finds it out.

    Args:
        ds_config: as it was read.
        disk: a folder on the disk that swap files will be on.

    Raises:
        ConfigError: ranks on several machines, or a ds_config that cannot run.
    """
    if world_size > int(os.environ.get("LOCAL_WORLD_SIZE", world_size)):
        raise ConfigError("--model auto decides for one machine, and this launch has ranks on several: name a preset; "
                          "astrobio plan tells which fit")
    if "LOCAL_RANK" not in os.environ:
        return _choose(ds_config, world_size, disk)
    launcher = psutil.Process(os.getppid())
    told = Path(tempfile.gettempdir(), f"astrobio-auto-{launcher.pid}-{launcher.create_time():.0f}.json")
    with FileLock(f"{told}.lock"):
        if not told.is_file():
            write_whole(told, json.dumps(_choose(ds_config, world_size, disk)))
        name, reason = json.loads(told.read_text())
    return name, reason


def _choose(ds_config: dict, world_size: int, disk: Path) -> tuple[str, str]:
    machine = free_of(load_hardware("this"), world_size, disk)
    names = SIZES[:SIZES.index(LARGEST_ON_CPU) + 1] if machine.is_cpu else SIZES
    for name in reversed(names):
        print(f"--model auto: does {name!r} fit? (a ghost run)", flush=True)
        found = plan(name, ds_config, machine, ranks=world_size)
        if found["fits"]:
            break
    sides = ", ".join(f"{found[key]['peak_bytes'] / 1e9:.1f} of {found[key]['limit_bytes'] / 1e9:.1f} GB {label}"
                      for key, label in (("gpu", "of each card"), ("host", "of free host memory"), ("nvme", "of disk"))
                      if found[key] and found[key]["peak_bytes"])
    most = f"the largest preset up to {names[-1]!r}, without a GPU," if machine.is_cpu else "the largest preset"
    return name, (f"{most} that fits: {sides}" if found["fits"] else
                  f"the smallest preset, and even that does not fit by astrobio plan: {sides}")


def free_of(machine: Hardware, ranks: int, disk: Path) -> Hardware:
    """The machine as far as nobody else uses it."""
    free, group = psutil.virtual_memory().available, cgroup_memory()
    if group.limit is not None:
        free = min(free, group.limit - (group.used or 0))
    while not disk.exists():
        disk = disk.parent
    return dataclasses.replace(machine, gpus=ranks, host_memory_bytes=free, nvme_bytes=shutil.disk_usage(disk).free)
