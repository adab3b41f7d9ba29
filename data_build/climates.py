"""Candidates whose climates were not emulated: those of the archives, and those of a real GCM.

The rule that labels emulated climates labels them too.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_build.crossmatch import planet_key
from data_build.habitability import habitability
from data_build.harvest import Harvest, schema_of
from data_build.planets import Planet
from data_build.selection import Candidate, StoredClimate
from data_build.sources import CLIMATE_ARCHIVES
from data_build.sources.climate import FIELDS, climate_problems, fields, planet_and_air
from data_build.sources.exoplasim import ExoPlaSim


def archived(harvests: Mapping[str, Harvest], planets: list[Planet]) -> list[Candidate]:
    """A candidate for each good climate row of the archives, in the order of archives and rows.

    A planet that is also among ``planets``, by name or alias, gets that planet's key, so that both are in one split;
    its numbers stay those of the simulation.
    """
    keys = {planet_key(alias): planet.key for planet in planets for alias in (planet.name, *planet.aliases) if alias}
    found: list[Candidate] = []
    numbers: Counter[tuple[str, str]] = Counter()
    for name in sorted(harvests.keys() & CLIMATE_ARCHIVES.keys()):
        archive = CLIMATE_ARCHIVES[name]
        for path, row, content in _rows(harvests[name]):
            planet, air = planet_and_air(content, archive.planet_source, archive.planet_kind)
            own = planet_key(planet.name)
            planet = replace(planet, key=keys.get(own, own))
            stored = StoredClimate(name, content["climate_id"], content["processing"], path, row)
            label = habitability(*fields(content), air.surface_pressure_bar)
            found.append(Candidate(planet, numbers[name, planet.key], air, label, core=False, stored=stored))
            numbers[name, planet.key] += 1
    return found


def to_simulate(candidates: Mapping[str, list[Candidate]], planets: int) -> list[Candidate]:
    """Candidates for a GCM: of each of the first ``planets`` planets that have both, one that is habitable by the
    emulator and one that is not, inside the same domain of the emulator."""
    chosen = []
    for members in candidates.values():
        for core in (True, False):
            habitable, not_habitable = (
                next((candidate for candidate in members if candidate.label == label and candidate.core == core), None)
                for label in (1, 0)
            )
            if habitable is not None and not_habitable is not None:
                chosen.append(sorted((habitable, not_habitable), key=lambda candidate: candidate.number))
                break
        if len(chosen) == planets:
            break
    return [candidate for pair in chosen for candidate in pair]


def simulate(candidate: Candidate, years: int) -> dict[str, Any]:
    """A worker's task: ExoPlaSim's climate of a candidate, as a row of `data_build.sources.climate`."""
    return ExoPlaSim().climate(candidate.run_id, candidate.planet, candidate.atmosphere, years)


def write_row(row: dict[str, Any], path: Path) -> None:
    """Write one climate row as Parquet."""
    pq.write_table(pa.Table.from_pylist([row], schema_of(FIELDS)), path)


def simulated(candidates: list[Candidate], files: list[Path]) -> tuple[list[Candidate], list[dict]]:
    """The candidates with the climates in ``files`` in place of the emulator's, and those set aside with the reason."""
    found, set_aside, name = [], [], ExoPlaSim.info.name
    for candidate, path in zip(candidates, files, strict=True):
        row = pq.read_table(path).to_pylist()[0]
        own = replace(candidate, core=False, stored=StoredClimate(name, candidate.run_id, row["processing"], path, 0))
        problems = climate_problems(row)
        if problems:
            set_aside.append({"run_id": own.run_id, "reason": "; ".join(problems)})
            continue
        air = replace(candidate.atmosphere, surface_pressure_bar=row["surface_pressure_bar"])
        found.append(replace(own, atmosphere=air, label=habitability(*fields(row), air.surface_pressure_bar)))
    return found, set_aside


def read(stored: StoredClimate) -> tuple[np.ndarray, np.ndarray]:
    """A stored climate's levels [V, Z, Y, X] and surface [S, Y, X]."""
    return fields(pq.read_table(stored.path, columns=["levels", "surface"]).slice(stored.row, 1).to_pylist()[0])


def report(candidates: list[Candidate]) -> list[dict]:
    """For quality.json: each stored climate's source and planet, and the rule's verdict."""
    return [
        {
            "source": stored.source,
            "climate": stored.climate_id,
            "planet": candidate.planet.key,
            "habitable": candidate.label,
            "processing": stored.processing,
        }
        for candidate in candidates
        if (stored := candidate.stored) is not None
    ]


def _rows(harvest: Harvest) -> Iterator[tuple[Path, int, dict]]:
    for name in sorted(harvest.manifest["files"]):
        if name.endswith(".parquet"):
            for row, content in enumerate(pq.read_table(harvest.folder / name).to_pylist()):
                yield harvest.folder / name, row, content
