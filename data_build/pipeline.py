"""From a recipe to a dataset, in stages that outlive a killed process.

archives (rows read over the network) → planets (matched, completed, sampled) → candidates (a label for each
atmosphere) → exoplasim (a real GCM's climates, if the recipe has them) → records (of the selected runs) → the
dataset. The stages' chunks are in a hidden folder next to the target; the same command resumes a stopped build. The
dataset is assembled there too and renamed at the end: the target is complete or absent.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from filelock import FileLock

from astrobio.files import sync
from astrobio.schema import TEST_SETS, sha256_of
from data_build.assembly import RULES, Further, again, assemble, records_of, versions
from data_build.cache import DataError
from data_build.climates import archived, simulate, simulated, to_simulate, write_row
from data_build.gathering import catalogued_planets, gather_planets
from data_build.harvest import MANIFEST, Harvest, harvest_all
from data_build.measured import measured_records
from data_build.organism import checks, facts
from data_build.planets import Planet
from data_build.policy import Policy
from data_build.progress import Stages
from data_build.quality import Quality
from data_build.recipe import Recipe, load_recipe
from data_build.selection import Candidate, Run, select_runs, without_supersaturated
from data_build.sources import CATALOGUES, OPTIONAL, SOURCES, ExoPlaSim
from data_build.sources.nasa_spectra import NasaSpectra
from data_build.spectra import measured_spectra
from data_build.validation import validate
from data_build.work import WorkFolder
from data_build.workers import (
    candidates_as_json,
    candidates_from_json,
    group_records,
    held_out_records,
    ordered,
    planet_candidates,
    worker_pool,
)
from data_build.writing import write_records

#: Groups of runs, and planets, in one task. Fixed, so that batches, and with them the last digits of floating point
#: sums, do not depend on the number of workers.
_GROUPS_PER_TASK = 8
_PLANETS_PER_TASK = 4
HELD_OUT, MEASURED = TEST_SETS
_SPECTRA = NasaSpectra.info.name  # the archive of measured spectra

__all__ = ["build", "fetch", "gather_planets", "validate"]


def build(
    recipe: str | Path,
    out: Path,
    *,
    limit: int | None = None,
    workers: int = 2,
    progress: bool = True,
    policy: Policy = Policy(),  # noqa: B008 - it is frozen
) -> dict:
    """Build a dataset and return its manifest.

    If ``out`` already holds a dataset of the same recipe (and limit), its manifest is returned at once. The content
    hash depends only on the recipe, ``limit`` and the archives' answers, not on ``workers`` or interruptions.

    Args:
        recipe: a name in data_build/recipes, or the path of a YAML file.
        out: the dataset's folder; its parent is created if absent.
        limit: at most this many planets, and rows of each archive that is no catalogue, for a quick try.
        workers: processes that compute records, each with one thread.
        progress: draw bars on a terminal, or write a line for each stage elsewhere.
        policy: how archives are read; offline, only cached answers are used.

    Raises:
        DataError: a bad recipe, something else at ``out``, data that cannot be fetched (of an archive only if the
            recipe requires it, or no other was read), a full disk, a killed worker. Nothing is left at ``out``;
            finished chunks stay next to it for the next try.
    """
    plan = load_recipe(recipe)
    out = Path(out).absolute()
    for name, value, lowest in (("limit", limit, 4), ("workers", workers, 1)):
        if value is not None and value < lowest:
            raise DataError(f"{name} is {value}, it must be at least {lowest}")
    identity = {**plan.as_dict(), "limit": limit}
    folder = out.parent / f".{out.name}.partial"
    with _explained(out, folder):
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(out.parent / f".{out.name}.lock"):
            if out.exists():
                manifest = _existing(out, identity)
            else:
                manifest = _build(plan, identity, folder, workers, Stages(progress), policy)
                os.rename(folder / "dataset", out)
                sync(out.parent)
            shutil.rmtree(folder, ignore_errors=True)
    return manifest


def fetch(recipe: str | Path) -> list[str]:
    """Fetch and check every file the recipe's installed sources need, so that later builds need no network for them.

    Returns:
        The names of the sources. Raises `DataError` if a file cannot be fetched.
    """
    return _ensure_sources(load_recipe(recipe))


def _build(recipe: Recipe, identity: dict, folder: Path, workers: int, stages: Stages, policy: Policy) -> dict:
    work = WorkFolder(folder, {"recipe": identity, "versions": versions(), **RULES})
    sources = _ensure_sources(recipe)
    harvests, failed = _harvest(recipe, identity["limit"], work, stages, policy)
    for name, reason in failed.items():
        stages.say(f"archives: going on without {name}: {reason}")
    # An archive may fail in one run and not in the next.
    work.based_on("archives", {name: sha256_of(harvest.folder / MANIFEST) for name, harvest in harvests.items()})
    recipe = _without(recipe, failed)
    stages.say("planets: reading and matching the catalogues")
    planets, report, set_aside = gather_planets(recipe, identity["limit"], harvests)
    work.finish("planets", planets=len(planets), set_aside=len(set_aside))
    quality = Quality(recipe, planets, report, checks(harvests))
    with worker_pool(workers) as pool:
        computed = partial(_computed, pool=pool, work=work, workers=workers, stages=stages)
        candidates = _candidates(recipe, planets, computed)
        quality.candidates(candidates)
        candidates, supersaturated = without_supersaturated(candidates)
        simulations, crashed = _simulated(recipe, candidates, computed)
        stored = archived(harvests, planets) + simulations
        quality.stored(stored)
        groups, alone = select_runs(candidates, recipe, stored)
        if not groups:
            raise DataError("no run could be chosen: raise the limit, sampled_planets or candidates_per_planet")
        sentences = facts(harvests)
        tasks = [
            (groups[start : start + _GROUPS_PER_TASK], recipe, sentences)
            for start in range(0, len(groups), _GROUPS_PER_TASK)
        ]
        chunks = computed("records", group_records, tasks, write_records, ".arrow")
        held_out = _held_out(groups, recipe)
        tasks_again = [(runs, recipe, sentences) for runs in held_out]
        held_out_chunks = computed(HELD_OUT, held_out_records, tasks_again, write_records, ".arrow")
    measured, unmatched = _measured(recipe, harvests)
    stages.say("dataset: checks, statistics, tokenizer, reports")
    return assemble(
        work.folder / "dataset",
        recipe,
        identity,
        records_of(groups, chunks),
        {HELD_OUT: again(records_of(held_out, held_out_chunks)), MEASURED: measured},
        set_aside + supersaturated + alone + crashed + unmatched,
        quality,
        sources,
        harvests,
        failed,
    )


def _held_out(groups: list[tuple[Run, ...]], recipe: Recipe) -> list[list[Run]]:
    """The test planets' runs that can be emulated with the model held out, a task's at a time."""
    if not recipe.held_out_gcm:
        return []
    chosen = [run for group in groups for run in group if run.split == "test" and run.candidate.stored is None]
    size = 2 * _GROUPS_PER_TASK
    return [chosen[start : start + size] for start in range(0, len(chosen), size)]


def _measured(recipe: Recipe, harvests: Mapping[str, Harvest]) -> tuple[Further, list[dict]]:
    """The records of measured spectra, where the recipe has their archive, and the spectra set aside."""
    if _SPECTRA not in harvests:
        return (), []
    planets = catalogued_planets(recipe, harvests)
    made, set_aside = measured_records(measured_spectra(harvests[_SPECTRA]), _SPECTRA, planets, recipe)
    return [(planet, None, record) for planet, record in made], set_aside


def _harvest(
    recipe: Recipe, limit: int | None, work: WorkFolder, stages: Stages, policy: Policy
) -> tuple[dict[str, Harvest], dict[str, str]]:
    if not recipe.archives:
        return {}, {}
    most = {
        name: wanted.rows if limit is None or name in recipe.catalogues else min(wanted.rows, limit)
        for name, wanted in recipe.archives.items()
    }
    required = [name for name, wanted in recipe.archives.items() if wanted.required]
    with stages.rows(most) as report:
        return harvest_all(most, work.path("archives"), policy, report, required=required)


def _without(recipe: Recipe, failed: Mapping[str, str]) -> Recipe:
    """The recipe without the catalogues that could not be read."""
    catalogues = tuple(name for name in recipe.catalogues if name not in failed)
    if not catalogues:
        reasons = [failed[name] for name in recipe.catalogues]
        raise DataError("\n".join([*reasons, "not one of the recipe's catalogues was read: there are no planets"]))
    return replace(recipe, catalogues=catalogues)


def _candidates(recipe: Recipe, planets: list[Planet], computed: Callable) -> dict[str, list[Candidate]]:
    """Planet key → its candidate runs."""
    groups = [planets[start : start + _PLANETS_PER_TASK] for start in range(0, len(planets), _PLANETS_PER_TASK)]

    def write(result: list[list[Candidate]], path: Path) -> None:
        path.write_text(json.dumps([candidates_as_json(members) for members in result]))

    chunks = computed("candidates", planet_candidates, [(group, recipe) for group in groups], write, ".json")
    found = {}
    for group, path in zip(groups, chunks, strict=True):
        for planet, stored in zip(group, json.loads(path.read_text()), strict=True):
            found[planet.key] = candidates_from_json(planet, stored, recipe)
    return found


def _simulated(
    recipe: Recipe, candidates: dict[str, list[Candidate]], computed: Callable
) -> tuple[list[Candidate], list[dict]]:
    """Candidates whose climates ExoPlaSim ran, where the recipe asks for it, and the runs set aside."""
    if not recipe.exoplasim:
        return [], []
    ExoPlaSim().prepare()
    chosen = to_simulate(candidates, recipe.exoplasim["planets"])
    tasks = [(candidate, recipe.exoplasim["years"]) for candidate in chosen]
    return simulated(chosen, computed("exoplasim", simulate, tasks, write_row, ".parquet"))


def _computed(
    stage: str,
    task: Callable,
    tasks: list[tuple],
    write: Callable,
    suffix: str,
    *,
    pool: Executor,
    work: WorkFolder,
    workers: int,
    stages: Stages,
) -> list[Path]:
    """The chunks of a stage, one for each of ``tasks``, in order; existing ones are not computed again."""
    chunks = work.chunks(stage)
    missing = [number for number in range(len(tasks)) if number not in chunks]
    results = ordered(pool, task, (tasks[number] for number in missing), workers)
    for number, result in zip(missing, stages.bar(stage, results, len(missing)), strict=True):
        chunks[number] = work.keep(stage, number, suffix, partial(write, result))
    work.finish(stage)
    return [chunks[number] for number in range(len(tasks))]


def _ensure_sources(recipe: Recipe) -> list[str]:
    """The names of the recipe's offline sources, their files fetched and checked."""
    names = [name for name in SOURCES if name in recipe.catalogues or name not in CATALOGUES]
    if recipe.exoplasim:
        names.append(ExoPlaSim.info.name)
    for name in names:
        (SOURCES | OPTIONAL)[name]().ensure()
    return names


