"""The archives and models a dataset is made from: one module each, one registry."""

from data_build.sources.base import SourceInfo
from data_build.sources.clero import Clero
from data_build.sources.cobra import Cobra
from data_build.sources.nasa_exoplanet_archive import NasaExoplanetArchive
from data_build.sources.open_exoplanet_catalogue import OpenExoplanetCatalogue
from data_build.sources.taurex import TauRex

#: Every source, by name. Each class has ``info`` and ``ensure()``, which fetches and checks its files.
SOURCES = {cls.info.name: cls for cls in (NasaExoplanetArchive, OpenExoplanetCatalogue, Clero, TauRex, Cobra)}

#: The sources of planets: each has ``planets() -> list[Planet]``.
CATALOGUES = {cls.info.name: cls for cls in (NasaExoplanetArchive, OpenExoplanetCatalogue)}

__all__ = ["CATALOGUES", "SOURCES", "Clero", "Cobra", "SourceInfo", "TauRex"]
