"""From units to numbers of order one, and back."""

from collections.abc import Sequence

import numpy as np

from astrobio.schema import Column

#: A signal below this share of the noise's variance cannot be told from none: the excess variance of a thousand points
#: is itself uncertain to some hundredths of it.
LEAST_EXCESS = 0.05
#: A point counts as at most this much signal: no σ is known better than that.
MOST_SIGNAL = 0.9999


def transformed(group: str, columns: Sequence[Column], values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """``values`` [n] after each column's own transform (`Column.log`), where known; 1 elsewhere.

    Raises:
        ValueError: a value has no logarithm; the message names the ``group``.
    """
    out = np.where(known, values, 1.0).astype(np.float32)
    for i, column in enumerate(columns):
        if column.log and known[i]:
            if not values[i] + column.offset > 0:
                raise ValueError(f"{group}: {column.name} = {values[i]} {column.unit} has no logarithm")
            out[i] = np.log10(values[i] + column.offset)
    return out


def in_units(columns: Sequence[Column], values: np.ndarray) -> np.ndarray:
    """The inverse of `transformed`: ``values`` [..., n] in the columns' units."""
    logs = np.array([column.log for column in columns])
    offsets = np.array([column.offset for column in columns])
    return np.where(logs, 10.0 ** np.where(logs, values, 0.0) - offsets, values)


def squashed(values: np.ndarray) -> np.ndarray:
    """``sign(x) log1p(|x|)``: fluxes and counts span decades."""
    return np.sign(values) * np.log1p(np.abs(values))


def normalised_spectrum(spectrum: np.ndarray) -> tuple[np.ndarray, float]:
    """A spectrum about its own mean, in units of its own signal.

    The mean depth is the ratio of the radii, which the planet table has; the atmosphere is in the variation around it,
    a thousandth of the spread between planets. Mean and spread are weighted with 1/σ², and the variance that the noise
    explains is taken off, so that neither a noisy end of the band nor its noise sets the scale.

    Args:
        spectrum: [W, 3], as `astrobio.schema.SPECTRUM_CHANNELS`; NaN where not observed.

    Returns:
        [W, 3] float32: µm; (depth - mean) / spread; s² / (s² + σ²), the share of signal in a point's variance, which is
        the weight of a Wiener filter; depth and weight are 0 where not observed. And the decimal logarithm of the
        spread in ppm.

    Raises:
        ValueError: nothing was observed, or a σ is not positive.
    """
    wavelength, depth, sigma = np.asarray(spectrum, np.float64).T
    observed = np.isfinite(depth) & np.isfinite(sigma)
    if not observed.any():
        raise ValueError("spectrum: no wavelength was observed")
    if not (sigma[observed] > 0).all():
        raise ValueError("spectrum: a σ is not positive")
    precision = np.zeros_like(sigma)
    precision[observed] = sigma[observed] ** -2
    depth = np.where(observed, depth, 0.0)
    depth = (depth - np.average(depth, weights=precision)) * observed
    noise = observed.sum() / precision.sum()
    spread = max(np.average(depth**2, weights=precision) - noise, LEAST_EXCESS * noise) ** 0.5
    weight = np.zeros_like(sigma)
    weight[observed] = np.minimum(spread**2 / (spread**2 + sigma[observed] ** 2), MOST_SIGNAL)
    return np.stack([wavelength, depth / spread, weight], axis=1).astype(np.float32), float(np.log10(1e6 * spread))
