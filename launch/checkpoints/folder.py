"""A run's ``checkpoints/``: lists and removes checkpoints, and what a killed save left."""

import os
import shutil
from pathlib import Path

from astrobio.files import sync, write_whole
from launch.checkpoints.manifest import MANIFEST, Damaged, Manifest, check_sizes

LATEST, BEST = "latest", "best"
PARTIAL, DAMAGED = ".partial", ".damaged"


def folder_of(run: Path) -> Path:
    return run / "checkpoints"


def path_of(run: Path, step: int) -> Path:
    return folder_of(run) / f"step_{step:08d}"


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoints, valid or not, oldest first; those that are being written are not among them."""
    return sorted(path for path in folder_of(run).glob("step_*") if path.is_dir() and not path.suffix)


def is_checkpoint(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def valid_checkpoints(run: Path) -> list[Path]:
    """Checkpoints whose files are complete, oldest first."""
    return [path for path in checkpoints(run) if damage_of(path) is None]


def damage_of(checkpoint: Path) -> Damaged | None:
    """Damage that file names and sizes show; None if there is none."""
    try:
        check_sizes(checkpoint)
    except Damaged as found:
        return found
    return None


def named(run: Path, name: str) -> Path | None:
    """The checkpoint that ``latest`` or ``best`` names, if it is there."""
    file = folder_of(run) / name
    text = file.read_text().strip() if file.is_file() else ""
    path = folder_of(run) / text
    return path if text and is_checkpoint(path) else None


def pointer_problem(run: Path, name: str) -> str | None:
    """What is wrong with ``latest`` or ``best``, if it is there at all."""
    file = folder_of(run) / name
    if not file.is_file() or named(run, name) is not None:
        return None
    text = file.read_text().strip()
    return f"{file} {f'names {text!r}, which is no checkpoint' if text else 'is empty'}"


def set_aside(checkpoint: Path) -> Path:
    """Take a broken checkpoint out of the way, so that it is neither resumed from nor counted; it is not deleted."""
    aside = checkpoint.with_name(checkpoint.name + DAMAGED)
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(checkpoint, aside)
    sync(checkpoint.parent)
    return aside


def point(run: Path, name: str, checkpoint: Path) -> None:
    write_whole(folder_of(run) / name, checkpoint.name + "\n")


def remove_old(run: Path, keep_last: int, keep_every_h: float | None = None) -> list[Path]:
    """Remove valid checkpoints but the last ``keep_last``, the best one and the first of every ``keep_every_h`` hours
    of training; returns them. Broken ones neither count nor go: the last valid one always stays."""
    valid = valid_checkpoints(run)
    kept = {*valid[-max(1, keep_last) :], named(run, BEST)}
    if keep_every_h is not None:
        seen = set()
        for path in valid:
            period = int(Manifest.read(path).about.get("elapsed_s", 0) / (3600 * keep_every_h))
            if period not in seen:
                seen.add(period)
                kept.add(path)
    removed = [path for path in valid if path not in kept]
    for path in removed:
        leaving = path.with_name(path.name + PARTIAL)
        os.rename(path, leaving)  # first, so that a half-removed folder is not taken for a checkpoint
        shutil.rmtree(leaving)
    return removed


def remove_leftovers(run: Path) -> list[Path]:
    """Remove what a killed save or removal left behind; returns it."""
    left = sorted(folder_of(run).glob(f"step_*{PARTIAL}"))
    for path in left:
        shutil.rmtree(path)
    return left
