"""Single records as views of the mapped files, datasets behind a URL, and batches between processes."""

import dataclasses
import multiprocessing
import pickle

import datasets
import fsspec
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from astrobio import schema
from astrobio.config import ConfigError
from astrobio.dataset import AstrobioDataset, dataset_problems
from astrobio.reading import RecordReader, local_copy
from astrobio.sampler import SampleOrder
from astrobio.transfer import packed, unpacked


@pytest.fixture(scope="module")
def split(mini_dataset) -> datasets.Dataset:
    return datasets.load_from_disk(str(mini_dataset / "train"))


def same(ours, theirs) -> None:
    """One record by both ways of reading."""
    for name, value in theirs.items():
        if name == "provenance":
            assert ours[name] == value
        elif isinstance(value, (str, bool, int)):
            assert ours[name] == value, name
        elif ours[name] is None:  # `datasets` makes NaN of an absent array
            assert value is None or np.isnan(value), name
        else:
            np.testing.assert_array_equal(np.asarray(ours[name]), np.asarray(value), err_msg=name)


def test_a_record_is_what_datasets_reads(split):
    reader = RecordReader(split)
    assert {bool(split[i][f"{m}_present"]) for i in range(len(split)) for m in schema.OPTIONAL_MODALITIES} == {
        True,
        False,
    }
    for index in range(0, len(split), 5):
        same(reader[index], split[index])


def test_an_array_is_a_view_of_the_file(split):
    reader = RecordReader(split)
    index = next(i for i in range(len(split)) if split[i]["climate_present"])
    first, second = reader[index]["climate_levels"], reader[index]["climate_levels"]
    assert np.shares_memory(first, second) and not first.flags.owndata and not first.flags.writeable


@pytest.mark.parametrize("index", [-1, 10**9])
def test_a_record_outside_of_the_split_is_an_error(split, index):
    with pytest.raises(IndexError, match=f"record {index} of {len(split)}"):
        RecordReader(split)[index]


def test_a_reader_goes_to_another_process_without_its_data(split):
    reader = RecordReader(split)
    same(reader[3], split[3])
    assert len(pickle.dumps(reader)) < 100_000
    same(pickle.loads(pickle.dumps(reader))[3], split[3])


