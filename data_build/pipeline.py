"""From a recipe to a dataset: gather planets, sample runs, label and choose them, compute their records, write.

A build is made in a folder beside the target and renamed at the end: the target is there whole or not at all.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import clero
from filelock import FileLock
from tqdm import tqdm

from astrobio.schema import HABITABILITY_RULE, SCHEMA_VERSION, SPLITS
from data_build.cache import DataError, sha256_of
from data_build.card import write_card
from data_build.checks import record_problems
from data_build.crossmatch import crossmatch
from data_build.planets import PLANET_PARAMETERS, Planet, derive, in_domain
from data_build.quality import Quality
from data_build.recipe import Recipe, load_recipe
from data_build.sampling import sample_planets, stream
from data_build.selection import Run, select_runs
from data_build.sources import CATALOGUES, SOURCES
from data_build.statistics import Statistics
from data_build.validation import validate
from data_build.vocabulary import train_tokenizer
from data_build.workers import group_records, ordered, planet_candidates, worker_pool
from data_build.writing import SplitWriter

#: Versions of these are in the manifest: they decide the content.
_PACKAGES = ("astropy", "astroquery", "clero", "cobra", "datasets", "numpy", "scipy", "taurex", "tokenizers")

#: Groups of runs that a worker computes at a time. Fixed, so that batches, and with them the last digits of floating
#: point sums, do not depend on the number of workers.
_GROUPS_PER_TASK = 8

__all__ = ["build", "fetch", "gather_planets", "validate"]


def build(recipe: str | Path, out: Path, *, limit: int | None = None, workers: int = 2, progress: bool = True) -> dict:
    """Build a dataset and return its manifest.

    If ``out`` already holds a dataset of the same recipe (and limit), its manifest is returned at once. The content
    hash depends on the recipe and ``limit`` alone, not on ``workers``.

    Args:
        recipe: a name in data_build/recipes, or the path of a YAML file.
        out: the dataset's folder; its parent is made if absent.
        limit: take at most this many planets, for a quick try.
        workers: processes that compute records, each with one thread.
        progress: draw bars on a terminal, or write a line for each stage elsewhere.

    Raises:
        DataError: a bad recipe, something else at ``out``, data that cannot be had, a full disk, a worker that was
            killed. Nothing is left at ``out``.
    """
    plan = load_recipe(recipe)
    out = Path(out).absolute()
    for name, value, lowest in (("limit", limit, 4), ("workers", workers, 1)):
        if value is not None and value < lowest:
            raise DataError(f"{name} is {value}, it must be at least {lowest}")
    identity = {**plan.as_dict(), "limit": limit}
    with _explained(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(out.parent / f".{out.name}.lock"):
            if out.exists():
                return _existing(out, identity)
            partial = out.parent / f".{out.name}.partial"
            shutil.rmtree(partial, ignore_errors=True)  # of a build that was killed
            try:
                partial.mkdir()
                manifest = _build(plan, identity, partial, workers, Stages(progress))
                _sync(partial)
                os.rename(partial, out)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return manifest


def fetch(recipe: str | Path) -> list[str]:
    """Fetch and check every file the recipe's sources need, so that later builds need no network.

    Returns:
        The names of the sources. Raises `DataError` where a file cannot be had.
    """
    return _ensure_sources(load_recipe(recipe))


def gather_planets(recipe: Recipe, limit: int | None = None) -> tuple[list[Planet], dict, list[dict]]:
    """The recipe's planets, real and sampled, inside CLERO's extended domain.

    Returns:
        The planets, the report of the cross-match, and the real planets set aside with the reason. Of the catalogues'
        thousands of planets outside the emulator's domain only the number is told, in the report.
    """
    catalogues = [CATALOGUES[name]().planets() for name in recipe.catalogues]
    planets, report = crossmatch(catalogues[0], [planet for planets in catalogues[1:] for planet in planets])
    planets = [derive(planet) for planet in planets]
    inside = [planet for planet in planets if in_domain(planet, clero.EXTENDED_DOMAIN)]
    report["merged"], report["inside_extended_domain"] = len(planets), len(inside)
    names = {planet.name for planet in inside}
    report["disagreements_in_all"] = len(report["disagreements"])
    report["disagreements"] = [entry for entry in report["disagreements"] if entry["planet"] in names]
    report["raw_completeness"] = {
        name: {column: round(sum(column in planet.values for planet in members) / len(members), 4)
               for column in PLANET_PARAMETERS}
        for name, members in zip(recipe.catalogues, catalogues, strict=True)}
    report["inside_core_domain"] = sum(in_domain(planet, clero.CORE_DOMAIN) for planet in inside)
    set_aside, real = [], []
    for planet in inside:
        lacking = [name for name in ("stellar_radius_sun", "semi_major_axis_au", "mass_earth")
                   if name not in planet.values] + (["j_magnitude"] if planet.j_magnitude is None else [])
        if lacking:
            set_aside.append({"planet_key": planet.key, "reason": f"no spectrum can be computed without "
                              f"{', '.join(lacking)}"})
        else:
            real.append(planet)
    sampled = sample_planets(recipe.sampled_planets, planets, {planet.host for planet in real}, recipe.seed)
    if limit is not None:
        share = limit * len(real) // max(1, len(real) + len(sampled))
        chosen = stream(recipe.seed, "limit").permutation(len(real))[:share]
        real, sampled = [real[index] for index in sorted(chosen)], sampled[:limit - share]
    return real + sampled, report, set_aside


def _build(recipe: Recipe, identity: dict, folder: Path, workers: int, stages: "Stages") -> dict:
    stages.say("planets: reading and matching the catalogues")
    sources = _ensure_sources(recipe)
    planets, report, set_aside = gather_planets(recipe, identity["limit"])
    quality = Quality(recipe, planets, report)
    with worker_pool(workers) as pool:
        tasks = [(planet, recipe) for planet in planets]
        found = stages.bar("candidates", ordered(pool, planet_candidates, tasks, workers), len(tasks))
        candidates = {members[0].planet.key: members for members in found}
        quality.candidates(candidates)
        groups, alone = select_runs(candidates, recipe)
        if not groups:
            raise DataError("no run could be chosen: raise the limit, sampled_planets or candidates_per_planet")
        tasks = [(groups[start:start + _GROUPS_PER_TASK], recipe) for start in range(0, len(groups), _GROUPS_PER_TASK)]
        batches = stages.bar("records", ordered(pool, group_records, tasks, workers), len(tasks))
        written = _write_records((item for batch in batches for item in batch), set_aside + alone, folder, quality)
    stages.say("writing: statistics, tokenizer, reports")
    train_tokenizer(written.train_texts, recipe.vocabulary_size, folder / "tokenizer")
    _write_json(folder / "stats.json", written.statistics.as_dict())
    report = quality.report()
    _write_json(folder / "quality.json", report)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "recipe": identity,
        "seed": recipe.seed,
        "content_sha256": written.content_sha256,
        "counts": quality.counts(),
        "habitability_rule": HABITABILITY_RULE,
        "versions": {name: version(name) for name in _PACKAGES},
        "sources": {name: asdict(SOURCES[name].info) for name in sources},
    }
    write_card(folder, manifest, report)
    manifest["files"] = {path.relative_to(folder).as_posix(): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
                         for path in sorted(folder.rglob("*")) if path.is_file()}
    _write_json(folder / "manifest.json", manifest)
    return manifest


@dataclass(frozen=True)
class _Written:
    """What is left to do something with once the records are on disk."""

    content_sha256: str
    statistics: Statistics
    train_texts: list[str]


def _write_records(made: Iterable[tuple[tuple[Run, ...], list[dict]]], planets_aside: list[dict], folder: Path,
                   quality: Quality) -> _Written:
    """Check the records of each group of runs, and write them to their split or to quarantine.jsonl."""
    statistics, texts = Statistics(), []
    with SplitWriter(folder) as writer, (folder / "quarantine.jsonl").open("w") as quarantine:

        def set_aside(entry: dict) -> None:
            quarantine.write(json.dumps(entry) + "\n")
            quality.set_aside(entry["reason"])

        for entry in planets_aside:
            set_aside(entry)
        for group, records in made:
            problems = ["; ".join(map(str, record_problems(record))) for record in records]
            if any(problems):  # a pair stays or goes as a whole, else the label would be unbalanced
                for record, reason in zip(records, problems, strict=True):
                    set_aside({"run_id": record["run_id"], "reason": reason or "its partner was set aside"})
                continue
            for run, record in zip(group, records, strict=True):
                writer.write(run.split, record)
                quality.add(run, record)
                if run.split == "train":
                    statistics.add(record)
                    texts.append(record["text"])
        empty = [split for split in SPLITS if not writer.digests[split]]
        if empty:
            raise DataError(f"no record is left for {', '.join(empty)}: raise the limit or the recipe's numbers")
        writer.finish()
    digests = b"".join(digest for split in SPLITS for digest in writer.digests[split])
    return _Written(hashlib.sha256(digests).hexdigest(), statistics, texts)


def _ensure_sources(recipe: Recipe) -> list[str]:
    """The names of the recipe's sources, their files fetched and checked."""
    names = [name for name in SOURCES if name in recipe.catalogues or name not in CATALOGUES]
    for name in names:
        SOURCES[name]().ensure()
    return names


