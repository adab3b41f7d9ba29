"""Simulations, each in a process of its own; cached results are not simulated again."""

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from multiprocessing import connection, forkserver, get_context
from multiprocessing.connection import Connection
from pathlib import Path

from astrobio.config import ConfigError
from launch.planner.simulation import cache
from launch.planner.simulation.spec import Result, Simulation

_context = get_context("forkserver")
_PRELOAD = "launch.planner.simulation.preload"


def start() -> None:
    """Start the process that simulations are forked from, so that it imports libraries while the caller does."""
    _context.set_forkserver_preload([_PRELOAD])
    forkserver.ensure_running()


def run(simulation: Simulation, timeout: float = 600) -> Result:
    """One simulation.

    Raises:
        ConfigError: the model or the ds_config cannot run, with what DeepSpeed or torch says; or it takes longer than
            ``timeout`` seconds.
    """
    return run_all({"": simulation}, timeout)[""]


def run_all(simulations: dict[str, Simulation], timeout: float = 600) -> dict[str, Result]:
    """Several by name, as many at a time as there are cores; ``timeout``: seconds for each.

    Raises:
        ConfigError: of the first that cannot run, after the others have ended.
    """
    results: dict[str, Result] = {}
    missing: dict[str, Simulation] = {}
    for name, simulation in simulations.items():
        if cached := cache.load(simulation):
            results[name] = cached
        else:
            missing[name] = simulation
    failures = []
    for name, outcome in _simulate(missing, timeout * len(missing)) if missing else ():
        if isinstance(outcome, Result):
            results[name] = outcome
            cache.store(simulations[name], outcome)
        else:
            failures.append(ConfigError(f"the ghost run{f' of {name}' if name else ''} failed: {outcome}"))
    if failures:
        raise failures[0]
    return {name: results[name] for name in simulations}


def _simulate(simulations: dict[str, Simulation], timeout: float) -> Iterator[tuple[str, Result | str]]:
    """Each result, or the end of a failed process's log, as soon as there is one."""
    start()
    deadline = time.monotonic() + timeout
    waiting = list(simulations.items())
    running: dict[Connection, tuple] = {}  # name, process, log
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or running:
                while waiting and len(running) < len(os.sched_getaffinity(0)):
                    name, simulation = waiting.pop(0)
                    log = Path(folder, str(len(waiting)))
                    receiver, sender = _context.Pipe(duplex=False)
                    process = _context.Process(target=_worker, args=(simulation, sender, log), daemon=True)
                    process.start()
                    sender.close()  # so that a worker's death ends the pipe
                    running[receiver] = name, process, log
                ready = connection.wait(list(running), max(0.0, deadline - time.monotonic()))
                if not ready:
                    names = ", ".join(name for name, *_ in running.values() if name)
                    raise ConfigError(
                        f"the ghost run{f's of {names}' if names else ''} did not end within {timeout:.0f} s"
                    )
                for receiver in [pipe for pipe in running if pipe in ready]:
                    name, process, log = running.pop(receiver)
                    try:
                        yield name, receiver.recv()
                    except EOFError:
                        yield name, _end_of(log)
                    process.join()
        finally:
            for _, process, _ in running.values():
                process.kill()


def _end_of(log: Path) -> str:
    lines = [line for line in (log.read_text() if log.is_file() else "").splitlines() if " registered at " not in line]
    return "\n".join(lines[-25:]).strip() or "its process was killed, perhaps for want of memory"


def _worker(simulation: Simulation, sender: Connection, log: Path) -> None:
    """Simulate and leave; what libraries print goes to ``log``."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        # Here, because they change this process. The first has no effect if the fork server imported it.
        from launch.planner.simulation import preload  # noqa: F401
        from launch.planner.simulation.run import run

        sender.send(run(simulation))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(0)  # nothing here is worth tearing down
