"""Mixtures of Gaussians as predicted distributions: likelihood, quantiles and scores, all in closed form.

The components are diagonal: what the columns have to do with each other is in the components (Bishop 1994, mixture
density networks).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

#: Bounds of the logarithm of a component's standard deviation: the density stays finite where a value is hit exactly.
LOG_STD = (-4.0, 2.0)


class Mixture(NamedTuple):
    """``log_weight`` [B, K], ``mean`` and ``std`` [B, K, R] of K components over R columns."""

    log_weight: Tensor
    mean: Tensor
    std: Tensor

    def nll(self, values: Tensor, known: Tensor) -> Tensor:
        """Negative log likelihood [B], in nats, of the ``known`` [B, R] of the ``values`` [B, R]; the unknown are
        integrated out."""
        z = (values[:, None] - self.mean) / self.std
        log_density = -0.5 * z**2 - self.std.log() - 0.5 * math.log(2 * math.pi)
        joint = torch.where(known[:, None], log_density, torch.zeros_like(log_density)).sum(-1)
        return -torch.logsumexp(self.log_weight + joint, dim=1)

    def cdf(self, values: Tensor) -> Tensor:
        """Each column's own cumulative distribution [B, R] at ``values`` [B, R]."""
        normal = torch.special.ndtr((values[:, None] - self.mean) / self.std)
        return (self.log_weight.exp()[..., None] * normal).sum(1)

    def expectation(self) -> Tensor:
        """[B, R]."""
        return (self.log_weight.exp()[..., None] * self.mean).sum(1)

    def quantile(self, share: float) -> Tensor:
        """The value [B, R] of each column below which it lies with the probability ``share``, by bisection."""
        low, high = (self.mean - 8 * self.std).amin(1), (self.mean + 8 * self.std).amax(1)
        for _ in range(50):
            middle = (low + high) / 2
            below = self.cdf(middle) < share
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def crps(self, values: Tensor) -> Tensor:
        """Continuous ranked probability score [B, R] at ``values`` [B, R] (Grimit et al. 2006, eq. 5)."""
        weight = self.log_weight.exp()
        to_value = _mean_distance(values[:, None] - self.mean, self.std)
        between = _mean_distance(
            self.mean[:, :, None] - self.mean[:, None], (self.std[:, :, None] ** 2 + self.std[:, None] ** 2).sqrt()
        )
        pairs = weight[:, :, None] * weight[:, None]
        return (weight[..., None] * to_value).sum(1) - 0.5 * (pairs[..., None] * between).sum((1, 2))


def mixture(numbers: Tensor, columns: int) -> Mixture:
    """The mixture that a network's output ``numbers`` [B, K, 1 + 2 R] stands for, in float32."""
    weight, mean, log_std = numbers.float().split([1, columns, columns], dim=-1)
    return Mixture(weight.squeeze(-1).log_softmax(dim=1), mean, log_std.clamp(*LOG_STD).exp())


def _mean_distance(mean: Tensor, std: Tensor) -> Tensor:
    """E|X| of X ~ N(mean, std²)."""
    z = mean / std
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return mean * (2 * torch.special.ndtr(z) - 1) + 2 * std * density
