"""Copernicus Climate Data Store: the Earth's surface temperature of ERA5, month by month, by cdsapi."""

from collections.abc import Iterator
from typing import Any

import requests

from data_build.cache import DataError
from data_build.credentials import Credentials, SignIn
from data_build.fetch import Authorisation
from data_build.sources.base import SourceInfo, downloaded
from data_build.sources.netcdf import FIELDS, field_problems, field_rows

URL = "https://cds.climate.copernicus.eu/api"
DATASET = "reanalysis-era5-single-levels-monthly-means"
YEARS = (1990, 2000, 2010, 2020)
MONTHS = 12


class Copernicus:
    """Monthly means of an Earth that is known. Each data set's licence must be accepted once on its web page."""

    info = SourceInfo(
        name="copernicus", title="Copernicus Climate Data Store", modality="climate", kind="simulated",
        version=f"ERA5 monthly means, {', '.join(map(str, YEARS))}", client="cdsapi",
        licence="Licence to use Copernicus Products",
        citation="Hersbach et al. 2020, QJRMS 146, 1999; doi:10.24381/cds.f17050d7",
        requests_per_second=2.0,
        fields=FIELDS,
        sign_in=SignIn(variables={"key": "CDSAPI_KEY"}, required=True, rc_file="~/.cdsapirc",
                       where="https://cds.climate.copernicus.eu/profile (and accept the data set's licence on "
                             f"https://cds.climate.copernicus.eu/datasets/{DATASET}?tab=download)",
                       hosts=("cds.climate.copernicus.eu",), keyring_service="astrobio:cds"))

    check = staticmethod(field_problems)

    def rows(self, session: requests.Session) -> Iterator[dict[str, Any]]:
        """A field for each month of `YEARS`."""
        import cdsapi

        # A key without a colon makes it the present client; the real one is added by the transport.
        client = cdsapi.Client(url=URL, key="added-by-the-transport", quiet=True, progress=False, retry_max=1,
                               sleep_max=60, session=session)
        for year in YEARS:
            result = client.retrieve(DATASET, {
                "product_type": ["monthly_averaged_reanalysis"], "variable": ["2m_temperature"],
                "year": [str(year)], "month": [f"{month:02d}" for month in range(1, MONTHS + 1)],
                "time": ["00:00"], "data_format": "netcdf", "download_format": "unarchived"})
            # Its own download goes past the session.
            with downloaded(session, result.location, self.info) as path:
                if path.stat().st_size != result.content_length:
                    raise DataError(f"{self.info.title}: {year} has {path.stat().st_size} of {result.content_length} "
                                    "bytes: the answer was cut short; build with --refresh")
                count = 0
                for row in field_rows(path, f"era5-{year}", self.info.title):
                    count += 1
                    yield row
            if count != MONTHS:
                raise DataError(f"{self.info.title}: {year} has {count} of {MONTHS} months: the answer was cut short; "
                                "build with --refresh")

    def settled(self, method: str, head: bytes) -> bool:
        """A job's order is kept, so that it is found again; its state is kept once it is successful."""
        return method == "POST" or b'"jobID"' not in head or b'"successful"' in head

    def authorise(self, credentials: Credentials, ask) -> Authorisation:
        """The personal access token travels in a header."""
        return Authorisation(headers={"PRIVATE-TOKEN": credentials.reveal("key")})
