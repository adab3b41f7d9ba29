"""ESO Science Archive: reduced spectra of the VLT's ESPRESSO, by TAP (ObsCore)."""

from data_build.credentials import Credentials, Secret, SignIn
from data_build.fetch import Authorisation, form
from data_build.sources.base import SourceInfo
from data_build.sources.observation import OBSCORE, observation_fields
from data_build.sources.tap import TapArchive


class Eso(TapArchive):
    """Spectra of stars, many of them planets' hosts. Public rows need no sign-in."""

    service = "https://archive.eso.org/tap_obs"
    table = "ivoa.ObsCore"
    where = "dataproduct_type = 'spectrum' AND instrument_name = 'ESPRESSO'"

    info = SourceInfo(
        name="eso",
        title="ESO Science Archive",
        modality="spectrum",
        kind="observed",
        version="ivoa.ObsCore, live",
        client="pyvo",
        licence="CC BY 4.0 (ESO data access policy)",
        citation="Romaniello et al. 2018, The Messenger 172, 7; Pepe et al. 2021, A&A 645, A96",
        requests_per_second=2.0,
        fields=observation_fields("dp_id", OBSCORE, 1e6),
        sign_in=SignIn(
            variables={"user": "ESO_USERNAME", "password": "ESO_PASSWORD"},
            where="https://www.eso.org/UserPortal",
            hosts=("archive.eso.org",),
            netrc_host="www.eso.org",
            keyring_service="astrobio:eso",
        ),
    )

    def authorise(self, credentials: Credentials, ask) -> Authorisation:
        """A bearer token of ESO's OpenID service, as ESO's programmatic-access page describes."""
        answer = ask(
            "POST",
            "https://www.eso.org/sso/oidc/token",
            **form(
                {
                    "response_type": "id_token token",
                    "grant_type": "password",
                    "client_id": "clientid",
                    "client_secret": "clientSecret",
                    "username": credentials.reveal("user"),
                    "password": credentials.reveal("password"),
                }
            ),
        )
        return Authorisation(headers={"Authorization": f"Bearer {Secret(answer.json()['id_token']).reveal()}"})
