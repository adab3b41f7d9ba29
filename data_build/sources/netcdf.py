"""Climate files in netCDF: time means of a climate's variables on the schema's grid.

A cell that holds a fill value is absent, not a temperature of 1e36 K. xarray masks the fill values that the file
declares (``_FillValue``, ``missing_value``); undeclared ones are detected in the file's values, before averaging.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import xarray
from clero import climate_analysis

from astrobio.schema import CLIMATE_LATITUDES, CLIMATE_LONGITUDES
from data_build.cache import DataError
from data_build.sources.base import FILL

_TEMPERATURE = {"K": (1, 0), "C": (1, 273.15), "degC": (1, 273.15)}
_SHARE = {"1": (1, 0), "kg/kg": (1, 0), "kgkg-1": (1, 0), "(0-1)": (1, 0), "%": (0.01, 0)}
_WIND = {"m/s": (1, 0), "ms-1": (1, 0)}
_FLUX = {"W/m2": (1, 0), "Wm-2": (1, 0)}
_PRESSURE = {"Pa": (1, 0), "hPa": (100, 0), "mb": (100, 0), "mbar": (100, 0), "millibars": (100, 0)}
#: A level at less than this share of a cell's surface pressure is above its ground: slopes share cells.
_GROUND = 0.9
#: A flux that a file counts downward, where the schema's goes up.
_DOWNWARD = {unit: (-factor, 0) for unit, (factor, _) in _FLUX.items()}


@dataclass(frozen=True)
class Variable:
    """A variable of a climate: ``unit``, possible range, and the names it has in ERA5, ModelE, ExoPlaSim and CMIP.

    ``names`` maps each name to its possible units, and these to factor and offset; ``on_levels``: whether it has
    levels. ``family`` is the prefix of the names of maps of one level each, such as ``u_850``.
    """

    unit: str
    minimum: float
    maximum: float
    on_levels: bool
    names: Mapping[str, Mapping[str, tuple[float, float]]]
    family: str = ""


def _all(*names: str, units: Mapping[str, tuple[float, float]]) -> dict[str, Mapping[str, tuple[float, float]]]:
    return dict.fromkeys(names, units)


#: ERA5's names are those of the Climate Data Store's netCDF files (``avg_*``; before 2024 ``mtn*``), ModelE's those of
#: its DEFACC.f (diagnostics ``aij``, ``aijl`` on model layers, ``aijk`` on constant pressure), and the last CMIP's.
VARIABLES = {
    "air_temperature": Variable("K", 30, 2000, True, _all("t", "TempL", "ta", units=_TEMPERATURE)),
    "specific_humidity": Variable("kg kg-1", -1e-3, 1, True, _all("q", "SpHuL", "hus", units=_SHARE)),
    "cloud_fraction": Variable("1", -0.01, 1.01, True, _all("cc", "cf", "cl", units=_SHARE)),
    "eastward_wind": Variable("m s-1", -500, 500, True, _all("u", "ub", "ucp", "ua", units=_WIND), "u_"),
    "northward_wind": Variable("m s-1", -500, 500, True, _all("v", "vb", "vcp", "va", units=_WIND), "v_"),
    "surface_temperature": Variable("K", 30, 2000, False, _all("skt", "tgrnd", "ts", units=_TEMPERATURE)),
    "absorbed_shortwave": Variable(
        "W m-2", -10, 2e4, False, _all("avg_tnswrf", "mtnswrf", "srnf_toa", "rst", units=_FLUX)
    ),
    "outgoing_longwave": Variable(
        "W m-2",
        0,
        2e4,
        False,
        {**_all("avg_tnlwrf", "mtnlwrf", "trnf_toa", units=_DOWNWARD), **_all("rlut", units=_FLUX)},
    ),
    "surface_pressure": Variable("Pa", 10, 1e8, False, _all("sp", "prsurf", "ps", units=_PRESSURE)),
}


@dataclass(frozen=True)
class Mean:
    """A variable's mean over the times of a file: ``values`` [K, 32, 64] and ``levels`` [K], None without levels.

    NaN on a level is absent: pressure levels may lie below the ground. ``levels`` are pressures in Pa, or shares of the
    surface pressure if ``sigma`` is true. ``times`` is the number of averaged times.
    """

    values: np.ndarray
    levels: np.ndarray | None
    sigma: bool
    times: int


def read_means(path: Path, name: str, title: str) -> tuple[dict[str, Mean], list[str], dict[str, str]]:
    """The means of a file's variables, one time of one variable in memory at a time.

    Args:
        path: the file; ``name`` is what messages call it, ``title`` the archive's name in them.

    Returns:
        Variable → its mean; what is wrong with the file's values (units, fill values, ranges, absent cells); and the
        file's attributes.

    Raises:
        DataError: the file is damaged.
    """
    try:
        data = xarray.open_dataset(path, decode_times=False, engine=_engine(path))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{title}: {name} is no whole netCDF file ({type(error).__name__}: {error}): it is damaged or "
            "cut short; build with --refresh"
        ) from error
    with data:
        return *means_of(data), {str(key): str(value) for key, value in data.attrs.items()}


def means_of(data: xarray.Dataset) -> tuple[dict[str, Mean], list[str]]:
    """The means of a data set, and what is wrong with its values."""
    means, problems = {}, []
    for variable, about in VARIABLES.items():
        theirs = next((other for other in about.names if other in data.data_vars), None)
        if theirs is None:
            data, theirs = _stacked(data, about)
        if theirs is None:
            continue
        units = about.names[theirs]
        unit = _unit(data[theirs])
        if unit not in units:
            problems.append(
                f"the unit of {variable} ({theirs}) is {data[theirs].attrs.get('units', '')!r}, it must "
                f"be {about.unit} or another of {', '.join(units)}"
            )
            continue
        mean, found = _mean(data, theirs, variable, about, units[unit])
        problems += found
        if mean is not None:
            means[variable] = mean
    return means, problems


def _stacked(data: xarray.Dataset, about: Variable) -> tuple[xarray.Dataset, str | None]:
    """The data set with the family's maps as one variable on levels in hPa, and its name; None if there are none."""
    found = {
        float(name.removeprefix(about.family)): name
        for name in map(str, data.data_vars)
        if about.family and re.fullmatch(rf"{about.family}\d+", name)
    }
    if len(found) < 2:
        return data, None
    name = next(iter(about.names))
    levels = xarray.DataArray(sorted(found), dims="pressure_level", name="pressure_level", attrs={"units": "hPa"})
    return data.assign({name: xarray.concat([data[found[level]] for level in sorted(found)], levels)}), name


