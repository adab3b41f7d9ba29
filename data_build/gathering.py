"""The planets of a recipe: read from its catalogues, matched, completed, and filled up with sampled ones."""

from collections.abc import Mapping

import clero

from data_build.crossmatch import crossmatch
from data_build.harvest import Harvest
from data_build.observed import describe_observations, match_stars
from data_build.planets import PLANET_PARAMETERS, Planet, derive, in_domain, tidally_locked
from data_build.recipe import Recipe
from data_build.sampling import sample_planets, stream
from data_build.sources import CATALOGUES, PLANET_ARCHIVES, TELESCOPES


def gather_planets(
    recipe: Recipe, limit: int | None = None, harvests: Mapping[str, Harvest] | None = None
) -> tuple[list[Planet], dict, list[dict]]:
    """The recipe's planets, real and sampled, inside CLERO's extended domain.

    Args:
        harvests: the archives' rows, where the recipe has archives.

    Returns:
        The planets, the report of the cross-match, and the real planets set aside with the reason. The report
        gives only the number of the catalogues' thousands of planets outside the emulator's domain.
    """
    harvests = harvests or {}
    catalogues = [_catalogue(name, harvests) for name in recipe.catalogues]
    planets, report = _completed(recipe, catalogues, harvests)
    inside = [planet for planet in planets if in_domain(planet, clero.EXTENDED_DOMAIN)]
    report["merged"], report["inside_extended_domain"] = len(planets), len(inside)
    names = {planet.name for planet in inside}
    report["disagreements_in_all"] = len(report["disagreements"])
    report["disagreements"] = [entry for entry in report["disagreements"] if entry["planet"] in names]
    report["raw_completeness"] = {
        name: {
            column: round(sum(column in planet.values for planet in members) / max(1, len(members)), 4)
            for column in PLANET_PARAMETERS
        }
        for name, members in zip(recipe.catalogues, catalogues, strict=True)
    }
    report["inside_core_domain"] = sum(in_domain(planet, clero.CORE_DOMAIN) for planet in inside)
    set_aside, real = [], []
    for planet in inside:
        lacking = [
            name for name in ("stellar_radius_sun", "semi_major_axis_au", "mass_earth") if name not in planet.values
        ] + (["j_magnitude"] if planet.j_magnitude is None else [])
        if lacking and planet.transits:
            set_aside.append(
                {"planet_key": planet.key, "reason": f"no spectrum can be computed without {', '.join(lacking)}"}
            )
        else:
            real.append(planet)
    sampled = sample_planets(recipe.sampled_planets, planets, {planet.host for planet in real}, recipe.seed)
    if limit is not None:
        share = limit * len(real) // max(1, len(real) + len(sampled))
        chosen = stream(recipe.seed, "limit").permutation(len(real))[:share]
        real, sampled = [real[index] for index in sorted(chosen)], sampled[: limit - share]
    telescopes = {name: harvest for name, harvest in harvests.items() if name in TELESCOPES}
    if telescopes:
        real, report["observations"] = describe_observations(real, telescopes)
    return real + sampled, report, set_aside


def catalogued_planets(recipe: Recipe, harvests: Mapping[str, Harvest]) -> list[Planet]:
    """All planets of the recipe's catalogues, merged and completed by physics, wherever they lie."""
    return _completed(recipe, [_catalogue(name, harvests) for name in recipe.catalogues], harvests)[0]


def _completed(
    recipe: Recipe, catalogues: list[list[Planet]], harvests: Mapping[str, Harvest]
) -> tuple[list[Planet], dict]:
    planets, report = _merged(recipe, catalogues)
    if "gaia" in harvests:
        planets, report["gaia"] = match_stars(planets, harvests["gaia"].rows())
    return [tidally_locked(derive(planet)) for planet in planets], report


def _catalogue(name: str, harvests: Mapping[str, Harvest]) -> list[Planet]:
    if name in CATALOGUES:
        return CATALOGUES[name]().planets()
    archive = PLANET_ARCHIVES[name]
    unused = getattr(archive, "unused", lambda row: "")
    return [archive.planet(row) for row in harvests[name].rows() if not unused(row)]


def _merged(recipe: Recipe, catalogues: list[list[Planet]]) -> tuple[list[Planet], dict]:
    """All catalogues merged, each cross-matched with the merger of those before it."""
    planets, report = crossmatch(catalogues[0], catalogues[1] if len(catalogues) > 1 else [])
    for name, catalogue in zip(recipe.catalogues[2:], catalogues[2:], strict=True):
        planets, further = crossmatch(planets, catalogue)
        report["disagreements"] += further.pop("disagreements")
        report.setdefault("further", {})[name] = further
    return planets, report