def _existing(out: Path, identity: dict) -> dict:
    from astrobio.dataset import dataset_problems

    if not out.is_dir() or not (out / "manifest.json").is_file():
        raise DataError(f"{out} exists and is no dataset; remove it or choose another --out")
    problems = dataset_problems(out)
    if problems:
        raise DataError(f"{out} exists but is damaged: {problems[0]}; remove the folder and build again")
    manifest = json.loads((out / "manifest.json").read_text())
    if manifest["recipe"] != identity or manifest["habitability_rule"] != HABITABILITY_RULE:
        changed = [key for key in identity if manifest["recipe"].get(key) != identity[key]] or ["habitability_rule"]
        raise DataError(f"{out} holds a dataset of another recipe (other {', '.join(changed)}); remove it or choose "
                        "another --out")
    return manifest


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    """Turn what the machine may do to a build into an error that says so."""
    try:
        yield
    except BrokenProcessPool as error:
        raise DataError("a worker was killed, perhaps for lack of memory: try --workers 1") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(f"the disk is full: the dataset at {out} could not be written and nothing was left there; "
                            "free about 600 MB or choose another --out") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise DataError(f"{out} cannot be written: {error.strerror} ({error.filename})") from error
        raise


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


class Stages:
    """Progress on stderr: bars on a terminal, one line a stage elsewhere, nothing if switched off."""

    def __init__(self, on: bool):
        self._on, self._bars = on, on and sys.stderr.isatty()

    def say(self, text: str) -> None:
        """Tell that a stage begins."""
        if self._on:
            print(text, file=sys.stderr, flush=True)

    def bar(self, name: str, items: Iterable, total: int) -> Iterator:
        """Pass ``items`` on and show how many of ``total`` have come."""
        if not self._bars:
            self.say(f"{name}: {total} batches")
        return iter(tqdm(items, desc=name, total=total, disable=not self._bars, file=sys.stderr))
