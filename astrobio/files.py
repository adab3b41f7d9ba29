"""Files that are there whole or not at all, whatever kills the process."""

import os
from pathlib import Path


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


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
