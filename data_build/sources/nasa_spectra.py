r"""NASA Exoplanet Archive, live: transmission spectra that were measured, of the Atmospheric Spectroscopy Table.

By TAP the archive lists the spectra (table ``spectra``); the points of each are an IPAC table, found by ``spec_path``
below a workspace that the table's viewer opens for each visit (exoplanetarchive.ipac.caltech.edu/docs/atmospheres). In
a file ``PL_TRANDEP`` is the transit depth (R_p/R_*)² in percent, in part calculated by the archive from the radius
ratio that was published, with an upper error ``PL_TRANDEPERR1`` and a lower one, negative, ``PL_TRANDEPERR2``;
``PL_TRANDEPLIM`` marks limits.
"""

import html
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import requests
from astropy.io import ascii as text_tables
from astropy.table import Table

from data_build.sources.base import ArchiveChanged, Field, SourceInfo, good
from data_build.sources.tap import TapArchive, table_rows

HOST = "https://exoplanetarchive.ipac.caltech.edu"
VIEWER = f"{HOST}/cgi-bin/atmospheres/nph-firefly?atmospheres"
_WORKSPACE = re.compile(r"/workspace/TMP_\w+")

#: Unit in a file's header → what turns it into micrometres, or into a fraction. One that is left open is percent.
MICROMETRES = {"micron": 1.0, "microns": 1.0, "um": 1.0, "nm": 1e-3, "": 1.0}
FRACTIONS = {"%": 1e-2, "percent": 1e-2, "ppm": 1e-6, "": 1e-2}


class NasaSpectra(TapArchive):
    """A row for each point of each spectrum; what is no measurement of a depth is set aside with the reason."""

    service, table, where = f"{HOST}/TAP", "spectra", "spec_type = 'Transmission'"
    columns = ("spec_path", "pl_name", "facility", "instrument", "authors", "bibcode", "num_datapoints")

    info = SourceInfo(
        name="nasa_spectra",
        title="NASA Exoplanet Archive's spectra",
        modality="spectrum",
        kind="observed",
        version="Atmospheric Spectroscopy Table, live",
        client="pyvo",
        licence="free to use with acknowledgement",
        citation="Christiansen et al. 2025, PSJ 6, 186; each spectrum's own reference",
        requests_per_second=1.0,
        fields=(
            Field("point", "string", required=True),
            Field("spectrum", "string", required=True),
            Field("planet", "string", required=True),
            Field("facility", "string"),
            Field("instrument", "string"),
            Field("reference", "string"),
            Field("wavelength_um", "float64", "um", 0.05, 1000),
            Field("bandwidth_um", "float64", "um", 0, 1000),
            Field("transit_depth", "float64", "1", -0.01, 1),
            Field("sigma", "float64", "1", 0, 1),
            Field("problem", "string"),
        ),
    )
    volatile = _WORKSPACE.pattern

    def __init__(self):
        self._workspace = "/workspace/TMP_0"  # none yet: files that are cached need none

    def rows(self, session: requests.Session) -> Iterator[dict[str, Any]]:
        """Every point of every transmission spectrum."""
        for entry in table_rows(self, session):
            path = str(entry["spec_path"])
            spectrum = {
                "spectrum": path,
                "planet": entry["pl_name"],
                "facility": entry["facility"],
                "instrument": entry["instrument"],
                "reference": ", ".join(text for text in (_plain(entry["authors"]), _plain(entry["bibcode"])) if text),
            }
            file = self._file(session, path)
            points, problem = ([], "its file is not there") if file is None else read_points(file)
            if len(points) < int(_number(entry["num_datapoints"]) or 0):
                problem = problem or f"its file has {len(points)} of {entry['num_datapoints']} points"
            for number, point in enumerate(points or [{}]):
                row = {"point": f"{path}#{number}", **spectrum, **point}
                yield {**row, "problem": problem or point.get("problem")}

    def changes(self, session: requests.Session) -> list[str]:
        """What the list of spectra has otherwise than expected, and whether the first of them can be read."""
        found = super().changes(session)
        first = None if found else next(self.rows(session))
        return found if first is None or "wavelength_um" in first else [f"{first['spectrum']}: {first['problem']}"]

    @staticmethod
    def check(row: Mapping[str, Any]) -> list[str]:
        """Why the point is no measurement."""
        return [row["problem"]] if row["problem"] else []

    @staticmethod
    def settled(method: str, head: bytes) -> bool:
        """The viewer's page is another one at each visit."""
        return TapArchive.settled(method, head) and b"<html" not in head[:500].lower()

    def _file(self, session: requests.Session, path: str) -> str | None:
        """The spectrum's file, out of a new workspace if the last one is over; None if it is in none."""
        for visit in range(2):
            answer = session.get(f"{HOST}{self._workspace}/atmospheres/tab1/data/{path}")
            if answer.status_code != 404 and good(answer, self.info).text.lstrip().startswith(("\\", "|")):
                return answer.text
            if visit == 0:
                page = good(session.get(VIEWER), self.info).text
                workspace = _WORKSPACE.search(page)
                if workspace is None:
                    raise ArchiveChanged(
                        f"{self.info.title}: {VIEWER} opens no workspace: the archive has changed, please report it"
                    )
                self._workspace = workspace[0]
        return None


