"""What is sampled rather than observed: planets that fill up the real ones, and every planet's atmospheres."""

import zlib

import clero
import numpy as np

from data_build.planets import (
    Atmosphere,
    Planet,
    gravity_m_s2,
    in_domain,
    instellation_w_m2,
    kepler_period_d,
    luminosity_sun,
    mass_from_radius,
    tidally_locked,
)
from data_build.recipe import Recipe

#: What provenance says of a sampled planet.
SAMPLED_SOURCE = "sampled planet of an archive host star"

_RADIUS_EARTH = (0.6, 2.4)  # uniform
_MASS_SCATTER_DEX = 0.1  # around the mass–radius relation
_INSTELLATION = (500.0, 2800.0)  # log-uniform, W m-2
_ECCENTRICITY = 0.049  # Rayleigh parameter of compact systems (Van Eylen & Albrecht 2015, ApJ 808, 126)
_DWARF_RADIUS_SUN = 1.3  # larger hosts have left the main sequence


def stream(seed: int, *names: str) -> np.random.Generator:
    """A random generator that depends on the seed and the names alone, not on what was drawn before."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def sample_planets(count: int, catalogue: list[Planet], used_hosts: set[str], seed: int) -> list[Planet]:
    """Up to ``count`` planets with sampled radius, mass and instellation around real host stars.

    Each takes another host (none of ``used_hosts``) that is a main-sequence star with known temperature, radius, mass
    and J magnitude; semi-major axis and period follow from the instellation. Fewer are returned if the hosts run out.
    """
    rng = stream(seed, "sampled planets")
    low, high = clero.EXTENDED_DOMAIN["T_star"]
    hosts: dict[str, Planet] = {}
    for planet in catalogue:
        value = planet.values
        if (
            planet.host not in used_hosts
            and planet.j_magnitude is not None
            and {"stellar_temperature_k", "stellar_radius_sun", "stellar_mass_sun"} <= value.keys()
            and low <= value["stellar_temperature_k"] <= high
            and value["stellar_radius_sun"] < _DWARF_RADIUS_SUN
        ):
            hosts.setdefault(planet.host, planet)
    # M dwarfs are rare in the archive but are where CLERO's planets live: the coolest hosts come first.
    pool = sorted(hosts.values(), key=lambda host: (host.values["stellar_temperature_k"], host.host))[: 2 * count]
    planets: list[Planet] = []
    for index in rng.permutation(len(pool)):
        sampled = _sample_planet(pool[index], f"synthetic-{len(planets):04d}", rng)
        if sampled is not None:
            planets.append(sampled)
        if len(planets) == count:
            break
    return planets


def _sample_planet(host: Planet, key: str, rng: np.random.Generator, attempts: int = 20) -> Planet | None:
    """A planet of ``host`` inside CLERO's extended domain; None if ``attempts`` draws gave none."""
    star = {name: host.values[name] for name in ("stellar_temperature_k", "stellar_radius_sun", "stellar_mass_sun")}
    luminosity = luminosity_sun(star["stellar_radius_sun"], star["stellar_temperature_k"])
    for _ in range(attempts):
        radius = rng.uniform(*_RADIUS_EARTH)
        mass = mass_from_radius(radius) * 10 ** rng.normal(0, _MASS_SCATTER_DEX)
        flux = np.exp(rng.uniform(*np.log(_INSTELLATION)))
        eccentricity = min(rng.rayleigh(_ECCENTRICITY), 0.5)
        axis = np.sqrt(instellation_w_m2(luminosity, 1.0, eccentricity) / flux)
        values = {
            **star,
            "instellation_w_m2": flux,
            "radius_earth": radius,
            "mass_earth": mass,
            "gravity_m_s2": gravity_m_s2(mass, radius),
            "semi_major_axis_au": axis,
            "orbital_period_d": kepler_period_d(axis, star["stellar_mass_sun"]),
            "eccentricity": eccentricity,
        }
        planet = Planet(
            key=key,
            name="",
            source=SAMPLED_SOURCE,
            kind="synthetic",
            values={name: float(value) for name, value in values.items()},
            derived=frozenset({"gravity_m_s2", "semi_major_axis_au", "orbital_period_d"}),
            luminosity_sun=luminosity,
            j_magnitude=host.j_magnitude,
            host=host.host,
            transits=True,
        )
        planet = tidally_locked(planet)
        if in_domain(planet, clero.EXTENDED_DOMAIN):
            return planet
    return None


def sample_atmospheres(planet: Planet, recipe: Recipe) -> list[Atmosphere]:
    """The planet's candidate atmospheres; they depend on the recipe's seed and the planet's key alone."""
    rng = stream(recipe.seed, "atmospheres", planet.key)
    low, high = recipe.co2_vmr
    middle = min(max(0.1, low), high)
    atmospheres = []
    for _ in range(recipe.candidates_per_planet):
        pressure, ch4 = _log_uniform(rng, recipe.surface_pressure_bar), _log_uniform(rng, recipe.ch4_vmr)
        co2 = _log_uniform(rng, (low, middle)) if rng.random() < 0.5 else rng.uniform(middle, high)
        atmospheres.append(Atmosphere(pressure, float(min(co2, 1 - ch4)), ch4))
    return atmospheres


def _log_uniform(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    return float(np.exp(rng.uniform(*np.log(limits))))
