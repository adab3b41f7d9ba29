"""Figures of merit with their uncertainty. Records of one planet are alike, so that planets are what is drawn anew."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score

from launch.evaluation.scores import brier, log_loss

ROUNDS = 1000
FLIPS = 10_000
CALIBRATION_BINS = 15


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


def bootstrap(planets: np.ndarray, figure: Callable[[np.ndarray], float], seed: int = 0) -> Figure:
    """``figure`` of all records, and its 95% interval over `ROUNDS` draws of planets with replacement.

    Args:
        planets: [N] the records' planets.
        figure: of the numbers of some records; NaN where it cannot be had of them.
    """
    if not len(planets):
        return Figure(None)
    names, owner = np.unique(planets, return_inverse=True)
    members = [np.flatnonzero(owner == i) for i in range(len(names))]
    value = figure(np.arange(len(planets)))
    if not np.isfinite(value):
        return Figure(None)
    rng = np.random.default_rng(seed)
    drawn = [
        figure(np.concatenate([members[i] for i in rng.integers(len(names), size=len(names))])) for _ in range(ROUNDS)
    ]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Figure(float(value), float(low), float(high))


def classification(probability: np.ndarray, label: np.ndarray, planets: np.ndarray) -> dict[str, Figure]:
    """Accuracy at 0.5, ROC-AUC, Brier score, negative log likelihood and expected calibration error of the
    probabilities [N] of labels [N]."""
    right = (probability >= 0.5) == (label == 1)
    squares, logs = brier(probability, label), log_loss(probability, label)

    def auc(rows: np.ndarray) -> float:
        found = label[rows]
        return roc_auc_score(found, probability[rows]) if 0 < found.sum() < len(found) else np.nan

    return {
        "accuracy": bootstrap(planets, lambda rows: right[rows].mean()),
        "roc_auc": bootstrap(planets, auc),
        "brier": bootstrap(planets, lambda rows: squares[rows].mean()),
        "nll": bootstrap(planets, lambda rows: logs[rows].mean()),
        "ece": bootstrap(planets, lambda rows: calibration_error(probability[rows], label[rows])),
    }


def calibration_error(probability: np.ndarray, label: np.ndarray) -> float:
    """Expected calibration error over equally wide bins (Guo et al. 2017)."""
    bins = np.minimum((probability * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, probability - label, CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(label))


def mean_score(scores: np.ndarray, planets: np.ndarray) -> Figure:
    """Mean of the records' scores [N], over those that have one."""
    known = np.isfinite(scores)
    scores, planets = scores[known], planets[known]
    return bootstrap(planets, lambda rows: scores[rows].mean())


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
