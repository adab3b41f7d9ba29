"""How a text tells a number: the phrases that descriptions are written with, and read by.

The unit of a fact is always the same, whatever its value, so that the words tell nothing of the numbers.
"""

import re

#: Column of the planet table → (noun, unit) in words.
STAR = {
    "stellar_temperature_k": ("effective temperature of the star", "kelvin"),
    "stellar_radius_sun": ("radius of the star", "solar radii"),
    "stellar_mass_sun": ("mass of the star", "solar masses"),
}
PLANET = {
    "radius_earth": ("radius of the planet", "Earth radii"),
    "mass_earth": ("mass of the planet", "Earth masses"),
    "gravity_m_s2": ("surface gravity", "metres per second squared"),
    "rotation_period_d": ("rotation period", "days"),
    "orbital_period_d": ("orbital period", "days"),
    "semi_major_axis_au": ("semi-major axis", "astronomical units"),
    "eccentricity": ("orbital eccentricity", ""),
    "instellation_w_m2": ("stellar flux at the planet", "watts per square metre"),
}
ATMOSPHERE = {
    "surface_pressure_bar": ("surface pressure", "bar"),
    "co2_vmr": ("volume mixing ratio of carbon dioxide", ""),
    "ch4_vmr": ("volume mixing ratio of methane", ""),
}

SENTENCES = (
    "The {noun} is {value}.",
    "{Noun}: {value}.",
    "Its record gives {value} for the {noun}.",
    "A value of {value} is adopted for the {noun}.",
)


def fact(sentence: str, noun: str, unit: str, value: float) -> str:
    """One of `SENTENCES` about a value, with four digits."""
    return sentence.format(noun=noun, Noun=_capital(noun), value=f"{value:.4g} {unit}".strip())


def numbers_in(text: str) -> dict[str, float]:
    """Column of the planet table → the number that ``text`` tells of it, in the column's unit, where it tells one.

    A number counts in a whole sentence of `SENTENCES` with the right unit only. Of several for the same column the
    first counts.
    """
    found = {}
    for column, pattern in _PATTERNS.items():
        match = pattern.search(text)
        if match is not None:
            found[column] = float(next(number for number in match.groups() if number is not None))
    return found


def _capital(noun: str) -> str:
    return noun[0].upper() + noun[1:]


def _pattern(noun: str, unit: str) -> re.Pattern[str]:
    """Matches each sentence about the noun; one group a sentence, the number."""
    value = r"([+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)" + (re.escape(f" {unit}") if unit else "")
    marks = {"noun": "<noun>", "Noun": "<Noun>", "value": "<value>"}
    sentences = []
    for sentence in SENTENCES:
        pattern = re.escape(sentence.format(**marks))
        for mark, meaning in (("<noun>", re.escape(noun)), ("<Noun>", re.escape(_capital(noun))), ("<value>", value)):
            pattern = pattern.replace(re.escape(mark), meaning)
        sentences.append(pattern)
    return re.compile("|".join(sentences))


_PATTERNS = {column: _pattern(*words) for column, words in (STAR | PLANET | ATMOSPHERE).items()}
