"""How a transmission spectrum is observed: the modes of JWST's instruments, their ranges, blur and noise."""

from dataclasses import dataclass

import numpy as np
from astropy import units as u
from scipy.ndimage import gaussian_filter1d

from data_build.planets import Planet
from data_build.sources.muscles import Muscles

VISITS = 25  # transits stacked, in each mode
_COLLECTING_AREA_M2 = 25.4  # JWST


@dataclass(frozen=True)
class Mode:
    """A mode of an instrument: wavelengths in µm, resolving power λ/Δλ (a typical one), share of the photons on the
    mirror that are counted (a mean over the range), systematic floor of the transit depth that more photons do not
    lower, and the J magnitude of the brightest star that does not saturate it."""

    name: str
    low_um: float
    high_um: float
    resolving_power: float
    throughput: float
    floor: float
    brightest_j: float


# Floors: those that Greene et al. 2016, ApJ 817, 17 adopt for NIRISS, the near infrared to 5 µm, and MIRI. Bright
# limits: Beichman et al. 2014, PASP 126, 1134 and the JWST user documentation, to half a magnitude.
#: Albert et al. 2023, PASP 135, 075001.
SOSS = Mode("NIRISS SOSS", 0.6, 2.8, 700, 0.25, 20e-6, 7.0)
#: Birkmann et al. 2022, A&A 661, A83; Giardino et al. 2022, PASP 134, 084501. The prism saturates first.
PRISM = Mode("NIRSpec PRISM", 0.6, 5.3, 100, 0.45, 30e-6, 10.5)
G395H = Mode("NIRSpec G395H", 2.87, 5.14, 2700, 0.45, 30e-6, 6.5)
#: Kendrew et al. 2015, PASP 127, 623.
LRS = Mode("MIRI LRS", 5.0, 12.0, 100, 0.25, 50e-6, 6.5)


def modes(planet: Planet) -> tuple[Mode, ...]:
    """The modes in which the planet's transits can be observed: by its star's brightness; none where it is not known
    to transit or the star is too bright for all."""
    if not planet.transits or planet.j_magnitude is None:
        return ()
    near = (PRISM,) if planet.j_magnitude >= PRISM.brightest_j else (SOSS, G395H)
    return tuple(mode for mode in (*near, LRS) if planet.j_magnitude >= mode.brightest_j)


def bin_edges(wavelength_um: np.ndarray) -> np.ndarray:
    """Edges [W + 1] of log-spaced bins with these centres [W]."""
    step = np.log(wavelength_um[1] / wavelength_um[0])
    return np.append(wavelength_um * np.exp(-step / 2), wavelength_um[-1] * np.exp(step / 2))


def observed(planet: Planet, wavelength_um: np.ndarray, depth: np.ndarray, stars: Muscles) -> np.ndarray:
    """The transit depth as the planet's modes see it, and its 1σ: [2, W], NaN where no mode looks; without noise.

    Each mode blurs the depth to its resolving power, if that is below the bins'. Where two overlap they are averaged by
    their σ. The noise is that of the star's photons, as many in transit as out of it over `VISITS` transits, and the
    mode's floor. A transit lasts P R_*/(π a), a central one on a circular orbit.

    Args:
        wavelength_um: centres [W] of log-spaced bins, rising.
        depth: [W], without noise.
        stars: the shape of the star's spectrum.
    """
    edges = bin_edges(wavelength_um)
    value = planet.values
    assert planet.j_magnitude is not None  # else it has no mode
    photons = stars.photons(value["stellar_temperature_k"], planet.j_magnitude, edges) * _COLLECTING_AREA_M2
    chord = value["stellar_radius_sun"] * u.R_sun.to(u.au) / (np.pi * value["semi_major_axis_au"])
    seconds = value["orbital_period_d"] * u.day.to(u.s) * chord * VISITS
    weight, weighted = np.zeros(len(depth)), np.zeros(len(depth))
    for mode in modes(planet):
        inside = (wavelength_um >= mode.low_um * (1 - 1e-6)) & (wavelength_um <= mode.high_um * (1 + 1e-6))
        sigma = np.hypot(np.sqrt(2 / (photons * seconds * mode.throughput)), mode.floor)
        weight += inside / sigma**2
        weighted += inside * _blurred(depth, mode, edges) / sigma**2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(weight > 0, [weighted / weight, weight**-0.5], np.nan)


def _blurred(depth: np.ndarray, mode: Mode, edges_um: np.ndarray) -> np.ndarray:
    step = np.log(edges_um[1] / edges_um[0])
    if mode.resolving_power * step >= 1:
        return depth
    return gaussian_filter1d(depth, 1 / (mode.resolving_power * step * np.sqrt(8 * np.log(2))), mode="nearest")
