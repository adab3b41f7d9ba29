"""The cross-match on real tables (NASA 2019 and the Open Exoplanet Catalogue), and of stars and pointings by position.

The pairs are written by hand: left the name in the NASA Exoplanet Archive, right that in the Open Exoplanet Catalogue.
"""

from dataclasses import replace

import pytest
from fake_tap import CALCULATED, exoplanet_eu, nasa

from data_build.crossmatch import DISAGREEMENT, crossmatch
from data_build.harvest import Harvest
from data_build.observed import describe_observations, match_stars
from data_build.planets import Planet
from data_build.sources import ARCHIVES
from data_build.sources.base import _converted
from data_build.sources.nasa_exoplanet_archive import NasaExoplanetArchive
from data_build.sources.open_exoplanet_catalogue import OpenExoplanetCatalogue

PAIRS = {
    # the same name
    "TRAPPIST-1 e": "TRAPPIST-1 e",
    "TRAPPIST-1 f": "TRAPPIST-1 f",
    "Kepler-62 e": "Kepler-62 e",
    "Kepler-62 f": "Kepler-62 f",
    "Kepler-186 f": "Kepler-186 f",
    "Kepler-442 b": "Kepler-442 b",
    "Kepler-10 b": "Kepler-10 b",
    "Kepler-22 b": "Kepler-22 b",
    "55 Cnc e": "55 Cnc e",
    "HD 209458 b": "HD 209458 b",
    "51 Peg b": "51 Peg b",
    "CoRoT-7 b": "CoRoT-7 b",
    "HD 40307 b": "HD 40307 b",
    "WASP-12 b": "WASP-12 b",
    # another catalogue of the star
    "GJ 1214 b": "Gliese 1214 b",
    "GJ 436 b": "Gliese 436 b",
    "GJ 581 c": "Gliese 581 c",
    "GJ 581 e": "Gliese 581 e",
    "GJ 667 C c": "Gliese 667 C c",
    "GJ 667 C f": "Gliese 667 C f",
    "GJ 667 C e": "Gliese 667 C e",
    "GJ 876 d": "Gliese 876 d",
    "GJ 832 b": "Gliese 832 b",
    "GJ 163 c": "Gliese 163 c",
    "GJ 3470 b": "Gliese 3470 b",
    "HD 285968 b": "Gliese 176 b",
    "HD 190360 c": "Gliese 777 A c",
    "HD 192310 b": "Gliese 785 b",
    "HD 99492 b": "83 Leonis B b",
    "KELT-2 A b": "KELT-2A b",
    "2MASS J12073346-3932539 b": "2M1207 b",
    "Kepler-78 b": "KIC 8435766 b",
    "Kepler-943 b": "KIC 6185331 b",
    "BD-13 2130 b": "NGC 2423 3 b",
    "NGC 2682 Sand 364 b": "SAND364 b",
    # a Greek letter, a constellation, a component of a binary
    "eps Eri b": "eps Eridani b",
    "gam Cep b": "Gamma Cephei b",
    "bet UMi b": "beta Ursae Minoris b",
    "ups And d": "Upsilon Andromedae A d",
    "tau Boo b": "tau Boo A b",
    "HD 189733 b": "HD 189733 A b",
    "WASP-70 A b": "WASP-70A b",
    "XO-2 N b": "XO-2 b",
    # a candidate's name, and the letters of a system given in another order
    "Kepler-43 b": "KOI-135 b",
    "KOI-351 h": "Kepler-90 h",
    "Kepler-328 c": "KOI-1873.01",
    "Kepler-138 d": "KOI-314 c",
    "BD-06 1339 b": "Gliese 221 c",
    "HD 160691 d": "mu Ara c",
    "PSR B1257+12 c": "PSR 1257 12 c",
}
NOT_PAIRS = {
    "TRAPPIST-1 e": "TRAPPIST-1 f",
    "Kepler-62 e": "Kepler-62 f",
    "GJ 581 c": "Gliese 581 e",
    "HD 160691 c": "mu Ara c",
    "HD 160691 b": "mu Ara d",
    "Kepler-138 c": "KOI-314 c",
    "Kepler-328 b": "KOI-1873.01",
    "Kepler-10 b": "Kepler-10 c",
    "Kepler-22 b": "Kepler-20 b",
    "KOI-351 h": "Kepler-90 g",
    "HD 40307 b": "HD 40307 c",
    "GJ 436 b": "Gliese 436 c",
    "ups And d": "Upsilon Andromedae A c",
    "HD 189733 b": "HD 209458 b",
    "GJ 876 d": "Gliese 876 e",
    "WASP-12 b": "WASP-2 A b",
    "GJ 667 C c": "Gliese 667 C b",
    "GJ 163 b": "Gliese 163 c",
    "BD-06 1339 c": "Gliese 221 c",
}


