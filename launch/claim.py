"""A folder belongs to one launch as long as one of its processes lives: a run's folder, and each of its swap folders.

The kernel keeps who holds a claim (POSIX record locks), and takes it from a process that dies, however it does. Other
machines see it where the file system tells them (NFSv4 and most parallel ones do).
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import time
from pathlib import Path

import psutil

from astrobio.config import ConfigError

log = logging.getLogger(__name__)

OWNER = ".owner"  # who holds the folder; locked
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}
_held: dict[Path, int] = {}  # open files: closing one gives the claim up


def claim(folder: Path, named: str, emptied: bool = False) -> None:
    """Hold ``folder``, which is made, until this process ends; the other ranks of its launch hold it too.

    Args:
        named: what gave the folder, as messages begin: ``--run runs/a``.
        emptied: the launch begins with nothing in it; what is there was left by a killed one.

    Raises:
        ConfigError: another launch holds it, or it cannot be made or written.
    """
    folder = folder.resolve()
    if folder in _held:
        return
    try:
        file = _lock(folder, emptied)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            log.warning("%s: the file system of %s knows no locks: see to it that no other run uses it", named, folder)
            return
        raise ConfigError(f"{named}: {folder} cannot be made or written ({error.strerror})") from None
    owner = json.loads(os.pread(file, 1 << 12, 0))
    if owner["launch"] != _this_launch():
        os.close(file)
        raise ConfigError(
            f"{named}: another run has {folder}: process {owner['pid']} on {owner['host']}; name another "
            f"folder, wait for its end, or stop it: kill {owner['pid']}"
        )
    _held[folder] = file


def own_folder(parent: Path, run: Path) -> Path:
    """The folder in ``parent``, which many runs may share, for this run's swap files alone."""
    if parent == run:
        return run / "nvme"
    run = run.resolve()
    return parent / f"{run.name}-{hashlib.sha256(f'{socket.gethostname()}:{run}'.encode()).hexdigest()[:8]}"


def remove_dead(parent: Path) -> None:
    """Remove what killed launches left in ``parent``: the claimed folders that nobody holds any more."""
    for path in parent.glob(f"*/{OWNER}"):
        if path.parent.resolve() in _held:
            continue
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_RDWR)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent, ignore_errors=True)
            finally:
                os.close(file)


def _lock(folder: Path, emptied: bool) -> int:
    """The owner's file, open and locked with others of its owner's launch; who comes first writes it.

    The first takes it for itself alone, so that who gets a share finds it written.
    """
    path = folder / OWNER
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # `remove_dead` came between
            continue
        if _try(file, fcntl.LOCK_EX):
            if not _is(file, path):  # the same
                os.close(file)
                continue
            os.ftruncate(file, 0)
            os.pwrite(
                file,
                json.dumps({"launch": _this_launch(), "pid": os.getpid(), "host": socket.gethostname()}).encode(),
                0,
            )
            if emptied:
                _empty(folder)
            fcntl.lockf(file, fcntl.LOCK_SH)
            return file
        if _try(file, fcntl.LOCK_SH):
            return file
        os.close(file)
        time.sleep(0.01)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != OWNER:
            path.unlink()


def _try(file: int, kind: int) -> bool:
    try:
        fcntl.lockf(file, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _is(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _this_launch() -> str:
    """The same for all ranks of a launch, and for no other one that lives."""
    if int(os.environ.get("CROSS_SIZE", 1)) > 1:  # several machines, as the launcher tells its ranks
        return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    process = psutil.Process(os.getppid() if "LOCAL_RANK" in os.environ else os.getpid())
    return f"{socket.gethostname()}:{process.pid}:{process.create_time()}"
