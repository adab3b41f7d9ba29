"""Planets and their atmospheres: what the catalogues say of them, and what follows from that by physics.

A planet's numbers are kept by the column names of `astrobio.schema.PLANET_COLUMNS`; a column that is absent is
unknown. `derived` names those that were computed here rather than read.
"""

from dataclasses import dataclass, replace

import numpy as np
from astropy import constants
from astropy import units as u

#: Columns of the planet table that belong to the star and the planet; the others belong to a run's atmosphere.
PLANET_PARAMETERS = (
    "stellar_temperature_k",
    "stellar_radius_sun",
    "stellar_mass_sun",
    "instellation_w_m2",
    "radius_earth",
    "mass_earth",
    "gravity_m_s2",
    "rotation_period_d",
    "orbital_period_d",
    "semi_major_axis_au",
    "eccentricity",
)

#: One Earth insolation (1 S_earth), the unit of pl_insol, in W m-2: IAU 2015 solar luminosity at 1 au.
EARTH_INSTELLATION = 1361.0

#: The Earth and the Sun: IAU 2015 nominal values (Prša et al. 2016, AJ 152, 41), sidereal day (86,164.1 s) and orbit of
#: J2000 (Simon et al. 1994, A&A 282, 663).
EARTH = {
    "stellar_temperature_k": 5772.0,
    "stellar_radius_sun": 1.0,
    "stellar_mass_sun": 1.0,
    "instellation_w_m2": EARTH_INSTELLATION,
    "radius_earth": 1.0,
    "mass_earth": 1.0,
    "rotation_period_d": 0.99727,
    "orbital_period_d": 365.256,
    "semi_major_axis_au": 1.0,
    "eccentricity": 0.0167,
}

#: Column → the emulator's input, for what the emulator needs of a planet.
EMULATOR_INPUTS = {
    "stellar_temperature_k": "T_star",
    "instellation_w_m2": "F_star",
    "radius_earth": "radius",
    "gravity_m_s2": "gravity",
    "rotation_period_d": "P_rot",
}


@dataclass(frozen=True)
class Planet:
    """One planet, real or sampled.

    ``values``: column → number in the schema's unit. ``luminosity_sun`` and the host's ``j_magnitude`` are not
    columns, but the instellation and the spectrum's noise follow from them. ``source`` names the catalogues the
    values come from, joined by ``+``; ``kind`` is observed or synthetic; ``raw_columns`` were read, not derived.
    ``epoch`` is the Julian year of the position; ``observations`` are pairs of an archive and what it tells of others'
    observations of the star. ``transits`` is None where no catalogue tells whether the planet does.
    """

    key: str
    name: str
    source: str
    kind: str
    values: dict[str, float]
    derived: frozenset[str] = frozenset()
    aliases: frozenset[str] = frozenset()
    ra_deg: float | None = None
    dec_deg: float | None = None
    luminosity_sun: float | None = None
    j_magnitude: float | None = None
    host: str = ""
    description: str = ""
    raw_columns: frozenset[str] = frozenset()
    epoch: float = 2000.0
    observations: tuple[tuple[str, str], ...] = ()
    transits: bool | None = None

    @property
    def quality(self) -> float:
        """Share of the star and planet columns that were read from a catalogue; 0.5 for a sampled planet."""
        return len(self.raw_columns) / len(PLANET_PARAMETERS) if self.kind == "observed" else 0.5


@dataclass(frozen=True)
class Atmosphere:
    """Surface pressure in bar and volume mixing ratios of the dry air, and what the ``rest`` of it is."""

    surface_pressure_bar: float
    co2_vmr: float
    ch4_vmr: float
    rest: str = "nitrogen"


def derive(planet: Planet) -> Planet:
    """Fill what follows from the known values by physics, and flag it as derived.

    Kepler's third law links semi-major axis, period and stellar mass; luminosity is the catalogue's or
    4πR²σT⁴, which also gives R of a star of known luminosity; instellation is L / (4πa² √(1 − e²)), the mean over the
    orbit; radius and mass follow from each other by `radius_from_mass` and `mass_from_radius`; gravity is GM/R².
    """
    v = dict(planet.values)

    def put(name: str, value: float) -> None:
        v[name] = float(value)

    if "stellar_mass_sun" not in v and {"orbital_period_d", "semi_major_axis_au"} <= v.keys():
        put("stellar_mass_sun", kepler_mass_sun(v["orbital_period_d"], v["semi_major_axis_au"]))
    if "semi_major_axis_au" not in v and {"orbital_period_d", "stellar_mass_sun"} <= v.keys():
        put("semi_major_axis_au", kepler_axis_au(v["orbital_period_d"], v["stellar_mass_sun"]))
    if "orbital_period_d" not in v and {"semi_major_axis_au", "stellar_mass_sun"} <= v.keys():
        put("orbital_period_d", kepler_period_d(v["semi_major_axis_au"], v["stellar_mass_sun"]))

    luminosity = planet.luminosity_sun
    if luminosity is None and {"stellar_radius_sun", "stellar_temperature_k"} <= v.keys():
        luminosity = luminosity_sun(v["stellar_radius_sun"], v["stellar_temperature_k"])
    if "stellar_radius_sun" not in v and luminosity is not None and "stellar_temperature_k" in v:
        put("stellar_radius_sun", stellar_radius_sun(luminosity, v["stellar_temperature_k"]))
    if "instellation_w_m2" not in v and luminosity is not None and "semi_major_axis_au" in v:
        put("instellation_w_m2", instellation_w_m2(luminosity, v["semi_major_axis_au"], v.get("eccentricity", 0.0)))

    if "radius_earth" not in v and "mass_earth" in v:
        put("radius_earth", radius_from_mass(v["mass_earth"]))
    if "mass_earth" not in v and "radius_earth" in v:
        put("mass_earth", mass_from_radius(v["radius_earth"]))
    if "mass_earth" in v and "radius_earth" in v:
        put("gravity_m_s2", gravity_m_s2(v["mass_earth"], v["radius_earth"]))
    new = v.keys() - planet.values.keys()
    return replace(planet, values=v, derived=planet.derived | new, luminosity_sun=luminosity)


