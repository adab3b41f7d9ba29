"""The text tells facts, and nothing of the climate."""

import numpy as np

from data_build.planets import Atmosphere, Planet
from data_build.text import describe, scrub, telling_words


def planet(**values) -> Planet:
    return Planet(
        key="x-b",
        name="X b",
        source="s",
        kind="observed",
        values={"radius_earth": 1.25, **values},
        description="X b was found in 2010. It lies in the habitable zone. It may be hot!",
    )


def text(values=None, named=True, seed=0, air=(1.5, 4e-4, 1e-6)) -> str:
    return describe(planet(**(values or {})), Atmosphere(*air), named, np.random.default_rng(seed))


def test_telling_sentences_are_left_out():
    assert scrub("A star. It could have liquid water. Found by Kepler.") == "A star. Found by Kepler."
    assert scrub("The Goldilocks planet is Earth-like.") == ""


def test_facts_and_units_are_told():
    for seed in range(8):
        told = text(seed=seed)
        assert "1.25 Earth radii" in told and "1.5 bar" in told and "0.0004" in told
        assert "X b was found in 2010." in told and not telling_words(told)


def test_both_periods_are_told():
    told = text({"rotation_period_d": 0.99727, "orbital_period_d": 365.256})
    assert "rotation period" in told and "0.9973 days" in told
    assert "orbital period" in told and "365.3 days" in told


def test_unnamed_runs_tell_neither_name_nor_description():
    told = text(named=False)
    assert "X b" not in told and "2010" not in told


def test_unknown_columns_are_not_told():
    assert "eccentricity" not in text() and "eccentricity" in text({"eccentricity": 0.1})


def test_the_words_do_not_depend_on_the_values():
    def words(told):
        return [word for word in told.split() if not any(character.isdigit() for character in word)]

    for seed in range(8):
        low = text({"radius_earth": 0.5}, seed=seed, air=(0.1, 1e-6, 1e-7))
        high = text({"radius_earth": 2.5}, seed=seed, air=(10.0, 0.95, 0.05))
        assert words(low) == words(high)


def test_wording_varies():
    assert len({text(seed=seed).split("1.25")[0] for seed in range(30)}) > 10
