"""NASA Exoplanet Archive, live: the composite table of planet parameters (pscomppars), by TAP.

The archive's older tables are gone; the one of 2019 that the sample is built from is `nasa_exoplanet_archive`. The
composite table fills gaps: a number may be a limit (``<column>lim`` is 1 or -1), or calculated by the archive, a radius
from a mass and the like (``<column>_reflink`` names "Calculated Value";
exoplanetarchive.ipac.caltech.edu/docs/pscp_calc.html).
"""

from typing import Any

from data_build.planets import EARTH_INSTELLATION, PLANET_PARAMETERS, Planet
from data_build.sources.base import Field, SourceInfo
from data_build.sources.tap import TapArchive

#: Numbers that come with a limit flag and a reference.
_MEASURED = (
    Field("stellar_temperature_k", "float64", "K", 250, 2e5, theirs="st_teff"),
    Field("stellar_radius_sun", "float64", "R_sun", 1e-3, 1e3, theirs="st_rad"),
    Field("stellar_mass_sun", "float64", "M_sun", 1e-3, 1e2, theirs="st_mass"),
    Field("log10_luminosity_sun", "float64", "log10(L_sun)", -8, 7, theirs="st_lum"),
    Field("radius_earth", "float64", "R_earth", 0.1, 100, theirs="pl_rade"),
    Field("mass_earth", "float64", "M_earth", 1e-3, 3e4, theirs="pl_bmasse"),
    Field("orbital_period_d", "float64", "d", 0.01, 1e9, theirs="pl_orbper"),
    Field("semi_major_axis_au", "float64", "au", 1e-4, 1e5, theirs="pl_orbsmax"),
    Field("eccentricity", "float64", "1", 0, 1, theirs="pl_orbeccen"),
    Field("insolation_earth", "float64", "S_earth", 0, 1e7, theirs="pl_insol"),
)


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
            Field("j_magnitude", "float64", "mag", -5, 30, theirs="sy_jmag"),
            Field("mass_provenance", "string", theirs="pl_bmassprov"),
            Field("transits", "int64", minimum=0, maximum=1, theirs="tran_flag"),
            *_MEASURED,
            *(Field(f"{field.name}_limit", "int64", "1", -1, 1, theirs=f"{field.theirs}lim") for field in _MEASURED),
            *(Field(f"{field.name}_reference", "string", theirs=f"{field.theirs}_reflink") for field in _MEASURED),
        ),
    )

    @classmethod
    def planet(cls, row: dict[str, Any]) -> Planet:
        """A row as a planet, without what is only a limit. What the archive calculated counts as derived and not as
        read; a mass that is M sin i as derived."""
        known = {
            field.name: row[field.name]
            for field in _MEASURED
            if row[field.name] is not None and not row[f"{field.name}_limit"]
        }
        calculated = {name for name in known if "calculated" in (row[f"{name}_reference"] or "").lower()}
        if row["mass_provenance"] == "M-R relationship":
            calculated.add("mass_earth")
        values = {name: known[name] for name in PLANET_PARAMETERS if name in known}
        if "insolation_earth" in known:
            values["instellation_w_m2"] = known["insolation_earth"] * EARTH_INSTELLATION
            calculated |= {"instellation_w_m2"} if "insolation_earth" in calculated else set()
        minimum_mass = {"mass_earth"} if row["mass_provenance"] != "Mass" else set()
        luminosity = known.get("log10_luminosity_sun")
        hosts = (row["host"], row["hd_name"], row["hip_name"])
        return Planet(
            key="",
            name=row["name"],
            source=cls.info.name,
            kind="observed",
            values=values,
            derived=frozenset((calculated | minimum_mass) & values.keys()),
            aliases=frozenset({row["name"], *(f"{host} {row['letter']}" for host in hosts if host and row["letter"])}),
            ra_deg=row["ra_deg"],
            dec_deg=row["dec_deg"],
            luminosity_sun=None if luminosity is None else 10**luminosity,
            j_magnitude=row["j_magnitude"],
            host=row["host"],
            raw_columns=frozenset(values.keys() - calculated),
            transits=None if row["transits"] is None else row["transits"] == 1,
        )
