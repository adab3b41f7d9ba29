"""Metrics survive full disks and killed processes."""

import json
from pathlib import Path

import pytest
from launching import run_script

from launch.monitor import MetricsFile, duration
from launch.stopping import CheckpointPolicy, EarlyStop, TimeLimit


def test_a_full_disk_keeps_every_line_that_was_written(tmp_path):
    """A file-size limit stands for the full disk: the last write fits only in part."""
    path = tmp_path / "metrics.jsonl"
    done = run_script(Path(__file__).with_name("write_until_full.py"), path)
    assert done.returncode != 0
    assert str(path) in done.stderr and "all earlier lines are kept" in done.stderr
    lines = path.read_text().splitlines()
    assert len(lines) > 10 and [json.loads(line)["step"] for line in lines] == list(range(len(lines)))


def test_a_half_written_last_line_is_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    MetricsFile(path).write({"step": 2})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1}, {"step": 2}]


def test_early_stop_counts_validations_without_a_better_one():
    stop = EarlyStop(patience=2)
    assert stop.keeps(1.0) and not stop.keeps(1.1) and not stop.due
    assert not stop.keeps(float("nan")) and stop.due
    assert stop.keeps(0.5) and not stop.due


def test_of_weights_that_validation_cannot_tell_apart_the_last_are_kept():
    stop = EarlyStop(patience=9)
    assert stop.keeps(1.0, error=0.2) and stop.keeps(1.1, error=0.2) and stop.keeps(1.2, error=0.2)
    assert not stop.keeps(1.3, error=0.2), "the error is counted from the lowest loss, not from the last one kept"
    assert stop.best == 1.0 and stop.since_best == 3
    assert not EarlyStop(patience=9).keeps(float("inf"), error=1.0)


def test_the_time_limit_counts_what_was_spent_before_a_resume():
    assert not TimeLimit(1.0).due
    assert TimeLimit(1.0, before_s=3600).due


def test_checkpoints_fall_due_by_steps_and_by_hours():
    policy = CheckpointPolicy(every_steps=10, every_h=2)
    assert policy.due(20) and not policy.due(21)
    policy.saved_at -= 7200
    assert policy.due(21)


@pytest.mark.parametrize(("seconds", "text"), [(59, "00:00:59"), (90061, "1 d 01:01:01")])
def test_duration(seconds, text):
    assert duration(seconds) == text
