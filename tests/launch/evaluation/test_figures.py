import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.classification import binary_calibration_error

from astrobio.schema import RETRIEVAL_COLUMNS
from launch.evaluation import assessment
from launch.evaluation.figures import bootstrap, calibration_error_of, classification, mean_score, paired, roc_auc_of
from launch.evaluation.scores import emulation_scores, gaussian_crps, inside, share_told


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_bootstrap_draws_planets_not_records(rng):
    """100 records of 4 planets are 4 pieces of evidence."""
    planets = np.repeat(["a", "b", "c", "d"], 25)
    scores = np.repeat([0.0, 0.0, 1.0, 1.0], 25)
    by_planet = mean_score(scores, planets)
    by_record = mean_score(scores, np.arange(100).astype(str))
    assert by_planet.value == by_record.value == 0.5
    assert by_planet.high - by_planet.low > 4 * (by_record.high - by_record.low) * 0.9


def test_interval_holds_the_truth_as_often_as_it_says(rng):
    held = []
    for _ in range(60):
        shift = np.repeat(rng.normal(0, 1, 40), 3)  # what the records of a planet have in common
        figure = mean_score(shift + rng.normal(0, 0.3, 120), np.repeat(np.arange(40), 3))
        held.append(figure.low <= 0 <= figure.high)
    assert 0.85 <= np.mean(held) <= 1


def test_figures_that_cannot_be_had():
    assert bootstrap(np.array([]), lambda weights: weights.sum(1)).value is None
    one_class = classification(np.array([0.2, 0.4]), np.array([0.0, 0.0]), np.array(["a", "b"]))
    assert one_class["roc_auc"].value is None and one_class["accuracy"].value == 1


def test_calibration_error_is_that_of_torchmetrics(rng):
    import torch

    probability, label = rng.random(500), rng.integers(0, 2, 500)
    other = binary_calibration_error(torch.tensor(probability), torch.tensor(label), n_bins=15)
    assert calibration_error_of(probability, label)(np.ones((1, 500)))[0] == pytest.approx(float(other), abs=1e-6)


def test_roc_auc_is_that_of_sklearn_with_ties_and_weights(rng):
    label = rng.integers(0, 2, 300)
    probability = np.round(rng.random(300) * 0.5 + label * 0.3, 1)
    weights = rng.integers(0, 3, (4, 300)).astype(float)
    for row, found in zip(weights, roc_auc_of(probability, label)(weights), strict=True):
        assert found == pytest.approx(roc_auc_score(label, probability, sample_weight=row))
    assert roc_auc_of(np.full(300, 0.5), label)(weights[:1])[0] == pytest.approx(0.5)


def test_paired_test_sees_a_difference_and_not_noise(rng):
    planets = np.repeat(np.arange(50), 4)
    ours = rng.normal(0, 1, 200)
    difference, p = paired(ours, ours + rng.normal(0, 0.1, 200), planets)
    assert abs(difference) < 0.05 and p > 0.05
    difference, p = paired(ours, ours + 0.05 + rng.normal(0, 0.1, 200), planets)
    assert difference == pytest.approx(-0.05, abs=0.03) and p < 0.001


def test_gaussian_crps_is_the_integral_it_stands_for():
    x = np.linspace(-30, 30, 200_001)
    for mean, sigma, truth in ((0.0, 1.0, 0.3), (2.0, 0.5, -1.0)):
        integral = np.trapezoid((norm.cdf(x, mean, sigma) - (x >= truth)) ** 2, x)
        assert gaussian_crps(np.array(mean), np.array(sigma), np.array(truth)) == pytest.approx(integral, abs=1e-3)


def test_inside_holds_as_many_as_it_says(rng):
    truth = rng.normal(0, 2, 20_000)
    for share in (0.5, 0.9):
        assert inside(np.zeros(20_000), np.full(20_000, 2.0), truth, share).mean() == pytest.approx(share, abs=0.02)
    assert np.isnan(inside(np.zeros(1), np.ones(1), np.array([np.nan]), 0.5)).all()


def test_emulation_scores_of_the_mean_the_truth_and_a_polar_error():
    truth = np.random.default_rng(1).normal(size=(3, 53, 32, 64)).astype(np.float32)
    mean = truth.mean(0)
    assert emulation_scores(truth, truth, mean)["rmse"] == pytest.approx(0)
    assert emulation_scores(truth, truth, mean)["correlation"] == pytest.approx(1, abs=1e-5)
    assert emulation_scores(np.broadcast_to(mean, truth.shape), truth, mean)["correlation"] == pytest.approx(0)
    pole, equator = truth.copy(), truth.copy()
    pole[:, :, 0], equator[:, :, 16] = pole[:, :, 0] + 1, equator[:, :, 16] + 1
    errors = [emulation_scores(fields, truth, mean)["rmse"][0] for fields in (pole, equator)]
    assert errors[0] < errors[1] / 3


def table(probability, label, planets) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "run_id": [f"{planet}/{i}" for i, planet in enumerate(planets)],
            "planet_key": planets,
            "observed": True,
            "label": label,
            "labelled": True,
            "label_probability": 0.9,
            "habitable": probability,
        }
    )


def test_comparison_takes_the_best_simple_model_and_says_where_the_stack_loses(rng):
    planets = [f"planet {i // 4}" for i in range(200)]
    label = rng.integers(0, 2, 200)
    good, bad = np.where(label == 1, 0.9, 0.1), np.where(rng.random(200) < 0.7, label, 1 - label).astype(float)
    index = table(good, label, planets)["run_id"]
    simple = pd.DataFrame({("good", "habitable"): good, ("bad", "habitable"): bad}).set_index(index)
    worse = assessment.compare([table(bad, label, planets)], simple)[0]
    assert worse.best == "good" and worse.simple.value == 1
    assert worse.gain == pytest.approx(worse.stack.value - 1) and worse.verdict == "stack worse"
    even = assessment.compare([table(good, label, planets)] * 2, simple)[0]
    assert even.runs == [1.0, 1.0] and even.verdict == "no difference"
    better = assessment.compare([table(good, label, planets)], simple[["bad"]])[0]
    assert better.verdict == "stack better" and better.p < 0.01
    assert assessment.label_ceiling(table(good, label, planets)) == pytest.approx(0.9)
    printed = assessment.assess([table(bad, label, planets)], simple)
    assert "stack worse" in str(printed) and "observed planets" in str(printed)
    assert printed.to_dict()["tasks"][0]["verdict"] == "stack worse"
    json.dumps(printed.to_dict())


def test_retrieval_is_scored_over_all_columns():
    names = [f"retrieval crps {column.name}" for column in RETRIEVAL_COLUMNS]
    scores = assessment._retrieval(pd.DataFrame([dict.fromkeys(names, 0.5) | {names[0]: 1.0}]))
    assert scores[0] == pytest.approx((1.0 + 0.5 * (len(names) - 1)) / len(names))


def test_a_number_counts_if_it_is_told_to_a_tenth():
    assert share_told({"a": 1.05, "b": 3.0, "d": 1.0}, {"a": 1.0, "b": 2.0, "c": 5.0}) == pytest.approx(1 / 3)
