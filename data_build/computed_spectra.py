"""A run's transmission spectrum: computed from the climate at the terminator, then observed."""

from dataclasses import dataclass

import numpy as np

from astrobio.schema import CLIMATE_LEVEL_VARIABLES, RETRIEVAL_COLUMNS, SHAPES
from data_build.humidity import water_vmr
from data_build.instruments import observed
from data_build.planets import Atmosphere, Planet
from data_build.recipe import Recipe
from data_build.sources.clero import pressures_pa, terminator_mean
from data_build.sources.muscles import Muscles
from data_build.sources.taurex import TauRex, Terminator

_LEVELS = [column.name for column in CLIMATE_LEVEL_VARIABLES]
_TEMPERATURE, _HUMIDITY, _CLOUD = map(_LEVELS.index, ("air_temperature", "log10_specific_humidity", "cloud_fraction"))
#: A spectrum whose features exclude a flat line by so many σ has a quality of 0.5.
HALF_QUALITY_SIGMA = 5.0


@dataclass(frozen=True)
class ComputedSpectrum:
    """``spectrum`` [W, 3] as in the schema, noise added, NaN where no instrument looks; ``retrieval`` [R]; and the
    quality, see `quality`."""

    spectrum: np.ndarray
    retrieval: np.ndarray
    quality: float


def wavelengths(recipe: Recipe) -> np.ndarray:
    """Centres [W] of the spectrum's bins in µm, log-spaced, rising."""
    return np.geomspace(*recipe.wavelength_um, SHAPES["spectrum"][0])


def terminator(levels: np.ndarray, atmosphere: Atmosphere) -> Terminator:
    """The terminator of a climate's ``levels`` [V, Z, Y, X]. Its cloud fraction is the largest of the levels; the
    clouds' top is the highest level with at least half of that."""
    pressure = pressures_pa(atmosphere.surface_pressure_bar)
    cloud = np.clip(terminator_mean(levels[_CLOUD].astype(float)), 0, 1)
    return Terminator(
        pressure,
        terminator_mean(levels[_TEMPERATURE].astype(float)),
        water_vmr(terminator_mean(10.0 ** levels[_HUMIDITY].astype(float)), atmosphere),
        float(cloud.max()),
        float(pressure[np.argmax(cloud >= cloud.max() / 2)]),
    )


def computed_spectrum(
    planet: Planet,
    atmosphere: Atmosphere,
    levels: np.ndarray,
    recipe: Recipe,
    rng: np.random.Generator,
    taurex: TauRex,
    stars: Muscles,
) -> ComputedSpectrum:
    """The spectrum of a planet whose climate is ``levels`` [V, Z, Y, X]; ``rng`` draws its noise."""
    air, wavelength = terminator(levels, atmosphere), wavelengths(recipe)
    depth, sigma = observed(planet, wavelength, taurex.spectrum(planet, atmosphere, air, wavelength), stars)
    error = rng.normal(0, 1, len(sigma)) * sigma
    values = {
        "terminator_temperature_k": air.temperature_k.mean(),
        "terminator_h2o_vmr": air.h2o_vmr.mean(),
        "retrieved_co2_vmr": atmosphere.co2_vmr,
        "retrieved_ch4_vmr": atmosphere.ch4_vmr,
        "terminator_cloud_fraction": air.cloud_fraction,
    }
    return ComputedSpectrum(
        np.stack([wavelength, depth + error, sigma], axis=1).astype(np.float32),
        np.array([values[column.name] for column in RETRIEVAL_COLUMNS], np.float32),
        quality(depth, sigma),
    )


def quality(depth: np.ndarray, sigma: np.ndarray) -> float:
    """How well features stand out of the noise, 0 to 1: s² / (s² + 25), where s is by how many σ the depth [W] without
    noise excludes a flat line, s² = Σ((depth − mean) / σ)² with the mean weighted by σ⁻². NaN is not observed."""
    seen = np.isfinite(sigma)
    weights = sigma[seen] ** -2
    significance = (weights * (depth[seen] - np.average(depth[seen], weights=weights)) ** 2).sum()
    return float(significance / (significance + HALF_QUALITY_SIGMA**2))
