"""Checkpoints between all ds_configs, numbers of ranks and kinds of model; through kills and full disks."""

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from launching import IMPORTS, run_cases, start
from project import DS_CONFIGS
from transformers import AutoModelForCausalLM, AutoTokenizer

from astrobio.dataset import AstrobioDataset
from astrobio.stack import AstrobioStack
from launch.checkpoints.folder import checkpoints, valid_checkpoints
from launch.checkpoints.manifest import verify
from launch.cli import main

SCRIPT = Path(__file__).with_name("checkpoint_ranks.py")


def launch(cases: list[str], data: Path, out: Path, ranks: int = 2) -> dict[str, list[dict]]:
    """Case → what each rank saw."""
    found = run_cases(SCRIPT, cases, data, out, ranks)
    for case, seen in found.items():
        for rank, result in enumerate(seen):
            assert "error" not in result, f"{case}, rank {rank}:\n{result['error']}"
    return found


def precision(config: str) -> str:
    return "bf16" if "bf16" in config else "fp16"


def compressed(config: str) -> bool:
    return "8bit" in config


@pytest.mark.slow
@pytest.mark.nvme
@pytest.mark.parametrize("variant", ["tiny", "frozen", "groups"])
def test_every_ds_config_resumes_every_other(variant, sample_dataset, tmp_path):
    """To the last bit: weights, moments, steps, schedule, loss scale, random numbers, buffers, param groups."""
    found = launch([f"matrix:{variant}"], sample_dataset, tmp_path)[f"matrix:{variant}"]
    for rank, seen in enumerate(found):
        assert len(seen) == len(DS_CONFIGS) ** 2
        for pair, loaded in seen.items():
            source, target = pair.split(" → ")
            allowed = ("buffer/",) if precision(source) != precision(target) else ()
            if compressed(target) and not compressed(source):
                allowed += ("fp32/", "exp_avg", "model/")
                assert any(name.startswith("exp_avg") for name in loaded["wrong"]), "rounded to 8 bits"
            wrong = [name for name in loaded["wrong"] if not name.startswith(allowed)]
            assert wrong == [], f"rank {rank}: {pair}"
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
                exact = ("fp32/", "exp_avg")
                if compressed(target) and not compressed(source):
                    exact = ()
                elif compressed(target) and source.split()[0] != target.split()[0]:  # blocks were cut
                    exact = ("fp32/",)
                same = precision(source) == precision(target) and compressed(source) == compressed(target)
                wrong = [
                    name
                    for name in loaded["wrong"]
                    if name.startswith(exact) or same and not name.startswith("exp_avg")
                ]
                assert wrong == [], pair
    assert pairs == {(a, b) for a in (1, 2, 4) for b in (1, 2, 4)}


FAST = ["trained_for_export", "universal", "frozen_twice"]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def small_disk(out):
    """A file system of 100 MB in ``out``; a checkpoint of the small model takes 25. None where it cannot be mounted."""
    folder = out / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", folder], capture_output=True)
    yield None if mounted.returncode else folder
    subprocess.run(["umount", "-l", folder], capture_output=True)


@pytest.fixture(scope="module")
def results(out, small_disk, sample_dataset):
    return launch(FAST + (["small_disk"] if small_disk else []), sample_dataset, out)


def test_a_full_disk_is_seen_beforehand_and_survived_in_the_middle(results):
    if "small_disk" not in results:
        pytest.skip("a small file system cannot be mounted here: mount needs root")
    for seen in results["small_disk"]:
        assert "GB free" in seen["refused beforehand"] and "make room" in seen["refused beforehand"]
        assert "No space left" in seen["in the middle"]
        for name in ("refused beforehand", "in the middle"):
            assert seen[f"{name}, left"] == ["step_00000001"] and seen[f"{name}, valid"]
        assert seen["after room was made"] == "saved"


