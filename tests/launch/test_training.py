"""The training script under the real launcher: a whole run, an overflow, a stop and its resume."""

import json
import os
import signal

import pandas as pd
import pytest
import yaml
from launching import FAST, Finished, finish, ranks_of, start, start_training, train, wait_for_step
from project import DS_CONFIGS, ROOT

from launch.checkpoints.manifest import verify
from launch.cli import main

STEPS = 4


@pytest.fixture(scope="module")
def uninterrupted(mini_dataset, tmp_path_factory) -> Finished:
    """An epoch at a stretch, with a loss scale that must overflow in all of its four steps."""
    return train(
        "zero3_offload",
        mini_dataset,
        tmp_path_factory.mktemp("runs") / "whole",
        "--max_steps",
        STEPS,
        *FAST,
        "ds_config.fp16.initial_scale_power=40",
        "ds_config.fp16.hysteresis=1",
        "train.report_overflows_after=2",
    )


@pytest.fixture(scope="module")
def resumed(mini_dataset, tmp_path_factory) -> tuple[Finished, Finished]:
    """The same run, told to stop by SIGTERM after two steps or so, and continued."""
    run = tmp_path_factory.mktemp("runs") / "stopped"
    settings = (*FAST, "ds_config.fp16.initial_scale_power=8")
    process = start_training("zero3_offload", mini_dataset, run, "--max_steps", 1000, *settings)
    wait_for_step(run, 2)
    for rank in ranks_of(process):
        rank.send_signal(signal.SIGTERM)
    stopped = finish(process)
    stopped.run = run
    steps = stopped.metrics("train")[-1]["step"] + 2
    continued = train("zero3_offload", mini_dataset, run, "--resume", "auto", "--max_steps", steps, *settings)
    return stopped, continued


def test_a_run_ends_with_test_figures_and_its_folder(uninterrupted, mini_dataset):
    assert uninterrupted.status == 0, uninterrupted.output[-4000:]
    for words in ("observed planets", "synthetic planets", "without climate", "best simple model", "from observables"):
        assert words in uninterrupted.output
    config = yaml.safe_load((uninterrupted.run / "config.yaml").read_text())
    assert config["model"]["name"] == "tiny" and config["data"]["folder"] == str(mini_dataset)
    assert config["ds_config"]["scheduler"]["params"]["cycle_first_step_size"] != "auto"
    assert (uninterrupted.run / "train.log").read_text().count("step ") >= STEPS
    assert list((uninterrupted.run / "wandb").glob("offline-run-*")), "no key, yet nothing was recorded offline"


def test_metrics_hold_what_the_design_promises(uninterrupted):
    lines = uninterrupted.metrics("train")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        assert set(line) >= {
            "epoch",
            "loss",
            "loss_parts",
            "lr",
            "loss_scale",
            "grad_norm",
            "overflow",
            "samples_per_s",
            "tokens_per_s",
            "step_s",
            "device_peak_bytes",
            "host_rss_bytes",
            "sample_ids_hash",
        }
        assert set(line["loss_parts"]) == {
            "classification",
            "language",
            *(f"reconstruction.{name}_{which}" for name in ("climate", "spectrum") for which in ("hidden", "visible")),
            "reconstruction.metabolism",
            "kl",
            "energy",
            "mass_balance",
            "observables",
            "emulation",
            "retrieval.nll",
            "retrieval.crps",
            "consistency",
        }
    validation, test = uninterrupted.metrics("eval")
    assert (validation["split"], test["split"]) == ("validation", "test")
    assert set(test["runs"][0]["figures"]) >= {"all", "without climate", "without planet and text", "only spectrum"}
    assert {task["task"] for task in test["tasks"]} >= {"habitability", "emulation"}
    kept = pd.read_parquet(uninterrupted.run / "predictions-test.parquet")
    assert len(kept) == len(set(kept["run_id"])) == 16 and kept["habitable"].between(0, 1).all()
    assert test["observed"]["records"] + test["synthetic"]["records"] <= test["records"] == 16


