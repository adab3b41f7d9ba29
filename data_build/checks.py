"""What must hold for a record: types, shapes, ranges, and laws of physics. Used when building and when validating."""

from dataclasses import dataclass

import numpy as np
from astropy import units as u

from astrobio.schema import (
    CLIMATE_LEVEL_VARIABLES,
    CLIMATE_SURFACE_VARIABLES,
    EDGE_FEATURES,
    GCMS,
    LABEL_PROBABILITY,
    NODE_FEATURES,
    NODE_KINDS,
    OPTIONAL_MODALITIES,
    PLANET_COLUMNS,
    PROVENANCE_KINDS,
    RETRIEVAL_COLUMNS,
    SHAPES,
)
from data_build.humidity import RELATIVE_HUMIDITY_LIMIT
from data_build.humidity import relative_humidity as humidity_of
from data_build.planets import PLANET_PARAMETERS, Atmosphere, gravity_m_s2
from data_build.sources.clero import area_mean, pressures_pa
from data_build.text import telling_words

#: In a steady state the absorbed and the outgoing flux, averaged over the planet, are equal; they may differ by this
#: share of a quarter of the instellation, the mean flux on the sphere.
ENERGY_BALANCE_LIMIT = 0.05
GRAVITY_LIMIT = 0.01  # relative difference from GM/R²
MASS_BALANCE_LIMIT = 1e-3  # mmol gDW-1 h-1, net flux of a metabolite inside the cell
DEPTH_LIMIT = (0.9, 3.0)  # transit depth without atmosphere is (R_p/R_*)²; the observed mean over it

_ARRAYS = {
    "climate": ("climate_levels", "climate_surface"),
    "metabolism": (
        "metabolism_node_kind",
        "metabolism_node_features",
        "metabolism_edge_index",
        "metabolism_edge_features",
    ),
    "spectrum": ("spectrum",),
}


@dataclass(frozen=True)
class Problem:
    """A value that breaks a limit: ``field`` of the record, the ``value`` found, the ``limit`` in words."""

    field: str
    value: str
    limit: str

    def __str__(self) -> str:
        return f"{self.field} is {self.value}, it must be {self.limit}"


def record_problems(record: dict) -> list[Problem]:
    """Everything wrong with one record; empty if it is good. Arrays are NumPy arrays, absent ones None."""
    problems = _planet_problems(record)
    for modality in OPTIONAL_MODALITIES:
        present = bool(record[f"{modality}_present"])
        wrong = [name for name in _ARRAYS[modality] if (record[name] is not None) != present]
        problems += [
            Problem(
                name,
                "null" if present else "filled",
                f"{'filled' if present else 'null'}, as {modality}_present is {present}",
            )
            for name in wrong
        ]
        if present and not wrong:
            problems += {
                "climate": _climate_problems,
                "metabolism": _metabolism_problems,
                "spectrum": _spectrum_problems,
            }[modality](record)
    problems += _retrieval_problems(record)
    problems += _label_and_text_problems(record)
    return problems


def _planet_problems(record: dict) -> list[Problem]:
    values, mask, derived = (np.asarray(record[name]) for name in ("planet", "planet_mask", "planet_derived"))
    shape = (len(PLANET_COLUMNS),)
    for name, array in (("planet", values), ("planet_mask", mask), ("planet_derived", derived)):
        if array.shape != shape:
            return [Problem(name, f"of shape {array.shape}", f"of shape {shape}")]
    problems = []
    for index, column in enumerate(PLANET_COLUMNS):
        field, value = f"planet.{column.name}", float(values[index])
        if not mask[index]:
            if column.required and (column.name in PLANET_PARAMETERS or not _measured(record)):
                problems.append(Problem(field, "masked", "known"))
            if derived[index]:
                problems.append(Problem(f"planet_derived.{column.name}", "true", "false where the column is masked"))
        elif not _within(value, column):
            problems.append(Problem(field, f"{value:g} {column.unit}", _range(column)))
    known = {column.name: float(values[i]) for i, column in enumerate(PLANET_COLUMNS) if mask[i]}
    if {"mass_earth", "radius_earth", "gravity_m_s2"} <= known.keys():
        expected = gravity_m_s2(known["mass_earth"], known["radius_earth"])
        if not abs(known["gravity_m_s2"] / expected - 1) <= GRAVITY_LIMIT:
            problems.append(
                Problem(
                    "planet.gravity_m_s2",
                    f"{known['gravity_m_s2']:g} m s-2",
                    f"within {GRAVITY_LIMIT:.0%} of GM/R² = {expected:g} m s-2",
                )
            )
    return problems


def _measured(record: dict) -> bool:
    """Whether the spectrum was measured: nothing is known of the planet's atmosphere."""
    return bool(record["spectrum_present"]) and record["provenance"]["spectrum"]["kind"] == "observed"


