"""What each archive would answer, for the local server of `archive_server`.

The classes are in `fake_tap`, `fake_telescopes`, `fake_life` and `fake_climates`. Each answers its archive's own
protocol out of a few rows, most of them synthetic (a name or identifier with "synthetic" in it where the protocol
leaves room); rows from recordings are named as such. ``cut_short`` makes it end its answers early; ``then`` says what
the client must make of that: "continued" or "refused".
"""

from pathlib import Path

from fake_climates import FakeCopernicus, FakeRocke3d
from fake_life import FakeEnsembl, FakeGenBank, FakeGtdb, FakeKegg, FakeUniProt
from fake_tap import FakeEso, FakeSpectra, FakeSubaru, exoplanet_eu, gaia, keck, nasa
from fake_telescopes import FakeGemini, FakeMast


def fake(name: str, folder: Path):
    """The stand-in for an archive of the registry."""
    made = {
        "nasa_pscomppars": nasa,
        "exoplanet_eu": exoplanet_eu,
        "gaia": gaia,
        "jwst": FakeMast,
        "kepler": FakeMast,
        "tess": FakeMast,
        "eso": FakeEso,
        "keck": keck,
        "subaru": FakeSubaru,
        "gemini": FakeGemini,
        "nasa_spectra": FakeSpectra,
        "genbank": FakeGenBank,
        "ensembl": FakeEnsembl,
        "uniprot": FakeUniProt,
        "gtdb": FakeGtdb,
        "kegg": FakeKegg,
        "copernicus": lambda: FakeCopernicus(folder),
        "rocke3d": lambda: FakeRocke3d(folder),
    }
    return made[name]()
