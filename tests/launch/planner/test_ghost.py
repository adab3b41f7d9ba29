"""The ghost run as a test bench: what launch/train.py builds takes a step on a GPU that is not there."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from unittest import mock

import psutil
import pytest

from astrobio.config import ConfigError, StackConfig, load_preset
from launch import ROOT
from launch.planner import largest
from launch.planner.advice import LAYERS, candidates
from launch.planner.hardware.profile import Hardware, load_hardware
from launch.planner.model import load_model
from launch.planner.plan import assemble, make_job, plan, recipe
from launch.planner.simulation import cache as remembered
from launch.planner.simulation import run as ghost
from launch.planner.simulation.recorder import (
    ACTIVATIONS,
    BOTH,
    GATHERED,
    GPU,
    GRADIENTS,
    HOST,
    LOGITS,
    OPTIMIZER,
    PARAMETERS,
    SWAP,
)
from launch.planner.table import fastest

CONFIGS = sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))
ACCUMULATED = "zero3_offload_nvme"
RANKS = (1, 3, 64)
MUON = {"optimizer": {"type": "Muon", "params": {"lr": 1e-3}}, "zero_optimization.reduce_scatter": False,
        "gradient_accumulation_steps": 1}
A5000 = load_hardware("a5000x2")


@pytest.fixture(scope="module")
def runs() -> dict[str, ghost.Result]:
    """Steps of the tiny preset under every shipped ds_config, one of them with accumulation; with adapters, with a
    frozen language model, on other numbers of ranks, and on a CPU. A rank of a launch asks, as for `--model auto`."""
    def job(config: str = "zero3_offload", ranks: int = 2, machine: Hardware = A5000, **changes) -> ghost.Job:
        return make_job(load_preset("tiny", changes), ROOT / "ds_configs" / f"{config}.json", machine, ranks=ranks,
                        changes={"gradient_accumulation_steps": 32 if config == ACCUMULATED else 1})

    of_a_rank = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": "29500"}
    with mock.patch.dict(os.environ, of_a_rank):
        return ghost.run_all({**{config: job(config) for config in CONFIGS}, **{str(n): job(ranks=n) for n in RANKS},
                              "lora": job(**{"language.lora": {"rank": 4}}), "frozen": job(freeze=["language"]),
                              "cpu": job(machine=load_hardware("cpu")),
                              "whole": job("zero2_offload", ranks=1, machine=load_hardware("cpu")),
                              "muon": make_job("tiny", ROOT / "ds_configs/zero3.json", A5000, changes=MUON)},
                             timeout=60)


def test_a_rank_of_a_launch_can_ask_about_a_cpu(runs):
    assert runs["cpu"].phases[3].peaks[BOTH].bytes > 16 * runs["cpu"].parameters / 2


def test_a_forward_pass_waits_for_the_card_once(runs):
    """A wait is a time in which nothing is launched or fetched. Of the forward pass it is transformers' look at the
    positions of the texts, of the backward pass its end."""
    passes = "".join("|" + event[1] if event[0] == "phase" else "." * (event[0] == "host_wait_stream")
                     for event in runs["zero3"].trace).split("|")
    assert [part for part in passes if part.startswith(("forward", "backward"))] == ["forward.", "backward."] * 2


def test_weights_that_the_engine_replaces_are_gone(runs):
    """ZeRO-2 is given them in float32; held beside its own, those of large tensors would be 2 bytes for each parameter
    of the whole."""
    whole = runs["whole"]
    assert 14 * whole.parameters < whole.phases[0].end[HOST] < 15 * whole.parameters


@pytest.mark.parametrize("config", CONFIGS)
def test_every_shipped_config_takes_a_step(runs, config):
    result = runs[config]
    step = ["forward", "backward", "optimizer"]
    within = step[:2] if config == ACCUMULATED else []
    names = [phase.name for phase in result.phases]
    assert names == ["init", *step, *within, *step, "evaluate", "save", "load"]
    card = max((phase.peaks[GPU] for phase in result.phases[1:-3]), key=lambda peak: peak.bytes)
    assert card.bytes == sum(card.parts.values()) and {GRADIENTS, ACTIVATIONS} <= set(card.parts) and card.module
    host = result.phases[-4].peaks[HOST].parts
    if config != "zero3_nvme":  # where small models stay within max_in_cpu
        assert (host.get(PARAMETERS, 0) > result.parameters / 2) is ("offload" in config and "zero3" in config)
    assert bool(result.files) is (host.get(SWAP, 0) > 0) is ("nvme" in config)
    if config.startswith("zero3_offload") and "nvme" not in config:
        # float32 master weights and two moments of a rank's half of the parameters
        assert host[OPTIMIZER] >= 12 * result.parameters / 2


def test_what_an_optimizer_compiles_runs_uncompiled(runs):
    """Muon's Newton-Schulz steps, which multiply matrices."""
    def products(result: ghost.Result) -> int:
        return sum(event[0] == "kernel" and event[2] > 0 for event in result.trace)

    assert products(runs["muon"]) > 2 * products(runs["zero3"])


