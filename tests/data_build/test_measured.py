"""Measured spectra become records of a test set of their own: no climate, no metabolism, no label."""

import hashlib
from dataclasses import replace

import datasets
import numpy as np
import pytest

from astrobio.schema import SPLITS
from data_build import pipeline
from data_build.checks import record_problems
from data_build.instruments import bin_edges
from data_build.measured import measured_records, resampled
from data_build.planets import EARTH, Planet, derive, tidally_locked
from data_build.recipe import load_recipe
from data_build.records import record_digest
from data_build.spectra import MeasuredSpectrum
from data_build.validation import read_records, validate

RECIPE = load_recipe("sample")
GRID = np.geomspace(0.6, 12, 1000)


def hot_jupiter(**values) -> Planet:
    """A synthetic hot Jupiter, far outside of the emulator's domain."""
    known = {
        **{name: value for name, value in EARTH.items() if name != "rotation_period_d"},
        "instellation_w_m2": 1e6,
        "radius_earth": 14.0,
        "mass_earth": 250.0,
        "orbital_period_d": 3.5,
        "semi_major_axis_au": 0.045,
        **values,
    }
    planet = Planet("synthetic-b", "Synthetic b", "exoplanet_eu", "observed", known, aliases=frozenset({"SYN 1 b"}))
    return tidally_locked(derive(planet))


def measured(planet="Synthetic b", centre=None, width=0.1, depth=0.0165, sigma=1e-4) -> MeasuredSpectrum:
    centre = np.arange(1.15, 1.7, 0.1) if centre is None else np.asarray(centre, float)
    full = np.ones(len(centre))
    return MeasuredSpectrum(
        planet, "Hubble Space Telescope", "WFC3", "A. Synthetic 2020", centre, width * full, depth * full, sigma * full
    )


def test_a_measured_spectrum_becomes_a_record_that_knows_no_atmosphere():
    made, aside = measured_records([measured(), measured("SYN 1 b")], "nasa_spectra", [hot_jupiter()], RECIPE)
    assert not aside and [record["run_id"] for _, record in made] == [
        "synthetic-b/measured-000",
        "synthetic-b/measured-001",
    ]
    _, record = made[0]
    assert record_problems(record) == []
    assert not record["climate_present"] and not record["metabolism_present"] and not record["label_present"]
    assert np.isnan(record["label_probability"]) and np.isnan(record["retrieval"]).all()
    assert not record["planet_mask"][-3:].any() and record["planet_mask"][:8].all()  # pressure, CO2 and CH4
    assert "Synthetic b" in record["text"] and "bar" not in record["text"] and "carbon" not in record["text"]
    source = record["provenance"]["spectrum"]
    assert source["kind"] == "observed" and "WFC3" in source["version"] and "A. Synthetic 2020" in source["version"]


def test_what_cannot_be_a_record_is_set_aside_with_the_reason():
    dark = replace(hot_jupiter(), values={"radius_earth": 14.0})
    spectra = [measured("Nobody b"), measured(), measured("Other b", centre=[20.0, 21.0])]
    other = replace(hot_jupiter(), name="Other b", aliases=frozenset())
    made, aside = measured_records(spectra, "nasa_spectra", [dark, other], RECIPE)
    assert not made
    assert [entry["reason"].split(" of its")[0][:40] for entry in aside] == [
        "no catalogue has its planet",
        "no catalogue tells stellar_temperature_k, instellation_w_m2, gravity_m_s2"[:40],
        "it covers no bin of the recipe's wavelengths"[:40],
    ]


def test_a_label_or_an_atmosphere_is_a_must_where_the_spectrum_is_computed():
    (_, record), *_ = measured_records([measured()], "nasa_spectra", [hot_jupiter()], RECIPE)[0]
    record["provenance"]["spectrum"]["kind"] = "simulated"
    fields = {problem.field for problem in record_problems(record)}
    assert {"planet.surface_pressure_bar", "planet.co2_vmr"} <= fields


def test_resampling_keeps_depth_and_what_is_known():
    """The error of the mean over all bins is that over all points, whether the grid is finer or coarser."""
    points = measured(depth=0.02)
    for grid in (GRID, np.geomspace(1.0, 1.9, 4)):
        _, depth, sigma = resampled(points, grid).T.astype(float)
        seen = np.isfinite(depth)
        assert depth[seen] == pytest.approx(0.02)
        weights = np.diff(bin_edges(grid))[seen]
        mean_error = np.sqrt((weights**2 * sigma[seen] ** 2).sum()) / weights.sum()
        assert mean_error == pytest.approx(1e-4 / np.sqrt(6), rel=0.15)


def test_bins_without_a_measurement_are_nan():
    grid, depth, sigma = resampled(measured(centre=[1.2, 4.5], width=0.1), GRID).T
    inside = (abs(grid - 1.2) < 0.048) | (abs(grid - 4.5) < 0.04)
    assert (
        np.isfinite(depth[inside]).all() and np.isnan(depth[(abs(grid - 1.2) > 0.06) & (abs(grid - 4.5) > 0.07)]).all()
    )
    assert (np.isnan(depth) == np.isnan(sigma)).all()


def test_a_point_without_a_bandwidth_reaches_half_way_to_its_neighbours():
    points = measured(centre=[1.0, 1.2, 1.5], width=np.nan)
    grid, depth, _ = resampled(points, GRID).T
    assert (
        np.isfinite(depth[(grid > 0.91) & (grid < 1.64)]).all() and np.isnan(depth[(grid < 0.89) | (grid > 1.66)]).all()
    )
    alone = resampled(measured(centre=[1.0], width=np.nan), GRID)
    assert np.isnan(alone[:, 1]).all()


def test_a_flat_spectrum_is_worth_nothing_and_a_feature_much():
    rng = np.random.default_rng(0)
    centre = np.arange(1.0, 1.7, 0.02)
    flat = measured(centre=centre, width=0.02)
    flat = replace(flat, transit_depth=flat.transit_depth + rng.normal(0, 1e-4, len(centre)))
    bump = replace(flat, transit_depth=flat.transit_depth + 1e-3 * np.exp(-(((centre - 1.4) / 0.1) ** 2)))
    made, _ = measured_records([flat, bump], "nasa_spectra", [hot_jupiter()], RECIPE)
    low, high = (record["provenance"]["spectrum"]["quality"] for _, record in made)
    assert low < 0.5 and high > 0.9


def test_a_build_writes_them_beside_the_splits(tmp_path, monkeypatch, quick_build):
    made, aside = measured_records([measured(), measured("Nobody b")], "nasa_spectra", [hot_jupiter()], RECIPE)
    monkeypatch.setattr(
        pipeline, "_measured", lambda recipe, harvests: ([(planet, None, record) for planet, record in made], aside)
    )
    out = tmp_path / "out"
    manifest = quick_build(out)
    assert manifest["counts"]["measured"]["observed"]["records"] == 1
    assert manifest["counts"]["measured"]["observed"]["label_open"] == 1
    assert any(name.startswith("measured/") for name in manifest["files"])
    assert validate(out) == []
    (record,) = read_records(datasets.load_from_disk(str(out / "measured")))
    assert record_digest(record) == record_digest(made[0][1])
    assert "Nobody b" in (out / "quarantine.jsonl").read_text()
    assert manifest["content_sha256"] != quick_hash(out)


def quick_hash(folder) -> str:
    """The content hash that the splits alone would have."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for record in read_records(datasets.load_from_disk(str(folder / split))):
            digest.update(record_digest(record))
    return digest.hexdigest()
