"""MUSCLES: spectra of stars from the ultraviolet to 2.6 µm, as shipped in the EXOSIMS wheel."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from astropy import constants
from astropy import units as u
from astropy.io import fits
from astropy.modeling.physical_models import BlackBody

from data_build.sources.base import SourceInfo
from data_build.sources.exosims import FILES, STARS

_END_UM = 2.6  # where the wheel's spectra end; beyond, a star is close to a black body
_JOIN_UM = (2.3, _END_UM)  # over which the two have the same flux
_J_BAND_UM = (1.154, 1.316)  # half-power points of 2MASS J about 1.235 µm (Cohen, Wheaton & Megeath 2003)
_J_ZERO_POINT = 1594 * u.Jy  # 2MASS J = 0 (the same)
_GRID_UM = np.concatenate([np.arange(0.3, _END_UM, 1e-4), np.geomspace(_END_UM, 30, 4000)])


@dataclass(frozen=True)
class _Star:
    """A spectrum: photons s-1 m-2 below each of `_GRID_UM`, in units of those at its own J magnitude of 0."""

    temperature_k: float
    cumulated: np.ndarray


class Muscles:
    """Shapes of the spectra of dwarfs of spectral types F to M8."""

    info = SourceInfo(
        name="muscles",
        modality="spectrum",
        version="adapted spectra to 2.6 µm (exosims 3.6.6)",
        licence="BSD-3-Clause (EXOSIMS); MAST data are free to use with acknowledgement",
        citation="France et al. 2016, ApJ 820, 89; Loyd et al. 2016, ApJ 824, 102; doi:10.17909/T9DG6F",
        kind="observed",
    )

    def ensure(self) -> None:
        """Fetch and check the source's files; raises `DataError` if that fails."""
        FILES.ensure()

    @cached_property
    def _stars(self) -> list[_Star]:
        paths = FILES.ensure()
        return [_read(paths[member], float(member.split("_")[-2])) for member in STARS]

    def photons(self, temperature_k: float, j_magnitude: float, edges_um: np.ndarray) -> np.ndarray:
        """Photons s-1 m-2 at the telescope in each bin [W] between wavelengths ``edges_um`` [W + 1] within 0.3 to 30.

        The spectrum is that of the star with the nearest effective temperature, scaled to the 2MASS J magnitude.
        """
        star = min(self._stars, key=lambda star: abs(star.temperature_k - temperature_k))
        cumulated = np.interp(edges_um, _GRID_UM, star.cumulated)
        return np.diff(cumulated) * 10 ** (-0.4 * j_magnitude)


def _read(path, temperature_k: float) -> _Star:
    with fits.open(path) as file:
        table = file[1].data
        wavelength = np.asarray(table["WAVELENGTH"], float) * 1e-4  # Å to µm
        flux = np.asarray(table["FLUX"], float)  # a flux per wavelength; its scale falls out
    photons = np.interp(_GRID_UM, wavelength, flux * wavelength)
    body = BlackBody(temperature_k * u.K)(_GRID_UM * u.um).value / _GRID_UM  # photons too, of a flux per frequency
    join = (_JOIN_UM[0] <= _GRID_UM) & (_GRID_UM < _JOIN_UM[1])
    beyond = _GRID_UM >= _END_UM
    photons[beyond] = body[beyond] * photons[join].mean() / body[join].mean()
    steps = np.diff(_GRID_UM) * (photons[1:] + photons[:-1]) / 2
    cumulated = np.concatenate([[0.0], np.cumsum(steps)])
    in_j = np.diff(np.interp(_J_BAND_UM, _GRID_UM, cumulated))[0]
    # A flux F per frequency is F / h photons for each unit of ln λ.
    expected = (_J_ZERO_POINT / constants.h).to_value("s-1 m-2") * np.log(_J_BAND_UM[1] / _J_BAND_UM[0])
    return _Star(temperature_k, cumulated * expected / in_j)
