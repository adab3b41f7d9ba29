"""The acceptance run: what fails is named, what was not reached is told, and the whole of it on this machine."""

import json
import re
import time
from pathlib import Path

import pytest
import torch
from launching import in_browser
from project import ROOT

from launch.cli import main
from launch.commands.acceptance import summary
from launch.experiments import device_checks
from launch.experiments.acceptance import Acceptance, Failed, TimeOver
from launch.experiments.device_checks import Truth, attention_of
from launch.experiments.measured_run import Row
from launch.experiments.rungs import LADDER, judged, resumed_as

MEASURED = {
    "step_s": 2.0,
    "forward_s": 1.0,
    "backward_s": 0.7,
    "optimizer_s": 0.3,
    "host_peak_bytes": 1e9,
    "nvme_bytes": 5e8,
}


def row(host: float = 1e9, nvme: float = 5e8, **changes) -> Row:
    """A run of three steps, with predictions of so much."""
    plan = {
        "fits": True,
        "host": {"peak_bytes": host, "phases": {"forward": host}, "parts": {"all": host}},
        "nvme": {"peak_bytes": nvme, "parts": {"all": nvme}},
        "time": {"step_s": 1.0},
    }
    return Row(
        **{
            "name": "zero3_nvme",
            "ds_config": "a.json",
            "steps": 3,
            "losses": [3.0, 2.0, 1.0],
            "measured": MEASURED,
            "predicted": plan,
            **changes,
        }
    )


def box(folder, minutes: float = 10) -> Acceptance:
    return Acceptance(folder, "tiny", folder, 2, "cpu", minutes)


def failing(truths) -> list[str]:
    return [truth.what for truth in truths if truth.holds is False]


@pytest.mark.parametrize(
    ("changes", "fails"),
    [
        ({}, []),
        ({"host": 1.05e9}, []),
        ({"host": 1.2e9}, ["zero3_nvme: host peak"]),
        ({"host": 0.8e9, "nvme": 4e8}, ["zero3_nvme: host peak", "zero3_nvme: nvme"]),
        ({"losses": [3.0, float("nan"), 1.0]}, ["zero3_nvme: trains"]),
        ({"predicted": None, "no_prediction": "why"}, ["zero3_nvme: is predicted"]),
        ({"status": "failed", "cause": "host memory", "reason": "killed"}, ["zero3_nvme: trains"]),
    ],
)
def test_a_prediction_that_is_off_fails(changes, fails):
    """By 20% of memory, a failed run, a loss that is not finite; a step's time is only told."""
    assert failing(judged(row(**changes))) == fails


def test_a_card_is_judged_by_what_it_allocates_reserves_and_holds():
    gpu = {
        "peak_bytes": 9e9,
        "reserved_bytes": 8e9,
        "phases": {"backward": 6e9, "evaluate": 7e9},
        "reserved_by_phase": {"backward": 7e9, "evaluate": 8e9},
    }
    card = row(
        measured={**MEASURED, "device_allocated_bytes": 6e9, "device_reserved_bytes": 7e9, "device_peak_bytes": 8e9}
    )
    card.predicted["gpu"] = gpu
    seen = {truth.what.split(": ")[1]: truth for truth in judged(card)}
    for name in ("device allocated", "device reserved", "device peak"):
        assert seen[name].holds and "(+0.0%)" in seen[name].seen
    card.measured["device_allocated_bytes"] = 7.5e9
    assert failing(judged(card)) == ["zero3_nvme: device allocated"]


def test_a_resume_that_differs_fails():
    steps = [{"step": n, "loss": 2.0 + n} for n in (3, 4)]
    assert resumed_as(steps, [dict(step) for step in steps], "it", 0.0).holds
    other = [steps[0], {"step": 4, "loss": 6.0 * (1 + 1e-6)}]
    assert resumed_as(steps, other, "it", 0.0).holds is False
    assert resumed_as(steps, other, "it", 1e-3).holds
    assert resumed_as(steps, steps[1:], "it", 1e-3).holds is False