def _climate_problems(record: dict) -> list[Problem]:
    problems = []
    for field, columns in (("climate_levels", CLIMATE_LEVEL_VARIABLES), ("climate_surface", CLIMATE_SURFACE_VARIABLES)):
        array, shape = np.asarray(record[field]), SHAPES[field]
        if array.shape != shape:
            problems.append(Problem(field, f"of shape {array.shape}", f"of shape {shape}"))
            continue
        for index, column in enumerate(columns):
            problems += _array_problems(f"{field}.{column.name}", array[index], column)
    if problems:
        return problems
    balance = energy_imbalance(record)
    if not abs(balance) <= ENERGY_BALANCE_LIMIT:
        problems.append(
            Problem(
                "climate_surface",
                f"out of energy balance by {balance:.2f} of a quarter of the instellation",
                f"within ±{ENERGY_BALANCE_LIMIT}",
            )
        )
    humidity = relative_humidity(record)
    if not humidity <= RELATIVE_HUMIDITY_LIMIT:
        problems.append(
            Problem(
                "climate_levels.log10_specific_humidity",
                f"{humidity:.2f} of saturation next to the surface, on average",
                f"at most {RELATIVE_HUMIDITY_LIMIT:g}",
            )
        )
    return problems


def relative_humidity(record: dict) -> float:
    """Mean relative humidity at the lowest level of a record's climate, area-weighted."""
    pressure, co2, ch4 = (_planet_value(record, name) for name in ("surface_pressure_bar", "co2_vmr", "ch4_vmr"))
    air = Atmosphere(pressure, co2, ch4)
    lowest = np.asarray(record["climate_levels"], float)[:, 0, -1]
    names = [column.name for column in CLIMATE_LEVEL_VARIABLES]
    temperature, humidity = lowest[names.index("air_temperature")], lowest[names.index("log10_specific_humidity")]
    return float(area_mean(humidity_of(temperature, 10.0**humidity, pressures_pa(pressure)[-1], air)))


def energy_imbalance(record: dict) -> float:
    """(absorbed − outgoing) / (instellation / 4), of the planet's area-weighted means."""
    surface = np.asarray(record["climate_surface"], float)[:, 0]
    names = [column.name for column in CLIMATE_SURFACE_VARIABLES]
    net = area_mean(surface[names.index("absorbed_shortwave")] - surface[names.index("outgoing_longwave")])
    return float(4 * net / _planet_value(record, "instellation_w_m2"))


def _metabolism_problems(record: dict) -> list[Problem]:
    kind, nodes, index, edges = (np.asarray(record[name]) for name in _ARRAYS["metabolism"])
    n, e = len(kind), len(index)
    for field, array, shape in (
        ("metabolism_node_kind", kind, (n,)),
        ("metabolism_node_features", nodes, (n, len(NODE_FEATURES))),
        ("metabolism_edge_index", index, (e, 2)),
        ("metabolism_edge_features", edges, (e, len(EDGE_FEATURES))),
    ):
        if array.shape != shape:
            return [Problem(field, f"of shape {array.shape}", f"of shape {shape}")]
        if not np.isfinite(array.astype(float)).all():
            return [Problem(field, "not finite", "finite")]
    problems = []
    if n == 0 or kind.min() < 0 or kind.max() >= len(NODE_KINDS):
        problems.append(Problem("metabolism_node_kind", f"{sorted(set(kind.tolist()))}", f"0 to {len(NODE_KINDS) - 1}"))
    if e and (index.min() < 0 or index.max() >= n):
        return [*problems, Problem("metabolism_edge_index", f"{index.min()} to {index.max()}", f"within [0, {n - 1}]")]
    if e and (kind[index[:, 0]] == kind[index[:, 1]]).any():
        return [
            *problems,
            Problem(
                "metabolism_edge_index", "an edge between nodes of one kind", "between a metabolite and a reaction"
            ),
        ]
    metabolite = np.where(kind[index[:, 0]] == NODE_KINDS.index("metabolite"), index[:, 0], index[:, 1])
    net = np.zeros(n)
    np.add.at(net, metabolite, edges[:, EDGE_FEATURES.index("flux")])
    worst = np.abs(net).max(initial=0.0)
    if worst > MASS_BALANCE_LIMIT:
        problems.append(
            Problem(
                "metabolism_edge_features.flux",
                f"out of mass balance by {worst:g} mmol gDW-1 h-1",
                f"within {MASS_BALANCE_LIMIT:g} for each metabolite",
            )
        )
    flux, low, high = (
        nodes[kind == NODE_KINDS.index("reaction"), NODE_FEATURES.index(name)]
        for name in ("flux", "lower_bound", "upper_bound")
    )
    active = bool((flux != 0).any())  # a dormant network has zero flux even where maintenance asks for more
    beyond = np.maximum(low - flux, flux - high).max(initial=0.0)
    if active and beyond > MASS_BALANCE_LIMIT:
        problems.append(
            Problem(
                "metabolism_node_features.flux", f"{beyond:g} beyond a bound", "between lower_bound and upper_bound"
            )
        )
    return problems


