"""Plans: what a job comes to, and that each option reaches each answer."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from project import DS_CONFIGS, ROOT
from transformers import AutoConfig

from astrobio.config import ConfigError, load_preset
from launch.cli import main
from launch.planner import search
from launch.planner.hardware import load_hardware
from launch.planner.job import make_job
from launch.planner.model import load_model
from launch.planner.plan import plan, training_time
from launch.planner.report import _fastest, table
from launch.planner.simulation import pool
from launch.planner.simulation.parts import GATHERED, GRADIENTS, LOGITS, OPTIMIZER, PARAMETERS

A5000 = load_hardware("a5000x2")
#: The 17b preset's widths, two blocks of each kind.
SHALLOW = {"language.config.num_hidden_layers": 2, "climate.depth": 2, "metabolism.depth": 2, "spectrum.depth": 2}


def test_seventeen_billion_parameters_take_a_step():
    answer = plan(make_job(load_preset("17b", SHALLOW), DS_CONFIGS["zero3_resident"], A5000))
    card, host, time = answer.gpu.parts, answer.host.parts, answer.time
    assert card[PARAMETERS] == pytest.approx(2 * answer.parameters / 2, rel=0.01)
    assert card[GATHERED] > 0 and answer.fits and answer.gpu.module
    assert time.step_s == pytest.approx(time.forward_s + time.backward_s + time.optimizer_s)
    assert 14 * answer.parameters < host[OPTIMIZER] + host[GRADIENTS] < 15 * answer.parameters


def test_a_hugging_face_folder_is_a_model(tmp_path):
    AutoConfig.for_model(
        "qwen3",
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=1000,
        of_another_library=1,
    ).save_pretrained(tmp_path)
    stack = load_model(str(tmp_path), seq_length=48)
    assert stack.language.model_type == "qwen3" and stack.planet is None
    answer = plan(make_job(str(tmp_path), DS_CONFIGS["zero3_offload_bf16"], seq_length=48, micro_batch=2))
    assert answer.tokens == 96 and answer.fits and answer.gpu.parts.get(LOGITS, 0) >= 0


def test_the_days_of_a_training(tmp_path):
    (tmp_path / "manifest.json").write_text(
        json.dumps({"counts": {"train": {"observed": {"records": 300}, "synthetic": {"records": 33}}}})
    )
    answer = plan(make_job("tiny", DS_CONFIGS["zero3"], A5000))
    answer = dataclasses.replace(answer, micro_batch=2, accumulation=4, ranks=2)
    answer.time.step_s = 8640.0
    assert training_time(answer, tmp_path, epochs=10) == {"records": 333, "epochs": 10, "steps": 209, "days": 20.9}
    with pytest.raises(ConfigError, match="not a built dataset"):
        training_time(answer, tmp_path / "nothing", epochs=10)


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="no such profile; did you mean 'a5000x2'"):
        load_hardware("a5000x3")
    with pytest.raises(ConfigError, match="must give train_micro_batch_size_per_gpu"):
        make_job("tiny", {"zero_optimization": {"stage": 3}})


def test_each_option_reaches_each_answer(monkeypatch):
    """Ranks, text length, micro-batch and changes are those of the plan, of its advice and of its searches."""
    job = make_job(
        "tiny", DS_CONFIGS["zero3"], A5000, seq_length=32, micro_batch=2, ranks=3, changes={"gradient_clipping": 0.5}
    )
    result = pool.run(job.simulation())
    simulated = []

    def noted(simulations, timeout=600):
        simulated.extend(simulations.values())
        return dict.fromkeys(simulations, result)  # to simulate each would take a minute

    monkeypatch.setattr(pool, "run_all", noted)
    monkeypatch.setattr(search, "_MOST", 3)
    answer = plan(job, advice=True, largest=True)
    assert (answer.ranks, answer.micro_batch, answer.tokens) == (3, 2, 64)
    assert len(simulated) > 4
    assert {(each.ranks, each.ds_config.raw["gradient_clipping"]) for each in simulated} == {(3, 0.5)}
    sizes = {(each.micro_batch, each.seq_length) for each in simulated}
    assert {(2, 32), (1, 32), (3, 32), (1, 256)} <= sizes  # the plan and its advice; micro-batches; texts
    assert {length for size, length in sizes if size > 1} == {32}


def test_a_table_has_the_options_too():
    text = table(["tiny"], A5000, [DS_CONFIGS["zero3"]], ranks=4, seq_length=16)
    wide = table(["tiny"], A5000, [DS_CONFIGS["zero3"]], ranks=1, seq_length=16)
    assert text != wide and "| `tiny` | `zero3` | yes |" in text


@pytest.mark.parametrize(
    "more",
    (["--advice"], ["--largest"], ["--data", "data/sample"], ["--ds_config", "ds_configs/zero3.json"], ["--json"]),
)
def test_a_table_refuses_what_it_does_not_show(more, capsys):
    assert main(["plan", "--model", "tiny", "--table", *more]) == 2
    assert more[0] in capsys.readouterr().err


def test_the_fastest_for_a_host_is_one_that_fits_it():
    base = plan(make_job("tiny", DS_CONFIGS["zero3"], A5000))

    def like(host: float, step: float, fits: bool = True):
        return dataclasses.replace(
            base,
            host=dataclasses.replace(base.host, peak_bytes=host * 1e9),
            gpu=dataclasses.replace(base.gpu, fits=fits),
            time=dataclasses.replace(base.time, step_s=step),
        )

    sentence = _fastest("17b", {"slow": like(40, 9.0), "fast": like(90, 3.0), "unfit": like(10, 1.0, False)})
    assert (
        sentence.split(": ", 1)[1] == "50 GB: `slow` (9.00 s); 100 GB: `fast` (3.00 s); 300 GB: `fast` (3.00 s); "
        "512 GB: `fast` (3.00 s)."
    )
    assert "50 GB: none" in _fastest("17b", {"fast": like(90, 3.0)})


def test_json_is_all_that_a_plan_prints_on_stdout():
    """Nor does the process that simulations are forked from, which logs to its stdout while it imports."""
    options = ["--model", "tiny", "--ds_config", "ds_configs/zero3.json", "--json"]
    done = subprocess.run([sys.executable, "-m", "launch.cli", "plan", *options], cwd=ROOT, stdout=subprocess.PIPE)
    assert json.loads(done.stdout)["model"] == "tiny"


def test_a_plan_that_is_ended_leaves_nothing_running(tmp_path):
    command = subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "plan", "--model", "17b", "--ds_config", "ds_configs/zero3.json"],
        cwd=ROOT,
        env=os.environ | {"ASTROBIO_CACHE": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    started: list[psutil.Process] = []

    def simulates(process: psutil.Process) -> bool:
        """Those that simulate are forked from a child of the command."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return process.ppid() != command.pid and process.cpu_times().user > 1
        return False

    while not any(map(simulates, started)):
        assert command.poll() is None
        time.sleep(0.1)
        started = psutil.Process(command.pid).children(recursive=True)
    command.terminate()
    assert command.wait(60) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(started, 10)
    assert not alive
