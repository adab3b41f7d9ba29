"""What a training process holds beside its tensors, and a ghost run's job run for real.

Python, its libraries and their code are only the beginning: with the first steps come the pages of code that is used,
oneDNN's compiled kernels (it keeps one for each shape of a matrix product), autograd's nodes, threads' stacks and what
glibc does not give back. None of it is a tensor, so that no ghost run sees it, and how much it is depends on versions
and processor. So it is measured: the smallest preset takes a few steps in a process of its own, and what that process
held at most, less the tensors that a ghost run of the same steps counts, is what any model's process holds.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil

from astrobio.config import ConfigError, StackConfig, load_preset, parse
from astrobio.files import cache_root, write_whole
from launch.planner.hardware.profile import Hardware
from launch.planner.simulation import run as ghost

#: The toy's ds_config; its precision is that of the run that is planned, whose kernels are then the same.
TOY = "tiny"
TOY_CONFIG = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 2,
              "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
              "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"},
                                    "offload_param": {"device": "cpu"}, "reduce_bucket_size": 1_000_000}}


def process_bytes(precision: str, machine: Hardware) -> int:
    """Resident bytes of a training process beside its tensors: measured here at the first call for a ``precision``
    (fp16, bf16 or fp32), then kept; delete the file to measure again. Where the toy does not run, what a process holds
    that has only imported its libraries."""
    if precision not in _known():
        print(f"measuring what a process holds beside its tensors (once; kept in {_kept()})", file=sys.stderr,
              flush=True)
        try:
            _keep({precision: measure(precision, machine)})
        except ConfigError as error:
            print(f"not measured, a process that has computed nothing counts instead: {error}", file=sys.stderr)
            return idle_bytes()[0]
    return _known()[precision]


def idle_bytes() -> tuple[int, int]:
    """Resident bytes of a process that has imported what training imports and nothing else, and the private ones of a
    worker that it forks to read ahead. Measured in a process of its own at the first call, then kept beside
    `process_bytes`.

    Raises:
        ConfigError: that process failed.
    """
    found = _known()
    if not {"imported", "worker"} <= found.keys():
        with _python("launch.planner.cost.workers") as process:
            found = finish(process)
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
            _keep(found)
    return found["imported"], found["worker"]


def _kept() -> Path:
    versions = "-".join(f"{name}{importlib.metadata.version(name)}" for name in ("torch", "deepspeed"))
    return cache_root() / f"process-{os.uname().nodename}-{versions}.json"


def _known() -> dict[str, int]:
    return json.loads(_kept().read_text()) if _kept().is_file() else {}


def _keep(more: dict[str, int]) -> None:
    write_whole(_kept(), json.dumps(_known() | more, indent=1) + "\n")


def measure(precision: str, machine: Hardware) -> int:
    """The toy's largest resident size less its tensors, in bytes."""
    from launch.planner.plan import make_job
    from launch.planner.simulation.recorder import BOTH
    config = {**TOY_CONFIG, **({precision: {"enabled": True}} if precision != "fp32" else {})}
    job = make_job(load_preset(TOY, {}), config, machine, ranks=1)
    job.whole = False
    with start(job) as process:
        tensors = max(phase.peaks[BOTH].bytes for phase in ghost.run(job).phases)
        held = finish(process)
    return held["host_peak"] - tensors


def start(job: ghost.Job, *command: str) -> subprocess.Popen:
    """Run a job for real in a process of its own; ``command``: a module that calls `main`, and its arguments."""
    with tempfile.TemporaryFile("w+") as content:  # a pipe would break where the process ends before it has read
        json.dump(dataclasses.asdict(job), content)
        content.seek(0)
        return _python(*(command or ["launch.planner.cost.overhead"]), stdin=content)


def _python(*command: str, stdin=subprocess.DEVNULL) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", *command], cwd=ghost.ROOT, env=ghost.environment(), text=True,
                            stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen) -> dict:
    """What it printed last.

    Raises:
        ConfigError: it failed.
    """
    out, error = process.communicate()
    if process.returncode:
        raise ConfigError(f"a real run on this machine failed: {error[-2000:].strip()}")
    return json.loads(out.splitlines()[-1])


def run_for_real(job: ghost.Job, watch: Callable = lambda engine: None) -> dict:
    """The micro-steps of a ghost run, with data, in this process: ``host_peak``, its largest resident size, and bytes
    ``read`` and ``written`` in each of the ``micro_steps``. ``watch`` is given the engine before the first."""
    import deepspeed

    import launch.train  # noqa: F401  a training process has imported all of it
    from launch.planner.model import nominal_batch
    from launch.zero.accelerator import prepare_accelerator
    from launch.zero.engine import build_engine, device
    prepare_accelerator()
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    deepspeed.init_distributed(auto_mpi_discovery=False)
    config = parse(StackConfig, job.workload["stack"], "the model")
    engine = build_engine(config, job.ds_config, seed=0)
    watch(engine)
    micro_steps, accumulation = [], engine.gradient_accumulation_steps()
    for ends in ghost.MICRO_STEPS[accumulation > 1]:
        before = psutil.Process().io_counters()
        engine.micro_steps = accumulation - 1 if ends else 0
        loss = engine(nominal_batch(config, job.micro_batch, job.seq_length).to(device())).loss
        engine.backward(loss)
        engine.step()
        after = psutil.Process().io_counters()
        micro_steps.append({"read": after.read_bytes - before.read_bytes,
                            "written": after.write_bytes - before.write_bytes})
    return {"micro_steps": micro_steps, "host_peak": largest_resident()}


def largest_resident() -> int:
    """Bytes that this process has held at most (VmHWM)."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def main(run: Callable[[ghost.Job], dict] = run_for_real) -> None:
    """Run the job on stdin, and print what was measured as the last line."""
    found = run(ghost.Job(**json.load(sys.stdin)))
    print("\n" + json.dumps(found), flush=True)
    os._exit(0)  # nothing here is worth tearing down


if __name__ == "__main__":
    main()
