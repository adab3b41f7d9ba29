"""`--model auto`: the largest shipped preset that a ds_config can train on this machine, by ghost runs.

    python -m launch.planner.auto < question.json    # prints {"name": ..., "reason": ...} as its last line

A rank asks in a process of its own: what the planner imports and measures must not stay in the rank's memory, and a
measurement opens a context on card 0.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
from filelock import FileLock

from astrobio.config import SIZES, ConfigError
from astrobio.files import write_whole
from launch import ROOT
from launch.memory import free_bytes
from launch.subprocesses import environment

#: On a machine without a GPU nothing larger is taken: a CPU computes it in hours, not years.
LARGEST_ON_CPU = "small"


def choose_model(ds_config: dict, world_size: int, disk: Path) -> tuple[str, str]:
    """The preset's name and the reason. All ranks of a launch get the same answer: the first one to ask computes it.

    Args:
        ds_config: as it was read.
        disk: a folder on the disk that swap files will be on.

    Raises:
        ConfigError: ranks on several machines, or a ds_config that cannot run.
    """
    if world_size > int(os.environ.get("LOCAL_WORLD_SIZE", world_size)):
        raise ConfigError(
            "--model auto decides for one machine, and this launch has ranks on several: name a preset; "
            "astrobio plan tells which fit"
        )
    if "LOCAL_RANK" not in os.environ:
        return _ask(ds_config, world_size, disk)
    launcher = psutil.Process(os.getppid())
    answer = Path(tempfile.gettempdir(), f"astrobio-auto-{launcher.pid}-{launcher.create_time():.0f}.json")
    with FileLock(f"{answer}.lock"):
        if not answer.is_file():
            write_whole(answer, json.dumps(_ask(ds_config, world_size, disk)))
        name, reason = json.loads(answer.read_text())
    return name, reason


def _ask(ds_config: dict, world_size: int, disk: Path) -> tuple[str, str]:
    question = json.dumps({"ds_config": ds_config, "world_size": world_size, "disk": str(disk)})
    done = subprocess.run(
        [sys.executable, "-m", "launch.planner.auto"],
        input=question,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(),
    )
    if not done.stdout.strip():
        raise ConfigError(f"--model auto: no answer, its process ended with {done.returncode}: see above")
    answer = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        raise ConfigError(answer["error"])
    return answer["name"], answer["reason"]


def choose(ds_config: dict, world_size: int, disk: Path) -> tuple[str, str]:
    """The same in this process."""
    # Only here: a rank imports this module.
    from launch.planner.hardware import load_hardware
    from launch.planner.job import make_job
    from launch.planner.plan import plan

    machine = free_of(load_hardware("this"), world_size, disk)
    names = SIZES[: SIZES.index(LARGEST_ON_CPU) + 1] if machine.is_cpu else SIZES
    for name in reversed(names):
        print(f"--model auto: does {name!r} fit? (a ghost run)", file=sys.stderr, flush=True)
        result = plan(make_job(name, ds_config, machine, ranks=world_size))
        if result.fits:
            break
    labels = {"gpu": "of each card", "host": "of free host memory", "nvme": "of disk"}
    sizes = ", ".join(
        f"{side.peak_bytes / 1e9:.1f} of {side.limit_bytes / 1e9:.1f} GB {labels[key]}"
        for key, side in result.sides.items()
        if side.peak_bytes
    )
    most = f"the largest preset up to {names[-1]!r}, without a GPU," if machine.is_cpu else "the largest preset"
    return name, (
        f"{most} that fits: {sizes}"
        if result.fits
        else f"the smallest preset, and even that does not fit by astrobio plan: {sizes}"
    )


def free_of(machine, ranks: int, disk: Path):
    """The hardware with only the memory and disk space that is free now."""
    while not disk.exists():
        disk = disk.parent
    return dataclasses.replace(
        machine, gpus=ranks, host_memory_bytes=free_bytes(), nvme_bytes=shutil.disk_usage(disk).free
    )


def main() -> None:
    question = json.load(sys.stdin)
    try:
        name, reason = choose(question["ds_config"], question["world_size"], Path(question["disk"]))
        answer = {"name": name, "reason": reason}
    except ConfigError as error:
        answer = {"error": str(error)}
    print("\n" + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