def _mean(
    data, theirs: str, variable: str, about: Variable, conversion: tuple[float, float]
) -> tuple[Mean | None, list[str]]:
    array = data[theirs]
    axes = [_axis(array, names) for names in (("lat", "latitude", "lat2"), ("lon", "longitude", "lon2"))]
    vertical = _axis(array, ("pressure_level", "plev", "plm", "level", "lev")) if about.on_levels else None
    if None in axes or (about.on_levels and vertical is None):
        return None, [
            f"{variable} ({theirs}) has the dimensions {', '.join(map(str, array.dims))}: latitude, "
            f"longitude{' and level' if about.on_levels else ''} are needed"
        ]
    latitude, longitude = axes
    others = [axis for axis in array.dims if axis not in (latitude, longitude, vertical)]
    array = array.transpose(*others, *([vertical] if vertical else []), latitude, longitude)
    weights = overlaps(data[latitude].values, data[longitude].values)
    count = array.sizes[vertical] if vertical else 1
    total, times, low, high, absent = np.zeros((count, CLIMATE_LATITUDES, CLIMATE_LONGITUDES)), 0, np.inf, -np.inf, 0
    for index in product(*(range(array.sizes[axis]) for axis in others)):
        values = array.isel(dict(zip(others, index, strict=True))).values.astype(float)
        known = values[np.isfinite(values)]
        absent += values.size - known.size
        if known.size:
            low, high = min(low, known.min()), max(high, known.max())
        total += regridded(values, weights)
        times += 1
    problems = _range_problems(variable, about, conversion, low, high)
    if absent and not about.on_levels:
        problems.append(f"{variable} is absent in {absent / array.size:.1%} of its cells")
    if problems:
        return None, problems
    factor, offset = conversion
    levels, sigma, found = _levels(data, vertical, theirs) if vertical else (None, False, [])
    return (None if found else Mean(total / times * factor + offset, levels, sigma, times)), found


