"""Searches over jobs: advice, the largest micro-batch and the longest text."""

import dataclasses

import pytest
from project import DS_CONFIGS

from astrobio.config import load_preset
from launch.planner import assemble as assembling
from launch.planner import search
from launch.planner.hardware import load_hardware
from launch.planner.job import make_job
from launch.planner.plan import plan
from launch.planner.search import LAYERS, candidates
from launch.planner.simulation import pool

A5000 = load_hardware("a5000x2")


def test_the_largest_micro_batch_takes_few_runs(monkeypatch):
    """Memory with a bend and with rounding; the answer was run, and the next one was too."""
    looked = []

    def run_all(simulations):
        looked.extend(int(name) for name in simulations)
        return {name: int(name) for name in simulations}

    @dataclasses.dataclass
    class Card:
        peak_bytes: int
        fits: bool

    @dataclasses.dataclass
    class Answer:
        gpu: Card

    def assemble(n, simulation, machine) -> Answer:
        size = (4 << 30) + n * (700 << 20) + (n > 10) * (1 << 30) + (n % 3) * (90 << 20)
        return Answer(Card(size, size <= machine.gpu_memory_bytes))

    job = make_job("tiny", DS_CONFIGS["zero3"], A5000)
    monkeypatch.setattr(pool, "run_all", run_all)
    monkeypatch.setattr(assembling, "assemble", assemble)
    most = search._most_that_fits(lambda n: job, 1000)
    truth = max(n for n in range(1, 1000) if assemble(n, None, A5000).gpu.fits)
    assert most == truth and {most, most + 1} <= set(looked) and len(looked) <= 10
    assert search._most_that_fits(lambda n: job, 5) == 5
    small = make_job("tiny", DS_CONFIGS["zero3"], dataclasses.replace(A5000, gpu_memory_bytes=1))
    assert search._most_that_fits(lambda n: small, 5) == 0


def test_the_longest_text_leaves_positions_to_the_modalities(monkeypatch):
    """On cards that hold anything: 17b has 8,192 positions, 144 of them for the modalities."""
    monkeypatch.setattr(search, "_most_that_fits", lambda job_of, most: most)
    assert search.largest(make_job("17b", DS_CONFIGS["zero3_nvme"]))["seq_length"] == (8192 - 144) // 256 * 256


def test_whole_layers_are_advised_where_there_are_encoders():
    def advised(model, config: str, **changes) -> bool:
        job = make_job(model, DS_CONFIGS[config], A5000, changes=changes)
        return {"zero_optimization.leaf_module.classes": LAYERS} in candidates(job).values()

    assert advised("tiny", "zero3_resident") and not advised("tiny", "zero2_offload")
    assert not advised("tiny", "zero3_resident", **{"zero_optimization.leaf_module.classes": ["Block"]})
    others = "planet", "climate", "metabolism", "spectrum", "fusion", "tasks"
    language_model = load_preset("tiny", {part: None for part in others})
    assert not advised(language_model, "zero3_resident")


def test_8_bit_moments_are_advised_where_they_serve():
    def advised(config: str, **changes) -> bool:
        job = make_job("tiny", DS_CONFIGS[config], A5000, changes=changes)
        return {"compressed_optimizer.enabled": True} in candidates(job).values()

    assert advised("zero3_offload") and advised("zero3_resident_nvme_bf16")
    assert not advised("zero2_offload") and not advised("zero3") and not advised("zero3_resident_8bit")
    assert not advised("zero3_offload", **{"optimizer.type": "Lion", "optimizer.params": {"lr": 1e-4}})


@pytest.mark.slow
def test_advice_was_run_and_fits():
    """A model on a host that is too small for its optimizer, and on one that is not."""
    stack = load_preset(
        "17b", {"language.config.num_hidden_layers": 2, "climate.depth": 2, "metabolism.depth": 2, "spectrum.depth": 2}
    )
    job = make_job(stack, DS_CONFIGS["zero3_offload"], A5000)
    on_nvme = plan(make_job(stack, DS_CONFIGS["zero3_resident_nvme_bf16"], A5000)).host.peak_bytes
    on_host = plan(job).host.peak_bytes
    assert on_host > 1.1 * on_nvme
    small = dataclasses.replace(A5000, host_memory_bytes=(on_nvme + on_host) // 2)
    tight = plan(make_job(stack, DS_CONFIGS["zero3_offload"], small), advice=True)
    assert not tight.fits and tight.advice
    steps = [item["step_s"] for item in tight.advice]
    assert steps == sorted(steps)
    for item in tight.advice:
        again = plan(make_job(stack, DS_CONFIGS["zero3_offload"], small, changes=item["changes"]))
        assert again.fits and again.time.step_s == item["step_s"] and item["text"]
    roomy = plan(job, advice=True)
    assert roomy.fits and all(item["step_s"] < 0.95 * roomy.time.step_s for item in roomy.advice)
