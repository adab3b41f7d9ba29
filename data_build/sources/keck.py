"""Keck Observatory Archive: HIRES exposures, by TAP. (pykoa's licence forbids commercial use; TAP does not need it.)

One table an instrument, of its FITS headers (koa.ipac.caltech.edu/UserGuide); of HIRES ``mjd`` is a number where
``date_obs`` is a text, ``koaimtyp`` tells science exposures, and ``waveblue`` and ``wavered`` are in Å. Only rows whose
proprietary period is over are given.
"""

from data_build.sources.base import SourceInfo
from data_build.sources.observation import observation_fields
from data_build.sources.tap import TapArchive


class Keck(TapArchive):
    """Spectra with the HIRES spectrograph; the rows of public exposures need no sign-in."""

    service = "https://koa.ipac.caltech.edu/TAP"
    table = "koa_hires"
    where = "koaimtyp = 'object'"

    info = SourceInfo(
        name="keck",
        title="Keck Observatory Archive",
        modality="spectrum",
        kind="observed",
        version="koa_hires, live",
        client="pyvo",
        licence="free to use with acknowledgement",
        citation="Keck Observatory Archive, doi:10.26135/KOA; Vogt et al. 1994, SPIE 2198, 362",
        requests_per_second=1.0,
        fields=observation_fields(
            "koaid",
            {
                "target_name": "targname",
                "ra_deg": "ra",
                "dec_deg": "dec",
                "start_mjd": "mjd",
                "exposure_s": "elaptime",
                "wavelength_min_um": "waveblue",
                "wavelength_max_um": "wavered",
                "instrument": "instrume",
            },
            1e-4,
        ),
    )
