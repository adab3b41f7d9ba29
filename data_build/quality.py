"""quality.json: how complete, consistent and balanced the dataset is, with the limits of each check."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from astrobio.schema import HELD_OUT_GCM, MODALITIES, OPTIONAL_MODALITIES, PLANET_COLUMNS, SPLITS, TEST_SETS
from data_build import checks
from data_build.climates import report
from data_build.computed_spectra import HALF_QUALITY_SIGMA
from data_build.humidity import RELATIVE_HUMIDITY_LIMIT, SUPERSATURATION_LIMIT
from data_build.planets import PLANET_PARAMETERS, Planet, kepler_axis_au
from data_build.recipe import Recipe
from data_build.selection import Candidate, Run
from data_build.sources import Cobra
from data_build.sources.clero import GCM

_KEPLER_LIMIT = 0.10


class Quality:
    """Gathers figures while a dataset is built; `counts` is for the manifest, `report` for quality.json."""

    def __init__(self, recipe: Recipe, planets: list[Planet], crossmatch: dict, more_checks: Sequence[dict] = ()):
        self._recipe, self._crossmatch, self._more_checks = recipe, crossmatch, more_checks
        self._planets = {planet.key: planet for planet in planets}
        self._used: set[str] = set()  # keys of the splits' planets
        self._members: dict[tuple[str, str], set[str]] = defaultdict(set)  # (split or test set, kind) → planet keys
        self._flips: list[bool] = []
        self._tally: Counter = Counter()
        self._set_aside: Counter = Counter()
        self._imbalance: list[float] = []
        self._humidity: list[float] = []
        self._own_probability: list[float] = []
        self._candidates: dict = {}
        self._stored: list[dict] = []

    def candidates(self, candidates: dict[str, list[Candidate]]) -> None:
        """Count all candidate runs, before the selection."""
        found: dict[str, Counter] = defaultdict(Counter)
        for members in candidates.values():
            for candidate in members:
                name = _label_name(candidate.label) if candidate.possible else "beyond saturation"
                found[candidate.planet.kind][name] += 1
        self._candidates = {kind: dict(counter) for kind, counter in found.items()}

    def stored(self, candidates: list[Candidate]) -> None:
        """Add the climates that were not emulated."""
        self._stored = report(candidates)
        for candidate in candidates:
            self._planets.setdefault(candidate.planet.key, candidate.planet)

    def set_aside(self, reason: str) -> None:
        """Count something that was set aside."""
        self._set_aside[reason] += 1

    def add(self, run: Run, record: dict) -> None:
        """Count a record of the dataset."""
        planet = run.candidate.planet
        self._used.add(planet.key)
        self._count(run.split, planet, record)
        self._tally[run.split, planet.kind, "core domain"] += run.candidate.core
        self._tally[run.split, planet.kind, "named"] += run.named
        if record["climate_present"]:
            self._imbalance.append(checks.energy_imbalance(record))
            self._humidity.append(checks.relative_humidity(record))
        probability = float(record["label_probability"])
        if record["label_present"] and not np.isnan(probability):
            self._own_probability.append(probability if record["label"] else 1 - probability)

    def add_further(self, name: str, planet: Planet, label: int | None, record: dict) -> None:
        """Count a record of a further test set; ``label`` is that of the run in the splits, if it is there."""
        self._count(name, planet, record)
        if record["label_present"] and label is not None:
            self._flips.append(int(record["label"]) != label)

    def _count(self, name: str, planet: Planet, record: dict) -> None:
        label = int(record["label"]) if record["label_present"] else None
        self._members[name, planet.kind].add(planet.key)
        self._tally[name, planet.kind, "records"] += 1
        self._tally[name, planet.kind, f"label {_label_name(label)}"] += 1
        for modality in OPTIONAL_MODALITIES:
            self._tally[name, planet.kind, f"with {modality}"] += record[f"{modality}_present"]

    def counts(self) -> dict:
        """Split, or further test set, → kind of planet → counts of planets, records, labels and modalities."""
        names = [*SPLITS, *(name for name in TEST_SETS if any(name == member for member, _ in self._members))]
        counts: dict = {
            name: {kind: {"planets": len(self._members[name, kind])} for kind in ("observed", "synthetic")}
            for name in names
        }
        for (split, kind, name), number in sorted(self._tally.items()):
            counts[split][kind][name.replace(" ", "_")] = number
        return counts

    def report(self) -> dict:
        """The content of quality.json."""
        planets = [planet for key, planet in self._planets.items() if key in self._used]
        return {
            "completeness": {
                kind: _completeness([planet for planet in planets if planet.kind == kind])
                for kind in ("observed", "synthetic")
            },
            "crossmatch": self._crossmatch,
            "candidates": self._candidates,
            **({"stored_climates": self._stored} if self._stored else {}),
            "label": self._label(),
            "checks": self._checks(planets),
            "set_aside": dict(self._set_aside),
            "qualities": {
                "planet": "share of the star and planet columns read from a catalogue; 0.5 if sampled",
                "climate": "1 inside CLERO's core domain, 1 / (1 + d²) at the distance d from it, in units of its "
                "distance from the end of the extended domain"
                + ("; 1 where it was not emulated" if self._stored else ""),
                "metabolism": "share of the network's conditions that follow from the record, the temperature counted "
                "with the climate's quality; the others are assumed",
                "spectrum": f"s² / (s² + {HALF_QUALITY_SIGMA**2:g}), by how many σ s its features exclude a flat line",
                "text": "1 with a catalogue's description, 0.5 without",
            },
            "modalities": list(MODALITIES),
        }

    def _label(self) -> dict:
        """How sure the labels are, by their own probability; and how many are others under the model held out."""
        own = np.array(self._own_probability or [np.nan])
        figures = {
            "labelled": len(self._own_probability),
            "mean_probability_of_own_label": round(float(own.mean()), 4),
            "share_less_probable_than_not": round(float((own < 0.5).mean()), 4),
            "bayes_ceiling": round(float(np.maximum(own, 1 - own).mean()), 4),
        }
        if self._flips:
            figures |= {
                f"labelled_by_{GCM}_and_{HELD_OUT_GCM}": len(self._flips),
                "share_that_flips": round(float(np.mean(self._flips)), 4),
            }
        return figures

    def _checks(self, planets: list[Planet]) -> list[dict]:
        ranges = [
            {
                "check": f"range of planet.{column.name}",
                "unit": column.unit,
                "limit": [column.minimum, column.maximum],
                **_extent([planet.values[column.name] for planet in planets if column.name in planet.values]),
            }
            for column in PLANET_COLUMNS
            if column.name in PLANET_PARAMETERS
        ]
        kepler = {
            planet.key: abs(
                planet.values["semi_major_axis_au"]
                / kepler_axis_au(planet.values["orbital_period_d"], planet.values["stellar_mass_sun"])
                - 1
            )
            for planet in planets
            if {"semi_major_axis_au", "orbital_period_d", "stellar_mass_sun"} <= planet.values.keys()
        }
        beyond = {key: round(value, 4) for key, value in kepler.items() if value > _KEPLER_LIMIT}
        imbalance = np.abs(self._imbalance) if self._imbalance else np.zeros(1)
        return ranges + [
            {
                "check": "Kepler's third law: relative difference of the semi-major axis",
                "limit": _KEPLER_LIMIT,
                "checked": len(kepler),
                "beyond": beyond,
                "then": "kept: the catalogue's numbers stand",
            },
            {
                "check": "energy balance: |absorbed − outgoing| over a quarter of the instellation",
                "limit": checks.ENERGY_BALANCE_LIMIT,
                "checked": len(self._imbalance),
                "median": float(np.median(imbalance)),
                "maximum": float(imbalance.max()),
                "then": "set aside",
            },
            {
                "check": "area-mean relative humidity at the lowest level, over water or ice",
                "limit": RELATIVE_HUMIDITY_LIMIT,
                "checked": len(self._humidity),
                "median": float(np.median(self._humidity or [0])),
                "maximum": float(max(self._humidity, default=0)),
                "then": "set aside",
            },
            {
                "check": "the same of the emulator's candidates, before their humidity is capped at saturation",
                "limit": SUPERSATURATION_LIMIT,
                "checked": sum(sum(kind.values()) for kind in self._candidates.values()),
                "beyond": sum(kind.get("beyond saturation", 0) for kind in self._candidates.values()),
                "then": "no candidate",
            },
            {
                "check": "reactions balance their elements and charge",
                "limit": 0,
                "beyond": Cobra().unbalanced(),
                "then": "reported: the published network stands",
            },
            {"check": "gravity is GM/R²", "limit": checks.GRAVITY_LIMIT, "then": "set aside"},
            {
                "check": "net flux of each metabolite, mmol gDW-1 h-1",
                "limit": checks.MASS_BALANCE_LIMIT,
                "then": "set aside",
            },
            {"check": "mean transit depth over (R_p/R_*)²", "limit": list(checks.DEPTH_LIMIT), "then": "set aside"},
            *self._more_checks,
        ]


def _completeness(planets: list[Planet]) -> dict:
    """Column → share of planets for which it was read (raw), computed (derived), or known at all."""
    count = max(1, len(planets))
    shares = {}
    for name in PLANET_PARAMETERS:
        known = sum(name in planet.values for planet in planets)
        derived = sum(name in planet.derived for planet in planets)
        shares[name] = {
            "raw": round((known - derived) / count, 4),
            "derived": round(derived / count, 4),
            "known": round(known / count, 4),
        }
    required = [column.name for column in PLANET_COLUMNS if column.required and column.name in PLANET_PARAMETERS]
    shares["all required columns"] = {
        "known": round(sum(all(name in planet.values for name in required) for planet in planets) / count, 4)
    }
    return shares


def _extent(values: list[float]) -> dict:
    return {
        "checked": len(values),
        "minimum": float(min(values, default=0)),
        "maximum": float(max(values, default=0)),
        "then": "set aside",
    }


def _label_name(label: int | None) -> str:
    return {1: "habitable", 0: "not habitable", None: "open"}[label]