def _range_problems(
    variable: str, about: Variable, conversion: tuple[float, float], low: float, high: float
) -> list[str]:
    if not np.isfinite(low):
        return [f"{variable} has no value"]
    fill = max(low, high, key=abs)
    if abs(fill) >= FILL:
        return [f"{variable} holds the fill value {fill:.4g}, not masked"]
    low, high = sorted(value * conversion[0] + conversion[1] for value in (low, high))
    if low < about.minimum or high > about.maximum:
        return [f"{variable} is {low:.4g} to {high:.4g}, outside [{about.minimum:g}, {about.maximum:g}] {about.unit}"]
    return []


def _levels(data, vertical: str, theirs: str) -> tuple[np.ndarray | None, bool, list[str]]:
    """Levels in Pa, or as shares of the surface pressure (``lev`` of ExoPlaSim), and what is wrong with them."""
    # ModelE numbers its layers; a variable of its own holds their nominal pressures.
    name = "plm" if vertical == "level" and "plm" in data and data["plm"].size == data.sizes[vertical] else vertical
    if name not in data:
        return None, False, [f"the levels of {theirs} have no coordinate {name}"]
    values = data[name].values.astype(float)
    if values.max() <= 1:
        return values, True, []
    unit = _unit(data[name]) or ("mb" if name == "plm" else "hPa")
    if unit not in _PRESSURE:
        return None, False, [f"the levels of {theirs} ({name}) are in {unit!r}: Pa, hPa or mb are needed"]
    return values * _PRESSURE[unit][0], False, []


