"""The record's text: the catalogue's description where there is one, and the run's facts in words.

Facts of the star, the planet and the atmosphere only: nothing of the climate, and no word that judges it. The unit of a
fact is always the same, whatever its value, so that the words tell nothing of the numbers.
"""

import re
from collections.abc import Sequence

import numpy as np

from astrobio.phrases import ATMOSPHERE, PLANET, SENTENCES, STAR, fact
from data_build.planets import Atmosphere, Planet

#: Beginnings of words that would tell, or seem to tell, how the climate is; sentences with one are left out.
TELLING = (
    "habitab",
    "uninhabit",
    "inhabit",
    "goldilocks",
    "temperate",
    "temperature",
    "hot",
    "cold",
    "cool",
    "warm",
    "heat",
    "freez",
    "frozen",
    "ice",
    "icy",
    "liquid",
    "water",
    "ocean",
    "life",
    "alien",
    "biolog",
    "climate",
    "greenhouse",
    "venus",
    "mars",
    "earth-like",
    "earthlike",
    "earth-sized",
    "similar to earth",
    "potential",
    "molten",
    "scorch",
    "flux",
    "insolation",
    "closest",
    "close-in",
    "too close",
)
_TELLING = re.compile(r"\b(?:" + "|".join(map(re.escape, TELLING)) + r")", re.IGNORECASE)

_OPENINGS = ("This is {name}.", "The subject is {name}.", "Parameters of {name} follow.", "Consider {name}.")
_ATMOSPHERE_OPENINGS = (
    "The rest of the air is nitrogen.",
    "Nitrogen makes up the remainder.",
    "The background gas is nitrogen.",
)


def describe(
    planet: Planet, atmosphere: Atmosphere | None, named: bool, rng: np.random.Generator, more: Sequence[str] = ()
) -> str:
    """The text of a run.

    Args:
        atmosphere: None where nothing is known of it.
        named: whether the planet's name and description are told; otherwise it is "a planet".
        rng: chooses wording and order. Runs given generators of equal state get the same words.
        more: sentences for the end.
    """
    sentence = SENTENCES[rng.integers(len(SENTENCES))]
    opening = _OPENINGS[rng.integers(len(_OPENINGS))]
    closing = _ATMOSPHERE_OPENINGS[rng.integers(len(_ATMOSPHERE_OPENINGS))]
    order = rng.permutation(3)
    air = ""
    if atmosphere is not None:
        values = {name: getattr(atmosphere, name) for name in ATMOSPHERE}
        rest = closing if atmosphere.rest == "nitrogen" else f"The rest of the air is {atmosphere.rest}."
        air = f"{_facts(ATMOSPHERE, values, sentence)} {rest}"
    groups = [_facts(STAR, planet.values, sentence), _facts(PLANET, planet.values, sentence), air]
    told = [planet.description, " ".join(sentence for _, sentence in planet.observations)] if named else []
    parts = [
        opening.format(name=planet.name if named and planet.name else "a planet"),
        *map(scrub, told),
        *(groups[index] for index in order),
        *more,
    ]
    return " ".join(part for part in parts if part)


def scrub(description: str) -> str:
    """The description without its telling sentences (`TELLING`)."""
    sentences = re.split(r"(?<=[.!?])\s+", description)
    return " ".join(sentence for sentence in sentences if not _TELLING.search(sentence))


def telling_words(text: str) -> list[str]:
    """The telling words in a text, but for those of the star's effective temperature, a plain fact."""
    return _TELLING.findall(
        re.sub(r"effective temperature of the star", "", text, flags=re.IGNORECASE)
        .replace("stellar flux at the planet", "")
        .replace("Stellar flux at the planet", "")
    )


def _facts(names: dict[str, tuple[str, str]], values: dict[str, float], sentence: str) -> str:
    return " ".join(fact(sentence, *names[name], values[name]) for name in names if name in values)