def _spectrum_problems(record: dict) -> list[Problem]:
    spectrum, shape = np.asarray(record["spectrum"], float), SHAPES["spectrum"]
    if spectrum.shape != tuple(shape):
        return [Problem("spectrum", f"of shape {spectrum.shape}", f"of shape {shape}")]
    wavelength, depth, sigma = spectrum.T
    seen = np.isfinite(depth)
    if not seen.any() or not np.isfinite(wavelength).all() or (np.isfinite(sigma) != seen).any():
        return [Problem("spectrum", "not finite", "finite, or depth and σ both NaN where it is not observed")]
    problems = []
    if not (np.diff(wavelength) > 0).all() or wavelength[0] <= 0:
        problems.append(Problem("spectrum.wavelength_um", "not rising", "rising and above 0"))
    depth, sigma = depth[seen], sigma[seen]
    if not ((sigma > 0) & (sigma < 1)).all():
        problems.append(Problem("spectrum.transit_depth_sigma", f"{sigma.min():g} to {sigma.max():g}", "within (0, 1)"))
    radius, stellar = (_planet_value(record, name) for name in ("radius_earth", "stellar_radius_sun"))
    if not problems and np.isfinite(stellar):
        bare = (radius / stellar * u.R_earth.to(u.R_sun)) ** 2
        # The mean over the spectrum, weighted by 1/σ²: single points of a faint star are all noise.
        mean = np.average(depth, weights=sigma**-2)
        error = (sigma**-2).sum() ** -0.5
        low, high = DEPTH_LIMIT[0] * bare - 5 * error, DEPTH_LIMIT[1] * bare + 5 * error
        if not low <= mean <= high:
            problems.append(
                Problem(
                    "spectrum.transit_depth",
                    f"{mean:g} on average over {seen.sum()} points",
                    f"within [{low:g}, {high:g}], as (R_p/R_*)² is {bare:g}",
                )
            )
    return problems


def _retrieval_problems(record: dict) -> list[Problem]:
    values, shape = np.asarray(record["retrieval"], float), (len(RETRIEVAL_COLUMNS),)
    if values.shape != shape:
        return [Problem("retrieval", f"of shape {values.shape}", f"of shape {shape}")]
    if not record["spectrum_present"] or _measured(record):
        filled = np.isfinite(values).any()
        return [Problem("retrieval", "filled", "NaN without a computed spectrum")] if filled else []
    return [
        Problem(f"retrieval.{column.name}", f"{value:g} {column.unit}", _range(column))
        for value, column in zip(values, RETRIEVAL_COLUMNS, strict=True)
        if not _within(value, column)
    ]


def _label_and_text_problems(record: dict) -> list[Problem]:
    problems = []
    label = int(record["label"])
    if label not in ((0, 1) if record["label_present"] else (0,)):
        problems.append(Problem("label", str(label), "0 or 1, and 0 where absent"))
    probability, by_gcm = float(record["label_probability"]), np.asarray(record["label_probability_by_gcm"], float)
    if by_gcm.shape != (len(GCMS),) or not (np.isnan(by_gcm) | ((by_gcm >= 0) & (by_gcm <= 1))).all():
        limit = f"{len(GCMS)} numbers within [0, 1], or NaN where the climate was not emulated"
        problems.append(Problem("label_probability_by_gcm", str(by_gcm), limit))
    else:
        mean = by_gcm[[GCMS.index(gcm) for gcm in LABEL_PROBABILITY["gcms"]]].mean()
        if not np.isclose(probability, mean, atol=1e-6, equal_nan=True):
            problems.append(Problem("label_probability", f"{probability:g}", f"{mean:g}, the mean over its models"))
    if not record["text"].strip():
        problems.append(Problem("text", "empty", "a description"))
    problems += [
        Problem("text", f"telling ({word!r})", "free of words that judge the climate")
        for word in telling_words(record["text"])
    ]
    for part, entry in record["provenance"].items():
        if entry["kind"] not in PROVENANCE_KINDS:
            problems.append(Problem(f"provenance.{part}.kind", repr(entry["kind"]), f"one of {PROVENANCE_KINDS}"))
        if not 0 <= entry["quality"] <= 1:
            problems.append(Problem(f"provenance.{part}.quality", f"{entry['quality']:g}", "within [0, 1]"))
    return problems


def _planet_value(record: dict, name: str) -> float:
    index = [column.name for column in PLANET_COLUMNS].index(name)
    return float(record["planet"][index]) if record["planet_mask"][index] else float("nan")


def _array_problems(field: str, array: np.ndarray, column) -> list[Problem]:
    low, high = float(np.min(array)), float(np.max(array))  # NaN if any value is
    tolerance = 1e-3 * (column.maximum - column.minimum)  # half precision rounds
    if column.minimum - tolerance <= low and high <= column.maximum + tolerance:
        return []
    return [Problem(field, f"{low:g} to {high:g} {column.unit}", _range(column))]


def _within(value: float, column) -> bool:
    return column.minimum <= value <= column.maximum


def _range(column) -> str:
    return f"within [{column.minimum:g}, {column.maximum:g}] {column.unit}"
