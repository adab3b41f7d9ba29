"""A ghost run: DeepSpeed's real engine, the real model and the real ds_config on a GPU that is not there.

`deepspeed.initialize`, forward, backward and step run on tensors that have shapes but no data
(`launch.planner.simulation.device`), watched by a `Ledger`. Nothing of DeepSpeed's memory or order of work is
modelled: it happens. Each run has a process of its own, because a simulation changes torch and DeepSpeed for good. It
is forked from one that has imported all libraries and sees no real card: in a process forked after CUDA was asked for
one, autograd's threads abort.
"""

import atexit
import contextlib
import dataclasses
import functools
import gc
import importlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astrobio.config import ConfigError
from launch import ROOT
from launch.planner.simulation.cache import keep, keep_answers, recall, recall_answers
from launch.planner.simulation.imports import import_libraries

_OF_A_LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "CROSS_RANK", "CROSS_SIZE",
                "MASTER_ADDR", "MASTER_PORT")
CARDS = "CUDA_VISIBLE_DEVICES"
_visible = os.environ.get(CARDS)  # before `prepare` hides them
#: Whether each micro-step of a run ends an accumulation, by whether there is any. In the first DeepSpeed learns the
#: order of the parameters, and its optimizer step makes the optimizer's state; what is to be told are the later ones.
MICRO_STEPS = {False: (True, True), True: (True, False, True)}
_ready: list["_Medium"] = []  # what `prepare` has made


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
    rounding: int | None = None  # of page-locked memory, as `launch.locked_rounding` has it


@dataclass
class Result:
    """What a ghost run saw: `launch.planner.simulation.recorder.Ledger` says what the fields are."""

    phases: list
    trace: list[tuple]
    blocks: list[tuple[int, int, int]]
    files: dict[str, int]  # bytes of each swap file
    operators: int
    parameters: int
    trainable: int
    tokens: int  # of one micro-batch on one rank
    accumulation: int
    checkpoint_bytes: int = 0  # what this rank writes into a checkpoint

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
    found = dict(run_each(jobs, path, timeout))
    return {name: found[name] for name in jobs}


def run_each(jobs: dict[str, Job], path: list[str] | None = None, timeout: float = 600
             ) -> Iterator[tuple[str, Result]]:
    """As `run_all`, each as soon as it has ended."""
    missing = {}
    for name, job in jobs.items():
        result = recall(job)
        if result is None:
            missing[name] = job
        else:
            yield name, result
    if missing:
        yield from _run_missing(missing, path, timeout * len(missing))


def _run_missing(jobs: dict[str, Job], path: list[str] | None, timeout: float) -> Iterator[tuple[str, Result]]:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as at_last:
        kept = bool(_ready) and path is None
        medium = _ready.pop() if kept else _Medium(path)
        at_last.callback(medium.end)
        names = {str(Path(folder, str(number))): name for number, name in enumerate(jobs)}
        failed: ConfigError | None = None
        try:
            for file, said in medium.ask({file: jobs[name] for file, name in names.items()}, timeout):
                try:
                    result = _result(Path(file), names[file], said)
                except ConfigError as error:
                    failed = failed or error
                else:
                    yield names[file], result
        except TimeoutError:
            raise ConfigError(f"the ghost run{'s of ' + ', '.join(jobs) if len(jobs) > 1 else ''} did not end within "
                              f"{timeout:.0f} s") from None
        if kept and not medium.gone:
            _ready.append(medium)
            at_last.pop_all()
        if failed:
            raise failed


def _result(file: Path, name: str, said: str) -> Result:
    """What a run has left in ``file``; ``said``: by the process that was to start it."""
    if file.is_file():
        return pickle.loads(file.read_bytes())
    log = file.with_suffix(".log")
    told = (log.read_text() if log.is_file() else said).splitlines()
    lines = [line for line in told if " registered at " not in line]
    raise ConfigError(f"the ghost run{f' of {name}' if name else ''} failed: "
                      + ("\n".join(lines[-25:]).strip() or "its process was killed, for want of memory perhaps"))


def prepare() -> None:
    """Import all libraries in this process, which must not have used them yet, and let ghost runs be forked from it as
    it is then: sooner than from another process, which would import them beside this one."""
    if "torch" not in sys.modules:
        os.environ[CARDS] = ""
        import_libraries()
        _ready.append(_Medium(copy=True))
        atexit.register(lambda: [medium.end() for medium in _ready])