def tidally_locked(planet: Planet) -> Planet:
    """The planet with its rotation period, where that is unknown, equal to its orbital period and flagged as derived.

    CLERO's planets are tidally locked; catalogues know the orbital period alone.
    """
    if "rotation_period_d" in planet.values or "orbital_period_d" not in planet.values:
        return planet
    values = {**planet.values, "rotation_period_d": planet.values["orbital_period_d"]}
    return replace(planet, values=values, derived=planet.derived | {"rotation_period_d"})


def in_domain(planet: Planet, domain: dict[str, tuple[float, float]]) -> bool:
    """Whether everything the emulator needs of a planet is known and inside ``domain`` (a CLERO domain)."""
    return all(
        name in planet.values and domain[key][0] <= planet.values[name] <= domain[key][1]
        for name, key in EMULATOR_INPUTS.items()
    )


# The constants of each law in the units of the columns, so that it is plain arithmetic on numbers.
_SOLAR_CONSTANT = (constants.L_sun / (4 * np.pi * (1 * u.au) ** 2)).to_value(u.W / u.m**2)
_STEFAN_BOLTZMANN = (4 * np.pi * constants.R_sun**2 * constants.sigma_sb).to_value(u.L_sun / u.K**4)
_KEPLER = (constants.G * constants.M_sun / (4 * np.pi**2)).to_value(u.au**3 / u.day**2)
_EARTH_GRAVITY = (constants.G * constants.M_earth / constants.R_earth**2).to_value(u.m / u.s**2)


def luminosity_sun(radius_sun: float, temperature_k: float) -> float:
    """Luminosity in solar units by Stefan and Boltzmann's law, 4πR²σT⁴."""
    return _STEFAN_BOLTZMANN * radius_sun**2 * temperature_k**4


def stellar_radius_sun(luminosity: float, temperature_k: float) -> float:
    """The inverse of `luminosity_sun`."""
    return np.sqrt(luminosity / (_STEFAN_BOLTZMANN * temperature_k**4))


def instellation_w_m2(luminosity: float, axis_au: float, eccentricity: float = 0.0) -> float:
    """Orbit-averaged stellar flux in W m-2 for a ``luminosity`` in solar units."""
    return _SOLAR_CONSTANT * luminosity / (axis_au**2 * np.sqrt(1 - eccentricity**2))


def kepler_axis_au(period_d: float, stellar_mass_sun: float) -> float:
    """Semi-major axis in au by Kepler's third law, a³ = GM P²/4π², the planet's own mass neglected."""
    return np.cbrt(_KEPLER * stellar_mass_sun * period_d**2)


def kepler_period_d(axis_au: float, stellar_mass_sun: float) -> float:
    """Orbital period in days by Kepler's third law."""
    return np.sqrt(axis_au**3 / (_KEPLER * stellar_mass_sun))


def kepler_mass_sun(period_d: float, axis_au: float) -> float:
    """Stellar mass in solar masses by Kepler's third law."""
    return axis_au**3 / (_KEPLER * period_d**2)


def gravity_m_s2(mass_earth: float, radius_earth: float) -> float:
    """Surface gravity GM/R² in m s-2."""
    return _EARTH_GRAVITY * mass_earth / radius_earth**2


# Chen & Kipping 2017, ApJ 834, 17: the mean relation R = 1.008 M^0.279 of the "Terran" branch up to 2.04 Earth
# masses, continued by R ∝ M^0.589 of the "Neptunian" one. CLERO's domain ends (2.76 Earth radii) before the next.
_TERRAN_COEFFICIENT, _TERRAN_EXPONENT, _NEPTUNIAN_EXPONENT, _TERRAN_LIMIT = 1.008, 0.279, 0.589, 2.04
_RADIUS_AT_LIMIT = _TERRAN_COEFFICIENT * _TERRAN_LIMIT**_TERRAN_EXPONENT


def radius_from_mass(mass_earth: float) -> float:
    """Most probable radius in Earth radii of a planet of ``mass_earth`` (Chen & Kipping 2017, ApJ 834, 17)."""
    if mass_earth <= _TERRAN_LIMIT:
        return _TERRAN_COEFFICIENT * mass_earth**_TERRAN_EXPONENT
    return _RADIUS_AT_LIMIT * (mass_earth / _TERRAN_LIMIT) ** _NEPTUNIAN_EXPONENT


def mass_from_radius(radius_earth: float) -> float:
    """The inverse of `radius_from_mass`."""
    if radius_earth <= _RADIUS_AT_LIMIT:
        return (radius_earth / _TERRAN_COEFFICIENT) ** (1 / _TERRAN_EXPONENT)
    return _TERRAN_LIMIT * (radius_earth / _RADIUS_AT_LIMIT) ** (1 / _NEPTUNIAN_EXPONENT)
