"""Figures of merit with their uncertainty. Records of one planet are alike, so that the bootstrap draws planets.

A figure is a function of weights [R, N], how often each of N records counts in each of R draws, to its values [R].
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from astrobio.metrics import CALIBRATION_BINS
from launch.evaluation.scores import brier, log_loss

ROUNDS = 1000
FLIPS = 10_000

Weighted = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Figure:
    """A value with its 95% interval over planets; None where it cannot be had."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        return f"{self.value:.3f}" + (f" [{self.low:.3f}, {self.high:.3f}]" if self.low is not None else "")


def bootstrap(planets: np.ndarray, figure: Weighted, seed: int = 0) -> Figure:
    """``figure`` of all records, whose planets are ``planets`` [N], and its 95% interval over `ROUNDS` draws of planets
    with replacement."""
    if not len(planets):
        return Figure(None)
    names, owner = np.unique(planets, return_inverse=True)
    value = figure(np.ones((1, len(planets))))[0]
    if not np.isfinite(value):
        return Figure(None)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), ROUNDS)
    low, high = np.nanpercentile(figure(drawn[:, owner].astype(float)), [2.5, 97.5])
    return Figure(float(value), float(low), float(high))


def classification(probability: np.ndarray, label: np.ndarray, planets: np.ndarray) -> dict[str, Figure]:
    """Accuracy at 0.5, ROC-AUC, Brier score, negative log likelihood and expected calibration error of the
    probabilities [N] of labels [N]."""
    right = (probability >= 0.5) == (label == 1)
    figures = {
        "accuracy": mean_of(right.astype(float)),
        "roc_auc": roc_auc_of(probability, label),
        "brier": mean_of(brier(probability, label)),
        "nll": mean_of(log_loss(probability, label)),
        "ece": calibration_error_of(probability, label),
    }
    return {name: bootstrap(planets, figure) for name, figure in figures.items()}


def mean_of(scores: np.ndarray) -> Weighted:
    """Mean of the records' scores [N]."""
    return lambda weights: weights @ scores / weights.sum(1)


def roc_auc_of(probability: np.ndarray, label: np.ndarray) -> Weighted:
    """Area under the ROC curve: how often a positive record's probability is above a negative one's, ties by half; NaN
    where there are none of one kind."""
    order = np.argsort(probability)
    starts = np.flatnonzero(np.diff(probability[order], prepend=-1.0))  # of equal probabilities

    def area(weights: np.ndarray) -> np.ndarray:
        positive, negative = (
            np.add.reduceat((weights * (label == value))[:, order], starts, axis=1) for value in (1, 0)
        )
        below = negative.cumsum(1) - negative / 2
        with np.errstate(invalid="ignore"):
            return (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))

    return area


def calibration_error_of(probability: np.ndarray, label: np.ndarray) -> Weighted:
    """Expected calibration error over equally wide bins (Guo et al. 2017)."""
    bins = np.minimum((probability * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.eye(CALIBRATION_BINS)[bins] * (probability - label)[:, None]
    return lambda weights: np.abs(weights @ gaps).sum(1) / weights.sum(1)


def mean_score(scores: np.ndarray, planets: np.ndarray) -> Figure:
    """Mean of the records' scores [N], over those that have one."""
    known = np.isfinite(scores)
    return bootstrap(planets[known], mean_of(scores[known]))


def paired(ours: np.ndarray, theirs: np.ndarray, planets: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Mean difference of two models' scores [N], and the two-sided p that a difference as large arises by chance.

    By a permutation test: which model a planet's records are from is drawn `FLIPS` times (Good 2005, ch. 3).
    """
    difference = ours - theirs
    known = np.isfinite(difference)
    _, owner = np.unique(planets[known], return_inverse=True)
    sums = np.bincount(owner, difference[known])
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (FLIPS, len(sums)))
    as_large = np.abs(signs @ sums) >= abs(sums.sum()) - 1e-12
    return float(difference[known].mean()), float((as_large.sum() + 1) / (FLIPS + 1))
