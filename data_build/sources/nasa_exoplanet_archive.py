"""NASA Exoplanet Archive: the confirmed-planets table of 2019-05-31, as shipped in the EXOSIMS wheel."""

import warnings
from functools import cached_property

import numpy as np
from astropy.io.votable import parse_single_table
from astropy.table import Table

from data_build.planets import EARTH_INSTELLATION, Planet
from data_build.sources.base import SourceInfo
from data_build.sources.exosims import FILES, PLANETS

#: Archive column → schema column; the archive's units (K, R_sun, M_sun, R_earth, M_earth, d, au) are the schema's.
_COLUMNS = {
    "st_teff": "stellar_temperature_k",
    "st_rad": "stellar_radius_sun",
    "st_mass": "stellar_mass_sun",
    "pl_rade": "radius_earth",
    "pl_bmasse": "mass_earth",
    "pl_orbper": "orbital_period_d",
    "pl_orbsmax": "semi_major_axis_au",
    "pl_orbeccen": "eccentricity",
}
#: Numbers that no column of the schema holds as they are.
_OTHERS = ("st_j", "st_lum", "pl_insol")
_READ = (
    "pl_name",
    "pl_hostname",
    "hd_name",
    "hip_name",
    "pl_letter",
    "pl_bmassprov",
    "ra",
    "dec",
    "pl_tranflag",
    *_COLUMNS,
    *(f"{name}lim" for name in _COLUMNS),
    *_OTHERS,
    *(f"{name}lim" for name in _OTHERS),
)


class NasaExoplanetArchive:
    """Planets and host stars of the archive's snapshot."""

    info = SourceInfo(
        name="nasa_exoplanet_archive",
        modality="planet",
        version="confirmed planets 2019-05-31 (exosims 3.6.6)",
        licence="BSD-3-Clause (EXOSIMS); archive data are free to use with acknowledgement",
        citation="Akeson et al. 2013, PASP 125, 989; NASA Exoplanet Archive, doi:10.26133/NEA1",
        kind="observed",
    )

    def ensure(self) -> None:
        """Fetch and check the source's files; raises `DataError` if that fails."""
        FILES.ensure()

    @cached_property
    def _table(self) -> Table:
        path = FILES.ensure()[PLANETS]
        with warnings.catch_warnings():  # the archive's old VOTable names units astropy does not know
            warnings.simplefilter("ignore")
            return parse_single_table(path, columns=list(_READ)).to_table()

    def planets(self) -> list[Planet]:
        """Every planet of the snapshot, with the values it states; nothing derived yet."""
        return [self._planet(row) for row in self._table]

    def _planet(self, row) -> Planet:
        values = {}
        for theirs, ours in _COLUMNS.items():
            number = _measured(row, theirs)
            if number is not None:
                values[ours] = number
        insolation, log_luminosity = _measured(row, "pl_insol"), _measured(row, "st_lum")
        if insolation is not None:
            values["instellation_w_m2"] = insolation * EARTH_INSTELLATION
        # A minimum mass M sin i is an estimate of the mass, not a reading of it.
        minimum_mass = "mass_earth" in values and str(row["pl_bmassprov"]) != "Mass"
        letter = str(row["pl_letter"])
        name = str(row["pl_name"])
        aliases = {name} | {
            f"{host} {letter}"
            for host in (str(row["pl_hostname"]), _text(row, "hd_name"), _text(row, "hip_name"))
            if host
        }
        return Planet(
            key="",
            name=name,
            source=self.info.name,
            kind="observed",
            values=values,
            derived=frozenset({"mass_earth"} if minimum_mass else ()),
            aliases=frozenset(aliases),
            ra_deg=_number(row, "ra"),
            dec_deg=_number(row, "dec"),
            luminosity_sun=None if log_luminosity is None else 10**log_luminosity,
            j_magnitude=_measured(row, "st_j"),
            host=str(row["pl_hostname"]),
            raw_columns=frozenset(values),
            transits=_number(row, "pl_tranflag") == 1,
        )


def _measured(row, column: str) -> float | None:
    """A number; None where a limit flag of ±1 makes it a bound, not a measurement."""
    return None if _number(row, f"{column}lim") else _number(row, column)


def _number(row, column: str) -> float | None:
    value = row[column]
    return None if np.ma.is_masked(value) or not np.isfinite(value) else float(value)


def _text(row, column: str) -> str:
    value = row[column]
    return "" if np.ma.is_masked(value) else str(value).strip()
