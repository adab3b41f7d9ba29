"""A ghost run: DeepSpeed's real engine, the real model and the real ds_config on a GPU that is not there.

`deepspeed.initialize`, forward, backward and step run on tensors that have shapes but no data
(`launch.planner.simulated`), watched by a `Ledger`. Nothing of DeepSpeed's memory or order of work is modelled: it
happens. `run` starts a process for it, because a simulation changes torch and DeepSpeed for good.
"""

import atexit
import dataclasses
import functools
import gc
import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astrobio.config import ConfigError
from launch.planner.remembered import keep, recall

ROOT = Path(__file__).resolve().parents[2]
_OF_A_LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "CROSS_RANK", "CROSS_SIZE",
                "MASTER_ADDR", "MASTER_PORT")
#: Whether each micro-step of a run ends an accumulation, by whether there is any. In the first DeepSpeed learns the
#: order of the parameters, and its optimizer step makes the optimizer's state; what is to be told are the later ones.
MICRO_STEPS = {False: (True, True), True: (True, False, True)}
_ahead: list[subprocess.Popen] = []  # started, and waiting for jobs


@dataclass
class Job:
    """One ghost run.

    ``workload`` is ``{"stack": …}``, a `StackConfig` as nested dicts, or ``{"function": "module:name", …}``: a callable
    that takes the ds_config, the other keys and the micro-batch, and returns an engine and a function that makes a
    batch and returns a loss.
    """

    workload: dict[str, Any]
    ds_config: dict[str, Any]  # resolved
    ranks: int = 1
    micro_batch: int = 1
    seq_length: int | None = None  # text tokens; None: as many as the model reads
    capability: tuple[int, int] = (8, 6)
    memory: int = 24 << 30
    eval_micro_batch: int = 8
    whole: bool = True  # a stack also validates, saves and loads
    expandable: bool = False  # whether torch's allocator has expandable segments


@dataclass
class Result:
    """What a ghost run saw: `launch.planner.ledger.Ledger` says what the fields are."""

    phases: list
    trace: list[tuple]
    blocks: list[tuple[int, int, int]]
    files: dict[str, int]  # bytes of each swap file
    operators: int
    parameters: int
    trainable: int
    tokens: int  # of one micro-batch on one rank
    accumulation: int
    process_bytes: int = 0  # resident memory of Python and its libraries before the run
    checkpoint_bytes: int = 0  # what this rank writes into a checkpoint
    worker_bytes: int = 0  # private memory of a process that reads ahead

    @property
    def nvme_resident(self) -> int:
        return sum(self.files.values())

    @property
    def nvme_optimizer(self) -> int:
        """Of it the optimizer's."""
        return sum(size for path, size in self.files.items() if "/optimizer/" in path)


def run(job: Job, path: list[str] | None = None, timeout: float = 600) -> Result:
    """The job in a process of its own; ``path``: more folders to import its function from.

    Raises:
        ConfigError: the model or the ds_config cannot run: what DeepSpeed or torch said.
    """
    return run_all({"": job}, path, timeout)[""]


def run_all(jobs: dict[str, Job], path: list[str] | None = None, timeout: float = 600) -> dict[str, Result]:
    """Several jobs; those that were run before are remembered.

    Raises:
        ConfigError: of the first that cannot run.
    """
    found = {name: recall(job) for name, job in jobs.items()}
    missing = {name: job for name, job in jobs.items() if found[name] is None}
    if missing:
        found |= _run_missing(missing, path, timeout)
    return found


