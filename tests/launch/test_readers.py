"""The processes that read ahead: started before the engine, so that what the rank writes later is not kept twice."""

from pathlib import Path

import psutil
import torch
from launching import run_script
from project import DS_CONFIGS

from astrobio.dataset import AstrobioDataset
from launch.readers import Readers, end_readers

MB = 1 << 20


def test_a_reader_holds_nothing_of_what_the_rank_writes_later(mini_dataset):
    data = AstrobioDataset(mini_dataset, "train", max_text_tokens=64)
    readers = Readers(data, 1)
    try:
        (reader,) = (psutil.Process(worker.pid) for worker in readers._loader._iterator._workers)
        optimizer = torch.zeros(240 * MB // 4)
        batches = readers.batches([list(range(4)), list(range(4, 8)), list(range(8, 12))])
        first, before = next(batches), reader.memory_full_info().uss
        optimizer += 1
        assert first.run_ids == data.run_ids(range(4)) and next(batches).run_ids == data.run_ids(range(4, 8))
        assert reader.memory_full_info().uss - before < 40 * MB
    finally:
        end_readers()


def test_they_are_started_before_the_engine(mini_dataset, tmp_path):
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = run_script(
        Path(__file__).with_name("leave_at_engine.py"),
        "--ds_config",
        DS_CONFIGS["zero3_offload"],
        "--model",
        "tiny",
        "--data",
        mini_dataset,
        "--run",
        tmp_path / "run",
        "--set",
        "train.data_workers=2",
        **alone,
    )
    assert "readers 2\n" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
