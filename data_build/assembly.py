"""The last stage: records that were computed become a dataset folder, checked one by one."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import datasets

from astrobio.files import sync
from astrobio.schema import HABITABILITY_RULE, LABEL_PROBABILITY, SCHEMA_VERSION, SPLITS, sha256_of
from data_build.cache import DataError
from data_build.card import write_card
from data_build.checks import record_problems
from data_build.harvest import Harvest
from data_build.planets import Planet
from data_build.quality import Quality
from data_build.recipe import Recipe
from data_build.selection import Run
from data_build.sources import INFOS
from data_build.statistics import Statistics
from data_build.validation import read_records
from data_build.vocabulary import train_tokenizer
from data_build.writing import SplitWriter

#: Groups of runs, each with its records.
Made = Iterable[tuple[Sequence[Run], list[dict]]]

#: Records of a further test set, each with its planet and the label that the run has in the splits, if it is there.
Further = Iterable[tuple[Planet, int | None, dict]]

#: What the labels follow from, as the manifest has it.
RULES = {"habitability_rule": HABITABILITY_RULE, "label_probability": LABEL_PROBABILITY}

#: Versions of these are in the manifest: they decide the content.
PACKAGES = ("astropy", "astroquery", "clero", "cobra", "datasets", "numpy", "scipy", "taurex", "tokenizers")


def versions() -> dict[str, str]:
    """The installed versions of `PACKAGES`."""
    return {name: version(name) for name in PACKAGES}


def records_of(groups: Iterable[Sequence[Run]], chunks: Iterable[Path]) -> Made:
    """Each group of runs with its records, read back from the chunks they were written to, in order."""
    records = (record for path in chunks for record in read_records(datasets.Dataset.from_file(str(path))))
    for group in groups:
        yield group, [next(records) for _ in group]


def again(made: Made) -> Further:
    """Records of runs that are in the splits too."""
    for runs, records in made:
        for run, record in zip(runs, records, strict=True):
            yield run.candidate.planet, run.candidate.label, record


def assemble(
    folder: Path,
    recipe: Recipe,
    identity: dict,
    made: Made,
    further: Mapping[str, Further],
    planets_aside: list[dict],
    quality: Quality,
    sources: list[str],
    harvests: Mapping[str, Harvest],
    failed: Mapping[str, str],
) -> dict:
    """Write the dataset into ``folder`` (removed first, if there is one) and return its manifest.

    Args:
        made: groups of runs with their records, in the dataset's order.
        further: the records of the further test sets, by name.
        planets_aside: planets that were set aside before, with the reason.
        sources, harvests: what the manifest and the card name besides.
        failed: archives that could not be read → why.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    written = _write_records(made, further, planets_aside, folder, quality)
    with written.train_texts.open() as texts:
        train_tokenizer((json.loads(line) for line in texts), recipe.vocabulary_size, folder / "tokenizer")
    written.train_texts.unlink()
    _write_json(folder / "stats.json", written.statistics.as_dict())
    for name, harvest in harvests.items():
        shutil.copytree(harvest.folder, folder / "archives" / name)
    report = quality.report()
    if harvests:
        report["archives"] = {
            name: {key: harvest.manifest[key] for key in ("rows", "complete", "quarantined", "unused", "completeness")}
            for name, harvest in harvests.items()
        }
    _write_json(folder / "quality.json", report)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "recipe": identity,
        "seed": recipe.seed,
        "content_sha256": written.content_sha256,
        "counts": quality.counts(),
        **RULES,
        "versions": versions(),
        "sources": {name: INFOS[name].as_dict() for name in (*sources, *harvests)},
    }
    if failed:
        manifest["failed_archives"] = dict(failed)
    write_card(folder, manifest, report)
    manifest["files"] = {
        path.relative_to(folder).as_posix(): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    _write_json(folder / "manifest.json", manifest)
    _sync(folder)
    return manifest


@dataclass(frozen=True)
class _Written:
    """What is left to do something with once the records are on disk."""

    content_sha256: str
    statistics: Statistics
    train_texts: Path  # JSON strings, a line each


def _write_records(
    made: Made, further: Mapping[str, Further], planets_aside: list[dict], folder: Path, quality: Quality
) -> _Written:
    """Check the records of each group of runs, and write them to their split or to quarantine.jsonl."""
    statistics, text_file = Statistics(), folder / "train_texts"
    with (
        SplitWriter(folder) as writer,
        (folder / "quarantine.jsonl").open("w") as quarantine,
        text_file.open("w") as texts,
    ):

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
                    texts.write(json.dumps(record["text"]) + "\n")
        for name, members in further.items():
            for planet, label, record in members:
                if problem := "; ".join(map(str, record_problems(record))):
                    set_aside({"run_id": record["run_id"], "test_set": name, "reason": problem})
                    continue
                writer.write(name, record)
                quality.add_further(name, planet, label, record)
        empty = [split for split in SPLITS if not writer.digests[split]]
        if empty:
            raise DataError(f"no record is left for {', '.join(empty)}: raise the limit or the recipe's numbers")
        writer.finish()
    digest = hashlib.sha256()
    for digests in writer.digests.values():
        for record_digest in digests:
            digest.update(record_digest)
    return _Written(digest.hexdigest(), statistics, text_file)


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        sync(path)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
