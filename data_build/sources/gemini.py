"""Gemini Observatory Archive: reduced spectra, by astroquery.gemini.

The archive has no pages, but ends a long answer without a word. A span of dates whose answer is as long as that limit
is asked for again in two halves, down to a single day.
"""

from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import requests
from astroquery.gemini import ObservationsClass

from data_build.cache import DataError
from data_build.credentials import Credentials, Secret, SignIn
from data_build.fetch import Authorisation, form
from data_build.sources.base import Field, SourceInfo, require_columns
from data_build.sources.observation import observation_fields

LIMIT = 500  # the shortest of the archive's limits, that of an open search
FIRST, LAST = date(2014, 1, 1), date(2025, 12, 31)  # fixed, so that the answer is the same again


class Gemini:
    """Science spectra of Gemini North's near-infrared spectrograph. Public rows need no sign-in."""

    info = SourceInfo(
        name="gemini",
        title="Gemini Observatory Archive",
        modality="spectrum",
        kind="observed",
        version=f"jsonsummary, {FIRST:%Y-%m-%d} to {LAST:%Y-%m-%d}",
        client="astroquery.gemini",
        licence="free to use with acknowledgement",
        citation="Hirst & Cardenes 2016, SPIE 9913, 99131E",
        requests_per_second=1.0,
        fields=(
            *observation_fields(
                "name",
                {
                    "target_name": "object",
                    "ra_deg": "ra",
                    "dec_deg": "dec",
                    "exposure_s": "exposure_time",
                    "instrument": "instrument",
                },
                1.0,
            ),
            Field("observed_at", "string", theirs="ut_datetime"),
            Field("program", "string", theirs="program_id"),
        ),
        sign_in=SignIn(
            variables={"user": "GEMINI_USERNAME", "password": "GEMINI_PASSWORD"},
            where="https://archive.gemini.edu/request_account/",
            hosts=("archive.gemini.edu",),
            netrc_host="archive.gemini.edu",
            keyring_service="astrobio:gemini",
        ),
    )
    query = {"instrument": "GNIRS", "observation_class": "science", "mode": "spectroscopy"}

    def rows(self, session: requests.Session) -> Iterator[dict[str, Any]]:
        """Every observation from `FIRST` to `LAST`."""
        client = ObservationsClass()
        client._session = session
        spans = [(FIRST, LAST)]
        while spans:
            first, last = spans.pop()
            table = client.query_criteria(utc_date=(first, last), **self.query)
            if len(table) >= LIMIT and first == last:
                raise DataError(
                    f"{self.info.title}: {len(table)} rows for {first} alone, at or over the archive's "
                    f"limit of {LIMIT}: the answer was cut short; ask for less in data_build/sources/"
                    "gemini.py"
                )
            if len(table) >= LIMIT:
                middle = first + (last - first) // 2
                spans += [(middle + timedelta(days=1), last), (first, middle)]
                continue
            if len(table):
                require_columns(self.info, table.colnames)
            for row in table:
                yield {field.column: row[field.column] for field in self.info.fields}

    def authorise(self, credentials: Credentials, ask) -> Authorisation:
        """The archive's session cookie. astroquery's own login would put the password into the address."""
        answer = ask(
            "POST",
            "https://archive.gemini.edu/login/",
            **form({"username": credentials.reveal("user"), "password": credentials.reveal("password")}),
        )
        cookies = "; ".join(f"{cookie.name}={Secret(cookie.value).reveal()}" for cookie in answer.cookies)
        if not cookies:
            raise answer.connection.refused("the login gave no session")
        return Authorisation(headers={"Cookie": cookies})
