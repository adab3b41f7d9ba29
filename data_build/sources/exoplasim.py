"""ExoPlaSim: a real general circulation model, where it is installed. It is not asked by any recipe that ships."""

import importlib.util

from data_build.cache import DataError
from data_build.sources.base import SourceInfo


class ExoPlaSim:
    """Climates on 10 levels × 32 latitudes × 64 longitudes, minutes for each simulated year on one core."""

    info = SourceInfo(
        name="exoplasim", title="ExoPlaSim", modality="climate", version="3.4", kind="simulated", client="exoplasim",
        licence="GPL-2.0", citation="Paradise et al. 2022, MNRAS 511, 3272")

    def ensure(self) -> None:
        """Raise a `DataError` where the model cannot run."""
        if importlib.util.find_spec("exoplasim") is None:
            raise DataError("ExoPlaSim is not installed, and it is optional: pip install exoplasim (it compiles "
                            "Fortran: apt-get install gfortran), or take clero for the climates")
