"""Climate files in netCDF: opened by xarray, and turned into rows of one field on the schema's grid each.

A cell that holds a fill value is absent, not a temperature of 1e36 K: what the file declares as fill (``_FillValue``,
``missing_value``) xarray masks; what it does not declare stays in the row, where `data_build.rows` finds it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from astrobio.schema import CLIMATE_LATITUDES, CLIMATE_LONGITUDES
from data_build.cache import DataError
from data_build.sources.base import Field

#: Variables that are read, by any of the names models give them: name → (unit, minimum, maximum, names).
VARIABLES = {
    "surface_temperature": ("K", 30, 2000, ("ts", "tas", "t2m", "tsurf")),
    "air_temperature": ("K", 30, 2000, ("ta",)),
    "absorbed_shortwave": ("W m-2", -1, 2e4, ("tsr", "srnf_toa", "rsnt")),
    "outgoing_longwave": ("W m-2", 0, 2e4, ("rlut", "trnf_toa", "olr")),
}

FIELDS = (
    Field("field_id", "string", required=True),  # <file>:<variable>:<number of the time>
    Field("variable", "string", required=True),
    Field("unit", "string", required=True),
    Field("time", "string", required=True),
    Field("missing_fraction", "float64", "1", 0, 1, required=True),
    Field("minimum", "float64", "unit", required=True),
    Field("maximum", "float64", "unit", required=True),
    Field("values", "float32[2048]", "unit", required=True),  # [32 × 64], latitude from south to north
)


def field_rows(path: Path, name: str, title: str) -> Iterator[dict[str, Any]]:
    """One row for each time of each variable of `VARIABLES` in the file.

    Args:
        path: the file; ``name`` is what rows call it, ``title`` the archive's name in messages.

    Raises:
        DataError: the file is damaged, or holds none of the variables.
    """
    import xarray

    try:
        data = xarray.open_dataset(path, decode_times=False, engine=_engine(path))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{title}: {name} is no whole netCDF file ({type(error).__name__}: {error}): it is damaged or "
                        "cut short; build with --refresh") from error
    with data:
        latitude, longitude = (_coordinate(data, names, name, title) for names in (("lat", "latitude"),
                                                                                  ("lon", "longitude")))
        found = {ours: next((theirs for theirs in names if theirs in data), None)
                 for ours, (_, _, _, names) in VARIABLES.items()}
        if not any(found.values()):
            raise DataError(f"{title}: {name} holds none of {', '.join(VARIABLES)}; it has "
                            f"{', '.join(map(str, data.data_vars))}")
        for variable, theirs in found.items():
            if theirs is None:
                continue
            array = data[theirs]
            others = [dimension for dimension in array.dims if dimension not in (latitude, longitude)]
            stacked = array.transpose(*others, latitude, longitude)
            times = int(np.prod([array.sizes[dimension] for dimension in others], dtype=int))
            for number in range(times):  # one field at a time: a file may be larger than the memory
                index = dict(zip(others, np.unravel_index(number, [array.sizes[d] for d in others]), strict=True)) \
                    if others else {}
                field = stacked.isel(index)
                values = field.values.astype(float)
                known = values[np.isfinite(values)]
                time = str(float(field["time"])) if "time" in field.coords else "0"
                yield {"field_id": f"{name}:{variable}:{number:06d}", "variable": variable,
                       "unit": str(array.attrs.get("units", "")), "time": time,
                       "missing_fraction": float(1 - known.size / max(1, values.size)),
                       "minimum": float(known.min()) if known.size else None,
                       "maximum": float(known.max()) if known.size else None,
                       "values": regridded(values, data[latitude].values, data[longitude].values).ravel().tolist()}


def field_problems(row: dict[str, Any]) -> list[str]:
    """What is wrong with a row of `field_rows`: its unit, and values no planet has."""
    unit, low, high, _ = VARIABLES[row["variable"]]
    problems = [] if row["unit"].replace("**", "") == unit else [f"unit is {row['unit']!r}, it must be {unit}"]
    if row["minimum"] < low or row["maximum"] > high:
        problems.append(f"{row['variable']} is outside [{low:g}, {high:g}] {unit}")
    return problems


def regridded(values: np.ndarray, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """``values`` [Y, X] on the schema's grid [32, 64], bilinear, periodic in longitude; NaN where a neighbour is."""
    rows = np.argsort(latitude)
    columns = np.argsort(longitude % 360)
    values, latitude, longitude = values[rows][:, columns], latitude[rows], (longitude % 360)[columns]
    longitude = np.concatenate([[longitude[-1] - 360], longitude, [longitude[0] + 360]])
    values = np.concatenate([values[:, -1:], values, values[:, :1]], axis=1)
    new_latitude = (np.arange(CLIMATE_LATITUDES) + 0.5) * 180 / CLIMATE_LATITUDES - 90
    new_longitude = (np.arange(CLIMATE_LONGITUDES) + 0.5) * 360 / CLIMATE_LONGITUDES
    by_row = np.stack([np.interp(new_longitude, longitude, row) for row in values])
    return np.stack([np.interp(new_latitude, latitude, column) for column in by_row.T], axis=1)


def _engine(path: Path) -> str:
    with path.open("rb") as file:
        return "scipy" if file.read(3) == b"CDF" else "h5netcdf"


def _coordinate(data, names, file: str, title: str) -> str:
    for name in names:
        if name in data.coords or name in data.dims:
            return name
    raise DataError(f"{title}: {file} has no coordinate {' or '.join(names)}")
