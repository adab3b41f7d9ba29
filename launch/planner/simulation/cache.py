"""Ghost runs that were made before: the same question on the same code is answered from ~/.cache/astrobio.

A run through many configs, `--advice` and `--model auto` ask the same things again and again, and a ghost run of the
17B stack takes half a minute. Different runs share what torch's operators make of shapes: that is kept too.
"""

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

from astrobio.files import cache_root, code_hash, write_whole
from launch import ROOT

PACKAGES = ("torch", "deepspeed", "transformers", "torch_geometric", "peft")
#: Results kept, the newest ones: some MB each.
KEPT = 200
#: Operators' answers kept at most, of about 300 bytes; with more, the older ones are forgotten.
ANSWERS = 30_000
#: What a file that is broken, or of other code, raises.
UNREADABLE = OSError, EOFError, pickle.UnpicklingError, AttributeError, ValueError


def recall(job: Any) -> Any | None:
    """The result of ``job``, a `launch.planner.simulation.run.Job`, if it is kept and can be read."""
    path = _path(job)
    if path is None or not path.is_file():
        return None
    with contextlib.suppress(*UNREADABLE):
        return pickle.loads(gzip.decompress(path.read_bytes()))
    return None


def keep(job: Any, result: Any) -> None:
    """A cache that cannot be written costs time, nothing else."""
    path = _path(job)
    if path is None:
        return
    with contextlib.suppress(OSError):
        write_whole(path, gzip.compress(pickle.dumps(result), 1))
        for old in sorted(path.parent.glob("*.ghost"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)


@functools.cache
def recall_answers(device: str) -> dict[tuple, Any]:
    """What operators made of shapes in earlier runs with the model on ``device``, as `Shapes` takes it."""
    path = _answers(device)
    if path.is_file():
        with contextlib.suppress(*UNREADABLE):
            return pickle.loads(path.read_bytes())
    return {}


def keep_answers(device: str, found: dict[tuple, Any]) -> None:
    """Those of a run, beside the ones from `recall_answers` that it began with and what others have kept meanwhile."""
    from launch.planner.simulation.shapes import dumps, lasting
    found = lasting(found)
    if found.keys() == recall_answers(device).keys():
        return
    recall_answers.cache_clear()
    merged = {**recall_answers(device), **found}
    path = _answers(device)
    with contextlib.suppress(OSError):
        write_whole(path, dumps(merged if len(merged) <= ANSWERS else found))
        for old in path.parent.glob(f"{device}-*"):
            if old != path:
                old.unlink(missing_ok=True)


def _answers(device: str) -> Path:
    here = Path(__file__).parent
    code = [here / name for name in ("tensors.py", "shapes.py", "values.py", "recorder.py")]
    digest = code_hash(code, ("torch",)).hex()
    return cache_root() / "shapes" / f"{device}-{digest[:32]}.pickle"


def _path(job: Any) -> Path | None:
    """None for a job that depends on code elsewhere."""
    if "function" in job.workload:
        return None
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(job), sort_keys=True, default=str).encode())
    digest.update(_code())
    return cache_root() / "ghosts" / f"{digest.hexdigest()[:32]}.ghost"


@functools.cache
def _code() -> bytes:
    """All that decides how a ghost run goes: this project and what it stands on."""
    return code_hash(sorted([*(ROOT / "astrobio").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]), PACKAGES)
