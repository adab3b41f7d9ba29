"""Derivations against known planets, the cross-match, and what is sampled."""

import clero
import numpy as np
import pytest

from data_build.crossmatch import crossmatch, planet_key
from data_build.planets import (
    Planet,
    derive,
    gravity_m_s2,
    in_domain,
    instellation_w_m2,
    kepler_axis_au,
    kepler_period_d,
    mass_from_radius,
    radius_from_mass,
    tidally_locked,
)
from data_build.recipe import load_recipe
from data_build.sampling import sample_atmospheres, sample_planets
from data_build.sources.nasa_exoplanet_archive import NasaExoplanetArchive
from data_build.sources.open_exoplanet_catalogue import OpenExoplanetCatalogue


@pytest.fixture(scope="module")
def source() -> NasaExoplanetArchive:
    return NasaExoplanetArchive()


@pytest.fixture(scope="module")
def archive(source):
    return source.planets()


@pytest.fixture(scope="module")
def merged(archive):
    planets, report = crossmatch(archive, OpenExoplanetCatalogue().planets())
    return {planet.key: planet for planet in planets}, report


def planet(**values) -> Planet:
    return Planet(key="x", name="x", source="s", kind="observed", values=values, raw_columns=frozenset(values))


def test_the_earth_comes_out():
    earth = derive(
        planet(
            stellar_temperature_k=5772.0,
            stellar_radius_sun=1.0,
            stellar_mass_sun=1.0,
            orbital_period_d=365.25,
            radius_earth=1.0,
            mass_earth=1.0,
        )
    )
    assert earth.values["semi_major_axis_au"] == pytest.approx(1.0, rel=1e-3)
    assert earth.values["instellation_w_m2"] == pytest.approx(1361, rel=2e-3)
    assert earth.values["gravity_m_s2"] == pytest.approx(9.80, rel=2e-3)
    assert earth.derived == {"semi_major_axis_au", "instellation_w_m2", "gravity_m_s2"}


def test_what_is_known_is_not_overwritten_and_what_cannot_be_derived_stays_unknown():
    given = planet(orbital_period_d=10.0, semi_major_axis_au=0.5, stellar_mass_sun=1.0)
    assert derive(given).values == given.values
    assert "gravity_m_s2" not in derive(planet(orbital_period_d=10.0)).values


def test_a_star_of_known_luminosity_gets_its_radius():
    sun = Planet(
        key="x", name="x", source="s", kind="observed", values={"stellar_temperature_k": 5772.0}, luminosity_sun=1.0
    )
    assert derive(sun).values["stellar_radius_sun"] == pytest.approx(1.0, rel=1e-3)


def test_an_eccentric_orbit_receives_more_on_average():
    assert instellation_w_m2(1.0, 1.0, 0.6) == pytest.approx(instellation_w_m2(1.0, 1.0) / 0.8)


@pytest.mark.parametrize("mass", [0.1, 1.0, 2.04, 2.05, 7.0])
def test_the_mass_radius_relation_and_its_inverse(mass):
    assert mass_from_radius(radius_from_mass(mass)) == pytest.approx(mass)


def test_the_mass_radius_relation_is_continuous():
    assert radius_from_mass(2.0401) == pytest.approx(radius_from_mass(2.0399), rel=1e-3)


def test_keplers_law_and_its_inverse():
    assert kepler_period_d(kepler_axis_au(12.3, 0.4), 0.4) == pytest.approx(12.3)


def test_only_a_rotation_that_is_unknown_is_taken_to_be_locked():
    locked = tidally_locked(planet(orbital_period_d=10.0))
    assert locked.values["rotation_period_d"] == 10.0 and locked.derived == {"rotation_period_d"}
    earth = planet(rotation_period_d=0.99727, orbital_period_d=365.256)
    assert tidally_locked(earth) == earth
    assert "rotation_period_d" not in derive(planet(orbital_period_d=10.0)).values  # physics does not tell it
    assert not tidally_locked(planet(radius_earth=1.0)).derived


def test_gravity_of_mars():
    assert gravity_m_s2(0.1074, 0.5320) == pytest.approx(3.72, rel=5e-3)


def test_the_catalogues_hold_trappist_1e_as_published(merged):
    planets, _ = merged
    values = derive(planets["trappist-1-e"]).values  # Gillon et al. 2017; Grimm et al. 2018
    assert values["orbital_period_d"] == pytest.approx(6.10, rel=1e-2)
    assert values["radius_earth"] == pytest.approx(0.92, rel=2e-2)
    assert values["instellation_w_m2"] == pytest.approx(0.66 * 1361, rel=2e-2)