@pytest.mark.parametrize("config", CONFIGS)
def test_a_checkpoint_is_saved_and_loaded(runs, config):
    """Two ranks write float32 weights and two moments of every parameter, and some padding; what is on NVMe is read
    for it, and at a load written too."""
    result = runs[config]
    assert 2 * result.checkpoint_bytes == pytest.approx(12 * result.parameters, rel=0.02)
    save, load = result.phases[-2:]
    assert bool(save.nvme_read) is bool(load.nvme_read and load.nvme_written) is bool(result.files)


def test_gradients_of_the_last_micro_step_reach_the_optimizer(runs):
    """Within an accumulation nothing goes to NVMe; at its end the gradients of every parameter do."""
    within, last = runs[ACCUMULATED].phases[4:6], runs[ACCUMULATED].phases[6:9]
    assert [phase.name for phase in last] == ["forward", "backward", "optimizer"]
    assert sum(phase.nvme_written for phase in within) == 0 < sum(phase.nvme_written for phase in last)


@pytest.mark.parametrize("name", ["lora", "frozen"])
def test_what_is_not_trained_has_no_optimizer_state(runs, name):
    result = runs[name]
    state = result.phases[3].peaks[HOST].parts[OPTIMIZER]
    assert result.trainable < result.parameters
    assert 12 * result.trainable / 2 <= state < 12 * result.parameters / 2


@pytest.mark.parametrize("ranks", RANKS)
def test_ranks_share_the_state(runs, ranks):
    """Each holds its share; at 64 ranks of a small model much of that is padding."""
    result = runs[str(ranks)]
    assert 12 * result.parameters / ranks <= result.checkpoint_bytes
    if ranks < 64:
        assert result.checkpoint_bytes < 1.02 * 12 * result.parameters / ranks
    assert result.tokens == runs["1"].tokens


def test_a_tensor_left_on_the_host_fails(tmp_path):
    """The stack with one more line in its forward, as somebody might write it."""
    (tmp_path / "careless.py").write_text(CARELESS)
    job = make_job("tiny", ROOT / "ds_configs/zero3_offload.json", A5000)
    job.workload = {"function": "careless:stack", **job.workload}
    with pytest.raises(ConfigError, match="at least two devices, (gpusim:0 and cpu|cpu and gpusim:0)"):
        ghost.run(job, path=[str(tmp_path)])


CARELESS = """
import torch
from astrobio.planet import PlanetEncoder
from launch.planner import largest
from launch.planner.simulation import run as ghost
from launch.planner.simulation import cache as remembered
from launch.planner.advice import candidates

forward = PlanetEncoder.forward

def careless(self, values, known):
    return forward(self, values, known) * torch.ones(values.shape[0], 1, 1, dtype=torch.float16)

def stack(job, mode):
    PlanetEncoder.forward = careless
    return ghost.stack_workload(job, mode)
"""


