"""Configs side by side: what they differ in, one that fails, the page in a browser, and four real runs."""

import csv
import json
import re
import subprocess

import pytest
from launching import FAST, in_browser
from project import DS_CONFIGS

from astrobio.config import load_preset
from launch.cli import main
from launch.experiments import compare as module
from launch.experiments import measured_run
from launch.experiments.compare import Comparison, compare, differences, headline
from launch.experiments.measured_run import Row, predict, predicted_figures, timeline
from launch.experiments.page import memory_bars, write_page
from launch.postmortem.blackbox import BlackBox

OFFLOAD = json.loads(DS_CONFIGS["zero3_offload"].read_text())
PLAN = {
    "fits": True,
    "time": {"step_s": 2.2, "forward_s": 0.5, "backward_s": 1.2, "optimizer_s": 0.5},
    "host": {
        "peak_bytes": 6 * 10**9,
        "limit_bytes": 24 * 10**9,
        "phase": "evaluate",
        "phases": {"forward": 4 * 10**9, "optimizer": 5 * 10**9, "evaluate": 6 * 10**9},
        "parts": {"optimizer state": 3 * 10**9, "parameters": 10**9},
    },
    "nvme": {"peak_bytes": 10**9, "read_bytes_per_step": 2 * 10**9, "parts": {"parameters": 10**9}},
}


def config(**changes):
    return {**OFFLOAD, **changes}


def test_one_key_that_differs_is_named():
    one, two = config(gradient_clipping=1.0), config(gradient_clipping=0.5)
    found = differences({"one": one, "two": two})
    assert found == {"gradient_clipping": [1.0, 0.5]}
    assert headline(["one", "two"], found) == "they differ in one key, gradient_clipping (one: 1.0, two: 0.5)"


def test_all_keys_that_differ_are_named():
    two = config(zero_optimization={**OFFLOAD["zero_optimization"], "sub_group_size": 1}, aio={"queue_depth": 4})
    found = differences({"one": OFFLOAD, "two": two})
    assert found == {"zero_optimization.sub_group_size": [100000000, 1], "aio.queue_depth": [None, 4]}
    assert "2 keys: aio.queue_depth, zero_optimization.sub_group_size" in headline(["one", "two"], found)
    assert headline(["one", "two"], {}) == "one and two are the same"


