"""Checkpoints between all ds_configs, numbers of ranks and kinds of model; through kills and full disks."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from launching import ROOT, finish, start

from launch.checkpoints.folder import checkpoints, valid_checkpoints
from launch.checkpoints.manifest import verify

CONFIGS = sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))
SCRIPT = Path(__file__).with_name("checkpoint_ranks.py")


def launch(cases: list[str], data: Path, out: Path, ranks: int = 2) -> dict[str, list[dict]]:
    """Case → what each rank saw."""
    (out / "results.jsonl").unlink(missing_ok=True)
    done = finish(start(SCRIPT, data, out, *cases, ranks=ranks), timeout=1800)
    assert done.status == 0, done.output[-4000:]
    found = {line["case"]: line["ranks"] for line in map(json.loads, (out / "results.jsonl").read_text().splitlines())}
    for case, seen in found.items():
        for rank, result in enumerate(seen):
            assert "error" not in result, f"{case}, rank {rank}:\n{result['error']}"
    return found


def precision(config: str) -> str:
    return "bf16" if "bf16" in config else "fp16"


@pytest.mark.slow
@pytest.mark.nvme
@pytest.mark.parametrize("variant", ["tiny", "frozen", "groups"])
def test_every_ds_config_resumes_every_other(variant, sample_dataset, tmp_path):
    """To the last bit: weights, moments, steps, schedule, loss scale, random numbers, buffers, param groups."""
    found = launch([f"matrix:{variant}"], sample_dataset, tmp_path)[f"matrix:{variant}"]
    for rank, seen in enumerate(found):
        assert len(seen) == len(CONFIGS)**2
        for pair, loaded in seen.items():
            source, target = pair.split(" → ")
            expected = [name for name in loaded["wrong"] if precision(source) != precision(target)
                        and name.startswith("buffer/")]
            assert loaded["wrong"] == expected, f"rank {rank}: {pair}"
            if source == target:
                assert loaded["losses"] == pytest.approx(loaded["before"], rel=1e-4), pair


@pytest.mark.slow
@pytest.mark.nvme
@pytest.mark.parametrize("variant", ["tiny", "frozen", "groups"])
def test_any_number_of_ranks_resumes_any_other(variant, sample_dataset, tmp_path):
    pairs = set()
    for ranks in (1, 2, 4, 4, 2, 1):
        for seen in launch([f"ranks:{variant}"], sample_dataset, tmp_path, ranks)[f"ranks:{variant}"]:
            for pair, loaded in seen.items():
                source, target = pair.split(" → ")
                pairs.add((int(source.split()[0]), int(target.split()[0])))
                assert [name for name in loaded["wrong"] if name.startswith(("fp32/", "exp_avg"))] == [], pair
                assert loaded["wrong"] == [] or precision(source) != precision(target) or ranks != int(source[0]), pair
    assert pairs == {(a, b) for a in (1, 2, 4) for b in (1, 2, 4)}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 100 MB; a checkpoint of the small model takes 25."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_seen_beforehand_and_survived_in_the_middle(small_disk, sample_dataset):
    for seen in launch(["small_disk"], sample_dataset, small_disk)["small_disk"]:
        assert "GB free" in seen["refused beforehand"] and "make room" in seen["refused beforehand"]
        assert "No space left" in seen["in the middle"]
        for name in ("refused beforehand", "in the middle"):
            assert seen[f"{name}, left"] == ["step_00000001"] and seen[f"{name}, valid"]
        assert seen["after room was made"] == "saved"


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_checkpoint_that_resumes(sample_dataset, tmp_path):
    """Thirty times: what is there verifies to the last byte, and the next launch goes on from the newest."""
    moments, run, last = random.Random(0), tmp_path / "killed", 0
    for _ in range(30):
        process = start(SCRIPT, sample_dataset, tmp_path, "save_until_killed")
        resumed = None
        for line in process.stdout:
            if line.startswith("resumed"):
                resumed = int(line.split()[1])
                break
        assert resumed is not None and resumed >= last, "a checkpoint was lost"
        deadline = time.monotonic() + moments.uniform(0.5, 3.0)
        while time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        for rank in [child for child in psutil.process_iter() if _is_rank(child, tmp_path)]:
            rank.kill()
            rank.wait(timeout=30)
        process.wait()
        process.stdout.close()
        valid = valid_checkpoints(run)
        assert valid and valid == checkpoints(run), "a broken folder has a checkpoint's name"
        last = verify(valid[-1]).step
    assert last > 30


def _is_rank(process: psutil.Process, out: Path) -> bool:
    try:
        return SCRIPT.name in " ".join(process.cmdline()) and str(out) in process.cmdline()
    except psutil.Error:
        return False
