"""What launch/train.py builds takes a step on a simulated GPU, under every shipped ds_config."""

import os
from unittest import mock

import pytest
from project import DS_CONFIGS

from astrobio.config import ConfigError, load_preset
from launch.planner.hardware import Hardware, load_hardware
from launch.planner.job import make_job
from launch.planner.simulation import pool, trace
from launch.planner.simulation.parts import ACTIVATIONS, BOTH, GPU, GRADIENTS, HOST, OPTIMIZER, PARAMETERS, SWAP
from launch.planner.simulation.spec import Result, Simulation

ACCUMULATED = "zero3_offload_nvme"
RANKS = (1, 3, 64)
MUON = {
    "optimizer": {"type": "Muon", "params": {"lr": 1e-3}},
    "zero_optimization.reduce_scatter": False,
    "gradient_accumulation_steps": 1,
}
A5000 = load_hardware("a5000x2")


@pytest.fixture(scope="module")
def runs() -> dict[str, Result]:
    """Steps of the tiny preset under every shipped ds_config, one of them with accumulation; with adapters, with a
    frozen language model, on other numbers of ranks, and on a CPU. A rank of a launch asks, as for `--model auto`."""

    def tiny(config: str = "zero3_offload", ranks: int = 2, machine: Hardware = A5000, **changes) -> Simulation:
        return make_job(
            load_preset("tiny", changes),
            DS_CONFIGS[config],
            machine,
            ranks=ranks,
            changes={"gradient_accumulation_steps": 32 if config == ACCUMULATED else 1},
        ).simulation()

    of_a_rank = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29500",
    }
    with mock.patch.dict(os.environ, of_a_rank):
        return pool.run_all(
            {
                **{config: tiny(config) for config in DS_CONFIGS},
                **{str(n): tiny(ranks=n) for n in RANKS},
                "lora": tiny(**{"language.lora": {"rank": 4}}),
                "frozen": tiny(freeze=["language"]),
                "cpu": tiny(machine=load_hardware("cpu")),
                "whole": tiny("zero2_offload", ranks=1, machine=load_hardware("cpu")),
                "muon": make_job("tiny", DS_CONFIGS["zero3"], A5000, changes=MUON).simulation(),
            },
            timeout=120,
        )


def test_a_rank_of_a_launch_can_ask_about_a_cpu(runs):
    assert runs["cpu"].phases[3].peaks[BOTH].bytes > 16 * runs["cpu"].parameters / 2


def test_a_forward_pass_waits_for_the_card_once(runs):
    """A wait is a time in which nothing is launched or fetched. Of the forward pass it is transformers' look at the
    positions of the texts, of the backward pass its end."""
    passes = "".join(
        "|" + event.name if isinstance(event, trace.PhaseBegins) else "." * isinstance(event, trace.HostWaitsForStream)
        for event in runs["zero3"].trace
    ).split("|")
    assert [part for part in passes if part.startswith(("forward", "backward"))] == ["forward.", "backward."] * 2


def test_weights_that_the_engine_replaces_are_gone(runs):
    """ZeRO-2 is given them in float32; held beside its own, those of large tensors would be 2 bytes for each parameter
    of the whole."""
    whole = runs["whole"]
    assert 14 * whole.parameters < whole.phases[0].end[HOST] < 15 * whole.parameters


@pytest.mark.parametrize("config", DS_CONFIGS)
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
        # float32 master weights and two moments of a rank's half of the parameters, or a remainder and two codes
        assert host[OPTIMIZER] >= (4 if "8bit" in config else 12) * result.parameters / 2


def test_what_an_optimizer_compiles_runs_uncompiled(runs):
    """Muon's Newton-Schulz steps, which multiply matrices."""

    def products(result: Result) -> int:
        return sum(isinstance(event, trace.Kernel) and event.flops > 0 for event in result.trace)

    assert products(runs["muon"]) > 2 * products(runs["zero3"])


@pytest.mark.parametrize("config", DS_CONFIGS)
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


def test_a_tensor_left_on_the_host_fails():
    """The stack with one more line in its forward, as somebody might write it."""
    simulation = make_job("tiny", DS_CONFIGS["zero3_offload"], A5000).simulation()
    simulation.workload = {"function": "stacks:careless", **simulation.workload}
    with pytest.raises(ConfigError, match="at least two devices, (gpusim:0 and cpu|cpu and gpusim:0)"):
        pool.run(simulation)


@pytest.mark.slow
def test_a_frozen_model_on_nvme_is_saved_after_a_validation():
    """DeepSpeed has then taken all buffers to read ahead for a backward pass that does not come."""
    stack = load_preset(
        "17b_frozen",
        {"language.config.num_hidden_layers": 8, "climate.depth": 6, "metabolism.depth": 4, "spectrum.depth": 2},
    )
    result = pool.run(make_job(stack, DS_CONFIGS["zero3_nvme"], A5000).simulation())
    assert 2 * result.checkpoint_bytes == pytest.approx(
        12 * result.trainable + 2 * (result.parameters - result.trainable), rel=0.01
    )
