"""What each archive would answer, for the local server of `archive_server`.

Each class answers its archive's own protocol out of a few rows, most of them synthetic (a name or identifier with
"synthetic" in it where the protocol leaves room); rows from recordings are named as such. ``cut_short`` makes it end
its answers early; ``then`` says what the client must make of that: "continued" or "refused".
"""

import gzip
import hashlib
import io
import json
import re
from datetime import date
from pathlib import Path

import numpy as np
import xarray
from archive_server import Reply
from Bio import SeqIO
from Bio.Seq import Seq
from Bio.SeqRecord import SeqRecord
from fake_tap import FakeEso, FakeSpectra, FakeSubaru, exoplanet_eu, gaia, keck, nasa, recorded_by_astroquery

from data_build.sources import copernicus

RECORDINGS = Path(__file__).parent / "recordings"


class FakeMast:
    """The MAST portal: astroquery's recordings of the columns' configuration and of 19 observations."""

    then, host = "continued", "mast.stsci.edu"

    def __init__(self):
        self.rows = json.loads(recorded_by_astroquery("mast", "caom.json"))["data"]
        # The recording has observations of one archive row twice; keys must differ.
        self.rows = list({row["obs_id"]: row for row in self.rows}.values())
        self.cut_short, self.executing = False, 1

    def reply(self, request):
        if "columnsconfig" in request.path:
            return Reply(recorded_by_astroquery("mast", "columnsconfig.json"))
        asked = json.loads(request.form["request"])
        if self.executing:
            self.executing -= 1
            return Reply(json.dumps({"status": "EXECUTING", "msg": "", "data": []}).encode())
        size = 4 if self.cut_short else asked["pagesize"]
        start = (asked["page"] - 1) * size
        pages = -(-len(self.rows) // size)
        return Reply(
            json.dumps(
                {
                    "status": "COMPLETE",
                    "msg": "",
                    "data": self.rows[start : start + size],
                    "paging": {
                        "page": asked["page"],
                        "pageSize": size,
                        "pagesFiltered": pages,
                        "rowsFiltered": len(self.rows),
                        "rowsTotal": len(self.rows),
                    },
                }
            ).encode()
        )

    def empty(self):
        self.rows = []

    def expected(self, field):
        return [row[field.column] for row in self.rows]


class FakeGemini:
    """astroquery's recording of 250 files around M 101, spread over synthetic days."""

    then, host = "continued", "archive.gemini.edu"

    def __init__(self):
        # Over the archive's limit only when it is cut short: then the same rows come under three names each.
        self.rows = json.loads(recorded_by_astroquery("gemini", "m101.json"))
        self.cut_short = False

    def reply(self, request):
        if request.path == "/login/":
            assert "password" in request.form and not request.query
            return Reply(b"<P>Welcome", headers={"Set-Cookie": "gemini_archive_session=synthetic-session"})
        first, last = re.search(r"/(\d{8})-(\d{8})", request.path).groups()
        rows = [row for row in self._all() if first <= row["day"] <= last]
        return Reply(json.dumps(rows[:500]).encode())

    def empty(self):
        self.rows = []

    def expected(self, field):
        return [row[field.column] for row in self._all()]

    def _all(self):
        days = [date(2014, 1, 1).toordinal() + 40 * i for i in range(100)]
        rows = [
            {**row, "name": f"{copy}-{row['name']}"} for copy in range(3 if self.cut_short else 1) for row in self.rows
        ]
        rows = list({row["name"]: row for row in rows}.values())
        for number, row in enumerate(rows):
            row["day"] = date.fromordinal(days[number * len(days) // len(rows)]).strftime("%Y%m%d")
        return rows


class FakeGenBank:
    """GenBank records recorded by Biopython; the search's answer and the record of E. coli are synthetic."""

    then, host = "refused", "eutils.ncbi.nlm.nih.gov"
    names = {"AL109817.1": "iro.gb", "EU851978.1": "EU851978.gbk", "KF527485.1": "KF527485.gbk", "NC_000913.3": ""}

    def text(self, name: str) -> str:
        if self.names[name]:
            return (RECORDINGS / self.names[name]).read_text()
        record = SeqRecord(
            Seq("ACGT" * 15 + "GC" * 2),
            name,
            name.split(".")[0],
            "synthetic",
            annotations={"molecule_type": "DNA", "organism": "Escherichia coli synthetic"},
        )
        return record.format("genbank")

    def __init__(self):
        self.found, self.cut_short = list(self.names), False

    def reply(self, request):
        asked = {**request.query, **request.form}
        if request.path.endswith("esearch.fcgi"):
            found = self.found[int(asked["retstart"]) :][:2]
            ids = "".join(f"<Id>{name}</Id>" for name in found)
            return Reply(
                f"""<?xml version="1.0" encoding="UTF-8" ?>
<!DOCTYPE eSearchResult PUBLIC "-//NLM//DTD esearch 20060628//EN" "https://eutils.ncbi.nlm.nih.gov/eutils/dtd/20060628/esearch.dtd">
<eSearchResult><Count>{len(self.found)}</Count><RetMax>{len(found)}</RetMax><RetStart>{asked["retstart"]}</RetStart>
<IdList>{ids}</IdList><TranslationSet/><QueryTranslation>synthetic</QueryTranslation></eSearchResult>""".encode(),
                headers={"Content-Type": "text/xml; charset=UTF-8"},
            )  # noqa: E501
        names = asked["id"].split(",")[: 1 if self.cut_short else None]
        text = "\n".join(map(self.text, names))
        return Reply(text.encode(), headers={"Content-Type": "text/plain"})

    def empty(self):
        self.found = []

    def expected(self, field):
        records = [SeqIO.read(io.StringIO(self.text(name)), "genbank") for name in self.found]
        known = {
            "accession": [record.id for record in records],
            "length_bp": [len(record) for record in records],
            "organism": [record.annotations["organism"] for record in records],
        }
        return known.get(field.name)


class FakeKegg:
    """Synthetic entries in KEGG's flat format: its own may not be passed on."""

    then, host = "refused", "rest.kegg.jp"

    def __init__(self):
        self.compounds, self.cut_short = ["C00031", *(f"C9{i:04d}" for i in range(11))], False  # C00031: glucose

    def reply(self, request):
        operation, rest = request.path.lstrip("/").split("/", 1)
        if operation == "link":
            return Reply("".join(f"path:map01100\tcpd:{name}\n" for name in self.compounds).encode() or b"\n")
        asked = [entry.removeprefix("cpd:") for entry in rest.split("+")][: 5 if self.cut_short else 10]
        return Reply(
            "".join(
                f"""ENTRY       {name}                      Compound
NAME        synthetic {name}
FORMULA     C6H12O6
EXACT_MASS  180.0634
MOL_WEIGHT  180.1559
PATHWAY     map00010  Glycolysis
///
"""
                for name in asked
            ).encode()
        )

    def empty(self):
        self.compounds = []

    def expected(self, field):
        return {
            "compound": self.compounds,
            "name": [f"synthetic {name}" for name in self.compounds],
            "pathways": ["map00010"] * len(self.compounds),
        }.get(field.name)


class FakeEnsembl:
    """Synthetic genomes, in the form of the service; 500 for a taxon that it does not have."""

    then, host = "continued", "rest.ensembl.org"

    def __init__(self):
        self.genomes = [
            {
                "name": f"synthetic_genome_{i}",
                "display_name": f"Synthetic genome {i}",
                "taxonomy_id": str(2190 + i),
                "assembly_accession": f"GCA_00000{i}.1",
                "base_count": str(10**6 + i),
            }
            for i in range(2)
        ]
        self.coli = {
            "name": "synthetic_coli",
            "display_name": "Synthetic E. coli",
            "taxonomy_id": "511145",
            "assembly_accession": "GCA_000005845.2",
            "base_count": "64",
        }
        self.cut_short = False

    def reply(self, request):
        found = {"Methanococcus": self.genomes, "511145": [self.coli], "9606": [{"name": "synthetic_human"}]}
        taxon = request.path.split("/")[-1]
        if not found.get(taxon) or (taxon == "511145" and not self.genomes):
            return Reply(b'{"error":"Can\'t call method \\"taxon_id\\" on an undefined value"}', 500)
        body = json.dumps(found[taxon]).encode()
        cut, self.cut_short = (10 if self.cut_short else None), False
        return Reply(body, cut=cut)

    def empty(self):
        self.genomes = []

    def expected(self, field):
        return [
            genome[field.column] if field.dtype == "string" else int(genome[field.column])
            for genome in (*self.genomes, *([self.coli] if self.genomes else []))
        ]


class FakeUniProt:
    """Synthetic entries, two a page, along a cursor."""

    then, host = "refused", "rest.uniprot.org"

    def __init__(self):
        self.rows = [
            {
                "Entry": f"Q0000{i}",
                "Organism": "synthetic archaeon",
                "Organism (ID)": "2190",
                "EC number": "1.1.1.1",
                "Length": "4",
                "Mass": "480",
                "Sequence": "MKVL",
            }
            for i in range(5)
        ]
        for row in self.rows[3:]:
            row |= {
                "Organism": "synthetic Escherichia coli (strain K12)",
                "Organism (ID)": "83333",
                "EC number": f"2.7.1.{row['Entry'][-1]}; 2.7.1.9",
            }
        self.names = list(self.rows[0])
        self.cut_short = False

    def reply(self, request):
        start = int(request.query.get("cursor", 0))
        lines = ["\t".join(self.names), *("\t".join(row.values()) for row in self.rows[start : start + 2])]
        headers = {"x-total-results": str(len(self.rows))}
        if start + 2 < len(self.rows) and not (self.cut_short and start):
            headers["Link"] = f'<https://rest.uniprot.org/uniprotkb/search?cursor={start + 2}>; rel="next"'
        return Reply(("\n".join(lines) + "\n").encode(), headers=headers)

    def empty(self):
        self.rows = []

    def expected(self, field):
        kind = {"string": str, "int64": int, "float64": float}[field.dtype]
        return [kind(row[field.column]) for row in self.rows]


class FakeGtdb:
    """A synthetic release of three archaeal genomes, E. coli's, and another bacterial one."""

    then, host = "refused", "data.gtdb.ecogenomic.org"

    def __init__(self):
        self.rows = [
            {
                "accession": f"RS_GCF_00000{i}.1",
                "gtdb_taxonomy": "d__Archaea;p__synthetic",
                "genome_size": str(2 * 10**6 + i),
                "gc_percentage": "41.5",
                "protein_count": "2100",
                "checkm2_completeness": "99.1",
            }
            for i in range(3)
        ]
        self.rows += [
            {
                **self.rows[0],
                "accession": "RS_GCF_000005845.2",
                "genome_size": "64",
                "gtdb_taxonomy": "d__Bacteria;p__synthetic;s__Escherichia coli",
            }
        ]
        self.names = [*self.rows[0], "ncbi_date"]
        self.cut_short = False

    def reply(self, request):
        other = [{**row, "accession": "RS_GCF_9.1"} for row in self.rows[3:]]  # of bacteria only E. coli is taken
        files = {
            "ar53_metadata_r220.tsv.gz": self.packed(self.rows[:3]),
            "bac120_metadata_r220.tsv.gz": self.packed(other + self.rows[3:]),
        }
        if request.path.endswith("MD5SUM.txt"):
            return Reply(
                "".join(f"{hashlib.md5(packed).hexdigest()}  ./{name}\n" for name, packed in files.items()).encode()
            )
        packed = files[request.path.split("/")[-1]]
        return Reply(packed[:-20] if self.cut_short else packed)

    def packed(self, rows):
        lines = ["\t".join(self.names), *("\t".join([*row.values(), "none"]) for row in rows)]
        return gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)

    def empty(self):
        self.rows = []

    def expected(self, field):
        kind = {"string": str, "int64": int, "float64": float}[field.dtype]
        return [kind(row[field.column]) for row in self.rows]


LATITUDE, LONGITUDE = np.linspace(88, -88, 12), np.arange(0, 360, 15.0)
PRESSURES = np.array([5.0, 50.0, 200.0, 400.0, 600.0, 800.0, 900.0, 950.0, 1000.0])  # hPa


def synthetic_fields(warmth: float = 0.0) -> dict[str, tuple[np.ndarray, str]]:
    """Variable → values on the grid above, and their unit; the planet's energy is balanced. All synthetic."""
    sunshine = np.cos(np.deg2rad(LATITUDE))[:, None] + np.zeros((12, 24))
    profile = (PRESSURES / 1000)[:, None, None]
    return {
        "air_temperature": (220 + (20 + warmth + 40 * sunshine) * profile, "K"),
        "specific_humidity": (np.exp(warmth / 10) * (1e-6 + 3e-3 * sunshine * profile**3), "kg kg**-1"),
        "cloud_fraction": (0.5 * sunshine * profile, "(0 - 1)"),
        "eastward_wind": (10 * sunshine * (1 - profile), "m s**-1"),
        "northward_wind": (0 * sunshine * profile, "m s**-1"),
        "surface_temperature": (250 + warmth + 45 * sunshine, "K"),
        "surface_pressure": (98000 + 0 * sunshine, "Pa"),
        "absorbed_shortwave": (240 + 0 * sunshine, "W m**-2"),
        "outgoing_longwave": (240 + 0 * sunshine, "W m**-2"),
    }


def netcdf(
    path: Path, variables: dict[str, tuple[tuple[str, ...], np.ndarray, str]], coordinates: dict, **attributes
) -> bytes:
    """A synthetic file: name → dimensions, values, unit."""
    xarray.Dataset(
        {
            name: (dimensions, np.asarray(values, "f4"), {"units": unit})
            for name, (dimensions, values, unit) in variables.items()
        },
        coordinates,
        {"title": "synthetic", **attributes},
    ).to_netcdf(path, engine="h5netcdf")
    return path.read_bytes()


ERA5 = {
    "skin_temperature": ("skt", "surface_temperature"),
    "surface_pressure": ("sp", "surface_pressure"),
    "mean_top_net_short_wave_radiation_flux": ("avg_tnswrf", "absorbed_shortwave"),
    "mean_top_net_long_wave_radiation_flux": ("avg_tnlwrf", "outgoing_longwave"),
    "temperature": ("t", "air_temperature"),
    "specific_humidity": ("q", "specific_humidity"),
    "fraction_of_cloud_cover": ("cc", "cloud_fraction"),
    "u_component_of_wind": ("u", "eastward_wind"),
    "v_component_of_wind": ("v", "northward_wind"),
}


def era5(path: Path, asked: list[str], months: int) -> bytes:
    """A synthetic answer of the data store to a request for some variables, in the layout of its netCDF files."""
    fields, variables = synthetic_fields(), {}
    for variable in asked:
        name, ours = ERA5[variable]
        values, unit = fields[ours]
        values = np.stack([values * (-1 if name == "avg_tnlwrf" else 1)] * months)
        axes = ("pressure_level",) if values.ndim == 4 else ()
        variables[name] = (("valid_time", *axes, "latitude", "longitude"), values, unit)
    return netcdf(
        path,
        variables,
        {
            "valid_time": np.arange(months),
            "latitude": LATITUDE,
            "longitude": LONGITUDE,
            "pressure_level": ("pressure_level", PRESSURES, {"units": "hPa"}),
        },
    )


class FakeCopernicus:
    """The data store: a job that is accepted, then successful, then a synthetic file of a year."""

    then, host = "refused", "cds.climate.copernicus.eu"

    def __init__(self, folder: Path):
        self.folder, self.polls, self.files, self.cut_short, self.is_empty = folder, {}, {}, False, False

    def reply(self, request):
        root = "https://cds.climate.copernicus.eu/api/retrieve/v1"
        if request.host == "object-store.synthetic":
            assert "private-token" not in request.headers  # the token is for the data store alone
            return Reply(self.files[request.path.strip("/").removesuffix(".nc")])
        if request.path.endswith("/execution"):
            asked = json.loads(request.body)["inputs"]
            number = f"job-{asked['year'][0]}-{asked['variable'][0]}"
            months = 11 if self.cut_short else len(asked["month"])
            path = self.folder / f"era5-{asked['variable'][0]}-{months}.nc"
            if not path.exists():
                era5(path, asked["variable"], months)
            self.files[number] = b"" if self.is_empty else path.read_bytes()
            return Reply(self.job(root, number, "accepted"), 201)
        number = re.search(r"/jobs/(job-\w+-\w+)", request.path)
        if number and request.path.endswith("/results"):
            return Reply(
                json.dumps(
                    {
                        "asset": {
                            "value": {
                                "type": "application/netcdf",
                                "href": f"https://object-store.synthetic/{number[1]}.nc",
                                "file:size": len(self.files[number[1]]),
                                "file:checksum": "0",
                            }
                        }
                    }
                ).encode()
            )
        if number:
            self.polls[number[1]] = self.polls.get(number[1], 0) + 1
            return Reply(self.job(root, number[1], "successful"))
        return Reply(json.dumps({"messages": []}).encode())

    def job(self, root, number, status):
        return json.dumps(
            {
                "processID": "reanalysis",
                "type": "process",
                "jobID": number,
                "status": status,
                "created": "2025-01-01T00:00:00",
                "updated": "2025-01-01T00:00:00",
                "links": [
                    {"href": f"{root}/jobs/{number}", "rel": "monitor"},
                    {"href": f"{root}/jobs/{number}/results", "rel": "results"},
                ],
                "metadata": {"datasetMetadata": {"messages": []}},
            }
        ).encode()

    def empty(self):
        self.is_empty = True

    def expected(self, field):
        years = len(copernicus.GASES)
        return {
            "climate_id": [f"era5-{year}" for year in copernicus.GASES],
            "planet": ["Earth"] * years,
            "surface_pressure_bar": [0.98] * years,
            "eccentricity": [0.0167] * years,
        }.get(field.name)


RUNDECK = """P2Synthetic.R a synthetic rundeck
Preprocessor Options
#define NEW_IO
End Preprocessor Options
&&PARAMETERS
! planet_s0=9999. is commented out
planet_s0=1000.d0   ! W/m^2
solar_spec='sun'
siderealOrbitalPeriod=17280000.0d0  ! s
&&END_PARAMETERS
"""


def model_e(folder: Path, warmth: float, **attributes) -> dict[str, bytes]:
    """Synthetic diagnostics of one year of ModelE by kind, with its names, units and staggered winds."""
    fields = synthetic_fields(warmth)
    layers = {
        "lat": LATITUDE,
        "lon": LONGITUDE - 180,
        "level": np.arange(9) + 1.0,
        "plm": ("level", PRESSURES[::-1], {"units": "mb"}),
    }
    up = {name: values[::-1] for name, (values, _) in fields.items() if values.ndim == 3}
    flat = {name: values for name, (values, _) in fields.items() if values.ndim == 2}
    maps, boxes = ("lat", "lon"), ("level", "lat", "lon")
    return {
        "aij": netcdf(
            folder / "aij.nc",
            {
                "tgrnd": (maps, flat["surface_temperature"] - 273.15, "C"),
                "prsurf": (maps, flat["surface_pressure"] / 100, "mb"),
                "srnf_toa": (maps, flat["absorbed_shortwave"], "W/m^2"),
                "trnf_toa": (maps, -flat["outgoing_longwave"], "W/m^2"),
            },
            layers,
            **attributes,
        ),
        "aijl": netcdf(
            folder / "aijl.nc",
            {
                "TempL": (boxes, up["air_temperature"], "K"),
                "SpHuL": (boxes, up["specific_humidity"], "kg/kg"),
                "cf": (boxes, 100 * up["cloud_fraction"], "%"),
            },
            layers,
        ),
        "aijk": netcdf(
            folder / "aijk.nc",
            {
                "ub": (("plm", "lat2", "lon2"), up["eastward_wind"], "m/s"),
                "vb": (("plm", "lat2", "lon2"), up["northward_wind"], "m/s"),
            },
            {"plm": ("plm", PRESSURES[::-1], {"units": "mb"}), "lat2": LATITUDE, "lon2": LONGITUDE - 177.5},
        ),
    }


class FakeRocke3d:
    """Folder pages of two synthetic papers: a planet that was run warm and frozen, and an Earth without a rundeck."""

    then, host = "refused", "portal.nccs.nasa.gov"
    root = "/GISS_modelE/ROCKE-3D/publication-supplements/"

    def __init__(self, folder: Path):
        told = {"planet": "Synthetic world", "co2_vmr": 4e-4, "ch4_vmr": 1e-6}
        self.runs = {
            "Synthetic2020/warm/": model_e(folder, 0, **told),
            "Synthetic2020/frozen/": model_e(folder, -60, **told),
            "Tsigaridis2025GMD-planet_2.0/P2Synthetic/": model_e(folder, 0),
        }
        self.decks = {folder: ["P2Synthetic.R"] for folder in self.runs if folder.startswith("Synthetic")}
        self.is_empty, self.cut_short = False, False

    def reply(self, request):
        path = request.path.removeprefix(self.root)
        for folder, files in self.runs.items():
            if path.startswith(folder) and path.endswith(".nc"):
                file = files[re.search(r"aijl|aijk|aij", path)[0]]
                return Reply(file[:5000] if self.cut_short else file)
        if path.endswith(".R"):
            return Reply(RUNDECK.encode())
        links = ["../", "?C=M"]
        if path in self.runs and not self.is_empty:
            links += [f"ANN{year}.{kind}P2Synthetic.nc" for year in (4000, 4001) for kind in self.runs[path]]
            links += self.decks.get(path, [])
        else:
            links += sorted(
                {folder.removeprefix(path).split("/")[0] + "/" for folder in self.runs if folder.startswith(path)}
                - {"/"}
            )
            links += self.decks.get(path, [])
        return Reply(
            f"<html><body>{''.join(f'<a href={chr(34)}{link}{chr(34)}>a</a>' for link in links)}</body></html>".encode()
        )

    def empty(self):
        self.is_empty = True

    def expected(self, field):
        known = {
            "climate_id": sorted(f"{folder}ANN4001.P2Synthetic" for folder in self.runs),
            "planet": ["Synthetic world", "Synthetic world", "Earth"],
            "instellation_w_m2": [1000.0, 1000.0, 1361.0],
            "rotation_period_d": [0.99727, 0.99727, 0.99727],
            "orbital_period_d": [200.0, 200.0, 365.256],
            "rest_of_air": ["nitrogen", "nitrogen", "nitrogen and oxygen"],
        }
        return [] if self.is_empty else known.get(field.name)


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
