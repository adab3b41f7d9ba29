"""Encyclopaedia of exoplanetary systems (exoplanet.eu): its table in the Observatoire de Paris' TAP service.

Columns and units are those of the service's own resource descriptor (github.com/epn-vespa/VESPA-CRISM-helper-scripts,
q.rd_examples/exoplanet/q.rd): it tells how a planet was published, not whether it is confirmed. The catalogue's own
tables spell the status out ("Published in a refereed paper"), the descriptor has letters (R); both are understood.
"""

from typing import Any

import astropy.units as u

from data_build.planets import PLANET_PARAMETERS, Planet
from data_build.sources.base import Field, SourceInfo
from data_build.sources.tap import TapArchive


class ExoplanetEu(TapArchive):
    """One row for each planet; masses and radii come in Jupiter's."""

    service = "http://voparis-tap-planeto.obspm.fr/tap"  # it has no https
    table = "exoplanet.epn_core"

    info = SourceInfo(
        name="exoplanet_eu",
        title="exoplanet.eu",
        modality="planet",
        kind="observed",
        version="exoplanet.epn_core, live",
        client="pyvo",
        licence="free to use with acknowledgement",
        citation="Schneider et al. 2011, A&A 532, A79",
        requests_per_second=1.0,
        fields=(
            Field("entry", "string", required=True, theirs="granule_uid"),
            Field("name", "string", required=True, theirs="target_name"),
            Field("other_names", "string", theirs="alternate_name"),
            Field("host", "string", theirs="star_name"),
            Field("status", "string", theirs="publication_status"),
            Field("ra_deg", "float64", "deg", 0, 360, theirs="ra"),
            Field("dec_deg", "float64", "deg", -90, 90, theirs="dec"),
            Field("stellar_temperature_k", "float64", "K", 250, 2e5, theirs="star_teff"),
            Field("stellar_radius_sun", "float64", "R_sun", 1e-3, 1e3, theirs="star_radius"),
            Field("stellar_mass_sun", "float64", "M_sun", 1e-3, 1e2, theirs="star_mass"),
            Field("j_magnitude", "float64", "mag", -5, 30, theirs="mag_j"),
            Field("radius_earth", "float64", "R_earth", 0.1, 100, theirs="radius", factor=u.R_jup.to(u.R_earth)),
            Field("mass_earth", "float64", "M_earth", 1e-3, 3e4, theirs="mass", factor=u.M_jup.to(u.M_earth)),
            Field("radius_detection", "string", theirs="radius_detection_type"),
            Field("mass_detection", "string", theirs="mass_detection_type"),
            Field("orbital_period_d", "float64", "d", 0.01, 1e9, theirs="period"),
            Field("semi_major_axis_au", "float64", "au", 1e-4, 1e5, theirs="semi_major_axis"),
            Field("eccentricity", "float64", "1", 0, 1),
        ),
    )

    @staticmethod
    def unused(row: dict[str, Any]) -> str:
        """Why the row is no planet here: empty for one from a refereed paper."""
        status = " ".join((row["status"] or "").split())
        refereed = status.upper() == "R" or status.lower().startswith("published in a refereed")
        return "" if refereed else f"publication_status is {status!r}"

    @classmethod
    def planet(cls, row: dict[str, Any]) -> Planet:
        """A row as a planet. Masses count as derived: which are M sin i it does not tell. A theoretical radius or mass
        (type 11) is derived and was not read."""
        values = {name: row[name] for name in PLANET_PARAMETERS if row.get(name) is not None}
        calculated = {
            name
            for name, detection in (("radius_earth", "radius_detection"), ("mass_earth", "mass_detection"))
            if (row[detection] or "").strip().lower().startswith(("theor", "11"))
        }
        others = [name.strip() for name in (row["other_names"] or "").replace(";", ",").split(",") if name.strip()]
        return Planet(
            key="",
            name=row["name"],
            source=cls.info.name,
            kind="observed",
            values=values,
            derived=frozenset(({"mass_earth"} | calculated) & values.keys()),
            aliases=frozenset({row["name"], *others}),
            ra_deg=row["ra_deg"],
            dec_deg=row["dec_deg"],
            j_magnitude=row["j_magnitude"],
            host=row["host"] or row["name"],
            raw_columns=frozenset(values.keys() - calculated),
        )
