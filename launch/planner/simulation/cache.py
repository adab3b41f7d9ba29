"""Cached results of earlier simulations in ~/.cache/astrobio, keyed by the simulation and by the code.

Searches ask the same questions again and again, and a simulation of the 17B stack takes half a minute.
"""

import contextlib
import functools
import gzip
import hashlib
import json
import pickle
from pathlib import Path

from astrobio.files import cache_root, code_hash, write_whole
from launch import ROOT
from launch.planner.simulation.spec import Result, Simulation

PACKAGES = ("torch", "deepspeed", "transformers", "torch_geometric", "peft")
#: The newest results stay: some MB each.
KEPT = 200
#: What a file that is broken, or of other code, raises.
_UNREADABLE = OSError, EOFError, pickle.UnpicklingError, AttributeError, ValueError


def load(simulation: Simulation) -> Result | None:
    """The cached result, if there is one that can be read."""
    path = _path(simulation)
    if path is None or not path.is_file():
        return None
    with contextlib.suppress(*_UNREADABLE):
        return pickle.loads(gzip.decompress(path.read_bytes()))
    return None


def store(simulation: Simulation, result: Result) -> None:
    """Cache a result. A cache that cannot be written costs time, nothing else."""
    path = _path(simulation)
    if path is None:
        return
    with contextlib.suppress(OSError):
        write_whole(path, gzip.compress(pickle.dumps(result), 1))
        for old in sorted(path.parent.glob("*.ghost"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)


def _path(simulation: Simulation) -> Path | None:
    """None for a simulation that depends on code elsewhere."""
    if "function" in simulation.workload:
        return None
    asked = json.dumps(simulation.to_dict(), sort_keys=True, default=str).encode()
    return cache_root() / "ghosts" / f"{hashlib.sha256(asked + _code()).hexdigest()[:32]}.ghost"


@functools.cache
def _code() -> bytes:
    """Hash of all code that a simulation depends on: this project and its libraries."""
    return code_hash(sorted([*(ROOT / "astrobio").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]), PACKAGES)
