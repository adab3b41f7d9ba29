"""Open Exoplanet Catalogue: systems.xml.gz as shipped in the astroquery package; planets and their descriptions."""

import gzip
import warnings
from pathlib import Path
from xml.etree import ElementTree

import astropy.units as u
import astroquery
from astropy.coordinates import Angle
from astropy.utils.exceptions import AstropyWarning

from data_build.cache import check_installed
from data_build.planets import Planet
from data_build.sources.base import SourceInfo

_SHA256 = "297880b9989568a784d5d1a89eb9668a6245babc35b2baad66321c5a4fcbf998"
_PACKAGE = "astroquery==0.4.11"

_STAR_COLUMNS = {
    "temperature": ("stellar_temperature_k", 1.0),
    "radius": ("stellar_radius_sun", 1.0),
    "mass": ("stellar_mass_sun", 1.0),
}
_PLANET_COLUMNS = {
    "radius": ("radius_earth", u.R_jup.to(u.R_earth)),
    "mass": ("mass_earth", u.M_jup.to(u.M_earth)),
    "period": ("orbital_period_d", 1.0),
    "semimajoraxis": ("semi_major_axis_au", 1.0),
    "eccentricity": ("eccentricity", 1.0),
}


class OpenExoplanetCatalogue:
    """Confirmed planets of single stars, with descriptions written by the catalogue's contributors."""

    info = SourceInfo(
        name="open_exoplanet_catalogue",
        modality="planet",
        version="systems.xml.gz of astroquery 0.4.11",
        licence="MIT (catalogue); BSD-3-Clause (astroquery)",
        citation="Rein 2012, arXiv:1211.7121",
        kind="observed",
    )

    def ensure(self) -> None:
        """Fetch and check the source's files; raises `DataError` if that fails."""
        self.path()

    def path(self) -> Path:
        """The catalogue file inside the installed package, its sha256 checked."""
        path = Path(astroquery.__file__).parent / "open_exoplanet_catalogue/tests/data/systems.xml.gz"
        return check_installed(path, _SHA256, _PACKAGE)

    def planets(self) -> list[Planet]:
        """Every confirmed planet that orbits one star, with the values the catalogue states; nothing derived yet.

        Planets of binaries as a whole are left out: a single-star instellation would be wrong for them.
        """
        with gzip.open(self.path()) as file:
            systems = ElementTree.parse(file).getroot()
        return [
            self._planet(system, star, planet)
            for system in systems.iter("system")
            for star in system.iter("star")
            for planet in star.findall("planet")
            if "Confirmed planets" in {element.text for element in planet.findall("list")}
        ]

    def _planet(self, system, star, planet) -> Planet:
        values = {}
        for columns, element in ((_STAR_COLUMNS, star), (_PLANET_COLUMNS, planet)):
            for tag, (name, factor) in columns.items():
                number = _number(element, tag)
                if number is not None:
                    values[name] = number * factor
        names = [element.text.strip() for element in planet.findall("name")]
        minimum_mass = "mass_earth" in values and planet.find("mass").get("type") == "msini"
        return Planet(
            key="",
            name=names[0],
            source=self.info.name,
            kind="observed",
            values=values,
            derived=frozenset({"mass_earth"} if minimum_mass else ()),
            aliases=frozenset(names),
            ra_deg=_angle(system.findtext("rightascension"), u.hourangle),
            dec_deg=_angle(system.findtext("declination"), u.deg),
            j_magnitude=_number(star, "magJ"),
            host=star.findtext("name") or names[0],
            description=" ".join((planet.findtext("description") or "").split()),
            raw_columns=frozenset(values),
            transits=True if planet.findtext("istransiting") == "1" else None,
        )


def _number(element, tag: str) -> float | None:
    """The element's number; None where it is absent, empty, or only a limit."""
    text = element.findtext(tag)
    return float(text) if text and text.strip() else None


def _angle(text: str | None, unit: u.UnitBase) -> float | None:
    """Degrees of a sexagesimal text; None where it is absent or no angle (the catalogue has seconds of 70)."""
    if text is None:
        return None
    with warnings.catch_warnings():  # seconds of 60, which astropy reads as one minute more
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            return Angle(text, unit=unit).deg
        except ValueError:
            return None
