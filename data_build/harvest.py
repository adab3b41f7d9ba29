"""An archive's rows, read, checked and written as a folder of Parquet files: one stage of a build.

A stage is made in a hidden folder and renamed: it is there whole or not at all. One that was killed is made again from
the answers that were kept (`data_build.fetch`), so nothing is asked for twice.
"""

import json
import os
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from astrobio.files import sync
from astrobio.schema import sha256_of
from data_build.cache import DataError, DiskError
from data_build.credentials import redacted
from data_build.policy import Policy
from data_build.rows import RowQuality, row_problems
from data_build.sources import ARCHIVES
from data_build.sources.base import DTYPES, Archive, Field, SourceInfo, connect, read
from data_build.store import AnswerStore, write_whole

CHUNK, VECTOR_CHUNK = 1000, 4  # rows in memory at a time, and in a file
MANIFEST = "stage.json"
_ARROW = {
    "string": pa.string(),
    "float64": pa.float64(),
    "int64": pa.int64(),
    "bool": pa.bool_(),
    **{name: pa.list_(pa.float32(), int(name[8:-1])) for name in DTYPES if name.startswith("float32[")},
}
assert _ARROW.keys() == DTYPES.keys()


@dataclass(frozen=True)
class Harvest:
    """A finished stage: its folder and its manifest."""

    folder: Path
    manifest: dict

    def rows(self) -> Iterator[dict[str, Any]]:
        """The good rows, in order, a file at a time."""
        for name in sorted(self.manifest["files"]):
            if name.endswith(".parquet"):
                yield from pq.read_table(self.folder / name).to_pylist()


def harvest_all(
    names_and_limits: Mapping[str, int],
    folder: Path,
    policy: Policy,
    told: Callable[[str, int], None] = lambda name, rows: None,
    threads: int = 4,
    required: Collection[str] = (),
) -> tuple[dict[str, Harvest], dict[str, str]]:
    """Every named archive's stage, made or found in ``folder``; several archives at a time.

    Args:
        names_and_limits: archive → the most rows to take of it.
        told: called with an archive's name and the number of rows that have just been written.
        required: archives whose failure is an error.

    Returns:
        The stages, and the archives that could not be read with the reason; nothing of those is left.

    Raises:
        DataError: with a line for each archive that failed, if one of them is required, or none was read. The others'
            stages are there.
    """

    def one(item: tuple[str, int]) -> Harvest | DataError:
        try:
            return harvest(ARCHIVES[item[0]](), folder / item[0], policy, item[1], lambda rows: told(item[0], rows))
        except DiskError:
            raise
        except DataError as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        made = dict(zip(names_and_limits, pool.map(one, names_and_limits.items()), strict=True))
    failed = {name: redacted(str(result)) for name, result in made.items() if isinstance(result, DataError)}
    lacking = [name for name in failed if name in required]
    if lacking or len(failed) == len(made) > 0:
        which = f"the recipe requires {', '.join(lacking)}" if lacking else "not one of the recipe's archives was read"
        raise DataError("\n".join([*failed.values(), f"{which}: nothing was built"]))
    return {name: result for name, result in made.items() if isinstance(result, Harvest)}, failed


def harvest(
    archive: Archive, folder: Path, policy: Policy, limit: int, told: Callable[[int], None] = lambda rows: None
) -> Harvest:
    """The archive's stage in ``folder``: found, if it is whole and of the same limit, else made.

    Raises:
        DataError: the archive could not be read, less than 95% of its rows have the required fields, or none is of use.
    """
    found = _found(folder, archive.info, limit)
    if found is not None and not policy.refresh:
        return found
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        return _made(archive, folder, partial, policy, limit, told)
    except DataError:
        shutil.rmtree(partial, ignore_errors=True)  # what a failed archive gave is not whole
        raise


def _made(
    archive: Archive, folder: Path, partial: Path, policy: Policy, limit: int, told: Callable[[int], None]
) -> Harvest:
    """The archive's stage, made in ``partial`` and renamed to ``folder``."""
    quality = RowQuality(archive.info, partial / "keys.sqlite")
    try:
        complete = _write(archive, partial, policy, limit, quality, told)
    finally:
        quality.close()
    lacking = quality.lacking()
    if lacking:
        raise DataError(
            f"{archive.info.title}: required fields are there in too few of {quality.rows} rows: "
            f"{', '.join(lacking)}; 95% are needed: the archive has changed, please report it"
        )
    if quality.rows and not quality.used:
        raise DataError(
            f"{archive.info.title}: not one of {quality.rows} rows can be used, most often because "
            f"{quality.main_reason()}: the archive has changed, please report it"
        )
    (partial / "keys.sqlite").unlink()
    files = {path.name: sha256_of(path) for path in sorted(partial.iterdir())}
    manifest = {
        "source": archive.info.as_dict(),
        "limit": limit,
        "complete": complete,
        **quality.report(),
        "files": files,
    }
    write_whole(partial / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    for path in partial.iterdir():
        sync(path)
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(partial, folder)
    sync(folder.parent)
    AnswerStore(archive.info.name, policy.root).note_rows(quality.rows)
    return Harvest(folder, manifest)


def _write(
    archive: Archive, folder: Path, policy: Policy, limit: int, quality: RowQuality, told: Callable[[int], None]
) -> bool:
    """Write rows and quarantine; returns whether the archive ended before the limit did."""
    schema = schema_of(archive.info.fields)
    key = archive.info.fields[0].name
    unused = getattr(archive, "unused", lambda row: "")
    rows = read(archive, connect(archive, policy))
    chunk = VECTOR_CHUNK if any("[" in field.dtype for field in archive.info.fields) else CHUNK
    number, taken = 0, 0
    with (folder / "quarantine.jsonl").open("w") as quarantine:
        while block := list(islice(rows, min(chunk, limit - taken))):
            taken += len(block)
            good = []
            for row in block:
                problems = row_problems(row, archive)
                if row[key] is not None and not quality.new(row[key]):
                    problems.append(f"{key} is there twice")
                quality.add(row, problems, "" if problems else unused(row))
                if problems:
                    quarantine.write(json.dumps({key: row[key], "reasons": problems}) + "\n")
                else:
                    good.append(row)
            if good:
                pq.write_table(pa.Table.from_pylist(good, schema), folder / f"rows-{number:05d}.parquet")
                number += 1
            told(len(block))
    return taken < limit or next(rows, None) is None


def schema_of(fields: Iterable[Field]) -> pa.Schema:
    """The Arrow schema of rows with these fields, units in the metadata."""
    return pa.schema([pa.field(field.name, _ARROW[field.dtype], metadata={"unit": field.unit}) for field in fields])


def _found(folder: Path, info: SourceInfo, limit: int) -> Harvest | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        whole = (
            manifest["source"] == info.as_dict()
            and manifest["limit"] == limit
            and all(sha256_of(folder / name) == sha256 for name, sha256 in manifest["files"].items())
        )
    except (OSError, ValueError, KeyError):
        return None
    return Harvest(folder, manifest) if whole else None


class Told:
    """Rows counted over all archives, from several threads, for one progress bar."""

    def __init__(self, bar):
        self._bar, self._lock = bar, threading.Lock()

    def __call__(self, name: str, rows: int) -> None:
        with self._lock:
            self._bar.set_postfix_str(name, refresh=False)
            self._bar.update(rows)
