"""Subaru Telescope: spectra mirrored by the Canadian Astronomy Data Centre, by TAP (ObsCore).

Subaru's own archive, SMOKA, has no programmatic interface; CADC's mirror holds a part of it.
"""

from data_build.credentials import Credentials, Secret, SignIn
from data_build.fetch import Authorisation, form
from data_build.sources.base import SourceInfo
from data_build.sources.observation import OBSCORE, observation_fields
from data_build.sources.tap import TapArchive


class Subaru(TapArchive):
    """Spectra of the collection SUBARU; public rows need no sign-in."""

    service = "https://ws.cadc-ccda.hia-iha.nrc-cnrc.gc.ca/argus"
    table = "ivoa.ObsCore"
    where = "obs_collection = 'SUBARU' AND dataproduct_type = 'spectrum'"

    info = SourceInfo(
        name="subaru",
        title="Subaru at CADC",
        modality="spectrum",
        kind="observed",
        version="ivoa.ObsCore of CADC, live",
        client="pyvo",
        licence="free to use with acknowledgement",
        citation="Baba et al. 2002, ASPC 281, 298 (SMOKA); Canadian Astronomy Data Centre",
        requests_per_second=2.0,
        fields=observation_fields("obs_publisher_did", OBSCORE, 1e6),
        sign_in=SignIn(
            variables={"user": "CADC_USERNAME", "password": "CADC_PASSWORD"},
            where="https://www.cadc-ccda.hia-iha.nrc-cnrc.gc.ca/en/auth/request.html",
            hosts=("ws.cadc-ccda.hia-iha.nrc-cnrc.gc.ca",),
            netrc_host="ws.cadc-ccda.hia-iha.nrc-cnrc.gc.ca",
            keyring_service="astrobio:cadc",
        ),
    )

    def authorise(self, credentials: Credentials, ask) -> Authorisation:
        """CADC's login service answers with the value of its cookie."""
        answer = ask(
            "POST",
            "https://ws.cadc-ccda.hia-iha.nrc-cnrc.gc.ca/ac/login",
            **form({"username": credentials.reveal("user"), "password": credentials.reveal("password")}),
        )
        return Authorisation(headers={"Cookie": f'CADC_SSO="{Secret(answer.text.strip()).reveal()}"'})