def read_points(file: str) -> tuple[list[dict[str, Any]], str]:
    """The points of a spectrum's file, wavelengths in micrometres and depths as fractions, and what is wrong with all.

    ``sigma`` is the mean of the upper and the lower error; of one where the other is absent. A limit, or a point
    without a depth, has a ``problem``.
    """
    try:
        table = text_tables.read(file, format="ipac", fill_values=[("null", "0")])
    except ValueError as error:
        return [], f"its file is no IPAC table: {error}"
    lacking = [name for name in ("CENTRALWAVELNG", "PL_TRANDEP") if name not in table.colnames]
    if lacking:
        return [], f"its file has no {', '.join(lacking)}"
    units = {"CENTRALWAVELNG": MICROMETRES, "BANDWIDTH": MICROMETRES, "PL_TRANDEP": FRACTIONS}
    factors = {}
    for name, known in units.items():
        unit = str(table[name].unit or "").strip().lower() if name in table.colnames else ""
        if unit not in known:
            return [], f"the unit of {name} is {unit!r}, it must be {' or '.join(name for name in known if name)}"
        factors[name] = known[unit]
    return [_point(table, number, factors) for number in range(len(table))], ""


def _point(table: Table, number: int, factors: Mapping[str, float]) -> dict[str, Any]:
    def value(name: str, factor: float) -> float | None:
        found = _number(table[name][number]) if name in table.colnames else None
        return None if found is None else found * factor

    depth = value("PL_TRANDEP", factors["PL_TRANDEP"])
    errors = [value(f"PL_TRANDEPERR{side}", factors["PL_TRANDEP"]) for side in (1, 2)]
    known = [abs(error) for error in errors if error is not None]
    wavelength = value("CENTRALWAVELNG", factors["CENTRALWAVELNG"])
    problem = "transit_depth is a limit" if value("PL_TRANDEPLIM", 1.0) else None
    if wavelength is None or depth is None:
        problem = "transit_depth is absent" if depth is None else "wavelength_um is absent"
    return {
        "wavelength_um": wavelength,
        "bandwidth_um": value("BANDWIDTH", factors["BANDWIDTH"]),
        "transit_depth": depth,
        "sigma": sum(known) / len(known) if known else None,
        "problem": problem,
    }


def _number(value: Any) -> float | None:
    if np.ma.is_masked(value) or value in (None, "", "null"):
        return None
    number = float(value)
    return number if np.isfinite(number) else None


def _plain(value: Any) -> str:
    """A text without the archive's HTML."""
    if value is None or np.ma.is_masked(value):
        return ""
    return html.unescape(re.sub(r"<[^>]*>", "", str(value))).strip()
