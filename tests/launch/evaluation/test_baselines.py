"""The simple models find what is there to be found, and say nothing where there is nothing."""

import numpy as np
import pytest
import threadpoolctl

from astrobio.schema import MODALITIES, PLANET_COLUMNS, RETRIEVAL_COLUMNS
from launch.evaluation import baselines
from launch.evaluation.features import SPECTRUM_BINS, Features, Fields

COLUMNS, TARGETS = len(PLANET_COLUMNS), len(RETRIEVAL_COLUMNS)


def planets(count: int, seed: int) -> Features:
    """``count`` records, each of a planet of its own. It is habitable where its first number is positive, the spectrum
    has it in its first bin, and the first thing to retrieve is four times the sign of the second bin."""
    rng = np.random.default_rng(seed)
    planet = rng.normal(size=(count, COLUMNS))
    spectrum = rng.normal(size=(count, 2 * SPECTRUM_BINS + 1))
    spectrum[:, 0] = planet[:, 0]
    retrieval = rng.normal(size=(count, TARGETS))
    retrieval[:, 0] = 4 * np.sign(spectrum[:, 1])
    names = np.array([f"planet_{seed}_{i}" for i in range(count)])
    return Features(
        run_id=np.char.add(names, "/0"),
        planet_key=names,
        label=(planet[:, 0] > 0).astype(int),
        labelled=np.ones(count, bool),
        present=dict.fromkeys(MODALITIES, np.ones(count, bool)),
        planet=planet,
        climate=planet[:, :4],
        metabolism=rng.normal(size=(count, 5)),
        spectrum=spectrum,
        retrieval=retrieval,
    )


def climates(of: Features) -> Fields:
    """Two fields that swing with the first number; no other number matters."""
    amount = np.sin(2 * of.planet[:, 0])
    pattern = np.cos(np.linspace(0, 2 * np.pi, 64, endpoint=False))[None] * np.ones((32, 1))
    values = np.stack([amount, amount**2], axis=1)[..., None, None] * (1 + pattern)
    return Fields(np.arange(len(of)), values.astype(np.float32))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    with threadpoolctl.threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def records() -> tuple[Features, Features]:
    return planets(120, seed=0), planets(40, seed=1)


def test_a_gaussian_process_finds_which_number_matters(records):
    """Fourteen numbers, one of which matters: a length scale for all alike would take them for a cloud of points."""
    train, test = records
    truth = climates(test)
    error = {
        name: emulation_errors(fields, truth, climates(train))
        for name, fields in baselines.emulators(train, climates(train), test, truth)
    }
    assert error["Gaussian process"] < 0.1 < 0.3 < min(error["kernel regression of global means"], error["mean field"])


def emulation_errors(fields: np.ndarray, truth: Fields, train: Fields) -> float:
    squares = (fields - truth.values) ** 2
    return float(np.sqrt(squares.mean((1, 2, 3))).mean() / train.values.std())


def test_classifiers_see_what_they_are_given(records):
    train, test = records
    right = {
        name: np.mean((probability >= 0.5) == test.label)
        for name, probability in baselines.classifiers(train, test).items()
    }
    assert right.pop("majority class") < 0.8 and min(right.values()) > 0.85


def test_retrieval_is_tuned_and_as_wide_as_its_errors(records):
    train, test = records
    scores = baselines.retrievers(train, test)
    first, last = (f"retrieval crps {RETRIEVAL_COLUMNS[i].name}" for i in (0, -1))
    spread, boosted = scores["spread of the train records"], scores["gradient boosting"]
    assert boosted[first].mean() < 0.2 * spread[first].mean()
    assert boosted[last].mean() > 0.9 * spread[last].mean()  # nothing tells of it
    held = boosted[f"retrieval inside 90% {RETRIEVAL_COLUMNS[-1].name}"]
    assert 0.75 < held.mean() <= 1


def test_with_too_few_planets_to_tune_on_only_the_plainest_are_left(records):
    few = planets(6, seed=2)
    assert list(baselines.classifiers(few, records[1])) == ["majority class"]
    assert [name for name, _ in baselines.emulators(few, climates(few), records[1], climates(records[1]))] == [
        "mean field"
    ]
