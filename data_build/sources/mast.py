"""The Mikulski Archive for Space Telescopes: observations of JWST, Kepler with K2, and TESS, by astroquery.mast.

Pages are requested one by one, and their rows counted against the total that each page states: joins over JWST's
tables are known to end early. astroquery may ask for a token at the terminal; here it never signs in itself.
"""

from collections.abc import Iterator
from typing import Any

import requests
from astroquery.mast import ObservationsClass

from data_build.cache import DataError
from data_build.credentials import Credentials, SignIn
from data_build.fetch import Authorisation
from data_build.sources.base import SourceInfo, first_row_changes, require_columns
from data_build.sources.observation import OBSCORE, observation_fields

PAGE = 5000  # rows

_SIGN_IN = SignIn(
    variables={"token": "MAST_API_TOKEN"},
    where="https://auth.mast.stsci.edu/tokens",
    hosts=("mast.stsci.edu",),
    keyring_service="astroquery:mast.stsci.edu.token",
)
_COMMON: dict[str, Any] = {
    "modality": "spectrum",
    "kind": "observed",
    "version": "CAOM, live",
    "client": "astroquery.mast",
    "licence": "public domain (STScI data use policy)",
    "requests_per_second": 2.0,
    "sign_in": _SIGN_IN,
    "fields": observation_fields("obs_id", OBSCORE, 1e-3),
}  # its wavelengths are in nanometres


class _Mast:
    """What the missions share. ``criteria`` go to `astroquery.mast.ObservationsClass.query_criteria`."""

    info: SourceInfo
    criteria: dict[str, Any]
    page_size = PAGE
    volatile = r"%22cacheBreaker%22%3A%20%22[^%]*%22"

    def rows(self, session: requests.Session) -> Iterator[dict[str, Any]]:
        """Every observation that meets the criteria."""
        client = ObservationsClass()
        client._session = client._portal_api_connection._session = session
        client._portal_api_connection._column_configs = {}  # else one session's answer would be used in another
        page, seen = 1, 0
        while True:
            answer = client.query_criteria_async(pagesize=self.page_size, page=page, **self.criteria)[-1].json()
            if answer.get("status") != "COMPLETE":
                raise DataError(
                    f"{self.info.title}: the query ended with status {answer.get('status')!r}: "
                    f"{answer.get('msg') or 'no reason given'}; try again later"
                )
            if answer["data"]:
                require_columns(self.info, answer["data"][0])
            for row in answer["data"]:
                # Wavelengths of 0 stand for unknown ones.
                yield {**row, **{name: row[name] or None for name in ("em_min", "em_max")}}
            seen += len(answer["data"])
            total = answer["paging"]["rowsFiltered"]
            if seen >= total:
                return
            if not answer["data"]:
                raise DataError(
                    f"{self.info.title}: gave {seen} rows of {total}: the answer was cut short; try again "
                    "later, what was fetched is kept"
                )
            page += 1

    def changes(self, session: requests.Session) -> list[str]:
        """What an observation has otherwise than expected."""
        self.page_size = 1
        return first_row_changes(self, session)

    def settled(self, method: str, head: bytes) -> bool:
        """The portal answers EXECUTING until it is done."""
        return b'"EXECUTING"' not in head[:200]

    def authorise(self, credentials: Credentials, ask) -> Authorisation:
        """The token travels in a header."""
        return Authorisation(headers={"Authorization": f"token {credentials.reveal('token')}"})


class Jwst(_Mast):
    """Calibrated spectra of JWST."""

    info = SourceInfo(name="jwst", title="JWST at MAST", citation="Gardner et al. 2006, SSRv 123, 485", **_COMMON)
    criteria = {"obs_collection": "JWST", "dataproduct_type": "spectrum", "calib_level": 3}


class Kepler(_Mast):
    """Light curves of Kepler and K2."""

    info = SourceInfo(
        name="kepler",
        title="Kepler and K2 at MAST",
        citation="Borucki et al. 2010, Sci 327, 977; Howell et al. 2014, PASP 126, 398",
        **_COMMON,
    )
    criteria = {"obs_collection": ["Kepler", "K2"], "dataproduct_type": "timeseries"}


class Tess(_Mast):
    """Light curves of TESS."""

    info = SourceInfo(name="tess", title="TESS at MAST", citation="Ricker et al. 2015, JATIS 1, 014003", **_COMMON)
    criteria = {"obs_collection": "TESS", "dataproduct_type": "timeseries"}