def test_no_prediction_says_why(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    found, why = predict("tiny", tmp_path / "broken.json", 2)
    assert found is None and why


def test_a_prediction_counts_what_is_measured(monkeypatch, tmp_path):
    """The ranks, not what reads ahead for them; and the model as it was changed."""
    asked = []

    def plan(command, **_):
        asked.append(command)
        host = {"peak_bytes": 100, "phases": {"forward": 80}, "parts": {"data workers": 10, "parameters": 90}}
        return subprocess.CompletedProcess(command, 0, json.dumps({"host": host}), "")

    monkeypatch.setattr(measured_run.subprocess, "run", plan)
    found, _ = predict("tiny", tmp_path / "a.json", 2)
    assert found["host"] == {"peak_bytes": 90, "phases": {"forward": 70}, "parts": {"parameters": 90}}
    monkeypatch.setattr(module, "run_config", failing)
    (tmp_path / "a.json").write_text(json.dumps(OFFLOAD))
    compare("tiny", [tmp_path / "a.json"], 1, tmp_path / "out", ranks=1, changes=["model.climate.hidden_size=64"])
    assert load_preset(asked[-1][asked[-1].index("--model") + 1]).climate.hidden_size == 64


def test_predictions_have_the_names_of_what_is_measured():
    assert predicted_figures(Row("a", "a.json", predicted=PLAN)) == {
        "step_s": 2.2,
        "forward_s": 0.5,
        "backward_s": 1.2,
        "optimizer_s": 0.5,
        "host_peak_bytes": 5 * 10**9,
        "nvme_bytes": 10**9,
        "nvme_read_bytes": 2 * 10**9,
    }


def test_the_timeline_is_that_of_the_last_whole_step():
    samples = [
        {"time": 10 + i / 10, "rss": 100 + i, "step": i // 20, "phase": "forward" if i % 20 < 8 else "backward"}
        for i in range(45)
    ]
    points = timeline(samples, "cpu")
    assert len(points) == 20 and points[0] == (0.0, 120, "forward") and points[-1] == (1.9, 139, "backward")
    assert len(timeline(samples[:9], "cpu")) == 9 and timeline([], "cpu") == []


def failing(row, *_):
    row.status, row.cause, row.reason = "failed", "error", "x"


@pytest.fixture
def page(tmp_path):
    """A page of three rows, one failed; a config's name and a reason that are markup."""
    measured = {
        "step_s": 2.0,
        "forward_s": 0.5,
        "backward_s": 1.0,
        "optimizer_s": 0.4,
        "tokens_per_s": 123.0,
        "host_peak_bytes": 4.5e9,
        "host_at_start_bytes": 1e9,
        "nvme_bytes": 1e9,
        "nvme_read_bytes": 2e9,
        "nvme_written_bytes": 1e8,
    }
    points = [(i / 10, 10**9 + 10**7 * i, "forward" if i < 5 else "backward") for i in range(20)]
    rows = [
        Row(
            "zero3_offload",
            "a.json",
            steps=3,
            losses=[3.0, 2.5],
            measured=measured,
            predicted=PLAN,
            limits={"host": 24 * 10**9, "nvme": 10**11},
            timeline=points,
        ),
        Row(
            "zero3 <b>",
            "b.json",
            steps=3,
            losses=[2.0],
            measured=measured,
            no_prediction="no such command",
            limits={"host": 24 * 10**9},
            timeline=points,
        ),
        Row(
            "zero3_nvme",
            "c.json",
            status="failed",
            cause="host memory",
            reason="rank 1 was killed <script>",
            cure="fewer ranks",
        ),
    ]
    found = Comparison("tiny", 2, 3, "cpu", {"fp16.enabled": [True, False, None]}, "they differ in one key, fp16", rows)
    path = tmp_path / "compare.html"
    write_page(found, path, {row.name: predicted_figures(row) for row in rows})
    return path


def test_the_page_stands_alone_and_has_everything(page):
    text = page.read_text()
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    for words in (
        "They differ in one key, fp16.",
        "failed: host memory",
        "rank 1 was killed &lt;script&gt;",
        "zero3 &lt;b&gt;",
        "predicted 2.2 s (+10%)",
        "predicted 5.00 GB (+11%)",
        "optimizer state",
        "limit 24.00 GB",
        "No prediction for zero3 &lt;b&gt;: no such command",
        "polyline",
        "<code>fp16.enabled</code>",
    ):
        assert words in text, words


def test_more_parts_than_hues_are_told_together():
    row = Row("a", "a.json", predicted={"host": {"peak_bytes": 55, "parts": {f"part {i}": i for i in range(1, 11)}}})
    chart = str(memory_bars([row], "host", "host_peak_bytes"))
    hues = re.findall(r'<i style="background:(#\w+)', chart)
    assert len(hues) == len(set(hues)) == 8
    assert "part 10" in chart and "part 3<" not in chart and "smaller parts" in chart


def test_the_page_in_a_browser(page, tmp_path):
    dom = in_browser(page, tmp_path)
    assert dom.count("<svg") == 5 and "They differ in one key" in dom  # time, 2 memory, 2 timelines


@pytest.mark.slow
@pytest.mark.nvme
def test_four_configs_one_of_which_must_fail(mini_dataset, tmp_path, capfd):
    lively = config(fp16={**OFFLOAD["fp16"], "initial_scale_power": 8})
    nvme = json.loads(DS_CONFIGS["zero3_nvme"].read_text())
    files = {
        "host": lively,
        "resident": config(
            **{
                **lively,
                "zero_optimization": {
                    key: value for key, value in OFFLOAD["zero_optimization"].items() if key != "offload_param"
                },
            }
        ),
        "nvme": {**nvme, "fp16": lively["fp16"]},
        "doomed": config(fp16={**OFFLOAD["fp16"], "initial_scale_power": 40, "min_loss_scale": 2**39, "hysteresis": 1}),
    }
    paths = []
    for name, content in files.items():
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(content))
    out = tmp_path / "out"
    found = compare("tiny", paths, 3, out, ranks=2, data=mini_dataset, changes=list(FAST[1:]))
    rows = {row.name: row for row in found.rows}
    assert [row.status for row in found.rows] == ["done", "done", "done", "failed"], found.rows
    assert rows["doomed"].cause == "minimum loss scale" and "already at minimum" in rows["doomed"].reason
    for row in (rows["host"], rows["resident"], rows["nvme"]):
        told = row.measured
        phases = told["forward_s"] + told["backward_s"] + told["optimizer_s"]
        assert row.steps == 3 and 0 < phases < 1.05 * told["step_s"]
        assert told["host_peak_bytes"] > 5e8 and row.timeline
        assert row.predicted is not None or row.no_prediction
    assert rows["nvme"].measured["nvme_bytes"] > 1e6 and rows["nvme"].measured["nvme_read_bytes"] > 1e6
    assert rows["host"].losses[0] == pytest.approx(rows["nvme"].losses[0], rel=1e-2)
    table = list(csv.DictReader((out / "compare.csv").open()))
    assert [line["status"] for line in table] == ["done", "done", "done", "failed"]
    in_csv = {line["config"]: line for line in table}
    assert float(in_csv["host"]["forward_s"]) == rows["host"].measured["forward_s"]
    in_json = {row["name"]: row for row in json.loads((out / "compare.json").read_text())["rows"]}
    assert in_json["doomed"]["cause"] == "minimum loss scale"
    assert "failed: minimum loss scale" in (out / "compare.html").read_text()
    assert not list(out.rglob("checkpoints"))
    assert "FAILED" in capfd.readouterr().out


@pytest.mark.slow
def test_a_config_that_is_refused_tells_its_mistake(mini_dataset, tmp_path):
    path = tmp_path / "typo.json"
    path.write_text(json.dumps(config(gradient_cliping=1)))
    (row,) = compare("tiny", [path], 1, tmp_path / "out", ranks=2, data=mini_dataset).rows
    assert (row.status, row.cause) == ("failed", "refused") and "gradient_clipping" in row.reason


def test_a_status_after_all_was_done_costs_no_row(tmp_path):
    for rank, error in ((0, None), (1, None)):
        BlackBox(tmp_path, rank, []).end(error)
    assert measured_run._finished(tmp_path) and not measured_run._finished(tmp_path / "elsewhere")
    BlackBox(tmp_path, 1, []).end(KeyError("planet"))
    assert not measured_run._finished(tmp_path)


def test_the_command_survives_only_failures(tmp_path, monkeypatch):
    """Its status says that nothing ran."""
    monkeypatch.setattr(module, "predict", lambda *_: (None, "not asked"))
    monkeypatch.setattr(module, "run_config", failing)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(OFFLOAD))
    assert main(["compare", "--model", "tiny", "--ds_configs", str(path), "--out", str(tmp_path / "out")]) == 1
    assert (
        main(
            ["compare", "--model", "tiny", "--ds_configs", str(tmp_path / "none.json"), "--out", str(tmp_path / "out")]
        )
        == 2
    )