def test_what_fails_or_is_not_reached_is_told_and_the_rest_goes_on(tmp_path, capsys):
    def broken(box):
        yield Truth("one", True, "1")
        raise Failed("status 139")

    def cut(box):
        yield Truth("two", None, "2")
        raise TimeOver("3 s were left")

    def well(box):
        yield Truth("three <b>", True, "3", "<i>")
        box.rows.append(row(host=1.2e9))
        yield from judged(box.rows[-1])

    found = box(tmp_path)
    found.climb({"first": broken, "second": cut, "third": well}, print)
    assert [rung.status for rung in found.rungs] == ["fails", "cut short", "fails"]
    assert [truth.what for truth in found.failed] == ["first", "zero3_nvme: host peak"]
    told = json.loads((tmp_path / "acceptance.json").read_text())
    assert told["ok"] is False and told["rungs"][0]["truths"][1]["seen"] == "status 139"
    assert "FAILS        first: status 139" in summary(found) and "cut short    second: 3 s were left" in summary(found)
    text = (tmp_path / "acceptance.html").read_text()
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    for words in ("2 of what must hold does not.", "status 139", "three &lt;b&gt;", "3 s were left", "(+20%)", "<svg"):
        assert words in text, words
    assert "FAILS  zero3_nvme: host peak" in capsys.readouterr().out
    assert in_browser(tmp_path / "acceptance.html", tmp_path).count("<svg") == 3  # time, host, NVMe


def test_without_time_nothing_is_asked_and_nothing_fails(tmp_path, mini_dataset, capsys):
    status = main(["acceptance", "--minutes", "0", "--data", str(mini_dataset), "--out", str(tmp_path), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert status == 0 and told["ok"]
    assert [(rung["name"], rung["status"]) for rung in told["rungs"]] == [(name, "not reached") for name in LADDER]


def test_no_dataset_is_a_mistake_that_is_named(tmp_path, capsys):
    assert main(["acceptance", "--data", str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    assert "no such dataset folder" in capsys.readouterr().err


def test_a_process_that_hangs_is_ended(tmp_path):
    started = time.monotonic()
    with pytest.raises(Failed, match="no end after 1 s"):
        box(tmp_path).ask("timeit", "-n1", "-r1", "import time; time.sleep(60)", seconds=1)
    with pytest.raises(TimeOver):
        box(tmp_path, minutes=0.03).ask("timeit", "-n1", "-r1", "import time; time.sleep(60)")
    assert time.monotonic() - started < 20
    with pytest.raises(Failed, match="status 1: .*ZeroDivisionError"):
        box(tmp_path).ask("timeit", "-n1", "-r1", "1 / 0")


def test_the_stacks_attention_is_known_without_running_it():
    calls = attention_of("17b")
    (text,) = (call for call in calls if call.causal)
    assert text.query == (1, 32, 1168, 128) and not text.mask, "padding needs no mask"
    assert len(calls) >= 8 and all(call.query[-1] % 8 == 0 for call in calls)


def test_the_stacks_own_code_does_not_wait_for_the_device(mini_dataset, tmp_path):
    """On a CPU the operators count whose results the host needs."""
    ours, others = device_checks.waits("tiny", mini_dataset)
    assert ours.holds, ours.seen
    lines: dict = device_checks.Counter()
    with device_checks._noting(lines):
        torch.ones(2).max().item()
        x = torch.ones(3)
        x[x > 2].sum()
    assert sum(lines.values()) == 2
    assert {ROOT / line.split(":")[0] for line in lines} == {Path(__file__)}


def test_the_devices_random_numbers(mini_dataset):
    assert all(truth.holds for truth in device_checks.randomness("tiny", mini_dataset))


@pytest.mark.slow
@pytest.mark.nvme
def test_everything_holds_on_this_machine(mini_dataset, tmp_path, capsys):
    status = main(
        [
            "acceptance",
            "--minutes",
            "20",
            "--model",
            "tiny",
            "--data",
            str(mini_dataset),
            "--out",
            str(tmp_path),
            "--json",
        ]
    )
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert status == 0, [truth for rung in told["rungs"] for truth in rung["truths"] if truth["holds"] is False]
    assert all(rung["status"] == "holds" for rung in told["rungs"])
    assert len(told["ds_configs"]) == 9 and all(row["status"] == "done" for row in told["ds_configs"])
