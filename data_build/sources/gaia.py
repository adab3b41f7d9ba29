"""Gaia DR3: astrometry and temperatures of the stars within 50 parsecs, by TAP.

astroquery.gaia speaks HTTP by itself, past any session; the archive's TAP service answers pyvo as well. Anonymous
answers end after 2,000 rows, astroquery's after 50: pages are asked for by source_id until the count is reached.
"""

from data_build.sources.base import Field, SourceInfo
from data_build.sources.tap import TapArchive


class Gaia(TapArchive):
    """Stars near enough that rocky planets around them can be followed up."""

    service = "https://gea.esac.esa.int/tap-server/tap"
    table = "gaiadr3.gaia_source"
    where = "parallax > 20 AND parallax_over_error > 10"  # within 50 parsecs, and sound

    info = SourceInfo(
        name="gaia",
        title="Gaia archive",
        modality="planet",
        kind="observed",
        version="DR3, gaia_source",
        client="pyvo",
        licence="CC BY-SA 3.0 IGO",
        citation="Gaia Collaboration, Vallenari et al. 2023, A&A 674, A1",
        requests_per_second=1.0,
        fields=(
            Field("source_id", "int64", required=True),
            Field("ra_deg", "float64", "deg", 0, 360, required=True, theirs="ra"),
            Field("dec_deg", "float64", "deg", -90, 90, required=True, theirs="dec"),
            Field("epoch", "float64", "yr", 2014, 2020, required=True, theirs="ref_epoch"),
            Field("pm_ra_cosdec_mas_yr", "float64", "mas yr-1", -12000, 12000, theirs="pmra"),
            Field("pm_dec_mas_yr", "float64", "mas yr-1", -12000, 12000, theirs="pmdec"),
            Field("parallax_mas", "float64", "mas", 0, 800, required=True, theirs="parallax"),
            Field("g_magnitude", "float64", "mag", -2, 25, theirs="phot_g_mean_mag"),
            Field("stellar_temperature_k", "float64", "K", 1000, 1e5, theirs="teff_gspphot"),
        ),
    )
