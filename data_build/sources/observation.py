"""What the observatories' archives tell of an observation: the fields they have in common, in one set of units."""

from data_build.sources.base import Field

#: The IVOA's ObsCore names (Louys et al. 2017, REC-ObsCore-v1.1): wavelengths there are in metres.
OBSCORE = {
    "target_name": "target_name",
    "ra_deg": "s_ra",
    "dec_deg": "s_dec",
    "start_mjd": "t_min",
    "exposure_s": "t_exptime",
    "wavelength_min_um": "em_min",
    "wavelength_max_um": "em_max",
    "instrument": "instrument_name",
}


def observation_fields(observation_id: str, theirs: dict[str, str], micrometres: float) -> tuple[Field, ...]:
    """The fields of an observation.

    Args:
        observation_id: the archive's name of the key.
        theirs: our name → the archive's, of the fields that the archive has.
        micrometres: what the archive's wavelengths are multiplied with.
    """
    fields = (
        Field("target_name", "string"),
        Field("ra_deg", "float64", "deg", 0, 360),
        Field("dec_deg", "float64", "deg", -90, 90),
        Field("start_mjd", "float64", "d", 15000, 80000),  # 1899 to 2077
        Field("exposure_s", "float64", "s", 0, 1e8),
        Field("wavelength_min_um", "float64", "um", 1e-6, 1e5, factor=micrometres),
        Field("wavelength_max_um", "float64", "um", 1e-6, 1e5, factor=micrometres),
        Field("instrument", "string"),
    )
    return (
        Field("observation_id", "string", required=True, theirs=observation_id),
        *(Field(**{**field.__dict__, "theirs": theirs[field.name]}) for field in fields if field.name in theirs),
    )
