"""Whole builds in processes of their own: with every archive, killed again and again, and ten times as large."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from archive_server import ArchiveServer, Reply
from fake_archives import fake
from planted import PLANTED, forms_of_the_secret, grep

from astrobio.schema import SPLITS
from data_build.pipeline import validate
from data_build.recipe import load_recipe
from data_build.sources import ARCHIVES

HERE = Path(__file__).parent
TINY = {
    **load_recipe("sample").as_dict(),
    "name": "tiny",
    "seed": 7,
    "catalogues": ["open_exoplanet_catalogue"],
    "sampled_planets": 12,
    "candidates_per_planet": 12,
    "pairs_per_observed_planet": 2,
    "pairs_per_synthetic_planet": 2,
    "splits": {"train": 0.5, "validation": 0.25, "test": 0.25},
    "absent_share": {"climate": 0.1, "metabolism": 0.4, "spectrum": 0.6},
    "vocabulary_size": 400,
}


def recipe(folder: Path, **changes) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path


def start(recipe_file: Path, out: Path, mirror: str = "", cache: Path | None = None, **environment):
    return subprocess.Popen(
        [
            sys.executable,
            str(HERE / "build_driver.py"),
            str(recipe_file),
            str(out),
            mirror,
            str(cache or out.parent / "cache"),
        ],
        cwd=HERE.parents[1],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1]), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process) -> tuple[int, str, str]:
    out, errors = process.communicate(timeout=500)
    return process.returncode, out, errors


@pytest.fixture
def archives(tmp_path):
    """All stand-ins behind one server."""
    stand_ins = {name: fake(name, tmp_path) for name in ARCHIVES}
    by_host = {stand_in.host: stand_in for stand_in in stand_ins.values()}
    by_host |= {"www.eso.org": stand_ins["eso"], "object-store.synthetic": stand_ins["copernicus"]}

    def script(request):
        if request.host == stand_ins["nasa_spectra"].host:  # two archives are at home there
            planets = "pscomppars" in request.form.get("QUERY", "")
            return stand_ins["nasa_pscomppars" if planets else "nasa_spectra"].reply(request)
        return by_host[request.host].reply(request) if request.host in by_host else Reply(b"", 404)

    with ArchiveServer(script) as server:
        yield server


ALL = {
    "catalogues": ["open_exoplanet_catalogue", "nasa_pscomppars", "exoplanet_eu"],
    "archives": dict.fromkeys(ARCHIVES, 1000),
}


def signed_in() -> dict[str, str]:
    """Every archive's credentials, in the environment."""
    return {
        variable: PLANTED
        for cls in ARCHIVES.values()
        if cls.info.sign_in
        for variable in cls.info.sign_in.variables.values()
        if variable != "NCBI_EMAIL"
    } | {"NCBI_EMAIL": "me@example.org"}


