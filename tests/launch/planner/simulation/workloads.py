"""A workload that says what its process sees. Run as a script, it is simulated for a process that a launch started.

Prints as JSON what the simulation ``saw``, and the cards of the process that asked (``here``) and of those that it
starts beside the launch (``beside``).
"""

import json
import os

import torch

from astrobio.config import ConfigError
from launch.ds_config.config import DsConfig
from launch.planner.simulation import pool
from launch.planner.simulation.spec import Simulation
from launch.subprocesses import OF_A_LAUNCH, environment

CARDS = "CUDA_VISIBLE_DEVICES"


def seen(simulation: Simulation, mode) -> None:
    """No engine: what this process sees, in an error."""
    variables = {key: os.environ.get(key) for key in (CARDS, *OF_A_LAUNCH)}
    raise RuntimeError(json.dumps({"threads": torch._C._is_multithreading_enabled(), **variables}))


def main() -> None:
    try:
        pool.run(Simulation({"function": "workloads:seen"}, DsConfig.parse({}), ranks=3))
    except ConfigError as error:
        _, _, saw = str(error).rpartition("RuntimeError: ")
        print(json.dumps({"saw": json.loads(saw), "here": os.environ[CARDS], "beside": environment()[CARDS]}))


if __name__ == "__main__":
    main()