@pytest.mark.nvme
@pytest.mark.parametrize("name", ["tiny", "adapters"])
def test_exports_give_the_logits_of_the_trained_engine(name, results, out, sample_dataset):
    """Saved from NVMe; adapters are merged for transformers, and stay what they are in the whole stack."""
    run = out / name
    expected = torch.load(run / "logits.pt")
    data = AstrobioDataset(sample_dataset, "train", 64)
    batch = data.collate([data[i] for i in range(4)])
    for part, folder in (("whole", out / f"{name}_whole"), ("language", out / f"{name}_language")):
        assert (
            main(
                [
                    "checkpoint",
                    "export",
                    str(run),
                    "--out",
                    str(folder),
                    "--part",
                    part,
                    "--dtype",
                    "fp32",
                    "--shard_gb",
                    "0.001",
                    "--tokenizer",
                    str(sample_dataset / "tokenizer"),
                ]
            )
            == 0
        )
        assert len(list(folder.glob("*.safetensors"))) > 1
    stack = AstrobioStack.from_pretrained(out / f"{name}_whole")
    language = AutoModelForCausalLM.from_pretrained(out / f"{name}_language").eval()
    seen = batch.real[:, 1:]
    with torch.no_grad():
        torch.testing.assert_close(stack(batch).logits, expected["logits"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            stack.language(None, batch.tokens)[1][seen], expected["text"][seen], rtol=1e-4, atol=1e-4
        )
        logits = language(input_ids=batch.tokens, attention_mask=batch.real.long()).logits[:, :-1]
    torch.testing.assert_close(logits[seen], expected["text"][seen], rtol=1e-4, atol=1e-4)
    assert AutoTokenizer.from_pretrained(out / f"{name}_language").vocab_size > 100
    assert main(["checkpoint", "verify", str(run)]) == 0


@pytest.mark.nvme
def test_frozen_parameters_are_written_once(results):
    """A second name for the same file, as long as both checkpoints are there; also after a resume."""
    for seen in results["frozen_twice"]:
        assert seen == {"names": [2, 2], "verified": 2, "resumed": 2, "after a resume": 2}


@pytest.mark.nvme
def test_bare_deepspeed_goes_on_from_the_universal_format(results):
    """But for frozen weights, which it does not restore: when it does, `convert` need no longer say so."""
    for seen in results["universal"]:
        for config in ("zero3_offload", "zero2_offload"):
            assert seen[config] == ["model/fixed.weight"] and seen[f"{config}, steps"] == 3


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_checkpoint_that_resumes(sample_dataset, tmp_path):
    """Thirty times: what is there verifies to the last byte, and the next launch goes on from the newest."""
    moments, run, last = random.Random(0), tmp_path / "killed", 0
    for _ in range(30):
        process, lines = start(SCRIPT, sample_dataset, tmp_path, "save_until_killed", **IMPORTS), []
        try:
            for line in process.stdout:
                lines.append(line)
                if line.startswith("resumed"):
                    break
            assert lines[-1].startswith("resumed"), "".join(lines)
            assert int(lines[-1].split()[1]) >= last, "a checkpoint was lost"
            time.sleep(moments.uniform(0.5, 3.0))
        finally:
            kill(process, tmp_path)
        valid = valid_checkpoints(run)
        assert valid and valid == checkpoints(run), "a broken folder has a checkpoint's name"
        last = verify(valid[-1]).step
    assert last > 30


def kill(process: subprocess.Popen, out: Path) -> None:
    """The launcher first, so that it cannot tell its ranks to end, then the ranks."""
    os.killpg(process.pid, signal.SIGKILL)
    for rank in [child for child in psutil.process_iter() if _is_rank(child, out)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.kill()
            rank.wait(timeout=30)
    process.wait()
    process.stdout.close()


def _is_rank(process: psutil.Process, out: Path) -> bool:
    try:
        return SCRIPT.name in " ".join(process.cmdline()) and str(out) in process.cmdline()
    except psutil.Error:
        return False
