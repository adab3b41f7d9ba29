"""ROCKE-3D: the climates published with its papers, netCDF files in a folder of a web server."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin

import requests

from data_build.cache import DataError
from data_build.sources.base import SourceInfo, downloaded, good
from data_build.sources.netcdf import FIELDS, field_problems, field_rows

FOLDER = "https://portal.nccs.nasa.gov/GISS_modelE/ROCKE-3D/publication-supplements/"
_LINK = re.compile(r'href="([^"?#]+)"')


class Rocke3d:
    """Simulated climates of rocky planets. There is no interface: the folder's page lists the files."""

    info = SourceInfo(
        name="rocke3d", title="ROCKE-3D", modality="climate", kind="simulated",
        version="publication supplements, live", client="xarray",
        licence="public domain (NASA)",
        citation="Way et al. 2017, ApJS 231, 12",
        requests_per_second=1.0,
        fields=FIELDS)

    check = staticmethod(field_problems)

    def rows(self, session: requests.Session) -> Iterator[dict[str, Any]]:
        """A field for each time of each variable in the folder's files, and in those of its folders."""
        files, folders = self._listed(session, FOLDER)
        for folder in folders:
            files += self._listed(session, folder)[0]
        for url in files:
            with downloaded(session, url, self.info) as path:
                yield from field_rows(path, url.removeprefix(FOLDER), self.info.title)

    def _listed(self, session: requests.Session, folder: str) -> tuple[list[str], list[str]]:
        """The netCDF files and the folders that a folder's page links to, sorted."""
        page = good(session.get(folder), self.info).text
        if "</html>" not in page.lower():
            raise DataError(f"{self.info.title}: the page of {folder} is no whole page: it was cut short, or the "
                            "server has changed; try again later; if it persists, please report it")
        links = sorted({urljoin(folder, link) for link in _LINK.findall(page)})
        inside = [link for link in links if link.startswith(folder) and link != folder]
        return [link for link in inside if link.endswith(".nc")], [link for link in inside if link.endswith("/")]
