"""NASA Exoplanet Archive, live: the composite table of planet parameters (pscomppars), by TAP.

The archive's older tables are gone; the one of 2019 that the sample is built from is `nasa_exoplanet_archive`.
"""

from typing import Any

from data_build.planets import EARTH_INSTELLATION, PLANET_PARAMETERS, Planet
from data_build.sources.base import Field, SourceInfo
from data_build.sources.tap import TapArchive


class NasaPsCompPars(TapArchive):
    """One row for each confirmed planet, put together from all its references."""

    service = "https://exoplanetarchive.ipac.caltech.edu/TAP"
    table = "pscomppars"

    info = SourceInfo(
        name="nasa_pscomppars",
        title="NASA Exoplanet Archive",
        modality="planet",
        kind="observed",
        version="pscomppars, live",
        client="pyvo",
        licence="free to use with acknowledgement",
        citation="Christiansen et al. 2025, PSJ 6, 186; NASA Exoplanet Archive, doi:10.26133/NEA13",
        requests_per_second=1.0,
        fields=(
            Field("name", "string", required=True, theirs="pl_name"),
            Field("host", "string", required=True, theirs="hostname"),
            Field("letter", "string", theirs="pl_letter"),
            Field("hd_name", "string"),
            Field("hip_name", "string"),
            Field("tic_id", "string"),
            Field("ra_deg", "float64", "deg", 0, 360, required=True, theirs="ra"),
            Field("dec_deg", "float64", "deg", -90, 90, required=True, theirs="dec"),
            Field("stellar_temperature_k", "float64", "K", 250, 2e5, theirs="st_teff"),
            Field("stellar_radius_sun", "float64", "R_sun", 1e-3, 1e3, theirs="st_rad"),
            Field("stellar_mass_sun", "float64", "M_sun", 1e-3, 1e2, theirs="st_mass"),
            Field("log10_luminosity_sun", "float64", "log10(L_sun)", -8, 7, theirs="st_lum"),
            Field("j_magnitude", "float64", "mag", -5, 30, theirs="sy_jmag"),
            Field("radius_earth", "float64", "R_earth", 0.1, 100, theirs="pl_rade"),
            Field("mass_earth", "float64", "M_earth", 1e-3, 3e4, theirs="pl_bmasse"),
            Field("mass_provenance", "string", theirs="pl_bmassprov"),
            Field("period_d", "float64", "d", 0.01, 1e9, theirs="pl_orbper"),
            Field("semi_major_axis_au", "float64", "au", 1e-4, 1e5, theirs="pl_orbsmax"),
            Field("eccentricity", "float64", "1", 0, 1, theirs="pl_orbeccen"),
            Field("insolation_earth", "float64", "S_earth", 0, 1e7, theirs="pl_insol"),
        ),
    )

    @classmethod
    def planet(cls, row: dict[str, Any]) -> Planet:
        """A row as a planet. Masses that the archive estimated, or M sin i, count as derived."""
        values = {name: row[name] for name in PLANET_PARAMETERS if row.get(name) is not None}
        if row["insolation_earth"] is not None:
            values["instellation_w_m2"] = row["insolation_earth"] * EARTH_INSTELLATION
        estimated = "mass_earth" in values and row["mass_provenance"] != "Mass"
        hosts = (row["host"], row["hd_name"], row["hip_name"])
        luminosity = row["log10_luminosity_sun"]
        return Planet(
            key="",
            name=row["name"],
            source=cls.info.name,
            kind="observed",
            values=values,
            derived=frozenset({"mass_earth"} if estimated else ()),
            aliases=frozenset({row["name"], *(f"{host} {row['letter']}" for host in hosts if host and row["letter"])}),
            ra_deg=row["ra_deg"],
            dec_deg=row["dec_deg"],
            luminosity_sun=None if luminosity is None else 10**luminosity,
            j_magnitude=row["j_magnitude"],
            host=row["host"],
            raw_columns=frozenset(values),
        )