def _run_missing(jobs: dict[str, Job], path: list[str] | None, timeout: float) -> dict[str, Result]:
    """One process imports all libraries once and forks another for each job, as many at a time as there are cores."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, str(number)) for number, name in enumerate(jobs)}
        content = {str(files[name]): dataclasses.asdict(job) for name, job in jobs.items()}
        process = _ahead.pop() if _ahead and path is None else _process(path)
        try:
            _, error = process.communicate(json.dumps(content).encode(), timeout=timeout * len(jobs))
        except subprocess.TimeoutExpired:
            raise ConfigError(f"the ghost run{'s of ' + ', '.join(jobs) if len(jobs) > 1 else ''} did not end within "
                              f"{timeout * len(jobs):.0f} s") from None
        finally:
            _end(process)
        found = {}
        for name, file in files.items():
            if not file.is_file():
                log = file.with_suffix(".log")
                said = log.read_text() if log.is_file() else error.decode()
                lines = [line for line in said.splitlines() if " registered at " not in line]
                raise ConfigError(f"the ghost run{f' of {name}' if name else ''} failed: "
                                  + "\n".join(lines[-25:]).strip())
            found[name] = pickle.loads(file.read_bytes())
        return found


def start() -> None:
    """Let the process of the next run import its libraries from now on, beside whatever is to be found out before."""
    _ahead.append(_process())
    atexit.register(_end, _ahead[-1])


def _process(path: list[str] | None = None) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "launch.planner.ghost"], cwd=ROOT, env=environment(path),
                            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                            start_new_session=True)


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)  # with those it has forked
        process.wait()


def environment(path: list[str] | None = None) -> dict[str, str]:
    """Of a process that is no rank of a launch, though a rank may start it: with the launcher's variables DeepSpeed
    would look for the other ranks, and wait. ``path``: more folders to import from."""
    kept = {key: value for key, value in os.environ.items() if key not in _OF_A_LAUNCH}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(ROOT), *(path or []), os.environ.get("PYTHONPATH", "")])}


def haunt(job: Job) -> Result:
    """Run the job in this process, which is of no other use afterwards."""
    from launch.planner.simulated import simulate
    mode, ledger = simulate(job.ranks, tuple(job.capability), job.memory, _vocabulary(job))
    with mode, ledger:
        engine, loss_of = _workload(job, mode)
        _watch_modules(engine.module, ledger)
        gc.collect()
        accumulation = engine.gradient_accumulation_steps()
        tokens = 0
        for ends in MICRO_STEPS[accumulation > 1]:
            engine.micro_steps = accumulation - 1 if ends else 0
            ledger.begin("forward")
            loss, tokens = loss_of(engine)
            ledger.begin("backward")
            engine.backward(loss)
            del loss
            if ends:
                ledger.begin("optimizer")
            engine.step()
        saved = _afterwards(engine, loss_of, job, ledger) if job.whole and "stack" in job.workload else 0
        ledger.begin("end")
    parameters = list(engine.module.parameters())
    count = [getattr(p, "ds_numel", p.numel()) for p in parameters]
    return Result(ledger.phases, ledger.trace, ledger.blocks, ledger.files, ledger.operators, sum(count),
                  sum(n for n, p in zip(count, parameters, strict=True) if p.requires_grad), tokens,
                  accumulation, checkpoint_bytes=saved)


def _afterwards(engine, loss_of, job: Job, ledger) -> int:
    """The rest of what a run does; returns the bytes that this rank writes into a checkpoint."""
    from launch.planner import afterwards
    ledger.begin("evaluate")
    afterwards.validate(engine, functools.partial(loss_of, size=job.eval_micro_batch))
    ledger.begin("save")
    saved = afterwards.save(engine, ledger)
    ledger.begin("load")
    afterwards.load(engine, ledger)
    return saved


def _vocabulary(job: Job) -> int:
    stack = job.workload.get("stack")
    if not stack:
        return job.workload.get("vocabulary", 0)
    return stack["language"]["config"].get("vocab_size", 0)


def _workload(job: Job, mode):
    if "function" in job.workload:
        module, _, name = job.workload["function"].partition(":")
        return getattr(importlib.import_module(module), name)(job, mode)
    return stack_workload(job, mode)


def stack_workload(job: Job, mode):
    """What launch/train.py builds, and how its loop makes a loss."""
    from torch.utils._python_dispatch import _disable_current_modes

    from astrobio.config import StackConfig, parse
    from launch.planner.parameters import nominal_batch
    from launch.zero import weights
    from launch.zero.engine import build_engine, device

    weights._ahead = lambda make, items, doing: map(make, items)  # modes do not follow into threads
    weights.Fill.draw = lambda self, out, start=0: out.zero_()  # which writes as much
    config = parse(StackConfig, job.workload["stack"], "the model")
    engine = build_engine(config, job.ds_config, seed=0)
    length = job.seq_length or config.language.max_text_tokens

    def loss_of(engine, size=job.micro_batch):
        with _disable_current_modes():
            batch = nominal_batch(config, size, length)
        batch = _without_data(batch, mode).to(device())
        return engine(batch).loss, size * length

    return engine, loss_of


def _without_data(batch, mode):
    """The batch with fake tensors in place of real ones."""
    def fake(value):
        if isinstance(value, dict):
            return {key: fake(part) for key, part in value.items()}
        if isinstance(value, torch.Tensor):
            return values.without_data(value, mode)
        if hasattr(value, "apply"):  # a PyG graph
            return value.apply(fake)
        if dataclasses.is_dataclass(value):
            return dataclasses.replace(value, **{f.name: fake(getattr(value, f.name))
                                                 for f in dataclasses.fields(value)})
        return value
    import torch

    from launch.planner import values
    return fake(batch)


def _watch_modules(module, ledger) -> None:
    """Tell the ledger which module runs."""
    def enter(name):
        return lambda *_: ledger.enter(name)

    for name, child in module.named_modules():
        child.register_forward_pre_hook(enter(name or type(child).__name__), prepend=True)
        child.register_forward_hook(lambda *_: ledger.leave(), always_call=True)


def main() -> None:
    """Read jobs on stdin, by the file that each pickled result is to go to."""
    gc.disable()  # importing makes objects by the hundred thousand, and hardly one of them is garbage
    # Imported once, for all jobs: what a training process imports too.
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  by ZeroOptimizer_Stage3, late
    import torch_geometric.nn  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    from launch.planner.process import idle_bytes
    imported, worker = idle_bytes()  # before what only a ghost run imports
    import launch.planner.simulated  # noqa: F401
    import launch.zero.engine  # noqa: F401
    gc.freeze()
    gc.enable()
    running = 0
    for file, job in json.load(sys.stdin).items():
        if running >= len(os.sched_getaffinity(0)):
            os.wait()
            running -= 1
        if os.fork() == 0:
            _write(Path(file), Job(**job), imported, worker)
        running += 1
    while running:
        os.wait()
        running -= 1


def _write(file: Path, job: Job, imported: int, worker: int) -> None:
    """Run the job and leave; its result goes to ``file``, what libraries print to a log beside it."""
    log = os.open(file.with_suffix(".log"), os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        result = haunt(job)
        result.process_bytes, result.worker_bytes = imported, worker
        file.write_bytes(pickle.dumps(result))
        keep(job, result)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(0)  # nothing here is worth tearing down


if __name__ == "__main__":
    from launch.planner.ghost import main  # pickled results must belong to the module, not to __main__
    main()
