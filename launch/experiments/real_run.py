"""A simulation's micro-steps run for real, on the CPU.

python -m launch.experiments.real_run < simulation.json    # prints what was measured as its last line
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import deepspeed
import psutil

import launch.train  # noqa: F401  a training process imports all of it
from astrobio.config import StackConfig, parse
from launch.ds_config.config import DsConfig
from launch.memory import peak_resident_bytes
from launch.planner.model import nominal_batch
from launch.planner.simulation.spec import MICRO_STEPS, Simulation
from launch.zero.accelerator import prepare_accelerator
from launch.zero.engine import build_engine, device


def run(simulation: Simulation, watch: Callable[[Any], None] = lambda engine: None) -> dict:
    """The micro-steps, with data, in this process: ``host_peak``, its largest resident size in bytes, and the bytes
    ``read`` and ``written`` in each of the ``micro_steps``. ``watch`` is given the engine before the first."""
    prepare_accelerator()
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    deepspeed.init_distributed(auto_mpi_discovery=False)
    config = parse(StackConfig, simulation.workload["stack"], "the model")
    engine = build_engine(config, simulation.ds_config, seed=0)
    watch(engine)
    micro_steps, accumulation = [], engine.gradient_accumulation_steps()
    for ends in MICRO_STEPS[accumulation > 1]:
        before = psutil.Process().io_counters()
        engine.micro_steps = accumulation - 1 if ends else 0
        loss = engine(nominal_batch(config, simulation.micro_batch, simulation.seq_length).to(device())).loss
        engine.backward(loss)
        engine.step()
        after = psutil.Process().io_counters()
        micro_steps.append(
            {"read": after.read_bytes - before.read_bytes, "written": after.write_bytes - before.write_bytes}
        )
    return {"micro_steps": micro_steps, "host_peak": peak_resident_bytes()}


def main(run: Callable[[Simulation], dict] = run) -> None:
    """Run the simulation on stdin, and print what was measured as the last line."""
    asked = json.load(sys.stdin)
    measured = run(Simulation(**asked | {"ds_config": DsConfig.parse(asked["ds_config"])}))
    print("\n" + json.dumps(measured), flush=True)
    os._exit(0)  # nothing here is worth tearing down


if __name__ == "__main__":
    main()