@pytest.fixture(scope="module")
def merged():
    """Name in either catalogue → index of the merged planet; and the report."""
    planets, report = crossmatch(NasaExoplanetArchive().planets(), OpenExoplanetCatalogue().planets())
    owner = {}
    for index, planet in enumerate(planets):
        owner[planet.name] = index
        for alias in planet.aliases:
            owner.setdefault(alias, index)
    return owner, report


def test_there_are_fifty_pairs():
    assert len(PAIRS) == 50 and not any(PAIRS.get(nasa) == oec for nasa, oec in NOT_PAIRS.items())


@pytest.mark.parametrize("name", PAIRS)
def test_a_known_pair_is_one_planet(merged, name):
    owner, _ = merged
    assert owner[name] == owner[PAIRS[name]]


@pytest.mark.parametrize("name", NOT_PAIRS)
def test_two_planets_stay_two(merged, name):
    owner, _ = merged
    assert owner[name] != owner[NOT_PAIRS[name]]


def test_a_planet_that_the_other_catalogue_has_twice_is_told(merged):
    # In the Open Exoplanet Catalogue under BD-06 1339 and Gliese 221, and under Kepler-412 and KOI-202.
    assert merged[1]["matched_more_than_once"] == ["BD-06 1339 b", "BD-06 1339 c", "Kepler-412 b"]


def test_the_share_matched_and_every_disagreement_are_reported(merged):
    _, report = merged
    assert report["share_of_secondary_matched"] > 0.95
    assert report["share_of_primary_matched"] == pytest.approx(
        (report["by_name"] + report["by_alias"] + report["by_position"]) / report["primary"], abs=1e-4
    )
    for entry in report["disagreements"]:
        a, b = (value for key, value in entry.items() if key not in ("planet", "column", "relative_difference"))
        assert abs(a - b) / ((a + b) / 2) > DISAGREEMENT


def test_the_same_planet_of_four_archives_is_one():
    planets = [
        NasaExoplanetArchive().planets(),
        OpenExoplanetCatalogue().planets(),
        [ARCHIVES["nasa_pscomppars"].planet(row) for row in rows_of("nasa_pscomppars", nasa()).values()],
        [ARCHIVES["exoplanet_eu"].planet(row) for row in rows_of("exoplanet_eu", exoplanet_eu()).values()],
    ]
    merged, _ = crossmatch(planets[0], planets[1])
    before = len(merged)
    for catalogue in planets[2:]:
        merged, report = crossmatch(merged, catalogue)
        assert report["only_in_secondary"] == 0
    assert len(merged) == before


def rows_of(name: str, stand_in) -> dict[str, dict]:
    """Planet → row of the stand-in, in our names and units."""
    rows = [
        {field.name: _converted(stand_in.columns[field.column][i], field) for field in ARCHIVES[name].info.fields}
        for i in range(len(stand_in.columns["ra"]))
    ]
    return {row["name"]: row for row in rows}


def test_a_limit_is_no_measurement_and_what_the_archive_calculated_was_not_read():
    stand_in = nasa()
    stand_in.columns["pl_bmasselim"][1], stand_in.columns["st_lumlim"][1] = 1, -1  # TRAPPIST-1 b
    stand_in.columns["pl_insollim"][1] = 1
    stand_in.columns["pl_bmassprov"][2] = "M-R relationship"  # TRAPPIST-1 e
    stand_in.columns["pl_insol_reflink"][2] = CALCULATED
    made = {name: ARCHIVES["nasa_pscomppars"].planet(row) for name, row in rows_of("nasa_pscomppars", stand_in).items()}
    limited = made["TRAPPIST-1 b"]
    assert not {"mass_earth", "instellation_w_m2"} & limited.values.keys() and limited.luminosity_sun is None
    assert not limited.derived and limited.raw_columns == limited.values.keys()
    related = made["TRAPPIST-1 e"]
    assert related.derived == {"mass_earth", "instellation_w_m2"} and related.values.keys() >= related.derived
    assert not related.derived & related.raw_columns and "radius_earth" in related.raw_columns
    proxima = made["Proxima Cen b"]  # its mass is M sin i, a number that was read
    assert proxima.derived == {"radius_earth", "mass_earth"} and "mass_earth" in proxima.raw_columns
    assert "radius_earth" not in proxima.raw_columns
    assert made["TRAPPIST-1 f"].derived == set()


