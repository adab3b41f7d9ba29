"""Writes records into a Hugging Face `datasets` folder, split by split, in bounded memory.

`datasets.Dataset.save_to_disk` maps everything it saves into memory; here records go from the writer straight to the
final files, shard by shard.
"""

import hashlib
import json
import os
from pathlib import Path

import datasets
from datasets.arrow_writer import ArrowWriter

from astrobio.schema import FEATURES, SPLITS, TEST_SETS
from data_build.records import record_digest

_BATCH = 32  # records held in memory before they are written, about 8 MB
SHARD = 2048  # records of a file, about 480 MB


class SplitWriter:
    """A context: `write` takes one record at a time, `finish` completes the folder.

    ``digests`` maps split, or further test set, → canonical digests of its records, in order.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self.digests: dict[str, list[bytes]] = {split: [] for split in (*SPLITS, *TEST_SETS)}
        self._writers: dict[str, ArrowWriter] = {}
        self._shards: dict[str, list[Path]] = {split: [] for split in self.digests}

    def __enter__(self) -> "SplitWriter":
        return self

    def __exit__(self, *exception) -> None:
        for writer in self._writers.values():
            writer.close()

    def write(self, split: str, record: dict) -> None:
        """Append a record to a split."""
        if len(self.digests[split]) % SHARD == 0:
            self._next_shard(split)
        self.digests[split].append(record_digest(record))
        self._writers[split].write(record)

    def finish(self) -> None:
        """Complete the folder of each split and further test set, and ``dataset_dict.json``."""
        written = [split for split, shards in self._shards.items() if shards]
        for split in written:
            self._writers.pop(split).finalize()
            shards = self._shards[split]
            names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
            for shard, name in zip(shards, names, strict=True):
                os.rename(shard, shard.with_name(name))
            datasets.DatasetInfo(features=FEATURES).write_to_directory(str(self._folder / split))
            state: dict[str, object] = {
                "_data_files": [{"filename": name} for name in names],
                "_fingerprint": hashlib.sha256(b"".join(self.digests[split])).hexdigest()[:16],
                "_format_columns": None,
                "_format_kwargs": {},
                "_format_type": None,
                "_output_all_columns": False,
                "_split": None,
            }
            (self._folder / split / "state.json").write_text(json.dumps(state, indent=1) + "\n")
        (self._folder / "dataset_dict.json").write_text(json.dumps({"splits": written}) + "\n")

    def _next_shard(self, split: str) -> None:
        if split in self._writers:
            self._writers.pop(split).finalize()
        path = self._folder / split / f"shard-{len(self._shards[split]):05d}"
        path.parent.mkdir(exist_ok=True)
        self._shards[split].append(path)
        self._writers[split] = ArrowWriter(features=FEATURES, path=str(path), writer_batch_size=_BATCH)


def write_records(records: list[dict], path: Path) -> None:
    """Write some records into one Arrow file."""
    with ArrowWriter(features=FEATURES, path=str(path), writer_batch_size=_BATCH) as writer:
        for record in records:
            writer.write(record)
        writer.finalize()
