"""Runs that are made up."""

from data_build.planets import Atmosphere, Planet
from data_build.selection import Candidate


def candidates(key: str, labels: list, core=(False,), kind="observed", known=("radius_earth",)) -> list[Candidate]:
    planet = Planet(key=key, name=key, source="s", kind=kind, values=dict.fromkeys(known, 1.0))
    return [
        Candidate(planet, number, Atmosphere(1.0, 0.1, 0.01), label, core[number % len(core)])
        for number, label in enumerate(labels)
    ]
