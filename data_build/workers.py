"""Worker processes: they compute candidate runs and records, in a fixed order."""

import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process

from astrobio.schema import HELD_OUT_GCM
from data_build.habitability import habitability
from data_build.planets import Planet
from data_build.recipe import Recipe
from data_build.records import Facts, emulator_inputs, make_records, models
from data_build.sampling import sample_atmospheres
from data_build.selection import Candidate, Run
from data_build.sources.clero import domain_quality

_THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def planet_candidates(planets: list[Planet], recipe: Recipe) -> list[list[Candidate]]:
    """A worker's task: each planet's candidate runs with their labels."""
    return [_candidates(planet, recipe) for planet in planets]


def _candidates(planet: Planet, recipe: Recipe) -> list[Candidate]:
    emulator, _, _ = models()
    atmospheres = sample_atmospheres(planet, recipe)
    inputs = [emulator_inputs(planet, atmosphere) for atmosphere in atmospheres]
    climates = emulator.climates(inputs)
    return [
        Candidate(
            planet,
            number,
            atmosphere,
            habitability(levels, surface, atmosphere.surface_pressure_bar),
            core=domain_quality(row) == 1,
            relative_humidity=float(humidity),
        )
        for number, (atmosphere, row, levels, surface, humidity) in enumerate(
            zip(atmospheres, inputs, climates.levels, climates.surface, climates.relative_humidity, strict=True)
        )
    ]


def candidates_as_json(candidates: list[Candidate]) -> list:
    """What only the emulator can compute: the label, whether the run is in the core domain, the relative humidity."""
    return [[candidate.label, candidate.core, candidate.relative_humidity] for candidate in candidates]


def candidates_from_json(planet: Planet, stored: list, recipe: Recipe) -> list[Candidate]:
    """The inverse of `candidates_as_json`."""
    return [
        Candidate(planet, number, atmosphere, label, core, relative_humidity=humidity)
        for number, (atmosphere, (label, core, humidity)) in enumerate(
            zip(sample_atmospheres(planet, recipe), stored, strict=True)
        )
    ]


def group_records(groups: list[tuple[Run, ...]], recipe: Recipe, facts: Facts) -> list[dict]:
    """A worker's task: the records of some groups of runs, in order."""
    return make_records([run for group in groups for run in group], recipe, facts)


def held_out_records(runs: list[Run], recipe: Recipe, facts: Facts) -> list[dict]:
    """A worker's task: the records of some runs under the general circulation model held out."""
    return make_records(runs, recipe, facts, HELD_OUT_GCM)


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes with one BLAS thread each: more would compete for the cores, and sum in another order.

    They are spawned, since a forked process with threads may hang, and read the limits when they import NumPy.
    """
    saved = {name: os.environ.get(name) for name in _THREAD_LIMITS}
    os.environ.update(dict.fromkeys(_THREAD_LIMITS, "1"))
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in saved.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start_worker() -> None:
    # A worker whose parent was killed would wait for its next task forever.
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    # The extended domain is CLERO's training set; the records' quality marks what lies outside its core domain.
    warnings.filterwarnings("ignore", module="clero")


def _exit_with_parent() -> None:
    parent = parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)


def ordered(pool: Executor, task: Callable, arguments: Iterable[tuple], workers: int) -> Iterator:
    """Results in the order of their arguments, with at most a few waiting in memory."""
    waiting: deque = deque()
    for argument in arguments:
        waiting.append(pool.submit(task, *argument))
        if len(waiting) > 2 * workers:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()
