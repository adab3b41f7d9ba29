"""Files that are there whole or not at all, whatever kills the process."""

import contextlib
import hashlib
import importlib.metadata
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path


def cache_root() -> Path:
    """Where what was fetched or measured once is kept: ``$ASTROBIO_CACHE``, else ``~/.cache/astrobio``."""
    return Path(os.environ.get("ASTROBIO_CACHE") or Path.home() / ".cache" / "astrobio")


def code_hash(sources: Iterable[Path], packages: Iterable[str]) -> bytes:
    """Of source files' contents and installed packages' versions: what a result that is kept was computed by."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    for package in packages:
        digest.update(f"{package} {importlib.metadata.version(package)}".encode())
    return digest.digest()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write ``path`` so that it holds either all of ``content`` or what it held before.

    Raises:
        OSError: it cannot be written; nothing of the attempt is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to be filled that is called ``path``, which is not there or empty, only when all went well."""
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    if path.exists():
        path.rmdir()
    partial.rename(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
