"""safetensors files, written as the tensors come and read in part."""

import concurrent.futures
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open
from torch import Tensor

from launch.checkpoints.fingerprint import Fingerprint, fingerprint, pieces

#: safetensors' names of the dtypes that occur.
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """What a tensor of the file will be."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def header(entries: Sequence[Entry], metadata: dict[str, str] | None = None) -> bytes:
    """What a safetensors file of these entries, in this order, begins with."""
    table: dict[str, dict] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for entry in entries:
        table[entry.key] = {
            "dtype": DTYPES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [end, end + entry.nbytes],
        }
        end += entry.nbytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class TensorWriter:
    """Writes the tensors of a safetensors file one after the other, in the order of ``entries``.

    safetensors' own `save_file` wants all of them in memory at once, which a rank whose optimizer is on NVMe does not
    have. Writing and hashing go on in a thread, beside the fingerprints.
    """

    def __init__(self, path: Path, entries: Sequence[Entry], metadata: dict[str, str] | None = None):
        self._file = path.open("wb", buffering=0)
        self._hash = xxhash.xxh3_128()
        self._waiting = list(reversed(entries))
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._last: concurrent.futures.Future | None = None
        self._nbytes = 0
        self._put(header(entries, metadata))

    def write(self, key: str, tensor: Tensor, start: int = 0) -> Fingerprint:
        """Append ``tensor``; returns its fingerprint as the elements ``start`` and on of a larger one.

        It must not change before `wait`, or the next `write`, has returned.
        """
        entry = self._waiting.pop()
        if (entry.key, entry.dtype, entry.shape) != (key, tensor.dtype, tuple(tensor.shape)):
            raise RuntimeError(f"{self._file.name}: expected {entry}, got {key} {tensor.dtype} {tuple(tensor.shape)}")
        found = Fingerprint()
        for piece, offset in pieces(tensor):
            on_host = piece.cpu().contiguous()
            self.wait()
            self._last = self._pool.submit(self._put, on_host.view(torch.uint8).numpy().data)
            found += fingerprint(on_host, start + offset)
        return found

    def _put(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._nbytes += len(data)
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def wait(self) -> None:
        """Wait until all that was given to `write` is in the file.

        Raises:
            OSError: it could not be written.
        """
        if self._last is not None:
            self._last.result()
            self._last = None

    def close(self) -> tuple[int, str]:
        """Flush the file to disk; returns its size in bytes and its hash."""
        with self:
            self.wait()
            if self._waiting:
                raise RuntimeError(f"{self._file.name}: {len(self._waiting)} tensors were never written")
            os.fsync(self._file.fileno())
        return self._nbytes, self._hash.hexdigest()

    def __enter__(self) -> "TensorWriter":
        return self

    def __exit__(self, *error) -> None:
        """Also of a file that is not to be finished."""
        self._pool.shutdown()
        self._file.close()


class TensorReader:
    """Reads parts of the tensors of a checkpoint's files; keeps the files open."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: dict[str, Any] = {}

    def read(self, file: str, key: str, start: int, stop: int) -> Tensor:
        """Elements ``start`` to ``stop`` of a flat tensor of ``file``."""
        if file not in self._open:
            self._open[file] = safe_open(str(self.folder / file), framework="pt")
        return self._open[file].get_slice(key)[start:stop]


def hash_file(path: Path) -> str:
    """The hash that `TensorWriter.close` gave, read anew."""
    found = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(1 << 24):
            found.update(piece)
    return found.hexdigest()
