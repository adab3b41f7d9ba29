"""ExoPlaSim as an optional model: run as it is run for real, with a stand-in for the package.

The stand-in writes synthetic files in the layout of exoplasim 3.4.2's own (seen in a real run): 12 times × 10 layers ×
32 latitudes from north to south × 64 longitudes from 0, σ levels, pressure in hPa, fluxes counted downward.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from astrobio.schema import CLIMATE_LEVEL_VARIABLES
from data_build.cache import DataError
from data_build.checks import record_problems
from data_build.climates import simulated, to_simulate, write_row
from data_build.pipeline import build, validate
from data_build.planets import EARTH, Atmosphere, Planet, derive
from data_build.recipe import load_recipe
from data_build.records import make_records
from data_build.sampling import SAMPLED_SOURCE
from data_build.selection import Candidate, select_runs
from data_build.sources import exoplasim, exoplasim_run
from data_build.sources.clero import area_mean
from data_build.sources.climate import fields
from data_build.sources.exoplasim import BALANCE, ExoPlaSim


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The stand-in where Python finds it, here and in processes of their own, and compilers that do nothing."""
    folder = tmp_path / "site"
    shutil.copytree(Path(__file__).with_name("stand_in"), folder)
    (folder / "exoplasim-3.4.2.dist-info").mkdir()
    (folder / "exoplasim-3.4.2.dist-info/METADATA").write_text("Name: exoplasim\nVersion: 3.4.2\n")
    (tmp_path / "bin").mkdir()
    for name in ("gfortran", "gcc", "make"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return folder


def planet(key="synthetic-b", **values) -> Planet:
    return derive(
        Planet(
            key=key,
            name="",
            source=SAMPLED_SOURCE,
            kind="synthetic",
            values={**EARTH, "rotation_period_d": 20.0, **values},
        )
    )


AIR = Atmosphere(1.2, 0.01, 1e-4)


def test_a_climate_is_that_of_the_last_year_it_ran(installed):
    row = ExoPlaSim().climate("a/000", planet(), AIR, years=9)
    assert row["problems"] is None and row["surface_pressure_bar"] == pytest.approx(1.2) and row["co2_vmr"] == 0.01
    levels, surface = fields(row)
    temperature, absorbed, outgoing = surface
    assert temperature.max() == pytest.approx(1361 / 5 + 10 * 0.012 + 20, abs=0.5)
    _, longitude = np.unravel_index(temperature.argmax(), temperature.shape)
    assert longitude in (31, 32)  # the star is above longitude 0
    assert 0 < area_mean(absorbed - outgoing) <= BALANCE * 1361 / 4  # balanced before its nine years were over
    assert outgoing.min() > 0
    names = [column.name for column in CLIMATE_LEVEL_VARIABLES]
    assert (np.diff(levels[names.index("air_temperature")].mean((1, 2))) > 0).all()  # the top of the atmosphere first
    assert row["processing"].startswith("mean of 12 times") and "10 levels interpolated to 10" in row["processing"]


def test_the_model_rotates_as_the_planet_does_whatever_its_orbit(monkeypatch):
    """A year of 365 days, a day of 20: a model given the orbital period would rotate once a year."""
    configured = {}

    def crash(folder, config):
        configured.update(config["configure"])
        return {"crashed": 1, "error": "not run"}

    monkeypatch.setattr(exoplasim, "_run", crash)
    ExoPlaSim().climate("a/000", planet(), AIR, years=1)
    assert configured["rotationperiod"] == 20.0


def test_years_are_bounded(installed):
    row = ExoPlaSim().climate("a/000", planet(), AIR, years=1)
    _, (_, absorbed, outgoing) = fields(row)
    assert area_mean(absorbed - outgoing) == pytest.approx(30, rel=1e-3)  # not balanced yet


def test_a_model_that_crashes_is_told_with_its_year(installed):
    row = ExoPlaSim().climate("a/000", planet(instellation_w_m2=5000.0), AIR, years=3)
    assert row["problems"] == "ExoPlaSim crashed in year 1: ExoPlaSim has crashed, its files were moved"


def test_a_model_that_cannot_be_run_is_an_error(installed):
    (installed / "exoplasim/__init__.py").write_text("raise OSError('read-only package')")
    with pytest.raises(DataError, match=r"could not be run \(status 1\).*read-only package.*must be writable"):
        ExoPlaSim().prepare()


def test_what_lacks_is_named_with_the_cure(installed, monkeypatch, tmp_path):
    ExoPlaSim().ensure()
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="finds no gfortran, gcc, make: apt-get install gfortran"):
        ExoPlaSim().ensure()
    (installed / "exoplasim-3.4.2.dist-info/METADATA").write_text("Name: exoplasim\nVersion: 9.9\n")
    with pytest.raises(DataError, match="is of version 9.9, it must be 3.4.2.*pip install exoplasim==3.4.2"):
        ExoPlaSim().ensure()


