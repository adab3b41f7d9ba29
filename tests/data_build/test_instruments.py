"""The modes of JWST: who is seen in which, and with what noise; the stars whose photons they count."""

from dataclasses import replace

import numpy as np
import pytest
from invented import candidates

from data_build.computed_spectra import quality, terminator
from data_build.instruments import G395H, LRS, PRISM, SOSS, bin_edges, modes, observed
from data_build.planets import Atmosphere, Planet
from data_build.recipe import load_recipe
from data_build.selection import select_runs, signature
from data_build.sources.muscles import Muscles

WAVELENGTH = np.geomspace(0.6, 12, 1000)
STARS = Muscles()


def planet(j_magnitude=11.35, transits: bool | None = True, **values) -> Planet:
    known = {
        "stellar_temperature_k": 2559.0,
        "stellar_radius_sun": 0.117,
        "semi_major_axis_au": 0.028,
        "orbital_period_d": 6.1,
        **values,
    }
    return Planet("t", "t", "s", "observed", known, j_magnitude=j_magnitude, transits=transits)


def test_a_stars_brightness_chooses_its_modes():
    assert modes(planet(11.35)) == (PRISM, LRS)
    assert modes(planet(9.0)) == (SOSS, G395H, LRS)
    assert modes(planet(6.8)) == (G395H, LRS)
    assert modes(planet(4.0)) == ()


@pytest.mark.parametrize("transits", [False, None])
def test_what_is_not_known_to_transit_is_not_observed(transits):
    assert modes(planet(transits=transits)) == ()


def test_a_planet_that_does_not_transit_gets_no_spectrum_and_is_paired_with_its_like():
    """Partners of two planets have the same modes, so that presence and NaN do not tell the label."""
    world = {
        key: [
            replace(candidate, planet=replace(candidate.planet, transits=transits, j_magnitude=12.0))
            for candidate in candidates(key, labels)
        ]
        for key, labels, transits in (("a", [1] * 9, True), ("b", [0] * 9, False), ("c", [0, 1] * 9, False))
    }
    groups, aside = select_runs(world, load_recipe("sample"))
    assert [entry["planet_key"] for entry in aside] == ["a"]
    assert groups and not any(run.present["spectrum"] for group in groups for run in group)
    planets = [world[key][0].planet for key in "abc"]
    assert signature(planets[1]) == signature(planets[2]) != signature(planets[0])


def test_outside_of_the_modes_there_is_nothing():
    depth, sigma = observed(planet(6.8), WAVELENGTH, np.full(1000, 0.01), STARS)
    seen = (WAVELENGTH >= 2.87) & (WAVELENGTH < 12.001)
    assert (np.isfinite(depth) == seen).all() and (np.isfinite(sigma) == seen).all()
    depth, sigma = observed(planet(11.35), WAVELENGTH, np.full(1000, 0.01), STARS)
    assert np.isfinite(depth).all() and depth == pytest.approx(0.01)


def test_noise_grows_with_the_magnitude_as_photons_fail():
    faint, fainter, bright = (
        observed(planet(magnitude), WAVELENGTH, np.full(1000, 0.01), STARS)[1] for magnitude in (16.0, 18.5, 10.6)
    )
    assert fainter / faint == pytest.approx(10**0.5, rel=0.05)
    assert (bright >= 0.7 * PRISM.floor).all() and bright.min() == pytest.approx(PRISM.floor, rel=0.3)


def test_two_modes_that_overlap_see_more_than_one():
    _, sigma = observed(planet(), WAVELENGTH, np.full(1000, 0.01), STARS)
    both = (WAVELENGTH > 5.01) & (WAVELENGTH < 5.29)
    assert (sigma[both] < sigma[(WAVELENGTH > 4.9) & (WAVELENGTH < 4.99)].min()).all()


def test_a_low_resolving_power_blurs_a_line_and_keeps_its_area():
    line = np.zeros(1000)
    line[300] = 1.0
    prism, _ = observed(planet(), WAVELENGTH, line, STARS)
    assert prism[300] < 0.5 and prism.sum() == pytest.approx(1, rel=0.02)
    soss, _ = observed(planet(9.0), WAVELENGTH, line, STARS)
    assert np.nanmax(soss) == 1.0


def test_photons_are_those_of_the_magnitude():
    """A star of J = 0 sends 1594 Jy at 1.235 µm (Cohen, Wheaton & Megeath 2003), whatever its spectrum's shape."""
    edges = np.array([1.154, 1.316])
    expected = 1594e-26 / 6.62607e-34 * np.log(1.316 / 1.154)
    for temperature in (2600, 4200, 5800):
        assert STARS.photons(temperature, 0.0, edges)[0] == pytest.approx(expected, rel=1e-3)
        assert STARS.photons(temperature, 5.0, edges)[0] == pytest.approx(expected / 100, rel=1e-3)


def test_a_cool_star_is_redder_and_no_star_jumps_where_its_spectrum_ends():
    edges = bin_edges(WAVELENGTH)
    cool, warm = (STARS.photons(temperature, 10.0, edges) for temperature in (2600, 5800))
    visible = (WAVELENGTH > 0.6) & (WAVELENGTH < 0.8)
    assert cool[visible].sum() < 0.3 * warm[visible].sum()
    near = (WAVELENGTH > 2.4) & (WAVELENGTH < 2.8)
    assert np.abs(np.diff(np.log(warm[near]))).max() < 0.1


def test_quality_is_a_half_at_five_sigma():
    depth, sigma = np.where(np.arange(1000) % 2, 1.0, -1.0), np.full(1000, 1000**0.5 / 5)
    assert quality(depth, sigma) == pytest.approx(0.5)
    assert quality(depth, sigma / 10) > 0.98 and quality(depth * 0, sigma) == 0
    sigma[500:] = np.nan
    assert quality(np.where(np.isnan(sigma), np.nan, depth), sigma) == pytest.approx(1 / 3)


def test_clouds_are_those_of_the_terminator():
    levels = np.zeros((5, 10, 32, 64))
    levels[0], levels[1] = 250.0, -4.0
    levels[2, 3, :, :32], levels[2, 6] = 0.5, 0.3  # over half of the terminator, at the fourth level; and everywhere
    air = terminator(levels, Atmosphere(1.0, 0.0, 0.0))
    assert air.cloud_fraction == pytest.approx(0.3) and air.cloud_top_pa == air.pressure_pa[3]