def overlaps(latitude: np.ndarray, longitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights of first-order conservative regridding (Jones 1999, Mon. Weather Rev. 127, 2204) to the schema's
    grid from cells around ``latitude`` [y] and ``longitude`` [x] in degrees, in any order: [32, y] and [64, x].

    A cell ends halfway to the next; the outermost ones end at the poles. Each weight is the share of a new cell's
    area that an old one covers, so that rows sum to one and the area-weighted mean stays.
    """
    return (
        _shares(
            np.sin(np.deg2rad(_schema_bounds_latitude())),
            np.sin(np.deg2rad(_bounds(latitude, -90, 90))),
            np.argsort(latitude),
        ),
        _longitude_shares(longitude),
    )


def regridded(values: np.ndarray, weights: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """``values`` [..., y, x] with the weights of `overlaps`: [..., 32, 64]. A new cell is the mean over its known
    part, NaN if that is less than half of its area."""
    known = np.isfinite(values)
    if known.all():
        return weights[0] @ values @ weights[1].T
    cover = weights[0] @ known @ weights[1].T
    total = weights[0] @ np.where(known, values, 0) @ weights[1].T
    return np.where(cover >= 0.5, total / np.maximum(cover, 0.5), np.nan)


def _schema_bounds_latitude() -> np.ndarray:
    centres = climate_analysis.latitude_centers(CLIMATE_LATITUDES)
    return _bounds(centres, -90, 90)


def _bounds(centres: np.ndarray, low: float, high: float) -> np.ndarray:
    centres = np.sort(centres)
    return np.concatenate([[low], (centres[1:] + centres[:-1]) / 2, [high]])


def _longitude_shares(longitude: np.ndarray) -> np.ndarray:
    centres = climate_analysis.longitude_centers(CLIMATE_LONGITUDES)
    step = 360 / CLIMATE_LONGITUDES
    new = np.append(centres - step / 2, centres[-1] + step / 2)
    turned = (longitude - new[0]) % 360 + new[0]
    order = np.argsort(turned)
    ring = turned[order]
    middle = (ring + np.append(ring[1:], ring[0] + 360)) / 2  # the end of each cell; the last may lie past the seam
    edges = np.concatenate([[middle[-1] - 360], middle])
    west, here, east = (_shares(new, edges + turn, order) for turn in (-360, 0, 360))
    return west + here + east


def _shares(new: np.ndarray, old: np.ndarray, order: np.ndarray) -> np.ndarray:
    """[n, o]: the share of each interval between the edges ``new`` [n + 1] that lies in each interval between ``old``
    [o + 1], the latter in their order before sorting by ``order``."""
    shared = np.minimum(new[1:, None], old[None, 1:]) - np.maximum(new[:-1, None], old[None, :-1])
    weights = np.empty_like(shared)
    weights[:, order] = np.maximum(shared, 0) / np.diff(new)[:, None]
    return weights


def on_pressures(mean: Mean, surface_pressure_pa: float, pressures: np.ndarray) -> np.ndarray:
    """A mean's values at ``pressures`` [Z] in Pa, linear in the logarithm of pressure: [Z, 32, 64].

    Raises:
        ValueError: the file's levels do not reach so far; nothing is extrapolated.
    """
    assert mean.levels is not None  # of a variable on levels
    levels = mean.levels * surface_pressure_pa if mean.sigma else mean.levels
    if levels.min() > pressures.min() * 1.001 or levels.max() < pressures.max() * 0.999:
        raise ValueError(
            f"its levels reach from {levels.min() / 100:.4g} to {levels.max() / 100:.4g} hPa, "
            f"{pressures.min() / 100:.4g} to {pressures.max() / 100:.4g} are needed"
        )
    order = np.argsort(levels)
    unit = np.eye(len(levels))
    weights = np.stack([np.interp(np.log(pressures), np.log(levels[order]), row) for row in unit], axis=1)
    return np.tensordot(weights, mean.values[order], axes=1)


def above_ground(mean: Mean, surface_pressure_pa: np.ndarray, name: str) -> tuple[Mean, bool]:
    """The mean with the value of the lowest level above the ground continued below it, and whether anything was absent.

    Args:
        surface_pressure_pa: [32, 64]; ``name`` is the variable's, for the message.

    Raises:
        ValueError: something is absent that is not below the ground.
    """
    if np.isfinite(mean.values).all():
        return mean, False
    assert mean.levels is not None  # of a variable on levels
    levels = mean.levels[:, None, None] * (surface_pressure_pa if mean.sigma else 1.0)
    absent = np.isnan(mean.values)
    wrong = absent & (levels < _GROUND * surface_pressure_pa)
    if wrong.any():
        raise ValueError(f"{name} is absent in {wrong.sum()} of its {wrong.size} cells, above the ground")
    values = mean.values.copy()
    downward = np.argsort(mean.levels)
    for above, level in zip(downward, downward[1:], strict=False):
        values[level] = np.where(absent[level], values[above], values[level])
    return replace(mean, values=values), True


def merged(parts: Sequence[Mapping[str, Mean]]) -> dict[str, Mean]:
    """The means of several files of one climate; the first file's stand where two have a variable."""
    return {name: mean for part in reversed(parts) for name, mean in part.items()}


def _axis(array, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in array.dims), None)


def _unit(array) -> str:
    return "".join(str(array.attrs.get("units", "")).replace("**", "").replace("^", "").split())


def _engine(path: Path) -> str:
    with path.open("rb") as file:
        return "scipy" if file.read(3) == b"CDF" else "h5netcdf"
