"""Who has looked at a planet's star: Gaia's stars and the telescopes' observations, matched by position.

Stars move. Gaia's positions are brought from their epoch to that of the catalogue's position by their proper motion
(astropy's `SkyCoord.apply_space_motion`) before they are compared.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import astropy.units as u
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.time import Time

from data_build.harvest import Harvest
from data_build.planets import Planet
from data_build.sources import ARCHIVES

STAR_RADIUS_ARCSEC = 5.0
POINTING_RADIUS_ARCSEC = 30.0  # a telescope's pointing is not the star's position, and the star has moved since
_BLOCK = 20_000  # rows in memory at a time


def match_stars(planets: list[Planet], stars: Iterable[dict[str, Any]]) -> tuple[list[Planet], dict]:
    """Fill the temperature of hosts that a catalogue leaves open, from Gaia.

    Args:
        stars: rows of `data_build.sources.gaia.Gaia`.

    Returns:
        The planets, and how many hosts were found and how many temperatures filled or in disagreement by over 10%.
    """
    placed = [i for i, planet in enumerate(planets) if planet.ra_deg is not None and planet.dec_deg is not None]
    best: dict[int, tuple[float, dict]] = {}
    epochs = sorted({planets[i].epoch for i in placed})
    for block in _blocks(stars):
        moved = SkyCoord(
            ra=_column(block, "ra_deg") * u.deg,
            dec=_column(block, "dec_deg") * u.deg,
            pm_ra_cosdec=_column(block, "pm_ra_cosdec_mas_yr") * u.mas / u.yr,
            pm_dec=_column(block, "pm_dec_mas_yr") * u.mas / u.yr,
            obstime=Time(_column(block, "epoch", 2016.0), format="jyear"),
        )
        for epoch in epochs:
            members = [i for i in placed if planets[i].epoch == epoch]
            at_epoch = moved.apply_space_motion(new_obstime=Time(epoch, format="jyear"))
            index, distance, _ = _sky(planets, members).match_to_catalog_sky(SkyCoord(at_epoch.ra, at_epoch.dec))
            for i, star, separation in zip(members, np.atleast_1d(index), distance.arcsec, strict=True):
                if separation <= STAR_RADIUS_ARCSEC and separation < best.get(i, (np.inf, {}))[0]:
                    best[i] = (float(separation), block[star])
    filled, disagreeing = 0, 0
    planets = list(planets)
    for i, (_, star) in best.items():
        temperature, known = star["stellar_temperature_k"], planets[i].values.get("stellar_temperature_k")
        if temperature is None:
            continue
        if known is None:
            filled += 1
            planets[i] = replace(
                planets[i],
                source=f"{planets[i].source}+gaia",
                values={**planets[i].values, "stellar_temperature_k": temperature},
                raw_columns=planets[i].raw_columns | {"stellar_temperature_k"},
            )
        elif abs(temperature / known - 1) > 0.10:
            disagreeing += 1
    return planets, {
        "planets_with_a_star": len(best),
        "temperatures_filled": filled,
        "temperatures_in_disagreement": disagreeing,
    }


def describe_observations(
    planets: list[Planet], telescopes: Mapping[str, Harvest]
) -> tuple[list[Planet], dict[str, dict]]:
    """Count each archive's observations of each planet's star.

    Returns:
        The planets with ``observations`` filled, and for each archive how many of its rows were of one of the stars.
    """
    placed = [i for i, planet in enumerate(planets) if planet.ra_deg is not None and planet.dec_deg is not None]
    found: dict[int, dict[str, Counter]] = defaultdict(lambda: defaultdict(Counter))
    report = {}
    for name, harvest in telescopes.items():
        rows, of_a_star = 0, 0
        for block in _blocks(row for row in harvest.rows() if row["ra_deg"] is not None and row["dec_deg"] is not None):
            rows += len(block)
            pointings = SkyCoord(_column(block, "ra_deg") * u.deg, _column(block, "dec_deg") * u.deg)
            if not placed:
                continue
            star, pointing, _, _ = pointings.search_around_sky(_sky(planets, placed), POINTING_RADIUS_ARCSEC * u.arcsec)
            for i, j in zip(star, pointing, strict=True):
                found[placed[i]][name][block[j]["instrument"] or "an instrument"] += 1
            of_a_star += len(set(pointing.tolist()))
        report[name] = {"with_a_position": rows, "of_a_planets_star": of_a_star}
    planets = list(planets)
    for i, archives in found.items():
        told = tuple(
            (
                name,
                f"{ARCHIVES[name].info.title} lists {sum(instruments.values())} observations of the star, "
                f"by {', '.join(sorted(instruments))}.",
            )
            for name, instruments in sorted(archives.items())
        )
        planets[i] = replace(planets[i], observations=told)
    return planets, report


def _sky(planets: list[Planet], members: list[int]) -> SkyCoord:
    return SkyCoord([planets[i].ra_deg for i in members] * u.deg, [planets[i].dec_deg for i in members] * u.deg)


def _column(block: list[dict], name: str, absent: float = 0.0) -> np.ndarray:
    return np.array([absent if row[name] is None else row[name] for row in block], float)


def _blocks(rows: Iterable[dict]) -> Iterator[list[dict]]:
    rows = iter(rows)
    while block := list(islice(rows, _BLOCK)):
        yield block
