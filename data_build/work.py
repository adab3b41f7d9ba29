"""What a build has finished so far: a folder of stages, each of numbered chunks, that outlives a killed process.

A chunk is written under a temporary name, flushed to the disk and renamed to ``<number>.<sha256, shortened><suffix>``:
it is there whole or not at all, and a damaged one is recognised and made again. A stage whose chunks are all there gets
a manifest, ``stage.json``. The folder belongs to one plan (recipe, versions, program); under another one it is emptied.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import astrobio.schema
from astrobio.files import sync
from astrobio.schema import sha256_of
from data_build.store import write_whole

_PLAN, MANIFEST = "plan.json", "stage.json"


class WorkFolder:
    """The stages of one build.

    Args:
        folder: made if absent.
        plan: what the build's content depends on, as JSON-able values.
    """

    def __init__(self, folder: Path, plan: dict):
        self.folder = folder
        plan = json.loads(json.dumps({**plan, "program": program_sha256()}))
        if self._plan() != plan:
            shutil.rmtree(folder, ignore_errors=True)
            write_whole(folder / _PLAN, json.dumps(plan, indent=1) + "\n")

    def based_on(self, stage: str, facts) -> None:
        """Tell what ``stage`` gave: stages made from something else are removed, to be made again."""
        path, text = self.folder / f"{stage}.json", json.dumps(facts, indent=1, sort_keys=True) + "\n"
        if path.is_file() and path.read_text() != text:
            for other in self.folder.iterdir():
                if other.is_dir() and other.name != stage:
                    shutil.rmtree(other)
        write_whole(path, text)

    def path(self, stage: str) -> Path:
        """The stage's folder."""
        path = self.folder / stage
        path.mkdir(exist_ok=True)
        return path

    def chunks(self, stage: str) -> dict[int, Path]:
        """Number → file of the stage's chunks that are whole; leftovers of a killed process are removed."""
        found = {}
        for path in sorted(self.path(stage).iterdir()):
            number, digest = path.name.split(".")[:2] if path.name.count(".") >= 2 else ("", "")
            if number.isdigit() and sha256_of(path).startswith(digest):
                found[int(number)] = path
            elif path.name != MANIFEST:
                path.unlink()
        return found

    def keep(self, stage: str, number: int, suffix: str, write: Callable[[Path], None]) -> Path:
        """Let ``write`` make a chunk, and keep it."""
        temporary = self.path(stage) / f"making-{number:06d}"
        write(temporary)
        sync(temporary)
        path = temporary.with_name(f"{number:06d}.{sha256_of(temporary)[:16]}{suffix}")
        os.replace(temporary, path)
        sync(path.parent)
        return path

    def finish(self, stage: str, **facts) -> None:
        """Write the stage's manifest."""
        chunks = [path.name for path in sorted(self.path(stage).iterdir()) if path.name != MANIFEST]
        write_whole(self.path(stage) / MANIFEST, json.dumps({**facts, "chunks": chunks}, indent=1) + "\n")

    def _plan(self) -> dict | None:
        try:
            return json.loads((self.folder / _PLAN).read_text())
        except (OSError, ValueError):
            return None


def program_sha256() -> str:
    """The sha256 of the program that makes records: chunks of two versions of it must not be mixed."""
    digest = hashlib.sha256()
    for path in sorted([*Path(__file__).parent.rglob("*.py"), Path(astrobio.schema.__file__)]):
        digest.update(path.read_bytes())
    return digest.hexdigest()
