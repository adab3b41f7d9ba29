"""Builds as a whole: the same again, broken off, damaged, misused."""

import errno
import json
import shutil
import time
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from breaking import flip

from astrobio.files import cache_root
from astrobio.schema import GCMS, HELD_OUT_GCM, MANIFEST_KEYS, PROVENANCE_PARTS, SPLITS, sha256_of
from data_build import assembly
from data_build.__main__ import main
from data_build.cache import DataError
from data_build.pipeline import build, validate
from data_build.sources import ARCHIVES
from data_build.validation import read_records
from data_build.writing import SplitWriter


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture
def copied(small_dataset, tmp_path) -> Path:
    """A copy of the small dataset that may be changed."""
    return Path(shutil.copytree(small_dataset, tmp_path / "copy"))


def test_a_small_dataset_is_good(small_dataset):
    assert validate(small_dataset) == []


def test_the_manifest_is_whole(small_dataset):
    manifest = manifest_of(small_dataset)
    assert set(MANIFEST_KEYS) <= manifest.keys()
    files = {path.relative_to(small_dataset).as_posix() for path in small_dataset.rglob("*") if path.is_file()}
    assert files == manifest["files"].keys() | {"manifest.json"}
    counts = manifest["counts"]
    assert list(counts) == [*SPLITS, "held_out_gcm"]
    for split in counts:
        stored = len(datasets.load_from_disk(str(small_dataset / split)))
        assert stored == sum(count.get("records", 0) for count in counts[split].values())


@pytest.mark.slow
def test_the_content_does_not_depend_on_the_workers(small_dataset, tmp_path, small_limit):
    again = build("sample", tmp_path / "again", limit=small_limit, workers=1, progress=False)
    first = manifest_of(small_dataset)
    assert again["content_sha256"] == first["content_sha256"]
    for name in ("stats.json", "quality.json", "quarantine.jsonl", "tokenizer/tokenizer.json"):
        assert again["files"][name] == first["files"][name], name


def test_a_second_build_returns_what_is_there(small_dataset, small_limit):
    before = (small_dataset / "manifest.json").stat().st_mtime_ns
    started = time.monotonic()
    assert build("sample", small_dataset, limit=small_limit, progress=False) == manifest_of(small_dataset)
    assert time.monotonic() - started < 5 and (small_dataset / "manifest.json").stat().st_mtime_ns == before


def test_another_recipe_at_the_same_place_is_refused(small_dataset, small_limit):
    with pytest.raises(DataError, match="another recipe .*limit"):
        build("sample", small_dataset, limit=small_limit + 1, progress=False)


def test_the_held_out_model_emulates_the_test_runs_again(small_dataset):
    test, held_out = (
        {record["run_id"]: record for record in read_records(datasets.load_from_disk(str(small_dataset / name)))}
        for name in ("test", "held_out_gcm")
    )
    assert test.keys() == held_out.keys()
    same = ("planet_key", "text", "climate_present", "spectrum_present", "metabolism_present", "label_probability")
    for run_id, record in held_out.items():
        assert all(record[name] == test[run_id][name] for name in same)
        assert "GCM exocam" in record["provenance"]["climate"]["version"]
        assert "GCM um" in test[run_id]["provenance"]["climate"]["version"]
        for name in ("climate_levels", "spectrum"):
            if record[name] is not None:
                assert not np.array_equal(record[name], test[run_id][name], equal_nan=True)
    labelled = [run_id for run_id in test if test[run_id]["label_present"] and held_out[run_id]["label_present"]]
    flips = np.mean([test[run_id]["label"] != held_out[run_id]["label"] for run_id in labelled])
    figures = json.loads((small_dataset / "quality.json").read_text())["label"]
    assert figures["labelled_by_um_and_exocam"] == len(labelled)
    assert figures["share_that_flips"] == pytest.approx(flips, abs=1e-4)
    assert set(datasets.load_from_disk(str(small_dataset))) == {*SPLITS, "held_out_gcm"}


def test_a_dataset_of_the_schema_before_is_refused_with_the_cure(copied, small_limit):
    """Schema 1 lacked label_probability: the version is what to tell, not the key."""
    manifest = manifest_of(copied)
    del manifest["label_probability"]
    (copied / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 1}))
    problems = validate(copied)
    assert len(problems) == 1 and "schema_version is 1, this program reads 2" in problems[0]
    assert f"`astrobio data build sample --out {copied}`" in problems[0]