def test_a_theoretical_radius_of_exoplanet_eu_was_not_read():
    made = {name: ARCHIVES["exoplanet_eu"].planet(row) for name, row in rows_of("exoplanet_eu", exoplanet_eu()).items()}
    proxima, other = made["Proxima Cen b"], made["TRAPPIST-1 b"]
    assert "radius_earth" in proxima.derived and "radius_earth" not in proxima.raw_columns
    assert "radius_earth" in other.raw_columns and other.derived == {"mass_earth"}


def test_what_one_catalogue_read_stands_before_what_the_other_calculated():
    read = host(
        values={"radius_earth": 1.5, "orbital_period_d": 3.0},
        raw_columns=frozenset({"radius_earth", "orbital_period_d"}),
    )
    made = host(
        values={"radius_earth": 9.0, "mass_earth": 2.0, "orbital_period_d": 3.0},
        derived=frozenset({"radius_earth", "mass_earth"}),
        raw_columns=frozenset({"orbital_period_d"}),
    )
    for first, second in ((read, made), (made, read)):
        merged = crossmatch([replace(first, aliases=frozenset({"b"}))], [replace(second, aliases=frozenset({"b"}))])[0]
        assert merged[0].values == {"radius_earth": 1.5, "mass_earth": 2.0, "orbital_period_d": 3.0}
        assert merged[0].derived == {"mass_earth"} and merged[0].raw_columns == {"radius_earth", "orbital_period_d"}


def test_a_limit_of_the_snapshot_is_no_measurement():
    """st_jlim is -1 for six planets of 2019."""
    table = NasaExoplanetArchive()._table
    limits = {str(row["pl_name"]) for row in table if row["st_jlim"] == -1}
    bright = {planet.name: planet.j_magnitude for planet in NasaExoplanetArchive().planets()}
    assert len(limits) == 6 and {bright[name] for name in limits} == {None}


def star(**changes):
    # Barnard's star in Gaia DR3: 10.4 arc seconds a year, that is 166 from 2000 to 2016.
    return {
        "source_id": 1,
        "ra_deg": 269.44850,
        "dec_deg": 4.73942,
        "epoch": 2016.0,
        "pm_ra_cosdec_mas_yr": -801.6,
        "pm_dec_mas_yr": 10362.4,
        "parallax_mas": 547.0,
        "g_magnitude": 8.2,
        "stellar_temperature_k": 3195.0,
        **changes,
    }


def host(**changes):
    values = {
        "key": "b",
        "name": "Barnard b",
        "source": "open_exoplanet_catalogue",
        "kind": "observed",
        "values": {},
        "ra_deg": 269.45208,
        "dec_deg": 4.69339,
        "epoch": 2000.0,
    }
    return Planet(**{**values, **changes})


def test_a_star_that_moves_is_found_at_the_catalogues_epoch():
    planets, report = match_stars([host()], [star()])
    assert planets[0].values == {"stellar_temperature_k": 3195.0} and planets[0].source.endswith("+gaia")
    assert report["planets_with_a_star"] == report["temperatures_filled"] == 1


def test_without_its_motion_it_would_not_be():
    assert match_stars([host()], [star(pm_ra_cosdec_mas_yr=None, pm_dec_mas_yr=None)])[1]["planets_with_a_star"] == 0


def test_a_catalogues_temperature_stands_and_a_disagreement_is_counted():
    planets, report = match_stars([host(values={"stellar_temperature_k": 5000.0})], [star()])
    assert planets[0].values == {"stellar_temperature_k": 5000.0}
    assert report["temperatures_in_disagreement"] == 1 and report["temperatures_filled"] == 0


def test_pointings_at_a_star_are_told_of_its_planets():
    class Rows(Harvest):
        def rows(self):
            for i, offset in enumerate((0.0, 5.0, 29.0, 31.0, 4000.0)):
                yield {
                    "observation_id": str(i),
                    "ra_deg": 10.0,
                    "dec_deg": -5.0 + offset / 3600,
                    "instrument": "NIRSPEC" if i else "MIRI",
                }
            yield {"observation_id": "x", "ra_deg": None, "dec_deg": None, "instrument": "NIRSPEC"}

    seen = host(ra_deg=10.0, dec_deg=-5.0)
    planets, report = describe_observations([seen, host(ra_deg=11.0)], {"jwst": Rows(None, {})})
    assert planets[0].observations == (("jwst", "JWST at MAST lists 3 observations of the star, by MIRI, NIRSPEC."),)
    assert planets[1].observations == ()
    assert report == {"jwst": {"with_a_position": 5, "of_a_planets_star": 3}}
