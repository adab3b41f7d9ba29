"""Figures of merit and mixtures against closed forms, scipy, scikit-learn and brute force."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import brier_score_loss, log_loss

from astrobio.metrics import anomaly_correlation, area_rmse, crps_of_samples, habitability_metrics, interval_coverage
from astrobio.mixture import Mixture, mixture

KNOWN = torch.ones(1, 1, dtype=torch.bool)


def normal(mean=0.0, std=1.0) -> Mixture:
    return Mixture(torch.zeros(1, 1), torch.tensor([[[mean]]]), torch.tensor([[[std]]]))


@pytest.fixture
def three() -> Mixture:
    """Three components over two columns, of four records."""
    torch.manual_seed(0)
    return mixture(torch.randn(4, 3, 5), columns=2)


def samples_of(three: Mixture, count: int) -> torch.Tensor:
    torch.manual_seed(1)
    chosen = torch.distributions.Categorical(logits=three.log_weight).sample((count,))[..., None, None]
    pick = lambda x: x.expand(count, -1, -1, -1).gather(2, chosen.expand(-1, -1, 1, 2)).squeeze(2)  # noqa: E731
    return pick(three.mean) + pick(three.std) * torch.randn(count, 4, 2)


def test_brier_score_and_likelihood_are_those_of_scikit_learn():
    torch.manual_seed(0)
    chance, label = torch.rand(200), torch.randint(2, (200,))
    found = habitability_metrics(chance, label)
    assert found["brier"] == pytest.approx(brier_score_loss(label, chance), rel=1e-5)
    assert found["nll"] == pytest.approx(log_loss(label, chance.double()), rel=1e-4)


@pytest.mark.parametrize("value", [-2.0, 0.0, 0.7])
def test_one_component_is_a_normal_distribution(value):
    found, y = normal(0.5, 2.0), torch.tensor([[value]])
    theirs = stats.norm(0.5, 2.0)
    assert found.nll(y, KNOWN).item() == pytest.approx(-theirs.logpdf(value), rel=1e-5)
    assert found.cdf(y).item() == pytest.approx(theirs.cdf(value), rel=1e-5)
    for share in (0.05, 0.5, 0.9):
        assert found.quantile(share).item() == pytest.approx(theirs.ppf(share), abs=1e-4)
    z = (value - 0.5) / 2.0  # Gneiting & Raftery 2007, eq. 21
    closed = 2.0 * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi))
    assert found.crps(y).item() == pytest.approx(closed, rel=1e-5)


def test_a_mixture_is_what_its_samples_are(three):
    values, samples = torch.randn(4, 2), samples_of(three, 20_000)
    torch.testing.assert_close(three.crps(values), crps_of_samples(samples, values), atol=0.02, rtol=0.02)
    torch.testing.assert_close(three.expectation(), samples.mean(0), atol=0.05, rtol=0.05)
    torch.testing.assert_close(three.cdf(values), (samples < values).float().mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(three.cdf(three.quantile(0.3)), torch.full((4, 2), 0.3))
    low, high = three.quantile(0.05), three.quantile(0.95)
    within = interval_coverage(low.flatten(), high.flatten(), samples.flatten(1), torch.ones(20_000, 8) > 0)
    torch.testing.assert_close(within, torch.full((8,), 0.9), atol=0.02, rtol=0)


def test_unknown_columns_are_integrated_out(three):
    values = torch.randn(4, 2)
    first = torch.tensor([[True, False]]).expand(4, 2)
    alone = Mixture(three.log_weight, three.mean[..., :1], three.std[..., :1])
    torch.testing.assert_close(three.nll(values, first), alone.nll(values[:, :1], first[:, :1]))
    assert not three.nll(values, torch.zeros(4, 2, dtype=torch.bool)).abs().gt(1e-6).any()


def test_a_density_stays_finite_where_a_value_is_hit():
    numbers = torch.tensor([[[0.0, 1.0, -1e4]]], requires_grad=True)
    nll = mixture(numbers, 1).nll(torch.tensor([[1.0]]), KNOWN)
    nll.sum().backward()
    assert nll.isfinite().all() and numbers.grad.isfinite().all()


def test_crps_of_samples_is_that_of_all_pairs_and_of_one_point_the_distance():
    torch.manual_seed(0)
    samples, value = torch.randn(30, 2), torch.tensor([0.3, -1.0])
    pairs = (samples[:, None] - samples[None]).abs().sum((0, 1)) / (30 * 29)
    torch.testing.assert_close(crps_of_samples(samples, value), (samples - value).abs().mean(0) - pairs / 2)
    torch.testing.assert_close(crps_of_samples(torch.ones(5, 2), value), (1 - value).abs())


def test_coverage_counts_what_is_known():
    low, high = torch.zeros(3, 2), torch.ones(3, 2)
    values = torch.tensor([[0.5, 2.0], [2.0, 0.0], [0.5, 0.5]])
    known = torch.tensor([[True, False], [True, False], [True, False]])
    found = interval_coverage(low, high, values, known)
    assert found[0].item() == pytest.approx(2 / 3) and found[1].isnan()


def test_fields_are_weighted_by_area():
    true = torch.zeros(2, 3, 32, 64)
    predicted = true.clone()
    predicted[:, 1] = 2.0
    predicted[:, 2, 0] = 1.0
    share = (1 + math.sin(-math.pi / 2 + math.pi / 32)) / 2
    torch.testing.assert_close(area_rmse(predicted, true), torch.tensor([0.0, 2.0, math.sqrt(share)]))


def test_anomaly_correlation_is_that_of_numpy_weighted_by_area():
    rng = np.random.default_rng(0)
    predicted, true, mean = (rng.normal(size=(2, 32, 64)) for _ in range(3))
    edges = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 33))
    weight = np.repeat(np.diff(edges)[:, None], 64, axis=1)
    a, b = predicted - mean[0], true - mean[0]
    expected = (weight * a * b).sum((1, 2)) / np.sqrt((weight * a**2).sum((1, 2)) * (weight * b**2).sum((1, 2)))
    found = anomaly_correlation(*(torch.from_numpy(x) for x in (predicted, true, mean[0])))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    fields = torch.from_numpy(true)
    torch.testing.assert_close(anomaly_correlation(fields, fields, fields.mean(0)), torch.ones(2, dtype=torch.double))
    assert anomaly_correlation(fields[:1], fields[:1], fields[0]).item() == 0