class _Medium:
    """A process that has imported all libraries, and forks another one for each ghost run that it is asked for."""

    def __init__(self, path: list[str] | None = None, copy: bool = False):
        """A new process, with more folders to import from in ``path``; or a ``copy`` of this one."""
        self._log = tempfile.TemporaryFile("w+")  # what it says before it can run anything
        self._process: subprocess.Popen | None = None
        self.gone = False  # found to have ended by itself
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        if not copy:
            self._process = subprocess.Popen([sys.executable, "-m", "launch.planner.simulation.run"], cwd=ROOT,
                                             env={**environment(path), CARDS: ""}, stdin=requests, stdout=answers,
                                             stderr=self._log, start_new_session=True)
            self._pid = self._process.pid
        elif not (pid := os.fork()):
            os.setpgid(0, 0)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.close(self._requests)
            os.close(self._answers)
            for key in _OF_A_LAUNCH:
                os.environ.pop(key, None)
            for said in (1, 2):
                os.dup2(self._log.fileno(), said)
            try:
                serve(requests, answers)
            finally:
                os._exit(0)
        else:
            self._pid = pid
            os.setpgid(pid, pid)  # whoever of the two comes first: `end` may, before the copy has run at all
        os.close(requests)
        os.close(answers)

    def ask(self, jobs: dict[str, Job], timeout: float) -> Iterator[tuple[str, str]]:
        """Run ``jobs``, by the files that their pickled results go to. Each file as its run ends, whether it is there
        or not, with what this process has said.

        Raises:
            TimeoutError: not all ended within ``timeout`` seconds.
        """
        request = {file: dataclasses.asdict(job) for file, job in jobs.items()}
        with contextlib.suppress(BrokenPipeError), open(self._requests, "w", closefd=False) as requests:
            requests.write(json.dumps(request) + "\n")
        waiting, until = list(jobs), time.monotonic() + timeout
        while waiting:
            if not select.select([self._answers], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError
            ended = os.read(self._answers, 1 << 16).decode().split("\n")[:-1]  # lines are written whole
            self.gone = not ended
            for file in ended or list(waiting):
                waiting.remove(file)
                self._log.seek(0)
                yield file, self._log.read()

    def end(self) -> None:
        """With all that it has forked."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        else:
            os.waitpid(self._pid, 0)
        os.close(self._requests)
        os.close(self._answers)
        self._log.close()


def environment(path: list[str] | None = None, with_cards: bool = False) -> dict[str, str]:
    """Of a process that is no rank of a launch, though a rank may start it: with the launcher's variables DeepSpeed
    would look for the other ranks, and wait. ``path``: more folders to import from. ``with_cards``: it sees those
    that `prepare` may have hidden."""
    kept = {key: value for key, value in os.environ.items() if key not in _OF_A_LAUNCH}
    if with_cards:
        kept.pop(CARDS, None)
        kept |= {} if _visible is None else {CARDS: _visible}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(ROOT), *(path or []), os.environ.get("PYTHONPATH", "")])}


def haunt(job: Job) -> Result:
    """Run the job in this process, which is of no other use afterwards."""
    import torch

    from launch.planner.simulation.device import simulate
    mode, ledger = simulate(job.ranks, tuple(job.capability), job.memory, _vocabulary(job), job.rounding)
    # Backward passes in this thread: autograd's own would each look for the card.
    with mode, ledger, torch.autograd.set_multithreading_enabled(False):
        engine, loss_of = _workload(job, mode)
        _watch_modules(engine.module, ledger)
        gc.collect()
        gc.freeze()  # the engine stays; to look through it again and again takes a twentieth of the run
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
    keep_answers(ledger.device, ledger.shapes.answers)
    parameters = list(engine.module.parameters())
    count = [getattr(p, "ds_numel", p.numel()) for p in parameters]
    return Result(ledger.phases, ledger.trace, ledger.blocks, ledger.files, ledger.operators, sum(count),
                  sum(n for n, p in zip(count, parameters, strict=True) if p.requires_grad), tokens,
                  accumulation, checkpoint_bytes=saved)


def _afterwards(engine, loss_of, job: Job, ledger) -> int:
    """The rest of what a run does; returns the bytes that this rank writes into a checkpoint."""
    from launch.planner.simulation import phases as afterwards
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
    from launch.planner.model import nominal_batch
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
        batch = _without_data(batch).to(device())
        return engine(batch).loss, size * length

    return engine, loss_of


def _without_data(batch):
    """The batch with fake tensors in place of real ones."""
    fakes: dict[int, Any] = {}  # of each tensor, which may stand in several places

    def fake(value):
        if isinstance(value, dict):
            return {key: fake(part) for key, part in value.items()}
        if isinstance(value, torch.Tensor):
            if id(value) not in fakes:
                fakes[id(value)] = values.without_data(value)
            return fakes[id(value)]
        if hasattr(value, "apply"):  # a PyG graph
            return value.apply(fake)
        if dataclasses.is_dataclass(value):
            return dataclasses.replace(value, **{f.name: fake(getattr(value, f.name))
                                                 for f in dataclasses.fields(value)})
        return value
    import torch

    from launch.planner.simulation import values
    return fake(batch)


def _watch_modules(module, ledger) -> None:
    """Tell the ledger which module runs."""
    def enter(name):
        return lambda *_: ledger.enter(name)

    for name, child in module.named_modules():
        child.register_forward_pre_hook(enter(name or type(child).__name__), prepend=True)
        child.register_forward_hook(lambda *_: ledger.leave(), always_call=True)


def serve(requests: int, answers: int) -> None:
    """Run what each line of ``requests`` asks for, jobs by the files that their pickled results are to go to; as each
    ends, its file is a line of ``answers``. Both are file descriptors."""
    from launch.planner.simulation.device import GPU, HOST
    for device in (GPU, HOST):
        recall_answers(device)  # read here once
    gc.freeze()
    running: dict[int, str] = {}

    def one_less() -> None:
        os.write(answers, f"{running.pop(os.wait()[0])}\n".encode())

    for line in open(requests):
        for file, job in json.loads(line).items():
            if len(running) >= len(os.sched_getaffinity(0)):
                one_less()
            pid = os.fork()
            if pid == 0:
                _write(Path(file), Job(**job))
            running[pid] = file
        while running:
            one_less()


def _write(file: Path, job: Job) -> None:
    """Run the job and leave; its result goes to ``file``, what libraries print to a log beside it."""
    log = os.open(file.with_suffix(".log"), os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        result = haunt(job)
        file.write_bytes(pickle.dumps(result))
        keep(job, result)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(0)  # nothing here is worth tearing down


if __name__ == "__main__":
    from launch.planner.simulation import run as ghost  # pickled results must belong to the module, not to __main__
    told = os.dup(1)
    os.dup2(2, 1)  # libraries print
    import_libraries()
    ghost.serve(0, told)
