"""Answers of archives on disk: content-addressed by sha256, found again by the request they answer.

Under ``$ASTROBIO_CACHE/answers/<archive>/``::

    index/<key>.json     the request without its credentials, the answer's status and headers, sha256 and size
    blobs/<sha256>       the answer's body as it was sent (still compressed, if it was)
    partial/<key>        a body whose transfer broke off, with <key>.json: what identifies it, for HTTP Range

A file is written under a temporary name, flushed to the disk and renamed: it is there whole or not at all.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from astrobio import files
from astrobio.schema import sha256_of
from data_build.cache import DiskError


@dataclass(frozen=True)
class Answer:
    """One stored answer; ``url`` holds no credential."""

    method: str
    url: str
    status: int
    headers: Mapping[str, str]
    sha256: str
    size: int


class AnswerStore:
    """The answers of one archive."""

    def __init__(self, archive: str, root: Path | None = None):
        self.folder = (root or files.cache_root()) / "answers" / archive
        self.index, self.blobs, self.partial = (self.folder / name for name in ("index", "blobs", "partial"))

    def find(self, key: str) -> Answer | None:
        """The answer to the request with that key, its body's sha256 checked; None if there is none or it is damaged.

        A damaged body is removed, so that it is fetched again.
        """
        path = self.index / f"{key}.json"
        try:
            answer = Answer(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            path.unlink(missing_ok=True)
            return None
        body = self.body(answer)
        if not body.is_file() or body.stat().st_size != answer.size or sha256_of(body) != answer.sha256:
            path.unlink(missing_ok=True)
            body.unlink(missing_ok=True)
            return None
        return answer

    def body(self, answer: Answer) -> Path:
        """The file that holds the answer's body."""
        return self.blobs / answer.sha256

    def keep(self, key: str, received: Path, method: str, url: str, status: int, headers: Mapping[str, str]) -> Answer:
        """Take a received body over from ``partial/`` and index it."""
        answer = Answer(method, url, status, dict(headers), sha256_of(received), received.stat().st_size)
        self.blobs.mkdir(parents=True, exist_ok=True)
        files.sync(received)
        os.replace(received, self.body(answer))
        write_whole(self.index / f"{key}.json", json.dumps(asdict(answer), indent=1, sort_keys=True) + "\n")
        return answer

    def note_rows(self, rows: int) -> None:
        """Remember how many rows the last complete reading gave, for ``astrobio data sources``."""
        write_whole(self.folder / "rows.json", json.dumps({"rows": rows}) + "\n")

    def rows(self) -> int:
        """Rows of the last complete reading; 0 if there was none."""
        try:
            return int(json.loads((self.folder / "rows.json").read_text())["rows"])
        except (OSError, ValueError, KeyError):
            return 0


def key_of(*parts: str | bytes) -> str:
    """The sha256 of some texts, each set apart from the next."""
    digest = hashlib.sha256()
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def write_whole(path: Path, content: str | bytes) -> None:
    """`astrobio.files.write_whole`, with a `DiskError` that says what to do where there is no room."""
    try:
        files.write_whole(path, content)
    except OSError as error:
        raise DiskError(
            f"{path} cannot be written: {error.strerror}; free some space, or set ASTROBIO_CACHE or --out "
            "to another disk"
        ) from error
