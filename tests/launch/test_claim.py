"""Folders that belong to one launch: held while one of its processes lives, whatever ends it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launching import IMPORTS, finish, start_training, wait_until
from project import ROOT

from astrobio.config import ConfigError
from launch import claim

HOLDER = Path(__file__).with_name("hold_folder.py")


@pytest.fixture
def hold():
    """Start a process that claims a folder; gives it and what it said."""
    started = []

    def start(folder, *options, **environment):
        process = subprocess.Popen(
            [sys.executable, HOLDER, folder, *options],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            env={**os.environ, **IMPORTS, **environment},
        )
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_second_launch_is_told_who_has_the_folder_until_it_is_dead(hold, tmp_path):
    first, said = hold(tmp_path / "run")
    assert said == "held"
    _, said = hold(tmp_path / "run")
    assert said.startswith("--run there: another run has ") and f"kill {first.pid}" in said
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert hold(tmp_path / "run")[1] == "held"


def test_ranks_of_one_launch_hold_it_together(hold, tmp_path):
    """Each is started by the launcher, here this process; the folder is free when the last one has ended."""
    ranks = [hold(tmp_path, LOCAL_RANK=str(rank)) for rank in range(3)]
    assert [said for _, said in ranks] == ["held"] * 3
    *others, (last, _) = ranks
    for process, _ in others:
        process.kill()
        process.wait()
    assert "another run has" in hold(tmp_path)[1]
    last.kill()
    last.wait()
    assert hold(tmp_path)[1] == "held"


def test_ranks_of_several_machines_are_known_by_their_master(hold, tmp_path):
    machines = {"CROSS_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert hold(tmp_path, **machines)[1] == hold(tmp_path, **machines)[1] == "held"
    assert "another run has" in hold(tmp_path, **{**machines, "MASTER_PORT": "29501"})[1]


def test_what_killed_runs_left_is_removed_and_what_lives_stays(hold, tmp_path):
    dead, alive = tmp_path / "dead", tmp_path / "alive"
    process, _ = hold(dead)
    hold(alive)
    for folder in (dead, alive, tmp_path / "unclaimed"):
        (folder / "rank0").mkdir(parents=True)
    process.kill()
    process.wait()
    claim.remove_dead(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alive", "unclaimed"]


def test_a_claimed_swap_folder_begins_empty_but_for_its_owner(hold, tmp_path):
    (tmp_path / "rank0").mkdir()
    (tmp_path / "left.swp").write_text("x")
    assert hold(tmp_path, "emptied")[1] == "held"
    assert [path.name for path in tmp_path.iterdir()] == [claim.OWNER]
    assert json.loads((tmp_path / claim.OWNER).read_text())["pid"]


def test_runs_of_one_name_have_folders_of_their_own(tmp_path):
    runs = tmp_path / "a" / "run", tmp_path / "b" / "run"
    shared = tmp_path / "nvme"
    assert len({claim.own_folder(shared, run) for run in runs}) == 2
    assert claim.own_folder(shared, runs[0]) == claim.own_folder(shared, runs[0] / ".." / "run")
    assert claim.own_folder(runs[0], runs[0]) == runs[0] / "nvme"


def test_a_folder_that_cannot_be_made_is_a_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--run there: .* cannot be made or written"):
        claim.claim(tmp_path / "file" / "run", "--run there")


@pytest.mark.slow
@pytest.mark.nvme
def test_runs_at_once_share_a_disk_and_no_file(tmp_path, sample_dataset):
    """By one nvme_path in both ds_configs, or by ASTROBIO_NVME: their losses are a lone run's. Two in one run's folder:
    the second is refused."""
    sizes = [
        "--max_steps",
        25,
        "--set",
        "ds_config.gradient_accumulation_steps=2",
        "ds_config.zero_optimization.sub_group_size=300000",
    ]
    paths = [
        f"ds_config.zero_optimization.{block}.nvme_path={tmp_path / 'disk'}"
        for block in ("offload_param", "offload_optimizer")
    ]
    shared = {"explicit": (sizes + paths, {}), "environment": (sizes, {"ASTROBIO_NVME": str(tmp_path / "disk")})}
    alone = losses(
        finish(start_training("zero3_nvme", sample_dataset, tmp_path / "alone", *sizes, ranks=1)), tmp_path / "alone"
    )
    for way, (options, environment) in shared.items():
        runs = [tmp_path / way / parent / "run" for parent in "ab"]  # of one name
        started = [start_training("zero3_nvme", sample_dataset, run, *options, ranks=1, **environment) for run in runs]
        # Not for its first step: on a slow machine a launch takes as long as all steps.
        wait_until((runs[0] / claim.OWNER).exists, f"{runs[0]} was not claimed", timeout=120)
        third = finish(start_training("zero3_nvme", sample_dataset, runs[0], *options, ranks=1, **environment))
        assert third.status and "another run has" in third.output and "kill " in third.output, third.output
        for process, run in zip(started, runs, strict=True):
            assert losses(finish(process), run) == alone
        assert list((tmp_path / "disk").iterdir()) == [], "swap files are left"


def losses(done, run) -> list[float]:
    assert done.status == 0, done.output
    done.run = run
    return [record["loss"] for record in done.metrics("train")]
