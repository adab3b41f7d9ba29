"""Scores of single records, so that two models are compared record by record; NaN where there is no truth."""

import numpy as np
from scipy.special import ndtri
from scipy.stats import norm

from astrobio.schema import CLIMATE_LEVEL_VARIABLES, CLIMATE_LEVELS, CLIMATE_SURFACE_VARIABLES, RETRIEVAL_COLUMNS
from launch.evaluation.features import area_mean

#: Of a posterior's central intervals: how much of it they hold.
INTERVALS = (0.5, 0.9)

#: Relative error up to which a number in a text is right.
TOLD_WITHIN = 0.1

_LOG_FLOOR = 1e-6


def brier(probability: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Squared error of the probability."""
    return (probability - label) ** 2


def log_loss(probability: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Negative log likelihood of the label, in nats."""
    p = np.clip(probability, _LOG_FLOOR, 1 - _LOG_FLOOR)
    return -(label * np.log(p) + (1 - label) * np.log(1 - p))


def gaussian_crps(mean: np.ndarray, sigma: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score of N(mean, σ²) (Gneiting & Raftery 2007, eq. 21)."""
    z = (truth - mean) / sigma
    return sigma * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))


def inside(mean: np.ndarray, sigma: np.ndarray, truth: np.ndarray, share: float) -> np.ndarray:
    """1 where the central interval of N(mean, σ²) with that share of it holds the truth, else 0."""
    held = np.abs(truth - mean) <= ndtri(0.5 + share / 2) * sigma
    return np.where(np.isfinite(truth), held, np.nan)


def retrieval_scores(crps: np.ndarray, held: dict[float, np.ndarray], known: np.ndarray) -> dict[str, np.ndarray]:
    """Scores [N] of posteriors, by name; NaN where the truth is not ``known`` [N, R].

    Args:
        crps: [N, R].
        held: share of `INTERVALS` → whether that central interval holds the truth [N, R].
    """
    scores = {"crps": crps} | {f"inside {share:.0%}": values for share, values in held.items()}
    return {
        f"retrieval {name} {column.name}": np.where(known[:, i], values[:, i], np.nan)
        for name, values in scores.items()
        for i, column in enumerate(RETRIEVAL_COLUMNS)
    }


#: Of the fields' first axis, by variable: the levels of each, then the surface.
FIELDS = {
    column.name: slice(i * CLIMATE_LEVELS, (i + 1) * CLIMATE_LEVELS) for i, column in enumerate(CLIMATE_LEVEL_VARIABLES)
} | {
    column.name: slice(start, start + 1)
    for start, column in enumerate(CLIMATE_SURFACE_VARIABLES, len(CLIMATE_LEVEL_VARIABLES) * CLIMATE_LEVELS)
}


def emulation_scores(predicted: np.ndarray, truth: np.ndarray, mean: np.ndarray) -> dict[str, np.ndarray]:
    """Of normalised fields [M, F, Y, X], by name, [M]: area-weighted root mean square error over all fields and of each
    variable, in standard deviations of the train records; and the area-weighted correlation of the departures from
    the train records' ``mean`` field [F, Y, X] (Jolliffe & Stephenson 2012, ch. 6)."""
    squares = area_mean((predicted - truth) ** 2)
    ours, theirs = predicted - mean, truth - mean
    product, ours, theirs = (area_mean(x).sum(1) for x in (ours * theirs, ours**2, theirs**2))
    return {
        "rmse": np.sqrt(squares.mean(1)),
        **{f"rmse {name}": np.sqrt(squares[:, fields].mean(1)) for name, fields in FIELDS.items()},
        "correlation": product / np.maximum(np.sqrt(ours * theirs), 1e-12),
    }


def share_told(told: dict[str, float], true: dict[str, float]) -> float:
    """Share of the ``true`` numbers that are ``told`` to `TOLD_WITHIN`; one that is not told counts as wrong."""
    right = [name in told and abs(told[name] - value) <= TOLD_WITHIN * abs(value) for name, value in true.items()]
    return float(np.mean(right))
