"""Climates that were not emulated become candidates for records: those of the archives, and those a real GCM ran.

Their label follows from their fields by the same rule as an emulated climate's.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from data_build.crossmatch import planet_key
from data_build.habitability import habitability
from data_build.harvest import Harvest
from data_build.planets import Planet
from data_build.selection import Candidate, StoredClimate
from data_build.sources import ARCHIVES
from data_build.sources.climate import fields, planet_and_air


def archived(harvests: Mapping[str, Harvest], planets: list[Planet]) -> list[Candidate]:
    """A candidate for each good climate row of the archives, in the order of archives and rows.

    A planet that is also among ``planets``, by name or alias, has that one's key, so that it is in one split; its
    numbers stay those the simulation used.
    """
    keys = {planet_key(alias): planet.key for planet in planets for alias in (planet.name, *planet.aliases) if alias}
    found, numbers = [], Counter()
    for name in sorted(harvests):
        archive = ARCHIVES[name]
        if archive.info.modality != "climate":
            continue
        for path, row, content in _rows(harvests[name]):
            planet, air = planet_and_air(content, archive.planet_source, archive.planet_kind)
            own = planet_key(planet.name)
            planet = replace(planet, key=keys.get(own, own))
            stored = StoredClimate(name, content["climate_id"], content["processing"], path, row)
            label = habitability(*fields(content), air.surface_pressure_bar)
            found.append(Candidate(planet, numbers[name, planet.key], air, label, core=False, stored=stored))
            numbers[name, planet.key] += 1
    return found


def read(stored: StoredClimate) -> tuple[np.ndarray, np.ndarray]:
    """A stored climate's levels [V, Z, Y, X] and surface [S, Y, X]."""
    return fields(pq.read_table(stored.path, columns=["levels", "surface"]).slice(stored.row, 1).to_pylist()[0])


def report(candidates: list[Candidate]) -> list[dict]:
    """For quality.json: what each stored climate is of, and the rule's verdict on it."""
    return [{"source": candidate.stored.source, "climate": candidate.stored.climate_id,
             "planet": candidate.planet.key, "habitable": candidate.label,
             "processing": candidate.stored.processing} for candidate in candidates]


def _rows(harvest: Harvest) -> Iterator[tuple[Path, int, dict]]:
    for name in sorted(harvest.manifest["files"]):
        if name.endswith(".parquet"):
            for row, content in enumerate(pq.read_table(harvest.folder / name).to_pylist()):
                yield harvest.folder / name, row, content
