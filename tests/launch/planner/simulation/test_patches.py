"""Each patch of a simulation is still needed: without it the simulation fails, or its result is another one."""

import re

import pytest
import stacks
from project import DS_CONFIGS, ROOT

from launch.planner.hardware import load_hardware
from launch.planner.job import make_job
from launch.planner.simulation import pool
from launch.planner.simulation.spec import Result, Simulation

NAMES = re.findall(r"^@patch\(.*\)\ndef (\w+)", (ROOT / "launch/planner/simulation/patches.py").read_text(), re.M)
#: These change how long a simulation takes, and nothing else.
FOR_SPEED = {"nothing_to_release", "processor_not_asked"}
MUON = {
    "optimizer": {"type": "Muon", "params": {"lr": 1e-3}},
    "zero_optimization.reduce_scatter": False,
    "gradient_accumulation_steps": 1,
}
#: The ds_configs, and changes to them, that are tried one after the other.
RUNS = {"zero3_offload": {}, "zero2_offload": {}, "zero3_nvme": {}, "zero3": MUON}


def simulation_of(config: str) -> Simulation:
    return make_job("tiny", DS_CONFIGS[config], load_hardware("a5000x2"), changes=RUNS[config]).simulation()


@pytest.fixture(scope="module")
def expected() -> dict[str, Result]:
    return pool.run_all({config: simulation_of(config) for config in RUNS})


def result_without(patch: str, simulation: Simulation, log) -> Result | None:
    """None where it fails."""
    pool.start()
    receiver, sender = pool._context.Pipe(duplex=False)
    process = pool._context.Process(target=stacks.without, args=(patch, simulation, sender, log), daemon=True)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.kill()


def test_the_patches_are_found():
    assert len(NAMES) > 15 and FOR_SPEED < set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("patch", [name for name in NAMES if name not in FOR_SPEED])
def test_without_it_something_changes(patch, expected, tmp_path):
    def changes(config: str) -> bool:
        result = result_without(patch, simulation_of(config), tmp_path / config)
        return result is None or (result.phases, result.trace) != (expected[config].phases, expected[config].trace)

    assert any(map(changes, RUNS)), f"{patch} is not needed any more: delete it"


@pytest.mark.slow
@pytest.mark.parametrize("patch", sorted(FOR_SPEED))
def test_without_one_for_speed_nothing_changes(patch, expected, tmp_path):
    result = result_without(patch, simulation_of("zero3_offload"), tmp_path / "log")
    assert result.phases == expected["zero3_offload"].phases