@pytest.fixture
def candidates():
    """Planets with candidates on both sides, one with one side only."""
    return {
        key: [
            Candidate(planet(key, instellation_w_m2=flux), number, AIR, label, core=False)
            for number, (flux, label) in enumerate(runs)
        ]
        for key, runs in {
            "one": [(1000.0, 0), (1100.0, 0)],
            "two": [(1000.0, 0), (1100.0, 0), (1400.0, 1)],
            "three": [(1450.0, 1), (5000.0, 0)],
        }.items()
    }


def test_simulated_climates_become_a_labelled_pair(installed, candidates, tmp_path):
    chosen = to_simulate(candidates, planets=2)
    assert [candidate.run_id for candidate in chosen] == ["two/000", "two/002", "three/000", "three/001"]
    paths = []
    for number, candidate in enumerate(chosen):
        paths.append(tmp_path / f"{number}.parquet")
        write_row(ExoPlaSim().climate(candidate.run_id, candidate.planet, candidate.atmosphere, 9), paths[-1])
    found, set_aside = simulated(chosen, paths)
    assert [(candidate.run_id, candidate.label) for candidate in found] == [
        ("two/exoplasim-000", 0),
        ("two/exoplasim-002", 1),
        ("three/exoplasim-000", 1),
    ]
    assert set_aside == [
        {
            "run_id": "three/exoplasim-001",
            "reason": "ExoPlaSim crashed in year 1: ExoPlaSim has crashed, its files were moved",
        }
    ]
    groups, _ = select_runs({}, load_recipe("sample"), found)
    labels = {run.candidate.run_id: run.candidate.label for group in groups for run in group}
    assert labels == {"two/exoplasim-000": 0, "two/exoplasim-002": 1, "three/exoplasim-000": None}
    for record in make_records([run for group in groups for run in group], load_recipe("sample")):
        assert record_problems(record) == []
        source = record["provenance"]["climate"]
        assert source["source"] == "exoplasim" and source["kind"] == "simulated" and "3.4.2" in source["version"]


def recipe(folder: Path, **changes) -> Path:
    path = folder / "gcm.yaml"
    path.write_text(yaml.safe_dump({**load_recipe("sample").as_dict(), **changes}))
    return path


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"planets": 2}, "the key exoplasim.years is absent"),
        ({"planets": 2, "year": 3}, "unknown key exoplasim.year, did you mean 'years'"),
        ({"planets": 2, "years": 0}, "exoplasim.years is 0, it must be a whole number from 1 to 300"),
    ],
)
def test_mistakes_in_a_recipe_are_named(tmp_path, asked, problem):
    with pytest.raises(DataError, match=problem):
        load_recipe(recipe(tmp_path, exoplasim=asked))


def test_a_recipe_that_asks_for_an_absent_model_ends_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    started = time.monotonic()
    with pytest.raises(DataError, match="ExoPlaSim is not installed, and it is optional: pip install exoplasim==3.4.2"):
        build(recipe(tmp_path, exoplasim={"planets": 1, "years": 1}), tmp_path / "out", progress=False)
    assert time.monotonic() - started < 20 and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_model_does_not_outlive_its_build(installed, tmp_path):
    """The build's worker is killed with -9, and nothing runs on for hours."""
    mark = tmp_path / "running"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps({"configure": {"flux": 1000.0}, "years": 1, "balance": 1.0}))
    worker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys; subprocess.run(sys.argv[1:], start_new_session=True)",
            sys.executable,
            exoplasim_run.__file__,
            str(tmp_path / "run"),
        ],
        env={**os.environ, "SLOW_MODEL": str(mark)},
        stdout=subprocess.DEVNULL,
    )
    while not (mark.exists() and mark.read_text()):
        time.sleep(0.05)
    model = psutil.Process(int(mark.read_text()))
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    psutil.wait_procs([model], timeout=20)
    assert not model.is_running() or model.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_a_build_with_the_model_goes_on_where_it_was(installed, tmp_path, monkeypatch):
    """The third run ends the build; the same command runs that one again, and not the two before."""
    plan = recipe(
        tmp_path,
        exoplasim={"planets": 2, "years": 3},
        candidates_per_planet=12,
        sampled_planets=12,
        catalogues=["open_exoplanet_catalogue"],
        pairs_per_observed_planet=1,
        pairs_per_synthetic_planet=1,
        vocabulary_size=400,
    )
    monkeypatch.setenv("MODEL_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("MODEL_BREAKS", "3")
    with pytest.raises(DataError, match=r"ExoPlaSim could not be run \(status 9\)"):
        build(plan, tmp_path / "out", workers=1, progress=False)
    before = (tmp_path / "runs").read_text().count("run")  # a worker may have begun the fourth
    assert before in (3, 4) and not (tmp_path / "out").exists()
    monkeypatch.setenv("MODEL_BREAKS", "0")
    manifest = build(plan, tmp_path / "out", workers=1, progress=False)
    assert (tmp_path / "runs").read_text().count("run") == before + 2
    quality = json.loads((tmp_path / "out/quality.json").read_text())
    assert "exoplasim" in manifest["sources"] and len(quality["stored_climates"]) == 4
    assert validate(tmp_path / "out") == []
