"""One planet, several catalogues: matched by name, by alias, and by coordinates with the period."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord, search_around_sky

from data_build.planets import PLANET_PARAMETERS, Planet

#: Two entries within this angle (proper motion included: positions differ in epoch) whose periods agree are one planet.
MATCH_RADIUS_ARCSEC = 60.0
MATCH_PERIOD_TOLERANCE = 0.01
#: An alias whose periods differ by more than this factor is that of another planet of the star; long periods are known
#: to a factor of two only.
ANOTHER_PLANET = 3.0
#: Two catalogues disagree on a number when it differs by more than this share of their mean.
DISAGREEMENT = 0.10


def planet_key(name: str) -> str:
    """A planet's key: its name in lower case, runs of anything but letters and digits turned to one hyphen."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def crossmatch(primary: Iterable[Planet], secondary: Iterable[Planet]) -> tuple[list[Planet], dict]:
    """Merge two catalogues into one list of planets with keys.

    A planet of ``secondary`` that is also in ``primary`` fills the columns, aliases and description absent there; the
    primary's numbers stand where both have one, unless it calculated what the secondary read.

    Returns:
        The merged planets (primary's order, then those only in the secondary), and a report: how many were matched by
        which means, which planets the secondary has more than once, and every disagreement of more than `DISAGREEMENT`.
    """
    primary, secondary = list(primary), list(secondary)
    by_alias = {planet_key(alias): index for index, planet in enumerate(primary) for alias in planet.aliases}
    near = _neighbours(secondary, primary)
    merged, only_secondary, disagreements = list(primary), [], []
    taken: Counter = Counter()
    counts = {"by_name": 0, "by_alias": 0, "by_position": 0}
    for number, planet in enumerate(secondary):
        index, means = _match(planet, number, by_alias, near, primary)
        if index is None:
            only_secondary.append(planet)
            continue
        counts[means] += 1
        taken[primary[index].name] += 1
        disagreements += _disagreements(merged[index], planet)
        merged[index] = _merge(merged[index], planet)
    planets = [replace(planet, key=planet_key(planet.name)) for planet in merged + only_secondary]
    matched = sum(counts.values())
    report = {
        "primary": len(primary),
        "secondary": len(secondary),
        **counts,
        "share_of_primary_matched": round(matched / max(1, len(primary)), 4),
        "share_of_secondary_matched": round(matched / max(1, len(secondary)), 4),
        "only_in_primary": len(primary) - matched,
        "only_in_secondary": len(only_secondary),
        "matched_more_than_once": sorted(name for name, count in taken.items() if count > 1),
        "disagreement_limit": DISAGREEMENT,
        "disagreements": disagreements,
    }
    return planets, report


def _match(planet, number, by_alias, near, primary) -> tuple[int | None, str]:
    if planet_key(planet.name) in by_alias:
        return by_alias[planet_key(planet.name)], "by_name"
    period = planet.values.get("orbital_period_d")
    for alias in sorted(planet.aliases):
        index = by_alias.get(planet_key(alias))
        if index is not None:
            other = primary[index].values.get("orbital_period_d")
            # Catalogues give the letters of a system in different orders (BD-06 1339 is Gliese 221, b is c).
            if not (period and other and max(period / other, other / period) > ANOTHER_PLANET):
                return index, "by_alias"
    for index in near.get(number, ()):
        other = primary[index].values.get("orbital_period_d")
        if period and other and abs(period / other - 1) < MATCH_PERIOD_TOLERANCE:
            return index, "by_position"
    return None, ""


def _neighbours(first: list[Planet], second: list[Planet]) -> dict[int, list[int]]:
    """Index in ``first`` → indices in ``second`` within `MATCH_RADIUS_ARCSEC`."""
    placed = [
        [i for i, planet in enumerate(planets) if planet.ra_deg is not None and planet.dec_deg is not None]
        for planets in (first, second)
    ]
    if not all(placed):
        return {}
    coordinates = [
        SkyCoord([planets[i].ra_deg for i in indices] * u.deg, [planets[i].dec_deg for i in indices] * u.deg)
        for planets, indices in zip((first, second), placed, strict=True)
    ]
    pairs = search_around_sky(*coordinates, MATCH_RADIUS_ARCSEC * u.arcsec)[:2]
    near: dict[int, list[int]] = {}
    for i, j in zip(*map(np.asarray, pairs), strict=True):
        near.setdefault(placed[0][i], []).append(placed[1][j])
    return near


def _merge(primary: Planet, secondary: Planet) -> Planet:
    # What one catalogue read stands before what the other calculated.
    filled = (secondary.values.keys() - primary.values.keys()) | (secondary.raw_columns - primary.raw_columns)
    return replace(
        primary,
        source=f"{primary.source}+{secondary.source}" if filled else primary.source,
        values={**secondary.values, **primary.values, **{name: secondary.values[name] for name in filled}},
        derived=(primary.derived - filled) | (secondary.derived & filled),
        raw_columns=primary.raw_columns | (secondary.raw_columns & filled),
        aliases=primary.aliases | secondary.aliases,
        description=primary.description or secondary.description,
        **{
            name: getattr(primary, name) if getattr(primary, name) is not None else getattr(secondary, name)
            for name in ("luminosity_sun", "j_magnitude")
        },
        transits=_either(primary.transits, secondary.transits),
    )


def _either(first: bool | None, second: bool | None) -> bool | None:
    """True if one catalogue has seen it; False if one says no."""
    known = [told for told in (first, second) if told is not None]
    return any(known) if known else None


def _disagreements(first: Planet, second: Planet) -> list[dict]:
    found = []
    for name in PLANET_PARAMETERS:
        if name in first.values and name in second.values and name != "eccentricity":
            a, b = first.values[name], second.values[name]
            difference = abs(a - b) / ((a + b) / 2)
            if difference > DISAGREEMENT:
                found.append(
                    {
                        "planet": first.name,
                        "column": name,
                        first.source: a,
                        second.source: b,
                        "relative_difference": round(difference, 4),
                    }
                )
    return found
