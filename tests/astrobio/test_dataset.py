"""Reading a built dataset: normalised, in order, and loud about what is broken."""

import shutil

import datasets
import numpy as np
import pytest
import torch
from breaking import flip
from torchmetrics.functional.classification import binary_auroc

from astrobio import schema
from astrobio.config import ConfigError
from astrobio.dataset import AstrobioDataset, dataset_problems
from astrobio.metrics import baselines, habitability_metrics
from astrobio.sampler import SampleOrder


@pytest.fixture(scope="module")
def dataset(mini_dataset) -> AstrobioDataset:
    return AstrobioDataset(mini_dataset, "train", max_text_tokens=64)


def test_the_whole_sample_is_normalised_over_its_train_split(sample_dataset):
    train = AstrobioDataset(sample_dataset, "train", max_text_tokens=64)
    items = [train[i] for i in range(0, len(train), 3)]
    known = np.stack([item["planet_known"] for item in items])
    planet = np.stack([item["planet"] for item in items])
    for i, column in enumerate(schema.PLANET_COLUMNS):
        values = planet[known[:, i], i]
        assert abs(values.mean()) < 0.3 and 0.5 < values.std() < 1.5, column.name
    levels = np.stack([item["climate_levels"] for item in items if item["present"]["climate"]])
    assert np.abs(levels.mean((0, 2, 3, 4, 5))).max() < 0.2
    assert np.abs(levels.std((0, 2, 3, 4, 5)) - 1).max() < 0.3


def test_absent_modalities_are_zeros_and_say_so(dataset):
    items = [dataset[i] for i in range(len(dataset))]
    for name, fields in (("climate", ("climate_levels", "climate_surface")), ("spectrum", ("spectrum",))):
        absent = [item for item in items if not item["present"][name]]
        assert absent and len(absent) < len(items)
        assert not any(item[field].any() for item in absent for field in fields)
        assert all(item["quality"][name] == 0 for item in absent)


def test_texts_are_framed_and_cut(mini_dataset):
    short = AstrobioDataset(mini_dataset, "train", max_text_tokens=16)
    batch = short.collate([short[i] for i in range(8)])
    assert batch.tokens.shape[1] == 16
    assert (batch.tokens[:, 0] == short.tokenizer.bos_token_id).all()
    last = batch.real.sum(1) - 1
    assert (batch.tokens[torch.arange(8), last] == short.tokenizer.eos_token_id).all()


def test_a_corrupt_record_is_named_not_skipped(mini_dataset, tmp_path):
    folder = shutil.copytree(mini_dataset, tmp_path / "corrupt")
    parts = datasets.load_from_disk(str(mini_dataset))

    def spoil(record, index):
        if index == 3:
            record["planet"] = [float("nan")] * len(record["planet"])
            record["planet_mask"] = [True] * len(record["planet"])
        return record

    shutil.rmtree(folder / "train")
    parts["train"].map(spoil, with_indices=True, features=schema.FEATURES).save_to_disk(str(folder / "train"))
    spoilt = AstrobioDataset.__new__(AstrobioDataset)
    whole = AstrobioDataset(mini_dataset, "train", max_text_tokens=64)
    spoilt.__dict__.update(whole.__dict__)
    spoilt.records = datasets.load_from_disk(str(folder / "train")).with_format("numpy")
    spoilt[2]
    with pytest.raises(ValueError, match=f"record 3 \\({whole.run_ids([3])[0]}\\) is corrupt: planet"):
        spoilt[3]


def test_a_changed_file_is_named(mini_dataset, tmp_path):
    folder = shutil.copytree(mini_dataset, tmp_path / "changed")
    assert dataset_problems(folder) == []
    flip(folder / "stats.json")
    assert [str(folder / "stats.json") in problem for problem in dataset_problems(folder)] == [True]
    (folder / "stats.json").unlink()
    with pytest.raises(ConfigError, match="stats.json: missing"):
        AstrobioDataset(folder, "train", max_text_tokens=64)


def test_every_record_comes_once_in_each_epoch():
    order = SampleOrder(size=10, seed=3)
    stream = order.indices(0, 30)
    for epoch in range(3):
        assert sorted(stream[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert stream[:10] != stream[10:20]
    assert stream != SampleOrder(size=10, seed=4).indices(0, 30)
    assert order.indices(7, 6) == stream[7:13]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_global_order_does_not_depend_on_the_ranks(ranks):
    """Micro-batch m of N ranks; together they read the stream from where it stood."""
    order = SampleOrder(size=13, seed=0, consumed_global=8)
    streams = [order.micro_batches(2, rank, ranks) for rank in range(ranks)]
    read = [i for _ in range(8 // ranks) for stream in streams for i in next(stream)]
    assert read == order.indices(8, 16)


def test_the_order_is_restored_and_refuses_other_data():
    order = SampleOrder(size=13, seed=5, consumed_global=21)
    other = SampleOrder(size=13, seed=0)
    other.load_state_dict(order.state_dict())
    assert other == order and other.epoch == 1
    with pytest.raises(ValueError, match="saved over 13 training records"):
        SampleOrder(size=14, seed=0).load_state_dict(order.state_dict())


def test_figures_of_merit_of_known_predictions():
    perfect = habitability_metrics(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0, 1, 1]))
    assert perfect == {"accuracy": 1.0, "roc_auc": 1.0, "ece": 0.0}
    sure_and_wrong = habitability_metrics(torch.tensor([1.0, 0.0]), torch.tensor([0, 1]))
    assert sure_and_wrong == {"accuracy": 0.0, "roc_auc": 0.0, "ece": 1.0}
    assert habitability_metrics(torch.tensor([0.2]), torch.tensor([0]))["roc_auc"] is None
    assert habitability_metrics(torch.zeros(0), torch.zeros(0, dtype=torch.long))["accuracy"] is None
    chance, label = torch.rand(50), torch.arange(50) % 2
    assert habitability_metrics(chance, label)["roc_auc"] == pytest.approx(float(binary_auroc(chance, label)))


def test_baselines_on_the_sample(sample_dataset):
    splits = [AstrobioDataset(sample_dataset, split, max_text_tokens=64) for split in ("train", "test")]
    found = baselines(*splits)
    assert found["majority_class"] == pytest.approx(0.5, abs=0.05)
    assert 0.5 < found["logistic_regression_on_planet_table"] < 0.95
