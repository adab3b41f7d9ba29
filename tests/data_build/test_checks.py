"""Each check finds the fault it is there for."""

import datasets
import numpy as np
import pytest

from astrobio.schema import PLANET_COLUMNS
from data_build.checks import record_problems
from data_build.statistics import Accumulator, Statistics, planet_transform
from data_build.validation import read_records

COLUMN = {column.name: index for index, column in enumerate(PLANET_COLUMNS)}


@pytest.fixture
def record(small_dataset):
    """A record with every modality, and its own copy of it."""
    table = datasets.load_from_disk(str(small_dataset / "train"))
    for entry in read_records(table):
        if (
            entry["climate_present"]
            and entry["spectrum_present"]
            and entry["metabolism_present"]
            and (entry["metabolism_edge_features"][:, 1] != 0).any()
        ):
            return {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in entry.items()}
    pytest.fail("no whole record")


def test_a_good_record_has_no_problems(record):
    assert record_problems(record) == []


def set_to(name, index, value):
    def change(record):
        record[name][index] = value

    return change


FAULTS = {
    "a value out of its range": (
        set_to("planet", COLUMN["stellar_temperature_k"], 50_000),
        "planet.stellar_temperature_k",
        "50000 K",
        "[2000, 12000]",
    ),
    "a value that is no number": (
        set_to("planet", COLUMN["orbital_period_d"], np.nan),
        "planet.orbital_period_d",
        "nan",
        "within",
    ),
    "a gravity that does not fit": (
        set_to("planet", COLUMN["gravity_m_s2"], 3.0),
        "planet.gravity_m_s2",
        "3 m s-2",
        "GM/R²",
    ),
    "a required column masked": (
        set_to("planet_mask", COLUMN["radius_earth"], False),
        "planet.radius_earth",
        "masked",
        "known",
    ),
    "a temperature of a fill value": (
        set_to("climate_levels", (0, 0, 3, 5, 5), np.inf),
        "climate_levels.air_temperature",
        "inf",
        "[30, 2000]",
    ),
    "a cloud fraction of 2": (
        set_to("climate_levels", (2, 0, 3, 5, 5), 2.0),
        "climate_levels.cloud_fraction",
        "to 2",
        "[0, 1]",
    ),
    "more water than air can hold": (
        set_to("climate_levels", (1, 0, 9), -0.5),
        "climate_levels.log10_specific_humidity",
        "of saturation",
        "at most 1.05",
    ),
    "a probability of 2": (
        set_to("label_probability_by_gcm", 0, 2.0),
        "label_probability_by_gcm",
        "2.",
        "within [0, 1]",
    ),
    "a probability that is not the models' mean": (
        set_to("label_probability_by_gcm", slice(None), 0.123),
        "label_probability",
        "",
        "0.123, the mean",
    ),
    "no energy balance": (set_to("climate_surface", (1, 0), 0.0), "climate_surface", "energy balance", "±0.05"),
    "a flux that breaks mass balance": (
        set_to("metabolism_edge_features", (slice(0, 1), 1), 99.0),
        "metabolism_edge_features.flux",
        "mass balance",
        "for each metabolite",
    ),
    "an edge to nowhere": (set_to("metabolism_edge_index", (0, 1), 10_000), "metabolism_edge_index", "10000", "within"),
    "a flux beyond its bound": (
        set_to("metabolism_node_features", (-1, 9), -5000.0),
        "metabolism_node_features.flux",
        "beyond a bound",
        "upper_bound",
    ),
    "a spectrum of another planet": (
        set_to("spectrum", (slice(None), 1), 0.9),
        "spectrum.transit_depth",
        "0.9",
        "(R_p/R_*)²",
    ),
    "a negative error": (set_to("spectrum", (7, 2), -1.0), "spectrum.transit_depth_sigma", "-1", "(0, 1)"),
    "a depth without its error": (set_to("spectrum", (7, 2), np.nan), "spectrum", "not finite", "both NaN"),
    "a retrieved quantity out of its range": (
        set_to("retrieval", 0, 5000.0),
        "retrieval.terminator_temperature_k",
        "5000 K",
        "[30, 2000]",
    ),
    "wavelengths out of order": (set_to("spectrum", (7, 0), 0.1), "spectrum.wavelength_um", "not rising", "rising"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(record, fault):
    change, field, value, limit = FAULTS[fault]
    change(record)
    problems = record_problems(record)
    assert [
        problem for problem in problems if problem.field == field and value in problem.value and limit in problem.limit
    ], problems


def test_where_nobody_looks_a_spectrum_is_nan(record):
    record["spectrum"][:300, 1:] = np.nan
    assert record_problems(record) == []
    record["spectrum"][:, 1:] = np.nan
    assert [problem.field for problem in record_problems(record)] == ["spectrum"]


def test_absent_means_null(record):
    record["climate_present"] = False
    assert {problem.field for problem in record_problems(record)} == {"climate_levels", "climate_surface"}


def test_present_means_filled(record):
    record["spectrum"] = None
    assert [str(problem) for problem in record_problems(record)] == [
        "spectrum is null, it must be filled, as spectrum_present is True"
    ]


def test_a_text_must_not_judge(record):
    record["text"] += " A habitable world."
    assert [problem.field for problem in record_problems(record)] == ["text"]


def test_moments_are_numpys_and_skip_what_is_absent():
    values = np.random.default_rng(0).normal(3, 2, (100, 2))
    values[::3, 1] = np.nan
    accumulator = Accumulator(2)
    for part in np.array_split(values, 7):
        accumulator.add(part)
    moments = accumulator.moments()
    np.testing.assert_allclose(moments["mean"], np.nanmean(values, 0))
    np.testing.assert_allclose(moments["std"], np.nanstd(values, 0))


def test_a_column_without_spread_has_standard_deviation_one():
    accumulator = Accumulator(1)
    accumulator.add(np.full((50, 1), 0.1))
    assert accumulator.moments()["std"] == [1.0]


def test_planet_columns_are_transformed_as_the_schema_says():
    values = np.ones(len(PLANET_COLUMNS))
    values[COLUMN["orbital_period_d"]] = 100.0
    values[COLUMN["eccentricity"]] = np.nan
    transformed = planet_transform(values)
    assert transformed[COLUMN["orbital_period_d"]] == 2.0 and transformed[COLUMN["stellar_temperature_k"]] == 1.0
    assert np.isnan(transformed[COLUMN["eccentricity"]])


def test_statistics_take_only_what_is_present(record):
    statistics = Statistics()
    statistics.add(record)
    expected = statistics.as_dict()["climate_surface"]
    absent = {**record, "climate_present": False, "climate_levels": None, "climate_surface": None}
    statistics.add(absent)
    assert statistics.as_dict()["climate_surface"] == expected
    for mean, values in zip(expected["mean"], record["climate_surface"], strict=True):
        np.testing.assert_allclose(mean, values.astype(float).mean())
