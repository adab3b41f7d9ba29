"""Figures of merit and mixtures against closed forms, scipy, scikit-learn and brute force."""

import math

import pytest
import torch
from scipy import stats
from sklearn.metrics import brier_score_loss, log_loss

from astrobio.metrics import habitability_metrics
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
    # Gneiting & Raftery 2007, eq. 20
    crps = (samples - values).abs().mean(0) - (samples[::2] - samples[1::2]).abs().mean(0) / 2
    torch.testing.assert_close(three.crps(values), crps, atol=0.03, rtol=0.03)
    torch.testing.assert_close(three.expectation(), samples.mean(0), atol=0.05, rtol=0.05)
    torch.testing.assert_close(three.cdf(values), (samples < values).float().mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(three.cdf(three.quantile(0.3)), torch.full((4, 2), 0.3))
    within = (three.quantile(0.05) <= samples) & (samples <= three.quantile(0.95))
    torch.testing.assert_close(within.float().mean(0), torch.full((4, 2), 0.9), atol=0.02, rtol=0)


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
