"""Ways to break a file."""

from pathlib import Path


def flip(path: Path, at: float = 0.7) -> None:
    """Change one bit of a file, at that share of its length; ``at`` 1 or more: of the byte with that number."""
    content = bytearray(path.read_bytes())
    content[int(at if at >= 1 else at * len(content))] ^= 4
    path.write_bytes(content)


def cut_short(path: Path, by: int = 100) -> None:
    """Take the last bytes of a file away."""
    path.write_bytes(path.read_bytes()[:-by])
