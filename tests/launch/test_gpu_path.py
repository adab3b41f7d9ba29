"""What matters on a GPU only, against a stand-in of CUDA's answers: this machine has none."""

import os
import subprocess
import threading
from types import SimpleNamespace

import pytest
import torch
import torch.utils.cpp_extension
from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator
from project import ROOT

from launch.checkpoints import random_state as states
from launch.experiments import full_size
from launch.loop import Trainer
from launch.postmortem import blackbox
from launch.zero import accelerator, compiled


class Card:
    """CUDA's accelerator, as far as random numbers go: a generator of its own, with a state of 16 bytes."""

    def __init__(self):
        self.state = torch.arange(16, dtype=torch.uint8)

    def device_name(self):
        return "cuda"

    def current_device(self):
        return 1

    def get_rng_state(self):
        return self.state

    def set_rng_state(self, state):
        assert len(state) == 16, "RNG state is wrong size"
        self.state = state

    def manual_seed(self, seed):
        self.state = torch.full((16,), seed, dtype=torch.uint8)


@pytest.fixture
def card(monkeypatch):
    """Call it to be on a machine with a GPU from then on."""

    def put_in() -> Card:
        card = Card()
        for module in (states, accelerator):
            monkeypatch.setattr(module, "get_accelerator", lambda: card)
        return card

    return put_in


def test_random_numbers_go_on_from_a_cpu_to_a_gpu(card):
    torch.manual_seed(3)
    saved, expected = states.random_state(), torch.rand(4)
    gpu = card()
    states.set_random_state(saved, seed=7)
    assert torch.equal(torch.rand(4), expected)
    assert gpu.state.unique().tolist() == [7], "the card's numbers begin at the seed"
    states.set_random_state(saved, seed=7)
    assert states.is_restored(saved)
    torch.rand(1)
    assert not states.is_restored(saved)


def test_random_numbers_go_on_from_a_gpu_to_a_cpu(card, monkeypatch):
    with monkeypatch.context():
        card()
        torch.manual_seed(3)
        saved, expected = states.random_state(), torch.rand(4)
    monkeypatch.undo()
    states.set_random_state(saved, seed=7)
    assert states.is_restored(saved) and torch.equal(torch.rand(4), expected)


def test_random_numbers_go_on_from_a_gpu_to_another(card):
    gpu = card()
    saved = states.random_state()
    gpu.manual_seed(5)
    assert not states.is_restored(saved)
    states.set_random_state(saved, seed=7)
    assert states.is_restored(saved) and gpu.state.tolist() == list(range(16))


def test_an_evaluation_leaves_the_cards_generator_where_it_was(card, monkeypatch):
    card()
    asked = {}
    monkeypatch.setattr(torch.random, "fork_rng", lambda **options: asked.update(options))
    accelerator.same_randomness_after()
    assert asked == {"devices": [1], "device_type": "cuda"}


def test_the_black_box_asks_its_own_card_and_outlives_its_errors(monkeypatch):
    asked = []

    def mem_get_info(card):
        asked.append(card)
        if len(asked) > 1:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return 10, 30

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda card: 5)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda card: 4)
    assert blackbox._device() == {"device_bytes": 20, "device_total": 30, "device_reserved": 5, "device_allocated": 4}
    assert blackbox._device() == {} and asked == [1, 1]


def test_gradients_are_watched_only_in_the_step_that_would_be_told():
    """Each look waits for the card."""
    events, armed = [], []
    trainer = SimpleNamespace(
        overflows=0,
        step=1,
        _loss_scale=lambda: 1.0,
        plan=SimpleNamespace(train=SimpleNamespace(report_overflows_after=3)),
        monitor=SimpleNamespace(event=lambda step, name, *_, **__: events.append(name)),
        gradients=SimpleNamespace(arm=lambda: armed.append(trainer.overflows), origin=lambda: "a.module"),
    )
    for _ in range(3):
        Trainer._watch_overflows(trainer, True)
    assert armed == [2, 3] and events == ["overflow"] * 3 + ["repeated_overflow"]


def test_ranks_with_cards_share_the_cores(card, monkeypatch):
    """Their CPU Adams run at the same time."""
    threads = []
    monkeypatch.setattr(accelerator, "keep_compiled", lambda: None)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    card()
    for ranks in ("2", "4", "64"):
        monkeypatch.setenv("LOCAL_SIZE", ranks)
        accelerator.prepare_accelerator()
    assert threads == [6, 3, 1]


def test_a_phase_of_the_full_size_run_ends_when_the_card_has_finished(monkeypatch):
    finished = threading.Event()

    def launch():
        threading.Timer(0.3, finished.set).start()

    monkeypatch.setattr(full_size, "get_accelerator", lambda: SimpleNamespace(synchronize=finished.wait))
    monkeypatch.setattr(full_size, "over_ranks", lambda value, *_: value)
    monkeypatch.setattr(full_size.dist, "get_rank", lambda: 1)
    phases = full_size.Phases()
    phases.measure("forward", launch)
    assert phases.found["forward"]["seconds"] >= 0.3


@pytest.mark.parametrize("cards, ranks, micro", [(0, 2, 8), (1, 1, 16), (2, 2, 8), (8, 2, 8)])
def test_make_train_takes_the_cards_there_are(cards, ranks, micro, tmp_path):
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\n" + "".join(f"echo GPU {i}: a card\n" for i in range(cards)))
    listing.chmod(0o755)
    done = subprocess.run(
        ["make", "--dry-run", "train"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert f"--num_gpus {ranks} " in done.stdout
    assert f"train_micro_batch_size_per_gpu={micro} " in done.stdout


def test_nvme_offload_is_compiled_without_cuda_toolkit(tmp_path, monkeypatch):
    """DeepSpeed's own builder for cards joins CUDA_HOME, which is None here as on a card's machine without one."""
    builder = CUDA_Accelerator().create_op_builder("AsyncIOBuilder")
    monkeypatch.setattr("torch.utils.cpp_extension.CUDA_HOME", None)
    monkeypatch.setattr(builder, "is_rocm_pytorch", lambda: False)
    with pytest.raises(TypeError):
        builder.include_paths()
    taken = []
    monkeypatch.setenv("ASTROBIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "compiled"))
    monkeypatch.setattr(compiled, "write_whole", lambda path, data: None)
    monkeypatch.setattr(compiled, "_compile", lambda builder, verbose: taken.append(builder))
    (tmp_path / "compiled/async_io").mkdir(parents=True)
    (tmp_path / "compiled/async_io/async_io.so").touch()
    compiled.load(builder)
    [other] = taken
    assert other.sources() == builder.sources()
    assert not any("cuda" in flag for flag in [*other.include_paths(), *other.extra_ldflags(), *other.cxx_args()])
