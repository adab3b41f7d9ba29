"""Reads a built dataset back and says what is wrong with it."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow

from astrobio.schema import (
    CLIMATE_SURFACE_VARIABLES,
    FEATURES,
    HABITABILITY_RULE,
    LABEL_PROBABILITY,
    OPTIONAL_MODALITIES,
    PLANET_COLUMNS,
    SPLITS,
    TEST_SETS,
)
from data_build.checks import record_problems
from data_build.habitability import column_water_fraction, rule_holds
from data_build.records import ARRAY_DTYPES, record_digest

_STATISTICS = ("planet", "climate_levels", "climate_surface", "node_features", "edge_features", "spectrum")
#: After this many problems the rest of the records is not read: a dataset so damaged is built again, not mended.
_MOST_PROBLEMS = 50


def validate(folder: str | Path) -> list[str]:
    """What is wrong with the dataset in ``folder``, one line each; empty if nothing is.

    First the files (`astrobio.dataset.dataset_problems`: presence, sha256, versions, tokenizer). If these are whole,
    every record is read and checked against the schema, physics and the label's rule; then the splits (no planet in
    two, no run twice), the statistics and the content hash.
    """
    from astrobio.dataset import dataset_problems  # torch takes seconds, and the workers do without

    folder = Path(folder)
    problems = dataset_problems(folder)
    if problems:
        return problems
    manifest = json.loads((folder / "manifest.json").read_text())
    problems = _statistics_problems(folder / "stats.json")
    for key, rule in (("habitability_rule", HABITABILITY_RULE), ("label_probability", LABEL_PROBABILITY)):
        if manifest[key] != rule:
            problems.append(f"{folder / 'manifest.json'}: {key} is not that of this program: build it again")
    digest = hashlib.sha256()
    seen_runs: set[tuple[str, str]] = set()
    split_of: dict[str, str] = {}
    sets = [name for name in TEST_SETS if name in manifest["counts"]]
    for split in (*SPLITS, *sets):
        try:
            table = datasets.load_from_disk(str(folder / split))
            if table.features != FEATURES:
                problems.append(f"{folder / split}: its fields are not those of the schema")
                continue
            for number, record in enumerate(read_records(table)):
                digest.update(record_digest(record))
                where = f"{folder / split}: record {number} ({record['run_id']})"
                problems += [f"{where}: {problem}" for problem in record_problems(record) or _label_problems(record)]
                if (split if split in sets else "", record["run_id"]) in seen_runs:
                    problems.append(f"{where}: this run_id is there twice")
                seen_runs.add((split if split in sets else "", record["run_id"]))
                if split == "measured":  # it has no label: a planet may be in a split as well
                    continue
                home = "test" if split in sets else split
                other = split_of.setdefault(record["planet_key"], home)
                if other != home:
                    problems.append(f"{where}: its planet {record['planet_key']} is in {other} as well")
                if len(problems) >= _MOST_PROBLEMS:
                    return [*problems, f"{folder}: more than {_MOST_PROBLEMS} problems; the rest was not read"]
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            problems.append(f"{folder / split}: cannot be read: {error}")
    if not problems and digest.hexdigest() != manifest["content_sha256"]:
        problems.append(
            f"{folder / 'manifest.json'}: content_sha256 is {manifest['content_sha256']}, the records give "
            f"{digest.hexdigest()}"
        )
    return problems


def read_records(table: datasets.Dataset) -> Iterator[dict]:
    """The records of a stored split as they were made: arrays of the schema's dtypes, absent ones None."""
    # The numpy format turns null into NaN, so what is null is asked of Arrow.
    null = {name: table.data.column(name).is_null().to_pylist() for name in ARRAY_DTYPES}
    for number, row in enumerate(table.with_format("numpy")):
        record = dict(row)
        for name, dtype in ARRAY_DTYPES.items():
            record[name] = None if null[name][number] else np.asarray(record[name], dtype)
        for name in ("run_id", "planet_key", "text"):
            record[name] = str(record[name])
        for name in ("label_present", *(f"{modality}_present" for modality in OPTIONAL_MODALITIES)):
            record[name] = bool(record[name])
        record["label"] = np.int8(record["label"])
        record["label_probability"] = np.float32(record["label_probability"])
        record["provenance"] = {
            part: {key: float(item) if key == "quality" else str(item) for key, item in entry.items()}
            for part, entry in record["provenance"].items()
        }
        yield record


def _label_problems(record: dict) -> Iterator[str]:
    """The label must follow from the climate the record holds, by the rule."""
    if not record["label_present"] or record["climate_levels"] is None:
        return
    names = [column.name for column in PLANET_COLUMNS]
    pressure = float(record["planet"][names.index("surface_pressure_bar")])
    surface = [column.name for column in CLIMATE_SURFACE_VARIABLES].index("surface_temperature")
    water = column_water_fraction(record["climate_levels"][:, 0], pressure)
    expected = int(rule_holds(record["climate_surface"][surface, 0].astype(float), water))
    if expected != int(record["label"]):
        yield f"label is {int(record['label'])}, by the rule {HABITABILITY_RULE['name']} its climate gives {expected}"


def _statistics_problems(path: Path) -> list[str]:
    statistics = json.loads(path.read_text())
    problems = [f"{path}: the key {name} is absent" for name in _STATISTICS if name not in statistics]
    for name, moments in statistics.items():
        values = np.array([moments.get("mean", [np.nan]), moments.get("std", [np.nan])], float)
        if not np.isfinite(values).all() or (values[1] <= 0).any():
            problems.append(f"{path}: {name} must have finite means and standard deviations above 0")
    return problems