def test_evaluate_reads_what_the_run_kept_and_computes_it_again(uninterrupted, capsys):
    kept = pd.read_parquet(uninterrupted.run / "predictions-test.parquet").set_index("run_id")
    assert main(["evaluate", str(uninterrupted.run), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["runs"][0]["figures"]
    right = (kept["habitable"] >= 0.5) == (kept["label"] == 1)
    assert figures["all"]["accuracy"]["value"] == pytest.approx(right[kept["labelled"]].mean())
    assert main(["evaluate", str(uninterrupted.run), "--again", "--texts"]) == 0
    assert "numbers told" in capsys.readouterr().out
    again = pd.read_parquet(uninterrupted.run / "predictions-test.parquet").set_index("run_id").loc[kept.index]
    # The run computed in fp16, on two ranks.
    assert again["habitable"].to_numpy() == pytest.approx(kept["habitable"].to_numpy(), abs=0.01)
    assert again["text numbers"].between(0, 1).all()


def test_an_overflow_is_skipped_halves_the_scale_and_is_logged(uninterrupted):
    lines = uninterrupted.metrics("train")
    assert all(line["overflow"] for line in lines)  # 2^40 is far too large for four halvings
    assert [line["loss_scale"] for line in lines] == [2.0**39, 2.0**38, 2.0**37, 2.0**36]
    assert len({line["lr"] for line in lines}) == 1, "the scheduler moved on a step that was skipped"
    assert len(uninterrupted.events("overflow")) == STEPS
    named = uninterrupted.events("repeated_overflow")
    assert named and all(event["module"] for event in named)


def test_sigterm_saves_and_resume_goes_on_where_it_stopped(resumed):
    stopped, continued = resumed
    assert stopped.status == 0 and continued.status == 0, continued.output[-4000:]
    assert "SIGTERM" in stopped.events("stop")[0]["message"]
    assert "test of" not in stopped.output, "a run that is to be continued was tested"
    assert continued.events("resume")
    lines = continued.metrics("train")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))


def test_resume_keeps_the_order_of_the_samples_and_the_wandb_run(resumed, uninterrupted):
    _, continued = resumed
    hashes = [line["sample_ids_hash"] for line in continued.metrics("train")]
    assert len(set(hashes)) == len(hashes)
    assert hashes[:STEPS] == [line["sample_ids_hash"] for line in uninterrupted.metrics("train")]
    ids = {folder.name.rsplit("-", 1)[1] for folder in (continued.run / "wandb").glob("offline-run-*")}
    assert len(ids) == 1 and len(list((continued.run / "wandb").glob("offline-run-*"))) == 2


def test_no_half_written_checkpoint_is_left(resumed):
    _, continued = resumed
    folders = list((continued.run / "checkpoints").glob("step_*"))
    assert folders and [verify(folder).step for folder in sorted(folders)][-1] == continued.metrics("train")[-1]["step"]
    assert (continued.run / "checkpoints/latest").read_text().strip() == sorted(folders)[-1].name


def test_mistakes_end_before_the_ranks_meet(tmp_path):
    done = finish(start(ROOT / "launch/train.py", "--ds_config", "ds_configs/zero3_ofload.json", "--run", tmp_path))
    assert done.status == 2
    assert "did you mean 'zero3_offload'" in done.output and "Traceback" not in done.output


@pytest.fixture
def running(mini_dataset, tmp_path):
    """A launch that has done its first step and would go on for long, and its run's folder."""
    run = tmp_path / "run"
    process = start_training(
        "zero3_offload", mini_dataset, run, "--max_steps", 1000, *FAST, "ds_config.fp16.initial_scale_power=8"
    )
    wait_for_step(run, 1)
    return process, run


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves_too(running):
    """It goes to the ranks' helpers as well: those that read data, and Weights & Biases' own."""
    process, run = running
    ranks_of(process)[0].parent().send_signal(signal.SIGTERM)
    done = finish(process)
    done.run = run
    assert "SIGTERM" in done.events("stop")[0]["message"]
    saved = sorted((run / "checkpoints").glob("step_*"))[-1]
    assert saved.name == f"step_{done.metrics('train')[-1]['step']:08d}" and verify(saved)


@pytest.mark.slow
def test_a_killed_deepspeed_command_leaves_no_rank_behind(running):
    """The launcher's parent does not pass signals on: ranks that lost it save and end."""
    process, run = running
    ranks = ranks_of(process)
    os.kill(process.pid, signal.SIGKILL)
    for rank in ranks:
        rank.wait(timeout=120)
    finish(process)
    assert "has gone" in Finished(0, "", run).events("stop")[0]["message"]
    assert (run / "checkpoints").is_dir()


@pytest.mark.slow
@pytest.mark.nvme
@pytest.mark.parametrize("config", DS_CONFIGS)
def test_the_command_as_people_type_it(config, tmp_path):
    """With the default data, batch sizes and model; 32 micro-steps a step."""
    done = finish(
        start(
            ROOT / "launch/train.py",
            "--ds_config",
            f"ds_configs/{config}.json",
            "--max_steps",
            3,
            "--run",
            tmp_path / "run",
        ),
        timeout=1800,
    )
    assert done.status == 0, done.output[-4000:]
    assert "small" in done.output
