"""Climates of archives: from their files to the schema's grid, and from there to records that give no label away."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clero import climate_analysis
from fake_climates import LATITUDE, LONGITUDE, PRESSURES, era5, model_e, netcdf, synthetic_fields
from invented import candidates

from astrobio.schema import CLIMATE_LEVEL_VARIABLES, CLIMATE_SURFACE_VARIABLES, PLANET_COLUMNS
from data_build import records as records_module
from data_build.checks import record_problems
from data_build.climates import archived, report
from data_build.harvest import Harvest
from data_build.planets import EARTH, Planet
from data_build.recipe import load_recipe
from data_build.records import make_records
from data_build.rows import row_problems
from data_build.selection import select_runs
from data_build.sources import ARCHIVES
from data_build.sources.clero import area_mean, pressures_pa
from data_build.sources.climate import climate_row, fields
from data_build.sources.copernicus import REQUESTS
from data_build.sources.netcdf import merged, overlaps, read_means, regridded
from data_build.sources.rocke3d import from_attributes, from_rundeck

LEVELS = [column.name for column in CLIMATE_LEVEL_VARIABLES]
SURFACE = [column.name for column in CLIMATE_SURFACE_VARIABLES]
AIR = {"co2_vmr": 4e-4, "ch4_vmr": 2e-6}


def read(folder, *files: bytes):
    parts, problems = [], []
    for number, file in enumerate(files):
        path = folder / f"{number}.nc"
        path.write_bytes(file)
        means, found, _ = read_means(path, path.name, "Synthetic")
        parts.append(means)
        problems += found
    return merged(parts), problems


def row(folder, *files: bytes, climate_id="synthetic", planet="Earth", rest="nitrogen") -> dict:
    return climate_row(climate_id, planet, {**EARTH, **AIR}, *read(folder, *files), rest)


def year(folder, months=2) -> list[bytes]:
    return [era5(folder / "made.nc", list(variables), months) for _, variables, _ in REQUESTS]


@pytest.mark.parametrize(
    ("latitude", "longitude"),
    [
        (np.linspace(90, -90, 181), np.arange(0, 360, 1.0)),  # ERA5 at one degree, from north to south
        (np.linspace(-90, 90, 46), np.arange(-177.5, 180, 5.0)),  # ModelE at 4° × 5°, half cells at the poles
        (np.linspace(-88, 88, 12), np.arange(10, 370, 15.0)),  # coarser than the schema's grid, across the seam
    ],
)
def test_regridding_keeps_shape_and_the_mean_over_the_sphere(latitude, longitude):
    def pattern(latitude, longitude):
        return np.cos(np.deg2rad(latitude))[:, None] * (2 + np.sin(np.deg2rad(longitude))[None, :])

    weights = overlaps(latitude, longitude)
    assert np.allclose(weights[0].sum(1), 1) and np.allclose(weights[1].sum(1), 1)
    values = pattern(latitude, longitude)
    new = regridded(values, weights)
    step = np.abs(np.diff(latitude)).max()
    expected = pattern(climate_analysis.latitude_centers(32), climate_analysis.longitude_centers(64))
    np.testing.assert_allclose(new, expected, atol=0.02 + 2 * np.deg2rad(step))
    bounds = np.sin(np.deg2rad(np.concatenate([[-90], (np.sort(latitude)[1:] + np.sort(latitude)[:-1]) / 2, [90]])))
    mean = (values[np.argsort(latitude)].mean(1) * np.diff(bounds)).sum() / 2
    centres = climate_analysis.latitude_centers(32)
    bounds = np.sin(np.deg2rad(np.concatenate([[-90], (centres[1:] + centres[:-1]) / 2, [90]])))
    assert (new.mean(1) * np.diff(bounds)).sum() / 2 == pytest.approx(mean, rel=1e-12)


def test_era5_and_model_e_give_the_same_climate(tmp_path):
    """One planet in the layouts of two archives: names, units, signs, order of rows and levels, staggered winds."""
    files = model_e(tmp_path, 0)
    first, second = row(tmp_path, *year(tmp_path)), row(tmp_path, files["aij"], files["aijl"], files["aijk"])
    assert first["problems"] is None and second["problems"] is None
    for ours, theirs in zip(fields(first), fields(second), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=0.15)  # single precision, celsius, staggered winds
    levels, surface = fields(first)
    truth = synthetic_fields()
    for name in SURFACE:
        assert area_mean(surface[SURFACE.index(name)]) == pytest.approx(truth[name][0][5:7].mean(), rel=0.1)
    assert first["surface_pressure_bar"] == pytest.approx(0.98)
    at = np.interp(np.log(pressures_pa(0.98) / 100), np.log(PRESSURES), truth["air_temperature"][0][:, 6, 0])
    assert levels[LEVELS.index("air_temperature"), :, 16, 32] == pytest.approx(at, rel=0.01)
    assert (
        first["processing"] == "mean of 2 times, conservatively regridded to 32 × 64, 9 levels interpolated to 10 "
        "in ln p"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"skt": ("K", 9.969209968386869e36)}, "surface_temperature holds the fill value 9.969e+36, not masked"),
        ({"skt": ("K", np.nan)}, "surface_temperature is absent in 0.3% of its cells"),
        ({"skt": ("K", 5000.0)}, "surface_temperature is 251.6 to 5000, outside [30, 2000] K"),
        (
            {"skt": ("degF", 280.0)},
            "the unit of surface_temperature (skt) is 'degF', it must be K or another of K, C, degC",
        ),
        ({"tas": ("K", 280.0)}, "it lacks surface_temperature"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path, change, reason):
    name, (unit, value) = next(iter(change.items()))
    truth = synthetic_fields()
    skin = truth["surface_temperature"][0].copy()
    skin[6, 3] = value
    changed = netcdf(
        tmp_path / "made.nc",
        {name: (("lat", "lon"), skin, unit), "sp": (("lat", "lon"), truth["surface_pressure"][0], "Pa")},
        {"lat": LATITUDE, "lon": LONGITUDE},
    )
    made = row(tmp_path, changed, *year(tmp_path)[1:])
    assert row_problems(made, ARCHIVES["rocke3d"]()) == [reason] and made["levels"] is None


def test_winds_in_maps_of_one_pressure_each_go_on_below_a_mountain(tmp_path):
    """ModelE's ``aij`` has u_850 and its like, absent below the ground; what is absent elsewhere is an error."""
    files = model_e(tmp_path, 0)
    truth = synthetic_fields()
    pressure = truth["surface_pressure"][0].copy()
    pressure[5:7, 3:6] = 70000.0  # a mountain

    def maps(hole: float) -> bytes:
        variables = {"prsurf": (("lat", "lon"), pressure / 100, "mb")}
        for name, ours in (("u", "eastward_wind"), ("v", "northward_wind")):
            for level, values in zip(PRESSURES, truth[ours][0], strict=True):
                values = np.where(level * 100 > pressure, np.nan, values + 3)
                values[9, 9] = np.nan if level == hole else values[9, 9]
                variables[f"{name}_{level:.0f}"] = (("lat", "lon"), values, "m/s")
        return netcdf(tmp_path / "made.nc", variables, {"lat": LATITUDE, "lon": LONGITUDE - 180})

    made = row(tmp_path, maps(hole=0), files["aij"], files["aijl"])
    assert made["problems"] is None
    assert made["processing"].endswith("in ln p, eastward_wind, northward_wind continued below the ground")
    wind = fields(made)[0][LEVELS.index("eastward_wind")]
    column = wind[:, 16, 10]  # over the mountain, at 120° west
    highest = np.flatnonzero(pressures_pa(made["surface_pressure_bar"]) < 60000)[-1]
    assert column[-1] == pytest.approx(column[highest], abs=1.5) and column[-1] > wind[-1, 16, 32] + 1
    assert (
        "eastward_wind is absent in 6 of its 18432 cells, above the ground"
        in row(tmp_path, maps(hole=200.0), files["aij"], files["aijl"])["problems"]
    )