def cut_17b() -> StackConfig:
    """The 17b preset's widths, two blocks of each kind."""
    return load_preset("17b", {"language.config.num_hidden_layers": 2, "climate.depth": 2, "metabolism.depth": 2,
                               "spectrum.depth": 2})


def test_seventeen_billion_parameters_take_a_step():
    job = make_job(cut_17b(), ROOT / "ds_configs/zero3_resident.json", A5000)
    found = assemble(ghost.run(job), job, A5000)
    parts = found["gpu"]["parts"]
    assert parts[PARAMETERS] == pytest.approx(2 * found["parameters"] / 2, rel=0.01)
    assert parts[GATHERED] > 0 and found["fits"] and found["gpu"]["module"]
    assert found["time"]["step_s"] == pytest.approx(sum(
        found["time"][key] for key in ("forward_s", "backward_s", "optimizer_s")))
    host = found["host"]["parts"]
    assert host[OPTIMIZER] + host[GRADIENTS] > 18 * found["parameters"]


def test_a_hugging_face_folder_is_a_model(tmp_path):
    from transformers import AutoConfig
    AutoConfig.for_model("qwen3", hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=16, vocab_size=1000,
                         of_another_library=1).save_pretrained(tmp_path)
    stack = load_model(str(tmp_path), seq_length=48)
    assert stack.language.model_type == "qwen3" and stack.planet is None
    found = plan(str(tmp_path), ROOT / "ds_configs/zero3_offload_bf16.json", seq_length=48, micro_batch=2)
    assert found["tokens"] == 96 and found["fits"] and found["gpu"]["parts"].get(LOGITS, 0) >= 0


def test_a_run_is_remembered_until_something_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("ASTROBIO_CACHE", str(tmp_path))
    job = make_job("tiny", ROOT / "ds_configs/zero3.json", A5000, changes={"gradient_accumulation_steps": 1})
    asked = []

    def run_missing(jobs, path, timeout):
        asked.append(list(jobs))
        for each in jobs.values():
            remembered.keep(each, "seen")
        return dict.fromkeys(jobs, "seen").items()

    monkeypatch.setattr(ghost, "_run_missing", run_missing)
    other = dataclasses.replace(job, ranks=3)
    assert [ghost.run(job), ghost.run(job), ghost.run(other)] == ["seen"] * 3 and len(asked) == 2
    monkeypatch.setattr(remembered, "_code", lambda: b"changed")
    ghost.run(job)
    assert len(asked) == 3
    careless = dataclasses.replace(job, workload={"function": "careless:stack"})
    assert [ghost.run(careless), ghost.run(careless)] == ["seen"] * 2 and len(asked) == 5


FORKED = """
import os, signal
from launch.planner.simulation import run as ghost

ghost.prepare()
medium, = ghost._ready

from launch.planner.hardware.profile import load_hardware
from launch.planner.plan import make_job
from astrobio.config import ConfigError

job = make_job("tiny", "ds_configs/zero3.json", load_hardware("a5000x2"), changes={"steps_per_print": 77})
both = ghost.run_all({"a": job, "b": job})
print(list(both), both["a"].operators == both["b"].operators > 1000, ghost._ready == [medium])

def fails():
    try:
        ghost.run(ghost.Job({"function": "nowhere:to_be_found"}, {}))
    except ConfigError as error:
        print(str(error).splitlines()[-1], ghost._ready == [medium])

fails()
os.kill(medium._pid, signal.SIGKILL)
fails()
"""


