"""Writes records into a Hugging Face `datasets` folder, split by split, in bounded memory."""

import shutil
from pathlib import Path

import datasets
from datasets.arrow_writer import ArrowWriter

from astrobio.schema import FEATURES, SPLITS
from data_build.records import record_digest

_BATCH = 32  # records held in memory before they are written, about 8 MB


class SplitWriter:
    """A context: `write` takes one record at a time, `finish` makes the folder of it.

    ``digests`` maps split → canonical digests of its records, in order.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._streams = folder / "streams"
        self.digests: dict[str, list[bytes]] = {split: [] for split in SPLITS}

    def __enter__(self) -> "SplitWriter":
        self._streams.mkdir()
        self._writers = {split: ArrowWriter(features=FEATURES, path=str(self._streams / f"{split}.arrow"),
                                            writer_batch_size=_BATCH) for split in SPLITS}
        return self

    def __exit__(self, *exception) -> None:
        for writer in self._writers.values():
            writer.close()

    def write(self, split: str, record: dict) -> None:
        """Append a record to a split."""
        self.digests[split].append(record_digest(record))
        self._writers[split].write(record)

    def finish(self) -> None:
        """Turn the streams into ``train/``, ``validation/``, ``test/`` and ``dataset_dict.json``."""
        parts = {}
        for split, writer in self._writers.items():
            if self.digests[split]:
                writer.finalize()
                parts[split] = datasets.Dataset.from_file(str(self._streams / f"{split}.arrow"))
        bars = datasets.is_progress_bar_enabled()
        datasets.disable_progress_bars()
        try:
            datasets.DatasetDict(parts).save_to_disk(str(self._folder))
        finally:
            if bars:
                datasets.enable_progress_bars()
        del parts
        shutil.rmtree(self._streams)