def test_levels_that_do_not_reach_are_not_made_up(tmp_path):
    files = year(tmp_path)
    truth = synthetic_fields()
    short = netcdf(
        tmp_path / "made.nc",
        {"t": (("plev", "lat", "lon"), truth["air_temperature"][0][3:], "K")},
        {"lat": LATITUDE, "lon": LONGITUDE, "plev": ("plev", PRESSURES[3:] * 100, {"units": "Pa"})},
    )
    made = row(tmp_path, short, *files)
    assert made["problems"] == "its levels reach from 400 to 1000 hPa, 10 to 906.5 are needed"


def test_a_planet_that_is_not_told_is_named(tmp_path):
    files = model_e(tmp_path, 0)
    made = climate_row(
        "x", "x", {"instellation_w_m2": 1000.0, **AIR}, *read(tmp_path, files["aij"], files["aijl"], files["aijk"])
    )
    lacking = "stellar_temperature_k, radius_earth, gravity_m_s2, rotation_period_d, orbital_period_d"
    assert made["problems"] == f"its files do not tell {lacking}"


def test_a_rundeck_is_read():
    deck = (
        "planet_s0=900.0\n! eccentricity=0.5\nsiderealorbitalPeriod=527040.0d0  ! 6.1 days\n"
        "solar_spec='trappist1'\nplanetName='Synthetic e'\n"
    )
    told = from_rundeck(deck)
    assert told["instellation_w_m2"] == 900.0 and told["orbital_period_d"] == pytest.approx(6.1)
    assert told["rotation_period_d"] == 0.99727  # ModelE's default, whatever the orbit
    locked = from_rundeck(deck + "siderealRotationPeriod=527040.d0\n")
    assert locked["rotation_period_d"] == locked["orbital_period_d"] == pytest.approx(6.1)
    assert told["stellar_temperature_k"] == 2566.0 and told["planet"] == "Synthetic e"
    assert told["eccentricity"] == EARTH["eccentricity"] and told["radius_earth"] == 1.0
    assert "radius_earth" not in from_rundeck("#define PLANET_PARAMS Synthetic\n" + deck)
    assert from_rundeck("s0x=1.1\n")["instellation_w_m2"] == pytest.approx(1497.1) and from_rundeck("") == {}
    assert from_attributes({"gravity_m_s2": "9.12", "co2_vmr": "much", "planet": "p", "title": "t"}) == {
        "gravity_m_s2": 9.12,
        "planet": "p",
    }


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Candidates as a build would have them: an Earth of ERA5, and a planet of ROCKE-3D, twice warm and once frozen."""
    tmp_path = tmp_path_factory.mktemp("stored")

    def harvest(name, rows):
        folder = tmp_path / name
        folder.mkdir()
        pq.write_table(pa.Table.from_pylist(rows), folder / "rows-00000.parquet")
        return Harvest(folder, {"files": {"rows-00000.parquet": ""}})

    earth = row(tmp_path, *year(tmp_path), rest="nitrogen and oxygen")
    worlds = [
        row(tmp_path, *model_e(tmp_path, warmth).values(), climate_id=f"run {number}", planet="Proxima Cen b")
        for number, warmth in enumerate((0, -60, 10))
    ]
    known = Planet(
        key="proxima-cen-b",
        name="Proxima Centauri b",
        source="s",
        kind="observed",
        values={},
        aliases=frozenset({"Proxima Cen b"}),
    )
    return archived({"copernicus": harvest("copernicus", [earth]), "rocke3d": harvest("rocke3d", worlds)}, [known])


def test_archived_climates_become_records_that_hold(stored):
    assert [(candidate.run_id, candidate.label) for candidate in stored] == [
        ("earth/copernicus-000", 1),
        ("proxima-cen-b/rocke3d-000", 1),
        ("proxima-cen-b/rocke3d-001", 0),
        ("proxima-cen-b/rocke3d-002", 1),
    ]
    groups, _ = select_runs({}, load_recipe("sample"), stored)
    runs = [run for group in groups for run in group]
    records = {record["run_id"]: record for record in make_records(runs, load_recipe("sample"))}
    assert len(records) == 4
    for record in records.values():
        assert record_problems(record) == [] and record["climate_present"] and not record["spectrum_present"]
    earth = records["earth/copernicus-000"]
    values = dict(zip([column.name for column in PLANET_COLUMNS], earth["planet"], strict=True))
    assert values["radius_earth"] == 1.0
    assert values["rotation_period_d"] == np.float32(0.99727) and values["orbital_period_d"] == np.float32(365.256)
    assert "0.9973 days" in earth["text"] and "365.3 days" in earth["text"]
    assert np.isnan(earth["label_probability"]) and np.isnan(earth["label_probability_by_gcm"]).all()
    assert earth["planet_derived"].sum() == 1  # gravity
    assert "The rest of the air is nitrogen and oxygen." in earth["text"]
    source = earth["provenance"]
    assert source["climate"]["source"] == "copernicus" and "9 levels interpolated" in source["climate"]["version"]
    assert source["planet"]["source"] == "solar_system" and source["planet"]["kind"] == "observed"
    other = records["proxima-cen-b/rocke3d-000"]["provenance"]
    assert other["planet"]["source"] == "rocke3d" and other["planet"]["kind"] == "synthetic"


def test_only_pairs_that_are_alike_are_labelled(stored):
    """Else ``copernicus`` in the provenance would tell that a record is habitable."""
    groups, _ = select_runs({}, load_recipe("sample"), stored)
    labels = {run.candidate.run_id: (run.candidate.label, len(group)) for group in groups for run in group}
    assert labels == {
        "earth/copernicus-000": (None, 1),
        "proxima-cen-b/rocke3d-000": (1, 2),
        "proxima-cen-b/rocke3d-001": (0, 2),
        "proxima-cen-b/rocke3d-002": (None, 1),
    }
    pair = next(group for group in groups if len(group) == 2)
    assert pair[0].present == pair[1].present and pair[0].split == pair[1].split
    told = [
        {key: value for key, value in record.items() if key in ("provenance", "planet_mask", "planet_derived")}
        for record in make_records(list(pair), load_recipe("sample"))
    ]
    assert str(told[0]) == str(told[1])
    assert report(stored)[0]["habitable"] == 1  # the verdict that the record does not have is told here


@pytest.mark.parametrize(("network", "sentences"), [("e_coli_core", 2), ("glycolysis", 0)])
def test_partners_are_told_the_same_of_the_organism_if_the_network_is_its(stored, network, sentences, monkeypatch):
    monkeypatch.setattr(records_module, "network_of", lambda run, recipe: network)
    groups, _ = select_runs({}, load_recipe("sample"), stored)
    pair = next(group for group in groups if len(group) == 2)
    known = tuple((name, f"A sentence of {name}.") for name in ("genbank", "gtdb", "kegg", "uniprot"))
    for present in (True, False):
        runs = [replace(run, present={**run.present, "metabolism": present}) for run in pair]
        records = make_records(runs, load_recipe("sample"), known)
        words = [[word for word in record["text"].split() if not any(map(str.isdigit, word))] for record in records]
        assert words[0] == words[1] and records[0]["text"].count("A sentence of") == sentences * present
        assert str(records[0]["provenance"]) == str(records[1]["provenance"])
        assert len(records[0]["provenance"]["text"]["source"].split("+")) == 1 + sentences * present
        assert f", {network}:" in records[0]["provenance"]["metabolism"]["version"]


def test_a_planet_of_the_catalogue_stays_in_its_split(stored):
    some = {f"planet-{number}": candidates(f"planet-{number}", [0, 1] * 6) for number in range(40)}
    groups, _ = select_runs(some, load_recipe("sample"))
    split = {run.candidate.planet.key: run.split for group in groups for run in group}
    moved = [
        replace(candidate, planet=replace(candidate.planet, key=key))
        for candidate, key in zip(stored, [key for key in split][-4:], strict=True)
    ]
    again, _ = select_runs(some, load_recipe("sample"), moved)
    for group in again:
        for run in group:
            assert run.split == split[run.candidate.planet.key]


def test_other_archives_have_no_climates():
    assert archived({"kegg": SimpleNamespace(folder=None, manifest={"files": {}})}, []) == []
