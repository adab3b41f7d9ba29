"""One row for each climate of an archive: the planet, its air, and the fields of a climate record.

The fields are means over the times of the archive's files (the schema holds a steady state), conservatively regridded
to the schema's 32 × 64 cells and brought to the emulator's ten pressure levels, linearly in the logarithm of pressure
(of humidity, the logarithm). A pressure level below the ground of a mountain has the value above it; nothing else is
extrapolated: a climate that lacks a variable, a cell or a level is set aside.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from astrobio.schema import (
    CLIMATE_LATITUDES,
    CLIMATE_LEVEL_VARIABLES,
    CLIMATE_LEVELS,
    CLIMATE_LONGITUDES,
    CLIMATE_SURFACE_VARIABLES,
    PLANET_COLUMNS,
)
from data_build.planets import Atmosphere, Planet, derive, gravity_m_s2
from data_build.sources.base import Field
from data_build.sources.clero import HUMIDITY_FLOOR, area_mean, pressures_pa
from data_build.sources.netcdf import VARIABLES, Mean, above_ground, on_pressures

_CELLS = CLIMATE_LATITUDES * CLIMATE_LONGITUDES
_AIR = ("surface_pressure_bar", "co2_vmr", "ch4_vmr")

FIELDS = (
    Field("climate_id", "string", required=True),
    Field("planet", "string", required=True),
    Field("rest_of_air", "string", required=True),  # what the air is made of besides CO2, CH4 and water
    *(Field(column.name, "float64", column.unit, column.minimum, column.maximum) for column in PLANET_COLUMNS),
    Field("processing", "string", required=True),  # what was averaged and interpolated
    Field("problems", "string"),  # what is wrong with the archive's own values, separated by "; "
    Field("levels", f"float32[{len(CLIMATE_LEVEL_VARIABLES) * CLIMATE_LEVELS * _CELLS}]"),  # [V, Z, Y, X]
    Field("surface", f"float32[{len(CLIMATE_SURFACE_VARIABLES) * _CELLS}]"),  # [S, Y, X]
)


def climate_row(
    climate_id: str,
    planet: str,
    values: Mapping[str, float],
    means: Mapping[str, Mean],
    problems: Sequence[str],
    rest_of_air: str = "nitrogen",
) -> dict[str, Any]:
    """A row of `FIELDS`.

    Args:
        values: known columns of the planet table; the surface pressure is the climate's own mean.
        means: variable of `data_build.sources.netcdf.VARIABLES` → its mean over the files' times.
        problems: what is wrong with the files.
    """
    problems = list(problems)
    values = dict(values)
    lacking = [name for name in VARIABLES if name not in means]
    if lacking and not problems:
        problems.append(f"it lacks {', '.join(lacking)}")
    levels = surface = None
    processing = "not read"
    if not problems:
        pressure = float(area_mean(means["surface_pressure"].values[0]))
        values["surface_pressure_bar"] = pressure / 1e5
        try:
            levels, surface, processing = _fields(means, pressure)
        except ValueError as error:
            problems.append(str(error))
    known = _planet(planet, values, "", "").values
    unknown = [column.name for column in PLANET_COLUMNS if column.required and column.name not in known]
    if unknown and not problems:
        problems.append(f"its files do not tell {', '.join(unknown)}")
    return {
        "climate_id": climate_id,
        "planet": planet,
        "rest_of_air": rest_of_air,
        "processing": processing,
        **{column.name: values.get(column.name) for column in PLANET_COLUMNS},
        "problems": "; ".join(problems) or None,
        "levels": levels,
        "surface": surface,
    }


def climate_problems(row: dict[str, Any]) -> list[str]:
    """What is wrong with a row of `climate_row` beyond its types and ranges."""
    return row["problems"].split("; ") if row["problems"] else []


def planet_and_air(row: Mapping[str, Any], source: str, kind: str) -> tuple[Planet, Atmosphere]:
    """A good row's planet, without its key, and its atmosphere.

    Args:
        source, kind: where the planet's numbers come from, for its provenance.
    """
    known = {column.name: row[column.name] for column in PLANET_COLUMNS if row[column.name] is not None}
    air = {name: known.pop(name) for name in _AIR}
    return _planet(row["planet"], known, source, kind), Atmosphere(**air, rest=row["rest_of_air"])


def fields(row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """A good row's climate: levels [V, Z, Y, X] and surface [S, Y, X] of the schema."""
    shape = (CLIMATE_LATITUDES, CLIMATE_LONGITUDES)
    return (
        np.asarray(row["levels"], np.float32).reshape(len(CLIMATE_LEVEL_VARIABLES), CLIMATE_LEVELS, *shape),
        np.asarray(row["surface"], np.float32).reshape(len(CLIMATE_SURFACE_VARIABLES), *shape),
    )


def _planet(name: str, values: Mapping[str, float], source: str, kind: str) -> Planet:
    """A planet of the known values, completed by physics."""
    planet = Planet(
        key="",
        name=name,
        source=source,
        kind=kind,
        values=dict(values),
        aliases=frozenset({name}),
        host=name,
        raw_columns=frozenset(values),
    )
    if {"radius_earth", "gravity_m_s2"} <= values.keys() and "mass_earth" not in values:  # the model's gravity stands
        mass = values["gravity_m_s2"] * values["radius_earth"] ** 2 / gravity_m_s2(1, 1)
        planet = replace(planet, values={**values, "mass_earth": mass}, derived=frozenset({"mass_earth"}))
    return derive(planet)


def _fields(means: Mapping[str, Mean], surface_pressure_pa: float) -> tuple[np.ndarray, np.ndarray, str]:
    """The row's ``levels``, ``surface`` and ``processing``."""
    pressures = pressures_pa(surface_pressure_pa / 1e5)
    levels, continued = [], []
    for column in CLIMATE_LEVEL_VARIABLES:
        name = "specific_humidity" if column.name == "log10_specific_humidity" else column.name
        mean, below = above_ground(means[name], means["surface_pressure"].values[0], name)
        if name == "specific_humidity":
            mean = replace(mean, values=np.log10(np.maximum(mean.values, HUMIDITY_FLOOR)))
        levels.append(on_pressures(mean, surface_pressure_pa, pressures))
        continued += [name] * below
    cloud = [column.name for column in CLIMATE_LEVEL_VARIABLES].index("cloud_fraction")
    levels[cloud] = np.clip(levels[cloud], 0, 1)  # packed integers stray from 0 and 1 by a rounding
    surface = [means[column.name].values[0] for column in CLIMATE_SURFACE_VARIABLES]
    air = means["air_temperature"]
    processing = (
        f"mean of {air.times} times, conservatively regridded to {CLIMATE_LATITUDES} × "
        f"{CLIMATE_LONGITUDES}, {len(air.values)} levels interpolated to {CLIMATE_LEVELS} in ln p"
        + (f", {', '.join(continued)} continued below the ground" if continued else "")
    )
    return np.stack(levels).astype(np.float32).ravel(), np.stack(surface).astype(np.float32).ravel(), processing