def test_a_limit_is_not_a_measurement(source, archive):
    limited = {str(row["pl_name"]) for row in source._table if row["pl_bmasselim"] == 1 and row["pl_bmasse"] > 0}
    assert limited
    assert not [entry.name for entry in archive if entry.name in limited and "mass_earth" in entry.values]


def test_minimum_masses_are_marked_derived(merged):
    planets, _ = merged
    assert "mass_earth" in planets["proxima-cen-b"].derived  # from radial velocities alone
    assert "mass_earth" not in planets["trappist-1-e"].derived


def test_one_planet_under_two_names_is_one(merged):
    planets, report = merged
    assert "gliese-667-c-c" not in planets  # the other catalogue's name of GJ 667 C c
    assert planets["gj-667-c-c"].description
    assert report["by_name"] and report["by_alias"] and report["by_position"]
    matched = report["by_name"] + report["by_alias"] + report["by_position"]
    assert matched + report["only_in_primary"] == report["primary"]
    assert matched + report["only_in_secondary"] == report["secondary"]


def test_position_matches_need_the_period_too():
    here = {"ra_deg": 10.0, "dec_deg": 5.0, "source": "s", "kind": "observed", "key": ""}
    first = Planet(name="A b", aliases=frozenset({"A b"}), values={"orbital_period_d": 3.0}, **here)
    same = Planet(
        name="B b", aliases=frozenset({"B b"}), values={"orbital_period_d": 3.001, "radius_earth": 1.0}, **here
    )
    other = Planet(name="C b", aliases=frozenset({"C b"}), values={"orbital_period_d": 9.0}, **here)
    planets, report = crossmatch([first], [same, other])
    assert [entry.key for entry in planets] == ["a-b", "c-b"]
    assert planets[0].values == {"orbital_period_d": 3.0, "radius_earth": 1.0}
    assert report["by_position"] == 1


def test_a_disagreement_is_reported_and_the_first_catalogue_stands():
    first = Planet(
        name="A b", aliases=frozenset({"A b"}), values={"radius_earth": 1.0}, source="s", kind="observed", key=""
    )
    second = Planet(
        name="A b", aliases=frozenset({"A b"}), values={"radius_earth": 1.5}, source="t", kind="observed", key=""
    )
    planets, report = crossmatch([first], [second])
    assert planets[0].values["radius_earth"] == 1.0
    assert [(entry["column"], entry["s"], entry["t"]) for entry in report["disagreements"]] == [
        ("radius_earth", 1.0, 1.5)
    ]


def test_planet_keys():
    assert planet_key("TRAPPIST-1 e") == "trappist-1-e"
    assert planet_key("K2-288 B b") == "k2-288-b-b"


def test_sampled_planets_obey_keplers_law_and_each_has_its_own_star(archive):
    catalogue = [derive(entry) for entry in archive]
    sampled = sample_planets(30, catalogue, {"TRAPPIST-1"}, seed=1)
    assert len(sampled) == 30 and len({entry.host for entry in sampled}) == 30
    assert "TRAPPIST-1" not in {entry.host for entry in sampled}
    for entry in sampled:
        assert entry.kind == "synthetic" and in_domain(entry, clero.EXTENDED_DOMAIN)
        value = entry.values
        assert value["rotation_period_d"] == value["orbital_period_d"] and "rotation_period_d" in entry.derived
        assert value["semi_major_axis_au"] == pytest.approx(
            kepler_axis_au(value["orbital_period_d"], value["stellar_mass_sun"]), rel=1e-6
        )
    assert sample_planets(30, catalogue, {"TRAPPIST-1"}, seed=1) == sampled
    assert sample_planets(30, catalogue, {"TRAPPIST-1"}, seed=2) != sampled


def test_atmospheres_stay_in_the_recipe_and_differ_between_planets(archive):
    recipe = load_recipe("sample")
    first, second = (
        sample_atmospheres(Planet(key=key, name=key, source="s", kind="observed", values={}), recipe)
        for key in ("a", "b")
    )
    assert first != second and len(first) == recipe.candidates_per_planet
    for air in first:
        assert recipe.surface_pressure_bar[0] <= air.surface_pressure_bar <= recipe.surface_pressure_bar[1]
        assert recipe.ch4_vmr[0] <= air.ch4_vmr <= recipe.ch4_vmr[1]
        assert 0 < air.co2_vmr and air.co2_vmr + air.ch4_vmr <= 1 + 1e-12
    assert np.ptp(np.log10([air.co2_vmr for air in first])) > 3
