"""ROCKE-3D: the climates published with its papers, netCDF files in folders of a web server.

Under `FOLDER` each paper has a folder, with one for each run in it or in that: diagnostics named
``<period>.aij<run>.nc`` (maps, among them winds at pressures, ``u_850``), ``aijl`` (model layers) and, in some,
``aijk`` (winds on constant pressure), a pair of them for each year, and the run's rundeck ``<run>.R``. The layout is
that of Tsigaridis et al. 2025 (GMD 18, 5825); Way et al. 2018 (ApJS 239, 24) keep each kind of file in a folder of its
own, ``AIJ``, ``AIJL`` and ``AIJK``: folders that differ only in that are one. The variables' names and units are
ModelE's own (its DEFACC.f). Model layers count at their nominal pressures, though the lower ones follow the ground.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any
from urllib.parse import urljoin

import requests

from astrobio.schema import PLANET_COLUMNS
from data_build.cache import DataError
from data_build.planets import EARTH, EARTH_INSTELLATION
from data_build.sources.base import SourceInfo, downloaded, good
from data_build.sources.climate import FIELDS, climate_problems, climate_row
from data_build.sources.netcdf import Mean, merged, read_means

FOLDER = "https://portal.nccs.nasa.gov/GISS_modelE/ROCKE-3D/publication-supplements/"
_PAIR = frozenset({"aij", "aijl"})  # without both there is no climate
DEPTH = 2  # folders below it: papers, and runs in them
_LINK = re.compile(r'href="([^"?#]+)"')
_DIAGNOSTICS = re.compile(r"(?P<period>[^/]*?)\.?(?P<kind>aijl|aijk|aij)(?P<run>[^/]*)\.nc$")
_KIND_IN_FOLDER = re.compile(r"(?i)(?<![a-z])(?:aijl|aijk|aij)(?![a-z])/?")
_PARAMETER = re.compile(r"^\s*(\w+)\s*=\s*'?([^'!\n]*?)'?\s*(?:!.*)?$", re.MULTILINE)

#: Names of stellar spectra (rundeck ``solar_spec``) → effective temperature in K, and mass and radius in the Sun's
#: (TRAPPIST-1: Agol et al. 2021, PSJ 2, 1).
STARS = {
    "sun": {name: EARTH[name] for name in ("stellar_temperature_k", "stellar_radius_sun", "stellar_mass_sun")},
    "trappist1": {"stellar_temperature_k": 2566.0, "stellar_radius_sun": 0.1192, "stellar_mass_sun": 0.0898},
}
#: Paper's folder → what its runs share but their files do not state. planet_2.0's runs are an Earth of 1850
#: (``master_yr=1850``) with the gases of CMIP6 (Meinshausen et al. 2017, GMD 10, 2057).
SUPPLEMENTS = {
    "Tsigaridis2025GMD-planet_2.0": {
        **EARTH,
        "planet": "Earth",
        "co2_vmr": 284.3e-6,
        "ch4_vmr": 0.808e-6,
        "rest_of_air": "nitrogen and oxygen",
    }
}


class Rocke3d:
    """Simulated climates of rocky planets. There is no API: the folders' pages list the files.

    The climate is each run's last year, the nearest to a steady state.
    """

    info = SourceInfo(
        name="rocke3d",
        title="ROCKE-3D",
        modality="climate",
        kind="simulated",
        version="publication supplements",
        client="xarray",
        licence="public domain (NASA)",
        citation="Way et al. 2017, ApJS 231, 12; Tsigaridis et al. 2025, GMD 18, 5825",
        requests_per_second=1.0,
        fields=FIELDS,
    )

    #: The planet is the modellers' assumption.
    planet_source, planet_kind = "rocke3d", "synthetic"

    check = staticmethod(climate_problems)

    def rows(self, session: requests.Session) -> Iterator[dict[str, Any]]:
        """A climate for each run in the folders."""
        folders = self._folders(session, FOLDER, DEPTH)
        for _, paper in groupby(folders, lambda found: found[0].removeprefix(FOLDER).split("/")[0]):
            yield from self._paper(session, list(paper))

    def _paper(self, session: requests.Session, folders: list[tuple[str, list[str]]]) -> Iterator[dict[str, Any]]:
        """A climate for each run in a paper's folders with their links."""
        runs: dict[tuple[str, str], dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
        decks: dict[str, dict[str, str]] = defaultdict(dict)
        for folder, links in folders:
            home = _KIND_IN_FOLDER.sub("", folder.removeprefix(FOLDER))
            for link in links:
                name = link.removeprefix(folder)
                if named := _DIAGNOSTICS.match(name):
                    runs[home, named["run"]][named["period"]][named["kind"]] = link
                elif name.endswith(".R"):
                    decks[home][name[:-2]] = link
        for (home, run), periods in sorted(runs.items()):
            # Of years (ANN) and means of years (ANM) the last; of other periods only where there is no year. A kind
            # of file may have more years than another.
            period, files = max(
                periods.items(), key=lambda item: (_PAIR <= item[1].keys(), item[0].startswith("AN"), item[0])
            )
            own = decks.get(home, {})
            elsewhere = [found[run] for found in decks.values() if run in found]
            alone = [found for found in (list(own.values()), elsewhere) if len(found) == 1]
            deck = own.get(run) or (alone[0][0] if alone else None)
            rundeck = good(session.get(deck), self.info).text if deck else ""
            yield self._climate(session, f"{home}{period}.{run}".strip("/."), files, rundeck)

    def _climate(
        self, session: requests.Session, climate_id: str, files: Mapping[str, str], rundeck: str
    ) -> dict[str, Any]:
        parts: list[dict[str, Mean]] = []
        attributes: dict[str, str] = {}
        problems = [f"there is no {kind} file of that year" for kind in sorted(_PAIR - files.keys())]
        for url in sorted(files.values()) if not problems else ():
            with downloaded(session, url, self.info) as path:
                means, found, said = read_means(path, url.removeprefix(FOLDER), self.info.title)
            parts.append(means)
            problems += found
            attributes |= said
        values = {
            **SUPPLEMENTS.get(climate_id.split("/")[0], {}),
            **from_rundeck(rundeck),
            **from_attributes(attributes),
        }
        planet = str(values.pop("planet", climate_id.split("/")[0]))
        rest = str(values.pop("rest_of_air", "nitrogen"))
        return climate_row(climate_id, planet, values, merged(parts), problems, rest)

    def _folders(self, session: requests.Session, folder: str, depth: int) -> Iterator[tuple[str, list[str]]]:
        """Each folder with the links on its page, sorted, and those of its folders down to ``depth``."""
        page = good(session.get(folder), self.info).text
        if "</html>" not in page.lower():
            raise DataError(
                f"{self.info.title}: the page of {folder} is no whole page: it was cut short, or the "
                "server has changed; try again later; if it persists, please report it"
            )
        links = sorted({urljoin(folder, link) for link in _LINK.findall(page)})
        inside = [link for link in links if link.startswith(folder) and link != folder]
        yield folder, [link for link in inside if not link.endswith("/")]
        for link in inside:
            if link.endswith("/") and depth:
                yield from self._folders(session, link, depth - 1)


def from_rundeck(text: str) -> dict[str, Any]:
    """The planet's numbers from a rundeck, in the schema's columns; ModelE's defaults are the Earth's."""
    if not text:
        return {}
    said = {name.lower(): value.strip() for name, value in _PARAMETER.findall(text)}
    values: dict[str, Any] = dict(STARS.get(said.get("solar_spec", "sun"), {}))
    flux = _number(said.get("planet_s0"))
    values["instellation_w_m2"] = flux if flux else EARTH_INSTELLATION * (_number(said.get("s0x")) or 1.0)
    values["eccentricity"] = _number(said.get("eccentricity"), EARTH["eccentricity"])
    for motion in ("rotation", "orbital"):
        seconds, column = _number(said.get(f"sidereal{motion}period")), f"{motion}_period_d"
        values[column] = seconds / 86400 if seconds else EARTH[column]
    if "#define PLANET_PARAMS" not in text:  # else gravity and radius are compiled in, and only attributes state them
        values |= {"radius_earth": EARTH["radius_earth"], "mass_earth": EARTH["mass_earth"]}
    if said.get("planetname"):
        values["planet"] = said["planetname"]
    return {name: value for name, value in values.items() if value is not None}


def from_attributes(attributes: Mapping[str, str]) -> dict[str, Any]:
    """The schema's columns, ``planet`` and ``rest_of_air`` among a file's attributes."""
    columns = {column.name for column in PLANET_COLUMNS}
    numbers = {name: _number(value) for name, value in attributes.items() if name in columns}
    texts = {name: attributes[name] for name in ("planet", "rest_of_air") if attributes.get(name)}
    return {**{name: value for name, value in numbers.items() if value is not None}, **texts}


def _number(text: str | None, default: float | None = None) -> float | None:
    """A number as Fortran writes it, such as 527040.0d0."""
    try:
        return float(text.lower().replace("d", "e")) if text else default
    except ValueError:
        return default
