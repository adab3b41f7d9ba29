"""Memory of a training process beside its tensors, measured on this machine.

Python, its libraries and their code are only the beginning: with the first steps come the pages of code that is used,
oneDNN's compiled kernels (it caches one for each shape of a matrix product), autograd's nodes, threads' stacks and what
glibc does not give back. None of it is a tensor, so no simulation sees it, and it depends on versions and processor. So
the smallest preset takes a few steps in a process of its own; the most that this process held, less the tensors of a
simulation of the same steps, is what any model's process holds.
"""

import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from astrobio.config import ConfigError, load_preset
from astrobio.files import cache_root, write_whole
from launch import ROOT
from launch.planner.hardware import Hardware
from launch.planner.job import make_job
from launch.planner.simulation import pool
from launch.planner.simulation.parts import BOTH
from launch.planner.simulation.spec import Simulation
from launch.subprocesses import environment

#: The smallest preset and its ds_config; the precision is that of the planned run, whose kernels are then the same.
SMALLEST = "tiny"
DS_CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 2,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
        "reduce_bucket_size": 1_000_000,
    },
}


def process_bytes(precision: str, hardware: Hardware) -> int:
    """Resident bytes of a training process beside its tensors: measured here at the first call for a ``precision``
    (fp16, bf16 or fp32), then cached; delete the file to measure again. If the measurement fails, the bytes of a
    process that has only imported its libraries."""
    if precision not in _cached():
        print(
            f"measuring what a process holds beside its tensors (once; cached in {_cache()})",
            file=sys.stderr,
            flush=True,
        )
        try:
            _store({precision: measure(precision, hardware)})
        except ConfigError as error:
            print(f"not measured, a process that has computed nothing counts instead: {error}", file=sys.stderr)
            return idle_bytes()[0]
    return _cached()[precision]


def idle_bytes() -> tuple[int, int]:
    """Resident bytes of a process that has imported what training imports and nothing else, and the private ones of a
    worker that it forks to read ahead. Measured in a process of its own at the first call, then cached.

    Raises:
        ConfigError: that process failed.
    """
    known = _cached()
    if not {"imported", "worker"} <= known.keys():
        with _python("launch.experiments.idle_process") as process:
            known = finish(process)
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
            _store(known)
    return known["imported"], known["worker"]


def _cache() -> Path:
    versions = "-".join(f"{name}{importlib.metadata.version(name)}" for name in ("torch", "deepspeed"))
    return cache_root() / f"process-{os.uname().nodename}-{versions}.json"


def _cached() -> dict[str, int]:
    return json.loads(_cache().read_text()) if _cache().is_file() else {}


def _store(more: dict[str, int]) -> None:
    write_whole(_cache(), json.dumps(_cached() | more, indent=1) + "\n")


def measure(precision: str, hardware: Hardware) -> int:
    """The largest resident size of the smallest preset's process less its tensors, in bytes."""
    config = {**DS_CONFIG, **({precision: {"enabled": True}} if precision != "fp32" else {})}
    simulation = make_job(load_preset(SMALLEST, {}), config, hardware, ranks=1).simulation(beyond_training=False)
    with start(simulation) as process:
        tensors = max(phase.peaks[BOTH].bytes for phase in pool.run(simulation).phases)
        measured = finish(process)
    return measured["host_peak"] - tensors


def start(simulation: Simulation, module: str = "launch.experiments.real_run", *arguments: str) -> subprocess.Popen:
    """Run a simulation's steps for real, in a process of its own; ``module`` calls
    `launch.experiments.real_run.main`."""
    with tempfile.TemporaryFile("w+") as content:  # a pipe would break if the process ended before it has read
        json.dump(simulation.to_dict(), content)
        content.seek(0)
        return _python(module, *arguments, stdin=content)


def _python(*command: str, stdin=subprocess.DEVNULL) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment(),
        text=True,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen) -> dict:
    """The last line that it printed.

    Raises:
        ConfigError: it failed.
    """
    out, error = process.communicate()
    if process.returncode:
        raise ConfigError(f"a real run on this machine failed: {error[-2000:].strip()}")
    return json.loads(out.splitlines()[-1])
