"""CLERO: an emulator of general circulation models for tidally locked, ocean-covered rocky planets."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import clero
import numpy as np
from clero import climate_analysis

from astrobio.schema import CLIMATE_LEVEL_VARIABLES, CLIMATE_LEVELS, CLIMATE_SURFACE_VARIABLES
from data_build.cache import DataError
from data_build.humidity import capped, relative_humidity
from data_build.planets import Atmosphere
from data_build.sources.base import SourceInfo

_BUNDLE_SHA256 = "1844f58df327c0c495c5342bdb1bfc91d4dcf5e202ddc9ab932bb53d1ac74ce1"

#: The general circulation model the emulator stands for: the Met Office Unified Model, one of its two best.
GCM = "um"

_DRAWN_FIELDS = (
    "surface_temperature",
    *(f"{prefix}_{level}" for prefix in ("temperature", "specific_humidity") for level in range(CLIMATE_LEVELS)),
)

#: Schema variable → prefix of the emulator's fields on levels.
_LEVEL_FIELDS = {
    "air_temperature": "temperature",
    "log10_specific_humidity": "specific_humidity",
    "cloud_fraction": "cloud_fraction",
    "eastward_wind": "u",
    "northward_wind": "v",
}
_LEVELS = [column.name for column in CLIMATE_LEVEL_VARIABLES]
_TEMPERATURE, _HUMIDITY = _LEVELS.index("air_temperature"), _LEVELS.index("log10_specific_humidity")
_SURFACE_FIELDS = {
    "surface_temperature": "surface_temperature",
    "absorbed_shortwave": "asr",
    "outgoing_longwave": "olr",
}
_LOGARITHMIC = ("P_rot", "P0")  # of the emulator's inputs
HUMIDITY_FLOOR = 1e-9  # kg kg-1, the schema's floor

AREA_WEIGHTS = climate_analysis.latitude_weights(climate_analysis.latitude_centers(32))


@dataclass(frozen=True)
class Climates:
    """Climates of n runs: ``levels`` [n, V, Z, Y, X] (top of the atmosphere first) and ``surface`` [n, S, Y, X].

    Humidity is capped at saturation; ``relative_humidity`` [n] is the mean next to the surface before.
    """

    levels: np.ndarray
    surface: np.ndarray
    relative_humidity: np.ndarray


_VERSION = "0.1.4, GCM {}, humidity capped at saturation"


class Clero:
    """Steady-state climates on 10 levels × 32 latitudes × 64 longitudes."""

    info = SourceInfo(
        name="clero",
        modality="climate",
        version=_VERSION.format(GCM),
        licence="MIT",
        citation="CLERO (github.com/astroautomata/clero), trained on ThousandWorlds",
        kind="emulated",
    )

    @cached_property
    def _emulator(self) -> clero.Emulator:
        emulator = clero.Emulator()
        if emulator.bundle_sha256 != _BUNDLE_SHA256:
            raise DataError(
                f"the weights of clero {clero.__version__} have sha256 {emulator.bundle_sha256}, expected "
                f"{_BUNDLE_SHA256}; install clero==0.1.4 again"
            )
        return emulator

    def ensure(self) -> None:
        """Fetch and check the source's files; raises `DataError` if that fails."""
        _ = self._emulator

    def provenance(self, inputs: dict[str, float], gcm: str = GCM) -> dict:
        """The provenance of a climate."""
        return {**self.info.provenance(domain_quality(inputs)), "version": _VERSION.format(gcm)}

    def climates(self, inputs: list[dict[str, float]], gcm: str = GCM) -> Climates:
        """The emulator's mean climates of a batch of its input dicts, as the general circulation model ``gcm``."""
        fields = self._emulator.predict([{**row, "GCM": gcm} for row in inputs])
        levels = np.stack([_top_first(fields, _LEVEL_FIELDS[column.name]) for column in CLIMATE_LEVEL_VARIABLES], 1)
        surfaces = np.zeros(len(inputs))
        for number, row in enumerate(inputs):
            temperature, humidity = levels[number, _TEMPERATURE], levels[number, _HUMIDITY]
            pressure, air = pressures_pa(row["P0"])[:, None, None], _atmosphere(row)
            lowest = relative_humidity(temperature[-1], humidity[-1], pressure[-1], air)
            surfaces[number] = area_mean(lowest)
            humidity[:] = np.log10(np.maximum(capped(temperature, humidity, pressure, air), HUMIDITY_FLOOR))
        surface = np.stack([fields[_SURFACE_FIELDS[column.name]] for column in CLIMATE_SURFACE_VARIABLES], 1)
        return Climates(levels, surface, surfaces)

    def draws(
        self, inputs: dict[str, float], gcms: Sequence[str], count: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Climates drawn from the emulator's own distribution for one of its input dicts: spatially coherent, without
        the white residual, humidity capped at saturation.

        Args:
            gcms: the general circulation models to emulate.
            count: draws of each model.
            seed: of the draws; they depend on it and the inputs alone.

        Returns:
            Surface temperature in K [G, D, Y, X] and specific humidity in kg kg-1 [G, D, Z, Y, X], top of the
            atmosphere first.
        """
        rows = [{**inputs, "GCM": gcm} for gcm in gcms]
        fields = self._emulator.sample(rows, n_samples=count, seed=seed, fields=_DRAWN_FIELDS)
        temperature, humidity = (
            _top_first(fields, prefix, axis=2).swapaxes(0, 1) for prefix in ("temperature", "specific_humidity")
        )
        pressure = pressures_pa(inputs["P0"])[:, None, None]
        return fields["surface_temperature"].swapaxes(0, 1), capped(
            temperature, humidity, pressure, _atmosphere(inputs)
        )


def domain_quality(inputs: dict[str, float]) -> float:
    """How far the emulator's inputs are from its core domain, as a quality from 1, inside, down to 0.

    1 / (1 + d²), where d is the Euclidean distance from the core; in each input one unit is from the end of the core
    to that of the extended domain, in the logarithm where the emulator takes it. At the end of the extended domain in
    one input it is 0.5.
    """
    distance = 0.0
    for key, (low, high) in clero.CORE_DOMAIN.items():
        value, ends = inputs[key], clero.EXTENDED_DOMAIN[key]
        if low <= value <= high:
            continue
        core, end = (low, ends[0]) if value < low else (high, ends[1])
        if core == end:  # the two domains end together; nothing beyond is sampled
            return 0.0
        if key in _LOGARITHMIC:
            value, core, end = np.log(value), np.log(core), np.log(end)
        distance += ((value - core) / (end - core)) ** 2
    return float(1 / (1 + distance))


def pressures_pa(surface_pressure_bar: float) -> np.ndarray:
    """Pressures [Z] of the levels in Pa, top of the atmosphere first."""
    return climate_analysis.pressure_levels(surface_pressure_bar)[::-1].copy()


def terminator_mean(field: np.ndarray) -> np.ndarray:
    """Mean of ``field`` [..., Y, X] over the terminator, the two columns on each side of ±90° longitude, area-weighted.

    A transmission spectrum sees this part of the atmosphere.
    """
    longitudes = climate_analysis.longitude_centers(field.shape[-1])
    columns = np.abs(np.abs(longitudes) - 90) < 360 / field.shape[-1]
    return field[..., columns].mean(-1) @ AREA_WEIGHTS


def area_mean(field: np.ndarray) -> np.ndarray:
    """Area-weighted mean over the last two axes, latitude and longitude."""
    return field.mean(-1) @ AREA_WEIGHTS


def _atmosphere(inputs: dict[str, float]) -> Atmosphere:
    return Atmosphere(inputs["P0"], inputs["CO2"], inputs["CH4"])


def _top_first(fields: dict[str, np.ndarray], prefix: str, axis: int = 1) -> np.ndarray:
    # CLERO counts its levels from the surface up.
    return np.stack([fields[f"{prefix}_{level}"] for level in reversed(range(CLIMATE_LEVELS))], axis)
