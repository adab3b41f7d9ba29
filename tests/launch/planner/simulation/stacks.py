"""Workloads that go wrong, for simulations in processes of their own."""

import os
import signal
import time
from pathlib import Path

import torch

from astrobio.planet import PlanetEncoder
from launch.planner.simulation import patches, pool
from launch.planner.simulation.run import stack_workload


def careless(simulation, mode):
    """A tensor stays on the host."""
    forward = PlanetEncoder.forward

    def with_one_more_line(self, values, known):
        return forward(self, values, known) * torch.ones(values.shape[0], 1, 1, dtype=torch.float16)

    PlanetEncoder.forward = with_one_more_line
    return stack_workload(simulation)


def endless(simulation, mode):
    """It writes its process's number, and does not end."""
    Path(simulation.workload["pid"]).write_text(str(os.getpid()))
    time.sleep(1000)


def killed(simulation, mode):
    """As by the kernel, for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def without(patch, simulation, sender, log):
    """A worker of the pool that does not apply one of the patches."""
    del patches.PATCHES[patch]
    pool._worker(simulation, sender, log)
