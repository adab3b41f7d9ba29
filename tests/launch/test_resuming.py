"""Runs of launch/train.py that are stopped and taken up again: the same as if nothing had been."""

import shutil
import signal
import time

import pytest
from breaking import flip
from launching import FAST, finish, ranks_of, start, start_training, train
from project import DS_CONFIGS, ROOT

from launch.checkpoints.folder import checkpoints, path_of
from launch.checkpoints.manifest import MANIFEST, verify

SETTINGS = (*FAST, "ds_config.fp16.initial_scale_power=8", "train.validate_every_epochs=1")


def losses(done) -> list[float]:
    return [line["loss"] for line in done.metrics("train")]


def hashes(done) -> list[str]:
    return [line["sample_ids_hash"] for line in done.metrics("train")]


def equality(config: str, data, folder, *settings) -> tuple:
    """Ten steps at a stretch, with a checkpoint after five; and five more from that checkpoint in new processes."""
    settings = (*SETTINGS, "ds_config.gradient_accumulation_steps=2", "train.checkpoint_every_steps=5", *settings)
    whole = train(config, data, folder / "whole", "--max_steps", 10, *settings)
    assert whole.status == 0, whole.output[-4000:]
    middle = path_of(whole.run, 5)
    shutil.copytree(middle, path_of(folder / "resumed", 5))
    rest = train(config, data, folder / "resumed", "--resume", "auto", "--max_steps", 10, *settings)
    assert rest.status == 0, rest.output[-4000:]
    assert "at step 5" in rest.events("resume")[-1]["message"]
    assert len(losses(whole)) == 10 and len(losses(rest)) == 5
    assert hashes(rest) == hashes(whole)[5:]
    return whole, rest


@pytest.mark.slow
@pytest.mark.nvme
@pytest.mark.parametrize("config", DS_CONFIGS)
def test_a_resumed_run_is_the_uninterrupted_one(config, mini_dataset, tmp_path):
    """DeepSpeed's CPU Adam multiplies its beta powers step by step and recomputes them after a load: 1e-5 and less."""
    whole, rest = equality(config, mini_dataset, tmp_path)
    assert losses(rest) == pytest.approx(losses(whole)[5:], rel=1e-4)


@pytest.mark.slow
def test_in_fp32_with_torchs_adam_it_is_so_to_the_last_bit(mini_dataset, tmp_path):
    whole, rest = equality(
        "zero3", mini_dataset, tmp_path, "ds_config.fp16.enabled=false", "ds_config.optimizer.params.torch_adam=true"
    )
    assert losses(rest) == losses(whole)[5:]
    last = [verify(checkpoints(done.run)[-1]) for done in (whole, rest)]
    assert last[0].tensors.keys() == last[1].tensors.keys()
    assert [
        key for key in last[0].tensors if last[0].tensors[key].fingerprint != last[1].tensors[key].fingerprint
    ] == []
    assert last[0].random == last[1].random and last[0].param_groups == last[1].param_groups


@pytest.mark.slow
@pytest.mark.nvme
def test_another_number_of_ranks_and_another_config_keep_the_order(mini_dataset, tmp_path):
    """The global batch, the samples and their order stay; what changed is said."""
    run = tmp_path / "run"
    first = train("zero3_offload", mini_dataset, run, "--max_steps", 2, *SETTINGS)
    assert first.status == 0, first.output[-4000:]
    whole = train("zero3_offload", mini_dataset, tmp_path / "whole", "--max_steps", 8, *SETTINGS)
    for ranks, config, steps in ((1, "zero2_offload", 4), (4, "zero3_nvme", 6), (2, "zero3_offload_bf16", 8)):
        done = finish(
            start(
                ROOT / "launch/train.py",
                "--ds_config",
                f"ds_configs/{config}.json",
                "--model",
                "tiny",
                "--data",
                mini_dataset,
                "--run",
                run,
                "--resume",
                "auto",
                "--max_steps",
                steps,
                *SETTINGS,
                ranks=ranks,
            )
        )
        assert done.status == 0, done.output[-4000:]
        assert "ranks: " in done.output and "before" in done.output
    first.run = run
    assert hashes(first) == hashes(whole)
    assert losses(first) == pytest.approx(losses(whole), rel=2e-2)


@pytest.fixture(scope="module")
def saved(mini_dataset, tmp_path_factory):
    """A run with checkpoints of steps 2 and 4, to be copied and broken."""
    run = tmp_path_factory.mktemp("runs") / "saved"
    done = train(
        "zero3_offload_nvme",
        mini_dataset,
        run,
        "--max_steps",
        4,
        *SETTINGS,
        "train.checkpoint_every_steps=2",
        "train.validate_every_epochs=100",
    )
    assert done.status == 0, done.output[-4000:]
    return done


@pytest.mark.slow
def test_an_nvme_optimizer_resumes_past_a_broken_checkpoint(saved, mini_dataset, tmp_path):
    """A flipped byte is only found by reading: it is named, set aside, and the checkpoint before is taken."""
    run = shutil.copytree(saved.run, tmp_path / "run")
    newest = checkpoints(run)[-1]
    flip(newest / "rank_00001.safetensors")
    done = train("zero3_offload_nvme", mini_dataset, run, "--resume", "auto", "--max_steps", 4, *SETTINGS)
    assert done.status == 0, done.output[-4000:]
    said = " ".join(event["message"] for event in done.events("resume"))
    assert "rank_00001.safetensors" in said and "set aside" in said and "at step 2" in said
    assert (newest.with_name(newest.name + ".damaged") / MANIFEST).is_file()
    assert verify(newest).step == 4, "the step was not saved again"
    again = [line for line in done.metrics("train") if line["step"] in (3, 4)]
    assert [line["loss"] for line in again[2:]] == pytest.approx([line["loss"] for line in again[:2]], rel=1e-4)


@pytest.mark.slow
def test_a_broken_checkpoint_that_is_asked_for_is_refused(saved, mini_dataset, tmp_path):
    run = shutil.copytree(saved.run, tmp_path / "run")
    newest = checkpoints(run)[-1]
    flip(newest / "rank_00000.safetensors")
    done = train("zero3_offload_nvme", mini_dataset, run, "--resume", newest, "--max_steps", 6, *SETTINGS)
    assert done.status != 0 and "rank_00000.safetensors: its contents are not what was written" in done.output
    assert "Traceback" not in done.output


@pytest.mark.slow
def test_a_second_signal_ends_at_once(mini_dataset, tmp_path):
    run = tmp_path / "run"
    process = start_training(
        "zero3_offload",
        mini_dataset,
        run,
        "--max_steps",
        1000,
        "--set",
        "ds_config.gradient_accumulation_steps=200",
        "ds_config.fp16.initial_scale_power=8",
    )
    deadline = time.monotonic() + 200
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    ranks = ranks_of(process)
    for rank in ranks:
        rank.send_signal(signal.SIGUSR1)
    time.sleep(3)
    assert all(rank.is_running() for rank in ranks), "the first signal waits for the step's end"
    for rank in ranks:
        rank.send_signal(signal.SIGUSR1)
    done = finish(process, timeout=120)
    assert done.status != 0 and "ending at once" in done.output
    assert not checkpoints(run)
