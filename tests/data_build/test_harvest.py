"""An archive's rows become a checked stage: quarantine with reasons, completeness, limits, kills at every moment."""

import json
import os
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from archive_server import ArchiveServer
from fake_climates import FakeRocke3d
from fake_life import RECORDINGS, FakeGtdb
from fake_tap import exoplanet_eu

from data_build import harvest as harvest_module
from data_build import store, work
from data_build.cache import DataError
from data_build.gathering import gather_planets
from data_build.harvest import harvest
from data_build.policy import Policy, RateLimit
from data_build.recipe import load_recipe
from data_build.sources import ARCHIVES
from data_build.sources.base import Field, SourceInfo


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(RateLimit, "wait", lambda self: None)


class Plain:
    """An archive that needs no network."""

    info = SourceInfo(
        name="plain",
        title="Plain",
        modality="planet",
        version="1",
        licence="none",
        citation="none",
        kind="synthetic",
        fields=(
            Field("name", "string", required=True),
            Field("mass", "float64", "kg", 0, 100),
            Field("count", "int64", "1", 0, 10),
        ),
    )

    def __init__(self, rows):
        self._rows = rows

    def rows(self, session) -> Iterator[dict]:
        yield from self._rows


def harvested(rows, tmp_path, limit=1000):
    made = harvest(Plain(rows), tmp_path / "plain", Policy(root=tmp_path / "cache"), limit)
    quarantine = [json.loads(line) for line in (made.folder / "quarantine.jsonl").read_text().splitlines()]
    return made, {entry["name"]: entry["reasons"] for entry in quarantine}


def harvested_from(name, stand_in, tmp_path):
    """An archive's stage, read from its stand-in."""
    with ArchiveServer(stand_in.reply) as server:
        policy = Policy(mirror=server.url, root=tmp_path / "cache", tries=1)
        return harvest(ARCHIVES[name](), tmp_path / name, policy, 10_000)


def recipe_of(*catalogues):
    return replace(load_recipe("sample"), catalogues=catalogues, sampled_planets=0)


GOOD = {"name": "a", "mass": 1.0, "count": 2}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mass": 1e36}, "mass is the fill value 1e+36, not masked"),
        ({"mass": 9.969209968386869e36}, "mass is the fill value 9.969e+36, not masked"),
        ({"mass": 101.0}, "mass is outside [0, 100] kg"),
        ({"mass": float("inf")}, "mass is the fill value inf, not masked"),
        ({"mass": "heavy"}, "mass is no float64 but str"),
        ({"count": 2.5}, "count is no int64 but float"),
        ({"count": 11}, "count is outside [0, 10] 1"),
    ],
)
def test_a_bad_value_is_quarantined_with_the_reason(tmp_path, change, reason):
    made, reasons = harvested([GOOD, {**GOOD, "name": "b", **change}], tmp_path)
    assert reasons == {"b": [reason]}
    assert [row["name"] for row in made.rows()] == ["a"] and made.manifest["quarantined"] == {reason: 1}


def test_a_key_that_comes_twice_is_quarantined(tmp_path):
    made, reasons = harvested([GOOD, {**GOOD, "mass": 2.0}], tmp_path)
    assert reasons == {"a": ["name is there twice"]} and len(list(made.rows())) == 1


def test_too_many_rows_without_a_required_field_are_an_error(tmp_path):
    rows = [{**GOOD, "name": f"n{i}" if i < 90 else None} for i in range(100)]
    with pytest.raises(DataError, match=r"name \(90%\).*95% are needed"):
        harvested(rows, tmp_path)
    assert not (tmp_path / "plain").exists()


REFEREED = ["R", "r", "Published in a refereed paper", " published in a  refereed paper"]
OTHERS = ["S", "Submitted to a professional journal", "Announced on a website", "W", None]


def test_planets_of_exoplanet_eu_count_where_they_are_from_a_refereed_paper_and_the_others_are_told(tmp_path):
    stand_in = exoplanet_eu()
    statuses = [*REFEREED, *OTHERS, "W"]
    first = {name: values[:1] * len(statuses) for name, values in stand_in.columns.items()}
    names = [f"Synthetic {i} b" for i in range(len(statuses))]
    keys = [str(i) for i in range(len(statuses))]
    stand_in.columns = {
        **first,
        "granule_uid": keys,
        "target_name": names,
        "publication_status": [status or "" for status in statuses],
    }
    made = harvested_from("exoplanet_eu", stand_in, tmp_path)
    assert made.manifest["unused"] == {
        "publication_status is 'Announced on a website'": 1,
        "publication_status is 'S'": 1,
        "publication_status is 'Submitted to a professional journal'": 1,
        "publication_status is 'W'": 2,
        "publication_status is ''": 1,
    }
    planets, report, _ = gather_planets(recipe_of("exoplanet_eu"), None, {"exoplanet_eu": made})
    assert report["merged"] == len(REFEREED)


def test_an_archive_none_of_whose_rows_is_of_use_has_changed(tmp_path):
    stand_in = exoplanet_eu()
    stand_in.columns["publication_status"] = ["Refereed, at last"] * 3
    with pytest.raises(DataError, match="not one of 3 rows.*publication_status is 'Refereed, at last'.*report it"):
        harvested_from("exoplanet_eu", stand_in, tmp_path)
    with pytest.raises(DataError, match="not one of 2 rows.*mass is outside"):
        harvested([{**GOOD, "mass": 101.0}, {**GOOD, "mass": 101.0, "name": "b"}], tmp_path)