def test_a_dataset_under_another_rule_is_refused(copied, small_limit):
    manifest = manifest_of(copied)
    rule = manifest["label_probability"] | {"draws_per_gcm": 2}
    (copied / "manifest.json").write_text(json.dumps(manifest | {"label_probability": rule}))
    assert "label_probability is not that of this program" in validate(copied)[0]
    with pytest.raises(DataError, match="another recipe .other label_probability"):
        build("sample", copied, limit=small_limit, progress=False)


def test_partners_share_their_qualities_and_each_has_its_own_probability(small_dataset):
    records = [
        record
        for split in SPLITS
        for record in read_records(datasets.load_from_disk(str(small_dataset / split)))
        if record["label_present"]
    ]
    for part in PROVENANCE_PARTS:
        counts = Counter((float(record["provenance"][part]["quality"]), int(record["label"])) for record in records)
        assert all(counts[quality, 0] == counts[quality, 1] for quality, _ in counts), part
    own = [float(abs(1 - record["label"] - record["label_probability"])) for record in records]
    assert 0.6 < np.mean(own) <= 1 and len(set(own)) > 5
    held_out = GCMS.index(HELD_OUT_GCM)
    for split in SPLITS:
        table = datasets.load_from_disk(str(small_dataset / split))
        values = np.array(table["label_probability_by_gcm"])
        assert (np.isnan(values[:, held_out]) == (split != "test")).all()
        assert not np.isnan(np.delete(values, held_out, axis=1)).any()


def test_a_folder_that_is_no_dataset_is_refused_and_kept(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("dear")
    with pytest.raises(DataError, match="is no dataset"):
        build("sample", tmp_path / "mine", progress=False)
    assert (tmp_path / "mine/thesis.txt").read_text() == "dear"


def test_a_flipped_byte_is_found_and_its_file_named(copied, small_limit):
    path = copied / "train/data-00000-of-00001.arrow"
    flip(path)
    problems = validate(copied)
    assert len(problems) == 1 and str(path) in problems[0]
    with pytest.raises(DataError, match="damaged"):
        build("sample", copied, limit=small_limit, progress=False)


@pytest.mark.parametrize(
    "name", ["stats.json", "test/dataset_info.json", "tokenizer/tokenizer.json", "quarantine.jsonl"]
)
def test_an_absent_file_is_named(copied, name):
    (copied / name).unlink()
    assert any(str(copied / name) in problem for problem in validate(copied))


def resign(folder: Path, split: str) -> None:
    """Make the manifest agree with a split's changed files, so that only its records can tell."""
    manifest = manifest_of(folder)
    for name in list(manifest["files"]):
        if name.startswith(f"{split}/"):
            del manifest["files"][name]
    for path in (folder / split).iterdir():
        manifest["files"][f"{split}/{path.name}"] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def rewrite(folder: Path, split: str, change) -> None:
    table = datasets.load_from_disk(str(folder / split))
    changed = table.map(
        change, with_indices=True, features=table.features, keep_in_memory=True, load_from_cache_file=False
    )
    shutil.rmtree(folder / split)
    changed.save_to_disk(str(folder / split))
    resign(folder, split)


def test_a_planet_in_two_splits_is_named(copied):
    other = datasets.load_from_disk(str(copied / "test"))[0]["planet_key"]
    rewrite(copied, "validation", lambda row, index: {"planet_key": other if index == 0 else row["planet_key"]})
    assert any(other in problem and "as well" in problem for problem in validate(copied))


def test_a_flipped_label_is_named_with_its_run(copied):
    table = datasets.load_from_disk(str(copied / "validation"))
    index = next(i for i, row in enumerate(table) if row["climate_present"] and row["label_present"])
    run_id = table[index]["run_id"]
    rewrite(copied, "validation", lambda row, i: {"label": 1 - row["label"] if i == index else row["label"]})
    problems = validate(copied)
    assert len(problems) == 1 and run_id in problems[0] and "label is" in problems[0]


def test_a_changed_text_changes_the_content_hash(copied):
    rewrite(copied, "validation", lambda row, i: {"text": row["text"] + " Thus." if i == 0 else row["text"]})
    problems = validate(copied)
    assert len(problems) == 1 and "content_sha256" in problems[0]


def test_a_full_disk_leaves_nothing_at_the_target(tmp_path, monkeypatch, quick_build):
    def full(self, split, record):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SplitWriter, "write", full)
    with pytest.raises(DataError, match="the disk is full"):
        quick_build(tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".out.lock", ".out.partial"]


