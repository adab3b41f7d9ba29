"""The label: `astrobio.schema.HABITABILITY_RULE` applied to a climate."""

import numpy as np

from astrobio.schema import CLIMATE_LEVEL_VARIABLES, CLIMATE_SURFACE_VARIABLES, HABITABILITY_RULE
from data_build.sources.clero import area_mean, pressures_pa

_LEVELS = [column.name for column in CLIMATE_LEVEL_VARIABLES]
_SURFACE = [column.name for column in CLIMATE_SURFACE_VARIABLES]


def habitability(levels: np.ndarray, surface: np.ndarray, surface_pressure_bar: float) -> int | None:
    """1 habitable, 0 not, None where the emulator's uncertainty leaves it open.

    Args:
        levels: [V, Z, Y, X] as in the schema, top of the atmosphere first.
        surface: [S, Y, X] as in the schema.
        surface_pressure_bar: surface pressure, which sets the levels' pressures.
    """
    rule = HABITABILITY_RULE
    temperature = surface[_SURFACE.index("surface_temperature")].astype(float)
    water = column_water_fraction(levels, surface_pressure_bar)
    verdicts = {
        int(rule_holds(temperature + shift * rule["margin_k"], water * (1 + shift * rule["margin_column_water"])))
        for shift in (-1, 0, 1)
    }
    return verdicts.pop() if len(verdicts) == 1 else None


def habitable_share(temperature: np.ndarray, humidity: np.ndarray, surface_pressure_bar: float) -> np.ndarray:
    """Share of drawn climates for which the rule holds without its margins.

    Args:
        temperature: of the surface, K [..., D, Y, X] for D draws.
        humidity: specific humidity, kg kg-1 [..., D, Z, Y, X], top of the atmosphere first.
        surface_pressure_bar: surface pressure, which sets the levels' pressures.

    Returns:
        Shares [...].
    """
    return rule_holds(temperature, _column_mean(area_mean(humidity), surface_pressure_bar)).mean(-1)


def rule_holds(temperature: np.ndarray, water: float | np.ndarray) -> np.ndarray:
    """The rule's verdicts [...], without margins, for surface ``temperature`` [..., Y, X] in K and columns' shares of
    ``water`` [...]."""
    rule = HABITABILITY_RULE
    ice_free = area_mean(temperature >= rule["freezing_point_k"])
    return (
        (ice_free >= rule["minimum_ice_free_fraction"])
        & (area_mean(temperature) <= rule["maximum_mean_surface_temperature_k"])
        & (np.asarray(water) <= rule["maximum_column_water_fraction"])
    )


def column_water_fraction(levels: np.ndarray, surface_pressure_bar: float) -> float:
    """Share of water vapour in the column's mass: specific humidity averaged over area and, by the trapezoidal rule,
    over pressure. CLERO's own measure of a runaway greenhouse (`clero.climate_analysis.climate_state`)."""
    humidity = area_mean(10.0 ** levels[_LEVELS.index("log10_specific_humidity")].astype(float))
    return float(_column_mean(humidity, surface_pressure_bar))


def _column_mean(values: np.ndarray, surface_pressure_bar: float) -> np.ndarray:
    """Mean over pressure of ``values`` [..., Z] on the levels."""
    pressure = pressures_pa(surface_pressure_bar)
    return np.trapezoid(values, pressure) / (pressure[-1] - pressure[0])
