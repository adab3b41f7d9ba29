"""Measures the memory of a training process and its data workers before the first step.

    python -m launch.experiments.idle_process    # bytes of both, as JSON

`torch.utils.data.DataLoader` forks the workers, which read ahead, from the rank.
"""

import gc
import json
import os
from typing import Any

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  by ZeroOptimizer_Stage3, late
import psutil
import transformers.models.llama.modeling_llama  # noqa: F401
from torch.utils.data import DataLoader

import launch.train  # noqa: F401  a training process imports all of it
from astrobio.config import load_preset
from launch.memory import resident_bytes
from launch.planner.model import nominal_batch

#: After so many batches a worker holds what it will: measured, 15 MB after the first and 18 after ten.
_BATCHES = 10


def worker_bytes() -> int:
    """Private memory of one worker: what it does not share with its rank. Pages of the dataset's files are not counted:
    the system takes them back when it needs them.

    This process must have imported what training imports; another one is forked from it to be the rank.
    """
    reader, writer = os.pipe()
    if (rank := os.fork()) == 0:
        try:
            os.write(writer, str(_measure()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        said = answer.read()
    os.waitpid(rank, 0)
    return int(said)


def _measure() -> int:
    config = load_preset("tiny", {})
    records: Any = range(2 * _BATCHES)  # a loader takes any sequence
    batches: Any = iter(DataLoader(records, collate_fn=lambda _: nominal_batch(config), num_workers=1))
    for _ in range(_BATCHES):
        next(batches)
    private = psutil.Process(batches._workers[0].pid).memory_full_info().uss
    del batches  # ends the worker
    return private


if __name__ == "__main__":
    gc.collect()
    gc.freeze()
    print("\n" + json.dumps({"worker": worker_bytes(), "imported": resident_bytes()}), flush=True)