def test_a_record_that_fails_is_set_aside_with_its_partner(tmp_path, monkeypatch, quick_build):
    checked, bad = [], []

    def third_is_bad(record):
        checked.append(record["run_id"])
        if len(checked) == 3:
            bad.append(record["run_id"])
            return ["too odd"]
        return []

    monkeypatch.setattr(assembly, "record_problems", third_is_bad)
    manifest = quick_build(tmp_path / "out")
    entries = [json.loads(line) for line in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    runs = {entry["run_id"]: entry["reason"] for entry in entries if "run_id" in entry}
    assert [runs.get(run) for run in bad] == ["too odd"] and len(runs) <= 2
    counts = manifest["counts"]
    kept = sum(count.get("records", 0) for kinds in counts.values() for count in kinds.values())
    assert kept == len(checked) - len(runs)
    for kinds in (counts[split] for split in SPLITS):
        for count in kinds.values():
            assert count.get("label_habitable", 0) == count.get("label_not_habitable", 0)


def test_what_another_build_left_is_cleaned_up(small_dataset):
    assert not (small_dataset.parent / ".dataset.partial").exists()  # the fixture put it there


def test_nulls_come_back_as_none(small_dataset):

    records = list(read_records(datasets.load_from_disk(str(small_dataset / "train"))))
    for record in records:
        assert (record["spectrum"] is None) != record["spectrum_present"]
    whole = next(record for record in records if record["climate_present"])
    assert whole["climate_levels"].dtype == np.float16


class TestCommandLine:
    def test_mistakes_end_with_2_and_one_line(self, capsys, tmp_path):
        for argv, word in (
            (["build", "sampel", "--out", str(tmp_path / "x")], "did you mean 'sample'"),
            (["build", "sample", "--out", str(tmp_path / "x"), "--limit", "1"], "limit is 1"),
            (["build", "sample", "--out", str(tmp_path / "x"), "--workers", "0"], "workers is 0"),
            (["fetch", "nothing"], "unknown recipe"),
        ):
            assert main(argv) == 2
            error = capsys.readouterr().err
            assert word in error and "Traceback" not in error and len(error.strip().splitlines()) == 1

    def test_offline_without_answers_says_so_for_every_archive(self, capsys, tmp_path, monkeypatch):
        for path in cache_root().iterdir():  # the data files of wheels
            if path.name != "answers":
                (tmp_path / path.name).symlink_to(path)
        monkeypatch.setenv("ASTROBIO_CACHE", str(tmp_path))
        assert main(["build", "full", "--out", str(tmp_path / "out"), "--offline", "--limit", "8"]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == len(ARCHIVES) + 1 and "not one of the recipe's archives was read" in errors.pop()
        assert all("offline" in line and "not in the cache" in line for line in errors)
        assert main(["build", "full", "--out", str(tmp_path / "out"), "--offline", "--refresh"]) == 2
        assert "contradict" in capsys.readouterr().err

    def test_the_table_of_sources_says_what_is_missing(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("CDSAPI_KEY", raising=False)
        monkeypatch.setenv("MAST_API_TOKEN", "Fake-Token-For-The-Table")
        assert main(["sources"]) == 0
        told = capsys.readouterr().out
        lines = {line.split()[0]: line for line in told.splitlines() if line}
        assert "required, not found" in lines["copernicus"] and "set CDSAPI_KEY" in told
        assert "optional, found in environment" in lines["jwst"] and "Fake-Token" not in told

    def test_validate_names_what_is_wrong(self, capsys, tmp_path, small_dataset):
        assert main(["validate", str(small_dataset)]) == 0
        assert main(["validate", str(tmp_path / "nowhere")]) == 1
        assert "nowhere" in capsys.readouterr().out

    def test_sources_as_json(self, capsys):
        assert main(["sources", "--json"]) == 0
        sources = json.loads(capsys.readouterr().out)["sources"]
        assert {"nasa_exoplanet_archive", "open_exoplanet_catalogue", "clero", "taurex", "muscles", "cobra"} <= {
            source["name"] for source in sources
        }
        assert len([source for source in sources if source["network"]]) >= 17
        for source in sources:
            assert source["licence"] and source["citation"] and source["version"]
            assert not source["network"] or (source["fields"] and source["client"] and source["requests_per_second"])

    def test_fetch_finds_everything_there(self, capsys):
        assert main(["fetch", "sample"]) == 0
        assert capsys.readouterr().out.count("there, checked") == 6
