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
        rule_holds(temperature + shift * rule["margin_k"], water * (1 + shift * rule["margin_column_water"]))
        for shift in (-1, 0, 1)
    }
    return verdicts.pop() if len(verdicts) == 1 else None


def rule_holds(temperature: np.ndarray, water: float) -> int:
    """The rule's verdict, 1 or 0, without margins, for a surface ``temperature`` [Y, X] in K and a column's share of
    ``water``."""
    rule = HABITABILITY_RULE
    ice_free = area_mean(temperature >= rule["freezing_point_k"])
    return int(
        ice_free >= rule["minimum_ice_free_fraction"]
        and area_mean(temperature) <= rule["maximum_mean_surface_temperature_k"]
        and water <= rule["maximum_column_water_fraction"]
    )


def column_water_fraction(levels: np.ndarray, surface_pressure_bar: float) -> float:
    """Share of water vapour in the column's mass: specific humidity averaged over area and, by the trapezoidal rule,
    over pressure. CLERO's own measure of a runaway greenhouse (`clero.climate_analysis.climate_state`)."""
    humidity = area_mean(10.0 ** levels[_LEVELS.index("log10_specific_humidity")].astype(float))
    pressure = pressures_pa(surface_pressure_bar)
    return float(np.trapezoid(humidity, pressure) / (pressure[-1] - pressure[0]))
