"""Reading a built dataset: normalised, in order, and loud about what is broken."""

import shutil

import datasets
import numpy as np
import pytest
import torch
from breaking import flip
from torchmetrics.functional.classification import binary_auroc

from astrobio import schema
from astrobio.config import ConfigError, load_preset
from astrobio.dataset import AstrobioDataset, dataset_problems
from astrobio.dataset import test_sets as further_sets
from astrobio.metrics import habitability_metrics
from astrobio.normalisation import normalised_spectrum
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
    assert perfect == {"accuracy": 1.0, "roc_auc": 1.0, "ece": 0.0, "brier": 0.0, "nll": 0.0}
    sure_and_wrong = habitability_metrics(torch.tensor([1.0, 0.0]), torch.tensor([0, 1]))
    assert (sure_and_wrong["accuracy"], sure_and_wrong["roc_auc"], sure_and_wrong["ece"]) == (0.0, 0.0, 1.0)
    assert habitability_metrics(torch.tensor([0.2]), torch.tensor([0]))["roc_auc"] is None
    assert habitability_metrics(torch.zeros(0), torch.zeros(0, dtype=torch.long))["accuracy"] is None
    chance, label = torch.rand(50), torch.arange(50) % 2
    assert habitability_metrics(chance, label)["roc_auc"] == pytest.approx(float(binary_auroc(chance, label)))


def test_what_is_learned_is_the_probability_and_where_there_is_none_the_label(dataset):
    def learned(**changes):
        item = dataset._normalised({**dataset._reader[0], **changes})
        batch = dataset.collate([item])
        return float(batch.label_probability), bool(batch.label_probability_known), bool(batch.label_present)

    nan = float("nan")
    assert learned(label_probability=0.25, label=1, label_present=True) == (0.25, True, True)
    assert learned(label_probability=0.5, label=0, label_present=False) == (0.5, True, False)
    assert learned(label_probability=nan, label=1, label_present=True) == (1.0, True, True)
    assert learned(label_probability=nan, label=0, label_present=False) == (0.0, False, False)


def test_what_a_retrieval_looks_for_is_normalised_where_it_is_known(dataset):
    column = [column.name for column in schema.PLANET_COLUMNS].index("co2_vmr")
    record = dict(dataset._reader[0])
    record["retrieval"] = np.array([280.0, np.nan, record["planet"][column], np.nan, 0.0], np.float32)
    batch = dataset.collate([dataset._normalised(record)])
    assert batch.retrieval_known.tolist() == [[True, False, True, False, True]]
    assert not batch.retrieval[~batch.retrieval_known].any()
    assert float(batch.retrieval[0, 2]) == pytest.approx(float(batch.planet[0, column]))  # the same quantity


def test_a_point_that_was_not_observed_weighs_nothing():
    wavelength = np.geomspace(0.6, 20, schema.SPECTRUM_POINTS)
    spectrum = np.stack([wavelength, 1e-4 + 1e-5 * np.sin(wavelength), np.full_like(wavelength, 1e-6)], axis=1)
    spectrum[100:300, 1:] = np.nan
    found, _ = normalised_spectrum(spectrum)
    assert not found[100:300, 1:].any() and np.isfinite(found).all()
    assert (found[:100, 2] > 0.9).all() and np.allclose(found[:, 0], wavelength)
    seen = found[np.r_[0:100, 300:1000], 1]
    assert abs(seen.mean()) < 1e-3 and seen.std() == pytest.approx(1, abs=0.02)


def test_noise_at_one_end_of_the_band_does_not_set_a_spectrums_scale():
    """The signal is the same, with a σ of a fifth of it, and with one of twenty times that at the last wavelengths."""
    rng = np.random.default_rng(0)
    wavelength = np.geomspace(0.6, 20, schema.SPECTRUM_POINTS)
    signal, sigma = 1e-5 * np.sin(5 * np.log(wavelength)), np.full_like(wavelength, 2e-6)
    spreads = []
    for factor in (1, 100):
        sigma[900:] = 2e-6 * factor
        depth = 1e-4 + signal + rng.normal(0, sigma)
        found, spread = normalised_spectrum(np.stack([wavelength, depth, sigma], axis=1))
        spreads.append(spread)
        assert found[:900, 1].std() == pytest.approx(1, abs=0.1)
    assert found[900:, 2].max() < 0.01 < 0.9 < found[:900, 2].min()
    assert spreads[0] == pytest.approx(spreads[1], abs=0.03) == pytest.approx(np.log10(7.07), abs=0.05)


def test_a_spectrum_that_cannot_be_is_refused():
    spectrum = np.ones((schema.SPECTRUM_POINTS, 3))
    with pytest.raises(ValueError, match="σ is not positive"):
        normalised_spectrum(spectrum * [1, 1, 0])
    with pytest.raises(ValueError, match="no wavelength was observed"):
        normalised_spectrum(spectrum * [1, np.nan, np.nan])


def test_further_test_sets_are_opened_where_the_dataset_has_them(mini_dataset, tmp_path):
    folder = shutil.copytree(mini_dataset, tmp_path / "more")
    with pytest.raises(ConfigError, match="has no split 'measured'"):
        AstrobioDataset(folder, "measured", max_text_tokens=64)
    shutil.copytree(folder / "test", folder / "measured")
    assert further_sets(folder) == ["measured"]
    assert len(AstrobioDataset(folder, "measured", max_text_tokens=64)) == 16


def test_the_presets_read_whole_texts(sample_dataset):
    """The last third of a text may tell pressure, CO2 and CH4."""
    for preset in ("tiny", "small"):
        limit = load_preset(preset).language.max_text_tokens
        for split in schema.SPLITS:
            data = AstrobioDataset(sample_dataset, split, max_text_tokens=limit)
            texts = data.tokenizer(list(data.records["text"]), add_special_tokens=False)["input_ids"]
            assert np.mean([len(text) + 2 <= limit for text in texts]) > 0.99, (preset, split)
