"""Copernicus Climate Data Store: the Earth's climate of ERA5, a climate for each year of monthly means, by cdsapi.

The names of data sets, variables and levels are those the store's own request form shows; ``grid`` makes it send one
degree in place of a quarter (ECMWF, "How to download ERA5", confluence.ecmwf.int/display/CKB), some 200 MB a year.
"""

from collections.abc import Iterator
from typing import Any

import cdsapi
import requests

from data_build.cache import DataError
from data_build.credentials import Credentials, SignIn
from data_build.fetch import Authorisation
from data_build.planets import EARTH
from data_build.sources.base import SourceInfo, downloaded
from data_build.sources.climate import FIELDS, climate_problems, climate_row
from data_build.sources.netcdf import merged, read_means

URL = "https://cds.climate.copernicus.eu/api"
DATASET = "reanalysis-era5-single-levels-monthly-means"
#: A year's requests. Instantaneous and mean values come in one file each: together the store would zip them.
REQUESTS: tuple[tuple[str, tuple[str, ...], dict[str, list[str]]], ...] = (
    (DATASET, ("skin_temperature", "surface_pressure"), {}),
    (DATASET, ("mean_top_net_short_wave_radiation_flux", "mean_top_net_long_wave_radiation_flux"), {}),
    (
        "reanalysis-era5-pressure-levels-monthly-means",
        ("temperature", "specific_humidity", "fraction_of_cloud_cover", "u_component_of_wind", "v_component_of_wind"),
        {"pressure_level": ["10", "70", "100", "175", "300", "400", "550", "700", "800", "900", "925", "1000"]},
    ),
)
#: Year → CO2 at Mauna Loa in ppm and global CH4 in ppb, annual means (Lan, Tans & Thoning, NOAA Global Monitoring
#: Laboratory, gml.noaa.gov/ccgg/trends).
GASES = {1990: (354.5, 1714.0), 2020: (414.2, 1879.0)}
MONTHS = 12


class Copernicus:
    """Annual means of the observed Earth. Each data set's licence must be accepted once on its web page."""

    info = SourceInfo(
        name="copernicus",
        title="Copernicus Climate Data Store",
        modality="climate",
        kind="simulated",
        version="ERA5 monthly means",
        client="cdsapi",
        licence="Licence to use Copernicus Products",
        citation="Hersbach et al. 2020, QJRMS 146, 1999; doi:10.24381/cds.f17050d7; doi:10.24381/cds.6860a573",
        requests_per_second=2.0,
        fields=FIELDS,
        sign_in=SignIn(
            variables={"key": "CDSAPI_KEY"},
            required=True,
            rc_file="~/.cdsapirc",
            where="https://cds.climate.copernicus.eu/profile (and accept the data set's licence on "
            f"https://cds.climate.copernicus.eu/datasets/{DATASET}?tab=download)",
            hosts=("cds.climate.copernicus.eu",),
            keyring_service="astrobio:cds",
        ),
    )

    #: Where the planet's numbers come from: `data_build.records` has the declaration.
    planet_source, planet_kind = "solar_system", "observed"

    check = staticmethod(climate_problems)

    def rows(self, session: requests.Session) -> Iterator[dict[str, Any]]:
        """A climate for each year of `GASES`."""
        for year, (co2, ch4) in GASES.items():
            parts, problems = [], []
            for number, request in enumerate(REQUESTS):
                means, found, _ = self._asked(session, year, f"era5-{year}-{number}", *request)
                parts.append(means)
                problems += found
            values = {**EARTH, "co2_vmr": co2 * 1e-6, "ch4_vmr": ch4 * 1e-9}
            yield climate_row(f"era5-{year}", "Earth", values, merged(parts), problems, "nitrogen and oxygen")

    def changes(self, session: requests.Session) -> list[str]:
        """What a month's maps have otherwise than expected: a year's files take the store long to make."""
        means, problems, _ = self._asked(session, min(GASES), "a month of ERA5", *REQUESTS[0], months=1)
        lacking = {"surface_temperature", "surface_pressure"} - means.keys()
        return problems + [f"{name} is missing" for name in sorted(lacking)]

    def _asked(
        self,
        session: requests.Session,
        year: int,
        name: str,
        dataset: str,
        variables: tuple[str, ...],
        more: dict[str, Any],
        months: int = MONTHS,
    ):
        """The means of one file over a year's months, or the first ones."""
        # A key without a colon makes it the present client; the real one is added by the transport.
        client = cdsapi.Client(
            url=URL,
            key="added-by-the-transport",
            quiet=True,
            progress=False,
            retry_max=1,
            sleep_max=60,
            session=session,
        )
        result = client.retrieve(
            dataset,
            {
                "product_type": ["monthly_averaged_reanalysis"],
                "variable": list(variables),
                "year": [str(year)],
                "month": [f"{month:02d}" for month in range(1, months + 1)],
                "time": ["00:00"],
                **more,
                "grid": [1.0, 1.0],
                "data_format": "netcdf",
                "download_format": "unarchived",
            },
        )
        with downloaded(session, result.location, self.info) as path:  # its own download goes past the session
            if path.stat().st_size != result.content_length:
                raise DataError(
                    f"{self.info.title}: {name} has {path.stat().st_size} of {result.content_length} "
                    "bytes: the answer was cut short; build with --refresh"
                )
            means, problems, attributes = read_means(path, name, self.info.title)
        short = [f"{variable} {mean.times}" for variable, mean in means.items() if mean.times != months]
        if short:
            raise DataError(
                f"{self.info.title}: {name} has not {months} months ({', '.join(short)}): the answer was "
                "cut short; build with --refresh"
            )
        return means, problems, attributes

    def settled(self, method: str, head: bytes) -> bool:
        """A job's order is cached, to find the job again; its state is cached once it is successful."""
        return method == "POST" or b'"jobID"' not in head or b'"successful"' in head

    def authorise(self, credentials: Credentials, ask) -> Authorisation:
        """The personal access token travels in a header."""
        return Authorisation(headers={"PRIVATE-TOKEN": credentials.reveal("key")})
