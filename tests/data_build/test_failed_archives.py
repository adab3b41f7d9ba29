"""An archive that cannot be read does not end a build unless the recipe requires it; the dataset says what it lacks."""

import json

import pytest
import yaml
from archive_server import ArchiveServer, Reply
from fake_archives import fake

from astrobio import files
from data_build import harvest as harvest_module
from data_build import policy as policies
from data_build.__main__ import main
from data_build.cache import DataError
from data_build.harvest import harvest_all
from data_build.pipeline import _without, validate
from data_build.policy import Policy, RateLimit
from data_build.recipe import load_recipe
from data_build.work import WorkFolder

NAMES = ("ensembl", "uniprot", "keck", "gtdb")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(RateLimit, "wait", lambda self: None)


@pytest.fixture
def archives(tmp_path):
    """Four stand-ins behind one server; those named in ``failing`` answer 500, after so many good answers."""
    stand_ins, answered = {name: fake(name, tmp_path) for name in NAMES}, dict.fromkeys(NAMES, 0)

    def script(request):
        for name, stand_in in stand_ins.items():
            if request.host == stand_in.host:
                answered[name] += 1
                failed = name in server.failing and answered[name] > server.failing[name]
                return Reply(b"synthetic failure", 500) if failed else stand_in.reply(request)
        return Reply(b"", 404)

    with ArchiveServer(script) as server:
        server.failing = {}
        yield server


def policy_of(server, tmp_path, **changes) -> Policy:
    return Policy(tries=1, backoff_s=0, mirror=server.url, root=tmp_path / "cache", **changes)


def test_failed_archives_are_told_and_only_they_are_asked_again(archives, tmp_path):
    archives.failing = {"uniprot": 0, "keck": 0}
    most, policy = dict.fromkeys(NAMES, 100), policy_of(archives, tmp_path)
    made, failed = harvest_all(most, tmp_path / "stages", policy)
    assert made.keys() == {"ensembl", "gtdb"} and failed.keys() == {"uniprot", "keck"}
    assert failed["uniprot"].startswith("UniProt: GET") and "answered 500" in failed["uniprot"]
    archives.failing.clear()
    before = len(archives.requests)
    made, failed = harvest_all(most, tmp_path / "stages", policy)
    assert {request.host for request in archives.requests[before:]} == {"rest.uniprot.org", "koa.ipac.caltech.edu"}
    assert failed == {}
    assert {name: entry.manifest["rows"] for name, entry in made.items()} == {
        "ensembl": 3,
        "uniprot": 5,
        "keck": 5,
        "gtdb": 4,
    }


def test_a_required_archive_ends_the_build_and_every_failure_is_told(archives, tmp_path):
    archives.failing = {"uniprot": 0, "keck": 0}
    with pytest.raises(DataError) as caught:
        harvest_all(
            dict.fromkeys(NAMES, 100), tmp_path / "stages", policy_of(archives, tmp_path), required=["keck", "gtdb"]
        )
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["UniProt", "Keck Observatory Archive"]
    assert lines[2:] == ["the recipe requires keck: nothing was built"]


def test_if_not_one_archive_was_read_nothing_is_built(archives, tmp_path):
    archives.failing = dict.fromkeys(NAMES, 0)
    with pytest.raises(DataError, match="not one of the recipe's archives was read: nothing was built"):
        harvest_all(dict.fromkeys(NAMES, 100), tmp_path / "stages", policy_of(archives, tmp_path))


def test_what_a_failed_archive_gave_is_not_left(archives, tmp_path, monkeypatch):
    monkeypatch.setattr(harvest_module, "CHUNK", 1)  # the first rows are written before the archive fails
    archives.failing = {"uniprot": 2}
    _, failed = harvest_all(dict.fromkeys(NAMES, 100), tmp_path / "stages", policy_of(archives, tmp_path))
    assert failed.keys() == {"uniprot"}
    assert sorted(path.name for path in (tmp_path / "stages").iterdir()) == ["ensembl", "gtdb", "keck"]


def test_a_full_disk_is_no_failure_of_an_archive(archives, tmp_path, monkeypatch):
    write = files.write_whole

    def full(path, content):
        if "uniprot" in str(path):
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr("data_build.store.files.write_whole", full)
    with pytest.raises(DataError, match="cannot be written: No space left.*free some space"):
        harvest_all(dict.fromkeys(NAMES, 100), tmp_path / "stages", policy_of(archives, tmp_path))


def test_a_build_goes_on_and_the_dataset_and_the_last_line_say_what_it_lacks(
    archives, tmp_path, monkeypatch, quick_recipe, capsys
):
    archives.failing = {"uniprot": 2}
    monkeypatch.setattr(policies, "Policy", lambda **keywords: policy_of(archives, tmp_path, **keywords))
    recipe, out = tmp_path / "own.yaml", tmp_path / "out"
    wanted = {"gtdb": 100, "uniprot": 100, "copernicus": 2}
    recipe.write_text(yaml.safe_dump({**quick_recipe, "archives": wanted}))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CDSAPI_KEY", raising=False)
    build = ["build", str(recipe), "--out", str(out), "--limit", "12"]
    assert main(build) == 0
    told = capsys.readouterr().err.splitlines()
    assert told[-1] == (
        f"warning: {out} is without 2 of 3 archives: copernicus, uniprot; to try them again remove it and run the same "
        "command: what was fetched is kept"
    )
    assert validate(out) == []
    manifest, card = json.loads((out / "manifest.json").read_text()), (out / "README.md").read_text()
    assert manifest["failed_archives"].keys() == {"uniprot", "copernicus"} and "uniprot" not in manifest["sources"]
    assert "set CDSAPI_KEY" in manifest["failed_archives"]["copernicus"]
    for reason in manifest["failed_archives"].values():
        assert reason in card
    assert [path.name for path in (out / "archives").iterdir()] == ["gtdb"]
    assert main(build) == 0 and "is without 2 of 3 archives" in capsys.readouterr().err  # it is there already


def test_stages_of_other_archives_are_not_used(tmp_path):
    work = WorkFolder(tmp_path / "work", {"recipe": "synthetic"})
    for stage in ("archives", "candidates"):
        (work.path(stage) / "chunk").write_text("x")
    work.based_on("archives", {"gtdb": "1"})
    work.based_on("archives", {"gtdb": "1"})
    assert (tmp_path / "work/candidates/chunk").exists()
    work.based_on("archives", {"gtdb": "1", "uniprot": "2"})
    assert not (tmp_path / "work/candidates").exists() and (tmp_path / "work/archives/chunk").exists()


def test_a_catalogue_that_failed_is_left_out_unless_it_was_the_last():
    recipe = load_recipe("full")
    assert _without(recipe, {"exoplanet_eu": "away", "gaia": "away"}).catalogues == recipe.catalogues[:-1]
    with pytest.raises(DataError, match="(?s)away.*not one of the recipe's catalogues was read"):
        _without(recipe, dict.fromkeys(recipe.catalogues, "away"))