def _existing(out: Path, identity: dict) -> dict:
    from astrobio.dataset import dataset_problems  # torch takes seconds to import, and the workers do without

    if not out.is_dir() or not (out / "manifest.json").is_file():
        raise DataError(f"{out} exists and is no dataset; remove it or choose another --out")
    problems = dataset_problems(out)
    if problems:
        raise DataError(f"{out} exists but is damaged: {problems[0]}; remove the folder and build again")
    manifest = json.loads((out / "manifest.json").read_text())
    there = {**manifest["recipe"], **{key: manifest[key] for key in RULES}}
    wanted = {**identity, **RULES}
    changed = sorted(key for key in wanted.keys() | there.keys() if there.get(key) != wanted.get(key))
    if changed:
        raise DataError(
            f"{out} holds a dataset of another recipe (other {', '.join(changed)}); remove it or choose another --out"
        )
    return manifest


@contextmanager
def _explained(out: Path, folder: Path) -> Iterator[None]:
    """Turn failures of the machine into errors that explain them."""
    try:
        yield
    except BrokenProcessPool as error:
        raise DataError(
            "a worker was killed, perhaps for lack of memory: run the same command again, it goes on where "
            "it was, with --workers 1"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"the disk is full: nothing was left at {out}, and what was finished is kept in {folder}; "
                "free some space (the sample needs about 1 GB) and run the same command again, or remove "
                "that folder and choose another --out"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise DataError(f"{out} cannot be written: {error.strerror} ({error.filename})") from error
        raise