@pytest.mark.slow
def test_a_build_with_every_archive_is_whole_and_tells_no_secret(tmp_path, archives):
    out = tmp_path / "out"
    code, told, log = finish(start(recipe(tmp_path, **ALL), out, archives.url, **signed_in()))
    assert code == 0, log[-3000:]
    assert validate(out) == []
    manifest = json.loads((out / "manifest.json").read_text())
    quality = json.loads((out / "quality.json").read_text())
    assert ARCHIVES.keys() <= manifest["sources"].keys() and quality["archives"].keys() == ARCHIVES.keys()
    for name in ARCHIVES:
        rows = sum(pq.read_metadata(path).num_rows for path in (out / "archives" / name).glob("*.parquet"))
        entry = quality["archives"][name]
        assert rows == entry["rows"] > 0 and entry["complete"] and not entry["quarantined"], name
    stored = {"earth/copernicus": 2, "earth/rocke3d": 1, "synthetic-world/rocke3d": 2}
    records = {
        run_id: label
        for split in SPLITS
        for run_id, label in zip(
            *(datasets.load_from_disk(str(out / split))[column] for column in ("run_id", "label_present")), strict=True
        )
    }
    for name, count in stored.items():
        found = [label for run_id, label in records.items() if run_id.startswith(f"{name}-")]
        assert len(found) == count and all(found) == (name == "synthetic-world/rocke3d")
    assert [check["differ"] for check in quality["checks"] if "KEGG" in check["check"]] == [[]]
    texts = [
        record
        for split in SPLITS
        for record in datasets.load_from_disk(str(out / split)).select_columns(
            ["text", "metabolism_present", "provenance"]
        )
    ]
    organisms = {"genbank", "ensembl", "uniprot", "gtdb", "kegg"}
    named = [organisms & set(record["provenance"]["text"]["source"].split("+")) for record in texts]
    assert set.union(*named) <= organisms and len(set.union(*named)) >= 2
    assert quality["set_aside"]["no catalogue has its planet"] == 2  # the synthetic measured spectra
    for record, archives_told in zip(texts, named, strict=True):
        network = record["provenance"]["metabolism"]["version"].split(", ")[1].split(":")[0]
        its = record["metabolism_present"] and network in ("e_coli_core", "e_coli_core_fumarate")
        assert len(archives_told) == 2 * its and ("Escherichia coli" in record["text"]) == its
    assert {"nasa_pscomppars": True, "exoplanet_eu": True}.items() <= {
        name: bool(quality["crossmatch"]["raw_completeness"][name]) for name in TINY["catalogues"] + ALL["catalogues"]
    }.items()
    # The same again without a network, from the answers that were kept.
    requests = len(archives.requests)
    code, again, offline_log = finish(
        start(recipe(tmp_path, **ALL), tmp_path / "again", "http://127.0.0.1:9", tmp_path / "cache", **signed_in())
    )
    assert code == 0, offline_log[-3000:]
    assert json.loads(again)["content_sha256"] == json.loads(told)["content_sha256"]
    assert len(archives.requests) == requests
    # Some requests did carry the secret, and it went nowhere else.
    assert any(PLANTED in str(request.headers) + request.body + str(request.query) for request in archives.requests)
    assert "***" in log  # it would have been in the log
    for text in (told, log, again, offline_log):
        assert not [form for form in forms_of_the_secret() if form in text]
    assert grep(tmp_path) == []


@pytest.mark.slow
def test_a_build_killed_at_twenty_moments_ends_the_same(tmp_path, archives):
    some = {
        "catalogues": ["open_exoplanet_catalogue", "exoplanet_eu"],
        "archives": {"exoplanet_eu": 100, "gtdb": 100, "tess": 100, "rocke3d": 100},
    }
    plan = recipe(tmp_path, **some)
    begun = time.monotonic()
    code, told, log = finish(start(plan, tmp_path / "undisturbed", archives.url))
    assert code == 0, log[-3000:]
    duration = time.monotonic() - begun
    expected = json.loads((tmp_path / "undisturbed/manifest.json").read_text())["files"]
    moments = random.Random(6)
    out, kills, finished = tmp_path / "0", 0, 0
    while kills < 20:
        process = start(plan, out, archives.url)
        time.sleep(moments.uniform(0.2, 1.0) * duration)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # workers and all
            kills += 1
        process.communicate()
        if out.exists():
            assert json.loads((out / "manifest.json").read_text())["files"] == expected
            finished += 1
            out = tmp_path / str(finished)
    code, _, log = finish(start(plan, out, archives.url))
    assert code == 0, log[-3000:]
    assert json.loads((out / "manifest.json").read_text())["files"] == expected
    assert not (tmp_path / f".{out.name}.partial").exists()
    assert finished + 1 < kills  # most builds did go on from where another was killed


@pytest.mark.slow
def test_workers_do_not_outlive_a_killed_build(tmp_path):
    process = start(recipe(tmp_path), tmp_path / "out")
    for line in process.stderr:
        if line.startswith("candidates"):
            break
    time.sleep(2)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert gone and not alive


@pytest.mark.slow
def test_ten_times_the_records_need_no_more_memory(tmp_path):
    """Records of 200 KB: the larger build writes ten times the bytes."""
    climates = {"absent_share": {"climate": 0.0, "metabolism": 0.95, "spectrum": 0.95}, "candidates_per_planet": 24}
    figures = []
    for name, planets in (("small", 20), ("large", 200)):
        (tmp_path / name).mkdir()
        plan = recipe(tmp_path / name, sampled_planets=planets, pairs_per_synthetic_planet=5, **climates)
        code, told, log = finish(start(plan, tmp_path / name / "out"))
        assert code == 0, log[-3000:]
        figures.append(json.loads(told))
    small, large = figures
    print(figures)
    assert large["records"] >= 5 * small["records"]
    growth = [after / before - 1 for before, after in zip(small["peak_bytes"], large["peak_bytes"], strict=True)]
    # Growth for ten times the records, where the larger build has not quite as many.
    assert max(growth) * 10 / (large["records"] / small["records"]) <= 0.10, (growth, small, large)
