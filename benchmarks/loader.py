"""How fast records are read: the training loader beside plain `datasets` indexing and a DataLoader over .npz files.

    python benchmarks/loader.py [--data DIR] [--records N]

All three read the same records in the same order, without worker processes, on one thread, in turns; the medians of
several turns are compared. First the record alone, as NumPy arrays; then the whole way to the batch that the stack
reads, where normalisation, tokenizer and collation are the same for all three. Last, the share of a `tiny` training
step that waits for data, with the loader as `launch/loop.py` sets it up.

Prints one JSON object.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import torch

from astrobio import schema
from astrobio.config import load_preset
from astrobio.dataset import AstrobioDataset
from astrobio.sampler import SampleOrder
from astrobio.stack import AstrobioStack
from launch import ROOT

BATCH, TURNS = 8, 5


class NpzFiles(torch.utils.data.Dataset):
    """The same records as uncompressed .npz files, one each: the plainest thing a researcher would write."""

    def __init__(self, folder: Path, data: AstrobioDataset, indices: list[int]):
        self._paths = {}
        for index in indices:
            record = data._reader[index]
            provenance = json.dumps(record.pop("provenance"))
            path = self._paths[index] = folder / f"{index}.npz"
            np.savez(
                path, provenance=provenance, **{name: value for name, value in record.items() if value is not None}
            )

    def __getitem__(self, index: int) -> dict:
        with np.load(self._paths[index]) as file:
            record = {name: file[name] for name in file.files}
        record["provenance"] = json.loads(str(record["provenance"]))
        return record

    def __len__(self) -> int:
        return len(self._paths)


def touch(record: dict) -> float:
    """Read from every page of every array: a view alone would have read nothing of the file."""
    return sum(
        float(value.reshape(-1)[::1024].sum())
        for name in schema.FEATURES
        if isinstance(value := record.get(name), np.ndarray) and value.dtype.kind in "fi"
    )


def samples_per_second(read: Callable[[], Iterator], count: int) -> float:
    start = time.perf_counter()
    for _ in read():
        pass
    return count / (time.perf_counter() - start)


def measure(data: AstrobioDataset, folder: Path, count: int) -> dict:
    """Medians over `TURNS` turns; in each turn the three come one after the other."""
    indices = SampleOrder(len(data), seed=0).indices(0, count)
    plain, npz = data.records, NpzFiles(folder, data, sorted(set(indices)))
    batches = [indices[start : start + BATCH] for start in range(0, count, BATCH)]

    def loader(dataset, collate) -> Iterator:
        return iter(torch.utils.data.DataLoader(dataset, batch_sampler=batches, collate_fn=collate))

    def batched(records: list[dict]):
        return data.collate([data._normalised(record) for record in records])

    class Plain(torch.utils.data.Dataset):
        __getitem__ = plain.__getitem__

    readings = {
        "record": {
            "ours": lambda: (touch(data._reader[index]) for index in indices),
            "datasets": lambda: (touch(plain[index]) for index in indices),
            "npz": lambda: loader(npz, lambda records: [touch(record) for record in records]),
        },
        "batch": {
            "ours": lambda: loader(data, data.collate),
            "datasets": lambda: loader(Plain(), batched),
            "npz": lambda: loader(npz, batched),
        },
    }
    figures: dict = {}
    for what, ways in readings.items():
        for read in ways.values():
            samples_per_second(read, count)  # the files are in the page cache from here on
        turns = [{name: samples_per_second(read, count) for name, read in ways.items()} for _ in range(TURNS)]
        medians = {name: round(statistics.median(turn[name] for turn in turns), 1) for name in ways}
        faster = max(medians["datasets"], medians["npz"])
        figures[what] = {"samples_per_s": medians, "ours_over_the_faster": round(medians["ours"] / faster, 3)}
    return figures


def waiting(data: AstrobioDataset, workers: int, steps: int = 30, warm_up: int = 5) -> dict:
    """The share of `tiny` training steps that waits for the next batch."""
    torch.manual_seed(0)
    stack = AstrobioStack(load_preset("tiny")).train()
    optimizer = torch.optim.AdamW(stack.parameters())
    loader = torch.utils.data.DataLoader(
        data,
        collate_fn=data.collate,
        num_workers=workers,
        batch_sampler=SampleOrder(len(data), seed=0).micro_batches(BATCH, 0, 1),
    )
    batches, waited, worked = iter(loader), 0.0, 0.0
    for step in range(steps + warm_up):
        start = time.perf_counter()
        batch = next(batches)
        got = time.perf_counter()
        stack(batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step >= warm_up:
            waited, worked = waited + got - start, worked + time.perf_counter() - got
    return {
        "data_workers": workers,
        "micro_batch": BATCH,
        "step_s": round((waited + worked) / steps, 4),
        "waiting": round(waited / (waited + worked), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT / "data/sample")
    parser.add_argument("--records", type=int, default=400)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    data = AstrobioDataset(arguments.data, "train", load_preset("tiny").language.max_text_tokens)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(data, Path(folder), arguments.records)
    figures["tiny_step"] = [waiting(data, workers) for workers in (0, 1)]
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
