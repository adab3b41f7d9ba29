"""Transmission spectra that were measured, out of the rows that an archive gave of their points."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from data_build.harvest import Harvest


@dataclass(frozen=True)
class MeasuredSpectrum:
    """One published spectrum, in the order of wavelength.

    ``wavelength_um`` [n] and ``bandwidth_um`` [n] are in micrometres, a bandwidth NaN where it is not given;
    ``transit_depth`` [n] is the fraction (R_p/R_*)², ``sigma`` [n] its error. ``reference`` names the paper.
    """

    planet: str
    facility: str
    instrument: str
    reference: str
    wavelength_um: np.ndarray
    bandwidth_um: np.ndarray
    transit_depth: np.ndarray
    sigma: np.ndarray


def measured_spectra(harvest: Harvest) -> list[MeasuredSpectrum]:
    """The spectra of `data_build.sources.nasa_spectra.NasaSpectra`'s rows.

    A point without an error is left out, and so is the last spectrum where the rows were limited: it may be cut short.
    """
    found = [_spectrum(points) for _, points in groupby(harvest.rows(), lambda row: row["spectrum"])]
    return [spectrum for spectrum in (found if harvest.manifest["complete"] else found[:-1]) if spectrum is not None]


def _spectrum(points: Iterable[dict[str, Any]]) -> MeasuredSpectrum | None:
    known = sorted((point for point in points if point["sigma"]), key=lambda point: point["wavelength_um"])
    if not known:
        return None
    return MeasuredSpectrum(
        planet=known[0]["planet"],
        facility=known[0]["facility"] or "",
        instrument=known[0]["instrument"] or "",
        reference=known[0]["reference"] or "",
        wavelength_um=_column(known, "wavelength_um"),
        bandwidth_um=_column(known, "bandwidth_um"),
        transit_depth=_column(known, "transit_depth"),
        sigma=_column(known, "sigma"),
    )


def _column(points: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([np.nan if point[name] is None else point[name] for point in points])
