"""Fast access to single records of a memory-mapped split, and a local copy of a remote dataset.

`datasets` converts a row to Python or NumPy objects, one level of its nested lists at a time. Here an array is a view
into the mapped file, located by the lists' offsets: nothing is copied, and unused columns are not read.
"""

import bisect
import json
import os
import re
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
from filelock import FileLock

from astrobio import schema
from astrobio.config import ConfigError
from astrobio.files import cache_root, write_whole

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/{1,2}(?=[^/])")  # pathlib turns s3://bucket into s3:/bucket


class RecordReader:
    """Rows of an Arrow table by number, each a dict of NumPy views, texts and numbers; absent arrays are None.

    Args:
        records: a split as `datasets.load_from_disk` maps it. Any number of rows, in any number of files.
    """

    def __init__(self, records: datasets.Dataset):
        self.records = records
        self._table: pa.Table | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record ``index``; raises `IndexError` outside the split, `ValueError` if the file is damaged."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        table = self._table if self._table is not None else self._open()
        chunk = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[chunk - 1] if chunk else 0)
        return {name: column(row) for name, column in self._columns(table, chunk).items()}

    def __getstate__(self) -> dict:
        return {"records": self.records, "_table": None}  # each worker process maps the files itself

    def _open(self) -> pa.Table:
        table = self._table = self.records.data.table
        # All columns of a file are cut into the same batches.
        self._ends = list(accumulate(len(chunk) for chunk in table.column(0).chunks))
        self._opened: dict[int, dict[str, Callable[[int], Any]]] = {}
        return table

    def _columns(self, table: pa.Table, chunk: int) -> dict[str, Callable[[int], Any]]:
        if chunk not in self._opened:
            self._opened[chunk] = {
                name: _column(table.column(name).chunk(chunk), feature) for name, feature in schema.FEATURES.items()
            }
        return self._opened[chunk]


def _column(array: pa.Array, feature) -> Callable[[int], Any]:
    """A function from a row of one batch of one column to its value."""
    if isinstance(array, pa.ExtensionArray):
        shape = tuple(-1 if size is None else size for size in feature.shape)
        valid, levels, values = np.asarray(array.is_valid()), [], array.storage
        while isinstance(values, pa.ListArray):
            levels.append(values.offsets.to_numpy())
            values = values.values
        flat = values.to_numpy()

        def nested(row: int) -> np.ndarray | None:
            if not valid[row]:
                return None
            start, end = row, row + 1
            for offsets in levels:
                start, end = offsets[start], offsets[end]
            return flat[start:end].reshape(shape)

        return nested
    if isinstance(array, pa.FixedSizeListArray):
        table = array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)
        return lambda row: table[row]
    if isinstance(array, pa.ListArray):
        valid, offsets, flat = np.asarray(array.is_valid()), array.offsets.to_numpy(), array.values.to_numpy()
        return lambda row: flat[offsets[row] : offsets[row + 1]] if valid[row] else None
    return lambda row: array[row].as_py()


def local_copy(folder: str | Path) -> Path:
    """The dataset's folder on this machine: ``folder`` itself, or a copy of an fsspec URL (``s3://…``).

    The copy is cached under ``$ASTROBIO_CACHE/datasets``. Files are fetched one by one and checked against the
    manifest's sha256, so that an interrupted copy resumes and a second run reads it at once.

    Raises:
        ConfigError: the URL cannot be read, or a file differs from the manifest.
    """
    if _URL.match(str(folder)) is None:
        return Path(folder)
    url = _URL.sub(r"\1://", str(folder), count=1).rstrip("/")
    try:
        remote, root = fsspec.core.url_to_fs(url)
        content = remote.cat_file(f"{root}/manifest.json")
        files = json.loads(content)["files"]
    except (OSError, ImportError, ValueError, KeyError) as error:
        raise ConfigError(f"{url}: no dataset can be read there: {type(error).__name__}: {error}") from error
    copy = cache_root() / "datasets" / re.sub(r"[^A-Za-z0-9.-]+", "_", url)
    copy.mkdir(parents=True, exist_ok=True)
    with FileLock(copy.with_name(f"{copy.name}.lock")):  # the ranks of one machine share it
        for name, expected in files.items():
            path = copy / name
            if (
                path.is_file()
                and path.stat().st_size == expected["bytes"]
                and schema.sha256_of(path) == expected["sha256"]
            ):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            remote.get_file(f"{root}/{name}", str(part))
            if schema.sha256_of(part) != expected["sha256"]:
                raise ConfigError(
                    f"{url}/{name}: its sha256 is not the one in manifest.json: the dataset there was "
                    "changed or is damaged"
                )
            os.replace(part, path)
        write_whole(copy / "manifest.json", content)
    return copy
