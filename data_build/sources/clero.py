"""CLERO: an emulator of general circulation models for tidally locked, ocean-covered rocky planets."""

from dataclasses import dataclass
from functools import cached_property

import clero
import numpy as np
from clero import climate_analysis

from astrobio.schema import CLIMATE_LEVEL_VARIABLES, CLIMATE_LEVELS, CLIMATE_SURFACE_VARIABLES
from data_build.cache import DataError
from data_build.sources.base import SourceInfo

_BUNDLE_SHA256 = "1844f58df327c0c495c5342bdb1bfc91d4dcf5e202ddc9ab932bb53d1ac74ce1"

#: The general circulation model the emulator stands for: the Met Office Unified Model, one of its two best.
GCM = "um"

#: Schema variable → prefix of the emulator's fields on levels.
_LEVEL_FIELDS = {
    "air_temperature": "temperature",
    "log10_specific_humidity": "specific_humidity",
    "cloud_fraction": "cloud_fraction",
    "eastward_wind": "u",
    "northward_wind": "v",
}
_SURFACE_FIELDS = {
    "surface_temperature": "surface_temperature",
    "absorbed_shortwave": "asr",
    "outgoing_longwave": "olr",
}
HUMIDITY_FLOOR = 1e-9  # kg kg-1, the schema's floor

AREA_WEIGHTS = climate_analysis.latitude_weights(climate_analysis.latitude_centers(32))


@dataclass(frozen=True)
class Climates:
    """Climates of n runs: ``levels`` [n, V, Z, Y, X] (top of the atmosphere first) and ``surface`` [n, S, Y, X]."""

    levels: np.ndarray
    surface: np.ndarray


class Clero:
    """Steady-state climates on 10 levels × 32 latitudes × 64 longitudes."""

    info = SourceInfo(
        name="clero",
        modality="climate",
        version=f"0.1.4, GCM {GCM}",
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

    def climates(self, inputs: list[dict[str, float]]) -> Climates:
        """The emulator's mean climates of a batch of its input dicts."""
        fields = self._emulator.predict([{**row, "GCM": GCM} for row in inputs])
        levels = np.stack([_top_first(fields, _LEVEL_FIELDS[column.name]) for column in CLIMATE_LEVEL_VARIABLES], 1)
        humidity = [column.name for column in CLIMATE_LEVEL_VARIABLES].index("log10_specific_humidity")
        levels[:, humidity] = np.log10(np.maximum(levels[:, humidity], HUMIDITY_FLOOR))
        surface = np.stack([fields[_SURFACE_FIELDS[column.name]] for column in CLIMATE_SURFACE_VARIABLES], 1)
        return Climates(levels, surface)


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


def _top_first(fields: dict[str, np.ndarray], prefix: str) -> np.ndarray:
    # CLERO counts its levels from the surface up.
    return np.stack([fields[f"{prefix}_{level}"] for level in reversed(range(CLIMATE_LEVELS))], axis=1)
