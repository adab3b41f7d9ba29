"""Records of planets whose transmission spectrum was measured: nothing is known of their climate, nor of a label."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from astrobio.schema import GCMS, OPTIONAL_MODALITIES, PLANET_COLUMNS, RETRIEVAL_COLUMNS
from data_build.computed_spectra import HALF_QUALITY_SIGMA, wavelengths
from data_build.crossmatch import planet_key
from data_build.instruments import bin_edges
from data_build.planets import PLANET_PARAMETERS, Planet
from data_build.recipe import Recipe
from data_build.records import ABSENT_ARRAYS, planet_source, text_source
from data_build.sampling import stream
from data_build.sources import INFOS
from data_build.spectra import MeasuredSpectrum
from data_build.text import describe

#: The least share of a wavelength bin that measured points must cover.
LEAST_COVERAGE = 0.5

_REQUIRED = [column.name for column in PLANET_COLUMNS if column.required and column.name in PLANET_PARAMETERS]


def measured_records(
    spectra: Sequence[MeasuredSpectrum], source: str, planets: list[Planet], recipe: Recipe
) -> tuple[list[tuple[Planet, dict]], list[dict]]:
    """A record for each measured spectrum of a catalogued planet.

    Args:
        source: the archive that the spectra are from.
        planets: of all catalogues, wherever they lie.

    Returns:
        Planets with their record, and the spectra set aside with the reason.
    """
    known = {planet_key(alias): planet for planet in planets for alias in (planet.name, *planet.aliases)}
    made, set_aside = [], []
    numbers: Counter[str] = Counter()
    for measured in spectra:
        planet = known.get(planet_key(measured.planet))
        spectrum = resampled(measured, wavelengths(recipe))
        lacking = [name for name in _REQUIRED if name not in planet.values] if planet else []
        if planet is None:
            reason = "no catalogue has its planet"
        elif lacking:
            reason = f"no catalogue tells {', '.join(lacking)} of its planet"
        elif not np.isfinite(spectrum[:, 1]).any():
            reason = "it covers no bin of the recipe's wavelengths"
        else:
            made.append((planet, _record(planet, numbers[planet.key], measured, spectrum, source, recipe)))
            numbers[planet.key] += 1
            continue
        set_aside.append({"spectrum": f"{measured.planet}, {measured.reference}", "reason": reason})
    return made, set_aside


def resampled(measured: MeasuredSpectrum, wavelength_um: np.ndarray) -> np.ndarray:
    """The spectrum [W, 3] on log-spaced bins of centres [W], NaN where less than half of a bin is measured.

    A bin's depth is the mean of the points weighted by their overlap o with it. A point of width b and error σ counts
    as b/o independent parts of variance σ² b/o each, so that neither coarser nor finer bins change what is known:
    σ_bin² = Σ o b σ² / (Σ o)². Points without a bandwidth reach half way to their neighbours.
    """
    low, high = _limits(measured)
    edges = bin_edges(wavelength_um)
    overlap = np.minimum(edges[1:, None], high) - np.maximum(edges[:-1, None], low)  # [W, n]
    overlap = np.clip(overlap, 0, None)
    covered = overlap.sum(1)
    seen = covered >= LEAST_COVERAGE * np.diff(edges)
    depth, sigma = np.full((2, len(wavelength_um)), np.nan)
    depth[seen] = (overlap @ measured.transit_depth)[seen] / covered[seen]
    sigma[seen] = np.sqrt((overlap @ ((high - low) * measured.sigma**2))[seen]) / covered[seen]
    return np.stack([wavelength_um, depth, sigma], axis=1).astype(np.float32)


def _limits(measured: MeasuredSpectrum) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper wavelength [n] of each point; equal where neither a bandwidth nor a neighbour tells them."""
    centre, half = measured.wavelength_um, measured.bandwidth_um / 2
    gaps = np.diff(centre) / 2 if len(centre) > 1 else np.zeros(1)
    left, right = np.insert(gaps, 0, gaps[0])[: len(centre)], np.append(gaps, gaps[-1])[: len(centre)]
    unknown = np.isnan(half)
    return centre - np.where(unknown, left, half), centre + np.where(unknown, right, half)


def _record(
    planet: Planet, number: int, measured: MeasuredSpectrum, spectrum: np.ndarray, source: str, recipe: Recipe
) -> dict:
    names = [column.name for column in PLANET_COLUMNS]
    run_id = f"{planet.key}/measured-{number:03d}"
    text, text_quality = text_source(planet, named=True)
    told = ", ".join(part for part in (measured.instrument, measured.facility, measured.reference) if part)
    absent = {"climate": INFOS["clero"], "metabolism": INFOS["cobra"]}
    return {
        "run_id": run_id,
        "planet_key": planet.key,
        "planet": np.array([planet.values.get(name, np.nan) for name in names], np.float32),
        "planet_mask": np.array([name in planet.values for name in names]),
        "planet_derived": np.array([name in planet.derived for name in names]),
        **{f"{modality}_present": modality == "spectrum" for modality in OPTIONAL_MODALITIES},
        **ABSENT_ARRAYS,
        "spectrum": spectrum,
        "text": describe(planet, None, True, stream(recipe.seed, "text", run_id)),
        "label_present": False,
        "label": np.int8(0),
        "label_probability": np.float32(np.nan),
        "label_probability_by_gcm": np.full(len(GCMS), np.nan, np.float32),
        "retrieval": np.full(len(RETRIEVAL_COLUMNS), np.nan, np.float32),
        "provenance": {
            "planet": planet_source(planet).provenance(planet.quality),
            **{part: info.provenance(0.0) for part, info in absent.items()},
            "spectrum": {**INFOS[source].provenance(_quality(spectrum)), "version": told},
            "text": text.provenance(text_quality),
        },
    }


def _quality(spectrum: np.ndarray) -> float:
    """As of a computed spectrum; here the depth has noise, whose share of s², one a point, is taken off."""
    _, depth, sigma = spectrum[np.isfinite(spectrum[:, 1])].astype(float).T
    weights = sigma**-2
    significance = (weights * (depth - np.average(depth, weights=weights)) ** 2).sum() - (len(depth) - 1)
    return float(max(significance, 0) / (max(significance, 0) + HALF_QUALITY_SIGMA**2))