def test_runs_are_forked_from_the_process_that_asks(tmp_path):
    """As often as it asks, and whether they can run or not."""
    said = subprocess.run([sys.executable, "-c", FORKED], cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env={**ghost.environment(), "ASTROBIO_CACHE": str(tmp_path)})
    assert [line for line in said.stdout.splitlines() if "WARNING" not in line] == [
        "['a', 'b'] True True", "ModuleNotFoundError: No module named 'nowhere' True",
        "the ghost run failed: its process was killed, for want of memory perhaps False"], said.stderr[-2000:]


@pytest.mark.slow
def test_one_that_does_not_end_is_ended(tmp_path):
    """With the processes it has forked."""
    (tmp_path / "endless.py").write_text("import os, pathlib, time\n\ndef stack(job, mode):\n"
                                         "    pathlib.Path(job.workload['pid']).write_text(str(os.getpid()))\n"
                                         "    time.sleep(1000)\n")
    job = make_job("tiny", ROOT / "ds_configs/zero3.json", A5000)
    job.workload = {"function": "endless:stack", "pid": str(tmp_path / "pid")}
    with pytest.raises(ConfigError, match="did not end within"):
        ghost.run(job, path=[str(tmp_path)], timeout=30)
    with contextlib.suppress(psutil.NoSuchProcess):
        run = psutil.Process(int((tmp_path / "pid").read_text()))
        until = time.monotonic() + 30  # a signal takes a moment
        while run.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < until
            time.sleep(0.1)


def test_a_plan_that_is_ended_leaves_nothing_running(tmp_path):
    command = subprocess.Popen([sys.executable, "-m", "launch.cli", "plan", "--model", "17b", "--ds_config",
                                "ds_configs/zero3.json"], cwd=ROOT, env=os.environ | {"ASTROBIO_CACHE": str(tmp_path)},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started: list[psutil.Process] = []

    def works(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return process.cpu_times().user > 1
        return False

    while not any(works(process) for process in started[1:]):  # the first forks those that run
        assert command.poll() is None
        time.sleep(0.1)
        started = psutil.Process(command.pid).children(recursive=True)
    command.terminate()
    assert command.wait(60) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(started, 10)
    assert not alive


def test_the_process_of_a_run_keeps_it_where_it_is_looked_for(runs):
    job = make_job(load_preset("tiny", {}), ROOT / "ds_configs/zero3.json", A5000, ranks=2,
                   changes={"gradient_accumulation_steps": 1})
    assert remembered.recall(job).operators == runs["zero3"].operators


def test_how_long_the_recipe_takes(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"counts": {"train": {"observed": {"records": 300},
                                                                             "synthetic": {"records": 33}}}}))
    found = {"micro_batch": 2, "accumulation": 4, "ranks": 2, "time": {"step_s": 8640.0}}
    assert recipe(found, tmp_path, epochs=10) == {"records": 333, "epochs": 10, "steps": 209, "days": 20.9}
    with pytest.raises(ConfigError, match="not a built dataset"):
        recipe(found, tmp_path / "nothing", epochs=10)


def test_what_cannot_run_is_named():
    with pytest.raises(ConfigError, match="no such profile; did you mean 'a5000x2'"):
        load_hardware("a5000x3")
    stack = dataclasses.replace(load_preset("tiny"))
    with pytest.raises(ConfigError, match="must give train_micro_batch_size_per_gpu"):
        plan(stack, {"zero_optimization": {"stage": 3}})


def test_the_largest_micro_batch_is_found_in_few_runs(monkeypatch):
    """Memory with a bend and with rounding; what is named was run, and the next one was too."""
    looked = []

    def run_all(jobs):
        looked.extend(int(name) for name in jobs)
        return {name: int(name) for name in jobs}

    def assemble_as(n, job, machine):
        size = (4 << 30) + n * (700 << 20) + (n > 10) * (1 << 30) + (n % 3) * (90 << 20)
        return {"gpu": {"peak_bytes": size, "fits": size <= machine.gpu_memory_bytes}}

    job = make_job("tiny", ROOT / "ds_configs/zero3.json", A5000)
    monkeypatch.setattr(largest.ghost, "run_all", run_all)
    monkeypatch.setattr(largest, "assemble", assemble_as)
    most = largest._most_that_fits(lambda n: job, A5000, 1000)
    truth = max(n for n in range(1, 1000) if assemble_as(n, job, A5000)["gpu"]["fits"])
    assert most == truth and {most, most + 1} <= set(looked) and len(looked) <= 10
    assert largest._most_that_fits(lambda n: job, A5000, 5) == 5
    assert largest._most_that_fits(lambda n: job, dataclasses.replace(A5000, gpu_memory_bytes=1), 5) == 0