def test_positions_in_64_gb_of_records_are_found_without_the_data(sample_dataset):
    """The mapped files of the sample, many times over: as many records as 64 GB have."""
    split = datasets.load_from_disk(str(sample_dataset / "train"))
    bytes_of_a_record = sum(
        int(np.prod(feature.shape)) * np.dtype(feature.dtype).itemsize
        for feature in (schema.FEATURES["climate_levels"], schema.FEATURES["climate_surface"])
    )
    times = -(-64 * 10**9 // (bytes_of_a_record * len(split)))
    whole = datasets.concatenate_datasets([split] * times)
    assert len(whole) * bytes_of_a_record >= 64 * 10**9
    reader, last = RecordReader(whole), len(whole) - 1
    for index in (0, 1, len(split) - 1, len(split), last // 2, last - 1, last):
        assert reader[index]["run_id"] == split[index % len(split)]["run_id"]
        same(reader[index], split[index % len(split)])
    order = SampleOrder(len(whole), seed=1)
    near_the_end = order.indices(len(whole) - 8, 16)
    assert max(near_the_end) < len(whole) and len(set(near_the_end[:8])) == 8
    assert {reader[index]["run_id"] for index in near_the_end} <= set(split["run_id"])


@pytest.fixture
def remote(mini_dataset):
    """The dataset in fsspec's memory, as it would be in a bucket."""
    memory = fsspec.filesystem("memory")
    for path in mini_dataset.rglob("*"):
        if path.is_file():
            memory.pipe_file(f"/bucket/set/{path.relative_to(mini_dataset).as_posix()}", path.read_bytes())
    yield memory
    memory.rm("/bucket", recursive=True)


def test_a_dataset_behind_a_url_is_read_from_a_local_copy(remote, mini_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("ASTROBIO_CACHE", str(tmp_path))
    there, here = (
        AstrobioDataset(where, "train", max_text_tokens=64) for where in ("memory://bucket/set", mini_dataset)
    )
    assert there.folder.is_relative_to(tmp_path) and dataset_problems("memory://bucket/set") == []
    np.testing.assert_array_equal(there[5]["planet"], here[5]["planet"])
    remote.rm("/bucket/set/train", recursive=True)  # the second time it is not fetched
    assert len(AstrobioDataset("memory:/bucket/set", "train", max_text_tokens=64)) == len(here)  # as pathlib writes it


def test_a_copy_that_broke_off_goes_on(remote, tmp_path, monkeypatch):
    monkeypatch.setenv("ASTROBIO_CACHE", str(tmp_path))
    copy = local_copy("memory://bucket/set")
    (copy / "stats.json").write_text("damaged")
    (copy / "test/state.json").unlink()
    fetched = []
    get_file = type(remote).get_file
    monkeypatch.setattr(
        type(remote),
        "get_file",
        lambda self, path, *rest, **more: (
            fetched.append(path.removeprefix("/bucket/set/")),
            get_file(self, path, *rest, **more),
        ),
    )
    assert local_copy("memory://bucket/set") == copy
    assert sorted(fetched) == ["stats.json", "test/state.json"] and dataset_problems(copy) == []


def test_a_damaged_dataset_behind_a_url_is_named(remote, tmp_path, monkeypatch):
    monkeypatch.setenv("ASTROBIO_CACHE", str(tmp_path))
    remote.pipe_file("/bucket/set/stats.json", b"{}")
    with pytest.raises(ConfigError, match="memory://bucket/set/stats.json: its sha256"):
        local_copy("memory://bucket/set")


@pytest.mark.parametrize("url", ["memory://nowhere/at/all", "nosuch://bucket/set"])
def test_a_url_without_a_dataset_is_named(url, tmp_path, monkeypatch):
    monkeypatch.setenv("ASTROBIO_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=f"{url}: no dataset can be read there"):
        AstrobioDataset(url, "train", max_text_tokens=64)


def tensors_of(batch) -> dict:
    found = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, torch.Tensor):
            found[field.name] = value
        elif isinstance(value, dict):
            found |= {f"{field.name}.{key}": item for key, item in value.items()}
        elif field.name == "graphs":
            found |= {f"graphs.{key}": item for key, item in value.to_dict().items() if isinstance(item, torch.Tensor)}
    return found


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_a_batch_comes_whole_from_a_loaders_process(mini_dataset, start_method):
    data = AstrobioDataset(mini_dataset, "train", max_text_tokens=64)
    loader = torch.utils.data.DataLoader(
        data,
        batch_size=4,
        collate_fn=data.collate,
        num_workers=1,
        multiprocessing_context=multiprocessing.get_context(start_method),
    )
    found, expected = next(iter(loader)), data.collate([data[i] for i in range(4)])
    assert found.run_ids == expected.run_ids and found.graphs.num_graphs == 4
    ours, theirs = tensors_of(found), tensors_of(expected)
    assert ours.keys() == theirs.keys() and len(ours) > 15
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype and torch.equal(ours[name], value), name


def test_a_batch_goes_to_a_card_in_one_copy(mini_dataset):
    """The meta device stands for the card: it takes copies as one does, and keeps no numbers."""

    class Copies(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen += func is torch.ops.aten._to_copy.default
            return func(*args, **(kwargs or {}))

    data = AstrobioDataset(mini_dataset, "train", max_text_tokens=64)
    batch = data.collate([data[i] for i in range(4)])
    with Copies() as copies:
        moved = batch.to("meta")
    assert copies.seen == 1 and moved.run_ids == batch.run_ids and moved.graphs.longest == batch.graphs.longest
    ours, theirs = tensors_of(moved), tensors_of(batch)
    assert ours.keys() == theirs.keys() and all(tensor.device.type == "meta" for tensor in ours.values())
    assert all(ours[name].shape == theirs[name].shape and ours[name].dtype is theirs[name].dtype for name in theirs)
    assert tensors_of(batch.to("cpu"))["planet"].equal(theirs["planet"])


def test_tensors_of_every_kind_survive_packing():
    state = {
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "strided": torch.arange(12).view(3, 4).T,
        "half": torch.ones(3, dtype=torch.float16),
        "text": "as it is",
    }
    again = unpacked(*packed(state))
    assert again["text"] == "as it is"
    for name in ("bool", "scalar", "empty", "strided", "half"):
        assert again[name].dtype == state[name].dtype and torch.equal(again[name], state[name])
