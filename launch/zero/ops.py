"""DeepSpeed's compiled parts: which ones a config needs, built before the ranks need them.

    python -m launch.zero.ops        # build all that this machine can use; `make ops`
"""

import contextlib
import os
import sys
import time
from pathlib import Path

import psutil
from deepspeed.accelerator import get_accelerator
from filelock import FileLock
from torch.utils.cpp_extension import _get_build_directory

from astrobio.config import ConfigError
from launch.zero.accelerator import on_cpu, prepare_accelerator
from launch.zero.ds_config import strategy

#: Builders of all that a CPU machine may need.
CPU_MACHINE = ("CPUAdamBuilder", "AsyncIOBuilder", "FusedAdamBuilder", "ShareMemCommBuilder")


def needed(ds_config: dict) -> list[str]:
    """Builders of the ops that this config loads on this machine."""
    where = strategy(ds_config)
    builders = []
    if where.optimizer_device != "none":
        builders.append("CPUAdamBuilder")
    elif ds_config.get("optimizer"):
        builders.append("FusedAdamBuilder")
    if where.uses_nvme:
        builders.append("AsyncIOBuilder")
    if on_cpu():
        builders.append("ShareMemCommBuilder")
    return builders


def build(builders: list[str]) -> None:
    """Compile what is not compiled yet: one process does, the others wait at the lock.

    Raises:
        ConfigError: the compiler fails; the message has its last words.
    """
    for name in builders:
        builder = get_accelerator().create_op_builder(name)
        if builder is None:
            continue
        with contextlib.redirect_stdout(sys.stderr):
            folder = Path(_get_build_directory(builder.name, verbose=False))
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.astrobio.lock")):
            remove_stale_lock(folder)
            compiled = (folder / f"{builder.name}.so").exists()
            if not compiled:
                print(f"compiling DeepSpeed's {builder.name} (once, about a minute)", flush=True)
            try:
                builder.load(verbose=False)
            except (RuntimeError, OSError, ImportError) as error:
                raise ConfigError(f"DeepSpeed's {builder.name} cannot be compiled on this machine: "
                                  f"{str(error).strip()[-2000:]}\nit needs g++, ninja and, for NVMe, libaio's headers: "
                                  "`make setup` installs them or says how") from None


def remove_stale_lock(folder: Path) -> None:
    """Remove the ``lock`` of a compilation that was killed.

    torch 2.13.0 (`torch.utils.file_baton`) waits for that file for ever, without a word. It is stale if it is older
    than a minute and no process works in the folder.
    """
    lock = folder / "lock"
    with contextlib.suppress(FileNotFoundError):
        if time.time() - lock.stat().st_mtime > 60 and not _somebody_works_in(folder):
            lock.unlink()


def _somebody_works_in(folder: Path) -> bool:
    for process in psutil.process_iter(["cwd", "pid"]):
        if process.info["cwd"] == str(folder) and process.info["pid"] != os.getpid():
            return True
    return False


if __name__ == "__main__":
    prepare_accelerator()
    build(list(CPU_MACHINE) if on_cpu() else ["CPUAdamBuilder", "AsyncIOBuilder", "FusedAdamBuilder"])