def test_completeness_counts_every_row(tmp_path):
    rows = [{"name": f"n{i}", "mass": 1.0 if i % 4 else None, "count": None} for i in range(100)]
    made, _ = harvested(rows, tmp_path)
    assert made.manifest["completeness"] == {"name": 1.0, "mass": 0.75, "count": 0.0}


def test_a_limit_is_told(tmp_path):
    rows = [{**GOOD, "name": str(i)} for i in range(10)]
    assert harvested(rows, tmp_path / "a", limit=4)[0].manifest["complete"] is False
    assert harvested(rows, tmp_path / "b", limit=10)[0].manifest["complete"] is True
    assert len(list(harvested(rows, tmp_path / "c", limit=4)[0].rows())) == 4


def test_values_come_back_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(harvest_module, "CHUNK", 3)
    rows = [{"name": f"n{i}", "mass": 0.1 * i, "count": i} for i in range(10)]
    made, _ = harvested(rows, tmp_path)
    assert list(made.rows()) == rows and len(list(made.folder.glob("*.parquet"))) == 4
    schema = pq.read_schema(made.folder / "rows-00000.parquet")
    assert schema.field("mass").metadata == {b"unit": b"kg"}


def test_ten_times_the_rows_need_no_more_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(harvest_module, "CHUNK", 100)

    class Endless(Plain):
        def rows(self, session):
            yield from ({"name": f"n{i:06d}" * 20, "mass": 1.0, "count": 1} for i in range(self._rows))

    def peak(rows: int) -> int:
        tracemalloc.start()
        harvest(Endless(rows), tmp_path / str(rows), Policy(root=tmp_path / "cache"), 10**9)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(100)  # what is imported and compiled on first use
    assert peak(10_000) <= 1.10 * peak(1000)


def test_a_finished_stage_is_not_read_again_and_a_damaged_one_is(tmp_path):
    harvested([GOOD], tmp_path)
    made, _ = harvested([], tmp_path)  # an empty archive now: the stage must come from the disk
    assert len(list(made.rows())) == 1
    (made.folder / "rows-00000.parquet").write_bytes(b"damaged")
    assert list(harvested([], tmp_path)[0].rows()) == []


class Killed(BaseException):
    """What no handler catches, as kill -9 would be."""


def test_a_harvest_killed_at_any_step_ends_the_same(tmp_path, monkeypatch):
    """The process dies before the k-th rename, for every k."""
    stand_in = FakeGtdb()
    monkeypatch.setattr(harvest_module, "CHUNK", 1)
    steps, die_at = 0, None

    def counted(function):
        def step(*arguments, **keywords):
            nonlocal steps
            steps += 1
            if steps == die_at:
                raise Killed
            return function(*arguments, **keywords)

        return step

    for module, name in ((os, "replace"), (os, "rename"), (pq, "write_table")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    assert store.os is os and work.os is os and harvest_module.pq is pq

    def build(folder):
        policy = Policy(mirror=server.url, root=folder / "cache", backoff_s=0)
        return harvest(ARCHIVES["gtdb"](), folder / "gtdb", policy, 100)

    with ArchiveServer(stand_in.reply) as server:
        undisturbed = build(tmp_path / "undisturbed").manifest["files"]
        total = steps
        assert total > 8
        for step in range(1, total + 1):
            steps, die_at = 0, step
            with pytest.raises(Killed):
                build(tmp_path / str(step))
            die_at = None
            assert build(tmp_path / str(step)).manifest["files"] == undisturbed, step


def test_what_was_answered_is_not_asked_again_after_a_kill(tmp_path, monkeypatch):
    stand_in = FakeGtdb()
    write = pq.write_table
    monkeypatch.setattr(pq, "write_table", lambda *arguments: (_ for _ in ()).throw(Killed))
    with ArchiveServer(stand_in.reply) as server:
        policy = Policy(mirror=server.url, root=tmp_path / "cache")
        with pytest.raises(Killed):
            harvest(ARCHIVES["gtdb"](), tmp_path / "gtdb", policy, 100)
        asked = len(server.requests)
        monkeypatch.setattr(pq, "write_table", write)
        harvest(ARCHIVES["gtdb"](), tmp_path / "gtdb", policy, 100)
        assert len(server.requests) == asked == 3


def test_a_cmip6_file_with_unmasked_fill_values_is_quarantined_with_that_reason(tmp_path):
    """A real file of CMIP6 (see recordings/README.md), served as ROCKE-3D's would be: its months average to nothing."""
    stand_in = FakeRocke3d(tmp_path)
    stand_in.runs["Synthetic2020/frozen/"]["aijl"] = next(RECORDINGS.glob("ta_Amon_FGOALS*.nc")).read_bytes()
    with ArchiveServer(stand_in.reply) as server:
        made = harvest(
            ARCHIVES["rocke3d"](), tmp_path / "rocke3d", Policy(mirror=server.url, root=tmp_path / "cache"), 10_000
        )
    entries = [json.loads(line) for line in (made.folder / "quarantine.jsonl").read_text().splitlines()]
    assert [(entry["climate_id"], entry["reasons"]) for entry in entries] == [
        ("Synthetic2020/frozen/ANN4001.P2Synthetic", ["air_temperature holds the fill value 9.969e+36, not masked"])
    ]
    assert [row["planet"] for row in made.rows()] == ["Synthetic world", "Earth"]