def test_the_fastest_for_a_host_is_one_that_fits_it():
    def plan_of(host, step, fits=True):
        return {"host": {"peak_bytes": host * 1e9}, "gpu": {"fits": fits}, "nvme": {"fits": True},
                "time": {"step_s": step}}

    said = fastest("17b", {"slow": plan_of(40, 9.0), "fast": plan_of(90, 3.0), "unfit": plan_of(10, 1.0, False)})
    assert said.split(": ", 1)[1] == "50 GB: `slow` (9.00 s); 100 GB: `fast` (3.00 s); 300 GB: `fast` (3.00 s); " \
                                     "512 GB: `fast` (3.00 s)."
    assert "50 GB: none" in fastest("17b", {"fast": plan_of(90, 3.0)})


@pytest.mark.slow
def test_a_frozen_model_on_nvme_is_saved_after_a_validation():
    """DeepSpeed has then taken all buffers to read ahead for a backward pass that does not come."""
    stack = load_preset("17b_frozen", {"language.config.num_hidden_layers": 8, "climate.depth": 6,
                                       "metabolism.depth": 4, "spectrum.depth": 2})
    job = make_job(stack, ROOT / "ds_configs/zero3_nvme.json", A5000)
    result = ghost.run(job)
    assert 2 * result.checkpoint_bytes == pytest.approx(12 * result.trainable + 2 * (
        result.parameters - result.trainable), rel=0.01)


def test_whole_layers_are_advised_where_there_are_encoders():
    def advised(model, config: str, **zero) -> bool:
        job = make_job(model, ROOT / "ds_configs" / f"{config}.json", A5000)
        job.ds_config["zero_optimization"] |= zero
        return {"zero_optimization.leaf_module.classes": LAYERS} in candidates(job, A5000).values()

    assert advised("tiny", "zero3_resident") and not advised("tiny", "zero2_offload")
    assert not advised("tiny", "zero3_resident", leaf_module={"classes": ["Block"]})
    encoders = "planet", "climate", "metabolism", "spectrum", "fusion"
    language_model = load_preset("tiny", {part: None for part in encoders})
    assert not advised(language_model, "zero3_resident")


@pytest.mark.slow
def test_advice_is_what_was_run_and_fits():
    """A model on a host that is too small for its optimizer, and on one that is not."""
    stack = cut_17b()
    config = ROOT / "ds_configs/zero3_offload.json"
    on_nvme = plan(stack, ROOT / "ds_configs/zero3_resident_nvme_bf16.json", A5000)["host"]["peak_bytes"]
    on_host = plan(stack, config, A5000)["host"]["peak_bytes"]
    assert on_host > 1.1 * on_nvme
    small = dataclasses.replace(A5000, host_memory_bytes=(on_nvme + on_host) // 2)
    found = plan(stack, config, small, advice=True)
    assert not found["fits"] and found["advice"]
    steps = [item["step_s"] for item in found["advice"]]
    assert steps == sorted(steps)
    for item in found["advice"]:
        again = plan(stack, config, small, changes=item["changes"])
        assert again["fits"] and again["time"]["step_s"] == item["step_s"] and item["text"]
    roomy = plan(stack, config, A5000, advice=True)
    assert roomy["fits"] and all(item["step_s"] < 0.95 * roomy["time"]["step_s"] for item in roomy["advice"])
