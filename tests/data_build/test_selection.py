"""Runs are chosen so that the label is balanced for everything that is not physics."""

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest
from invented import candidates

from astrobio.schema import SPLITS
from data_build.recipe import load_recipe
from data_build.selection import select_runs, signature, without_supersaturated

RECIPE = load_recipe("sample")


@pytest.fixture(scope="module")
def world():
    """Planets of both classes and of one, of two kinds and two sets of known columns, in a random order."""
    rng = np.random.default_rng(0)
    made = {}
    for number in range(120):
        kind = ("observed", "synthetic")[number % 2]
        known = (("radius_earth",), ("radius_earth", "eccentricity"))[number % 3 == 0]
        labels = {0: [0] * 20, 1: [1] * 20}.get(number % 5, list(rng.integers(0, 2, 20)))
        labels[3] = None
        key = f"planet-{number}"
        made[key] = candidates(key, labels, (True, False, False), kind, known)
    return made


@pytest.fixture(scope="module")
def runs(world):
    return [run for group in select_runs(world, RECIPE)[0] for run in group]


def test_the_label_is_balanced_for_all_that_is_not_physics(runs):
    counts = defaultdict(Counter)
    for run in runs:
        if run.candidate.label is not None:
            alike = (
                run.split,
                signature(run.candidate.planet),
                run.candidate.core,
                run.named,
                tuple(run.present.items()),
            )
            counts[alike][run.candidate.label] += 1
    assert len(counts) > 20
    assert all(count[0] == count[1] for count in counts.values())


def test_a_told_name_is_balanced_within_the_planet(runs):
    counts = defaultdict(Counter)
    for run in runs:
        if run.named and run.candidate.label is not None:
            counts[run.candidate.planet.key][run.candidate.label] += 1
    assert counts and all(count[0] == count[1] for count in counts.values())


def test_no_planet_is_in_two_splits_and_no_run_is_used_twice(runs):
    split_of = {}
    for run in runs:
        assert split_of.setdefault(run.candidate.planet.key, run.split) == run.split
    assert len({run.candidate.run_id for run in runs}) == len(runs)


def test_splits_get_their_shares_of_each_kind(runs):
    for kind in ("observed", "synthetic"):
        planets = {run.candidate.planet.key: run.split for run in runs if run.candidate.planet.kind == kind}
        shares = Counter(planets.values())
        for split in SPLITS:
            assert shares[split] / len(planets) == pytest.approx(RECIPE.splits[split], abs=0.05)


def test_the_habitable_one_of_a_pair_is_not_always_first(world):
    first = [group[0].candidate.label for group in select_runs(world, RECIPE)[0] if len(group) == 2]
    assert 0.3 < np.mean(first) < 0.7


def test_open_runs_are_few_and_alone(world):
    groups = select_runs(world, RECIPE)[0]
    open_ = [group for group in groups if group[0].candidate.label is None]
    assert all(len(group) == 1 for group in open_)
    assert len(open_) == round(RECIPE.unlabelled_share * sum(len(group) == 2 for group in groups) * 2)


def test_what_is_beyond_saturation_is_no_candidate():
    wet = [replace(candidate, relative_humidity=2.5) for candidate in candidates("wet", [0, 0])]
    mixed = [
        replace(candidate, relative_humidity=1.5 + candidate.number) for candidate in candidates("mixed", [1, 0, 0])
    ]
    kept, aside = without_supersaturated({"wet": wet, "mixed": mixed})
    assert kept == {"mixed": mixed[:1]}
    assert [entry["planet_key"] for entry in aside] == ["wet"] and "relative humidity above 2" in aside[0]["reason"]


def test_planets_without_a_partner_are_set_aside_with_the_reason():
    world = {"a": candidates("a", [1] * 9), "b": candidates("b", [0] * 9, known=("mass_earth",))}
    groups, aside = select_runs(world, RECIPE)
    assert not groups
    assert {entry["planet_key"] for entry in aside} == {"a", "b"} and all(entry["reason"] for entry in aside)


def test_planets_of_one_class_are_paired_with_each_other():
    groups, aside = select_runs({"a": candidates("a", [1] * 9), "b": candidates("b", [0] * 9)}, RECIPE)
    assert not aside and len(groups) == RECIPE.pairs_per_observed_planet
    assert {run.split for group in groups for run in group} == {"train"}
    assert not any(run.named for group in groups for run in group)
