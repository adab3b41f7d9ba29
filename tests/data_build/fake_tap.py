"""Stand-ins for the archives that speak the Table Access Protocol; see `fake_archives`."""

import importlib.resources
import io
import json
import re
from random import Random

import numpy as np
from archive_server import Reply, Request
from astropy.io.votable import from_table
from astropy.io.votable.tree import Info
from astropy.table import Table


def recorded_by_astroquery(module: str, name: str) -> bytes:
    return importlib.resources.files("astroquery").joinpath(module, "tests/data", name).read_bytes()


class FakeTap:
    """A TAP service with one table, whose first column is its key. Synthetic.

    ``cuts_first``: it takes the first n rows as they are stored, in no order, and sorts those, as Oracle's ROWNUM does.
    """

    then = "continued"

    def __init__(self, columns: dict[str, list], host: str, cuts_first: bool = False):
        self.columns, self.host, self.cuts_first, self.cut_short = columns, host, cuts_first, False

    def reply(self, request: Request) -> Reply:
        if not request.path.endswith("/sync"):
            return Reply(b"<html>no such page</html>", 404)
        table = self.selected(request.form["QUERY"])
        if "COUNT(*)" in request.form["QUERY"]:
            return votable(Table({"n": [len(table)]}))
        asked = re.match(r"SELECT TOP (\d+) (.*?) FROM", request.form["QUERY"])
        limit = min(int(asked[1]), 2 if self.cut_short else 10**9)
        stored = np.arange(len(table))
        if self.cuts_first:
            Random(1).shuffle(stored)
        part = table[np.sort(stored[:limit])]
        return votable(part[table.colnames if asked[2] == "*" else asked[2].split(", ")], len(part) < len(table))

    def selected(self, query: str) -> Table:
        """The rows in the query's range of keys, in the order of the key."""
        table = Table(self.columns)
        key = table.colnames[0]
        keys = list(table[key])
        for sign, text, number in re.findall(rf"{key} (>|<=) (?:'((?:[^']|'')*)'|(\d+))", query):
            bound = int(number) if number else text.replace("''", "'")
            table = table[[value > bound if sign == ">" else value <= bound for value in table[key]]]
        assert keys == sorted(keys)  # the stand-in's own table is in order
        return table

    def empty(self):
        self.columns = {name: np.array(values)[:0] for name, values in self.columns.items()}

    def expected(self, field) -> list:
        return [None if value is None else value for value in self.columns[field.column]]


def votable(table: Table, overflow: bool = False) -> Reply:
    document = from_table(table)
    resource = document.resources[0]
    resource.type = "results"
    resource.infos.append(Info(name="QUERY_STATUS", value="OVERFLOW" if overflow else "OK"))
    buffer = io.BytesIO()
    document.to_xml(buffer)
    return Reply(buffer.getvalue(), headers={"Content-Type": "application/x-votable+xml"})


def observations(key: str, **names) -> dict[str, list]:
    """Five synthetic observations in an archive's own column names."""
    values = {
        "target_name": [f"synthetic star {i}" for i in range(5)],
        "ra_deg": [10.0 * i for i in range(5)],
        "dec_deg": [-20.0 + i for i in range(5)],
        "start_mjd": [58000.0 + i for i in range(5)],
        "exposure_s": [100.0 * (i + 1) for i in range(5)],
        "wavelength_min_um": [0.4] * 5,
        "wavelength_max_um": [0.8] * 5,
        "instrument": ["synthetic"] * 5,
    }
    columns = {key: [f"obs.{i:03d}" for i in range(5)]}
    for ours, (theirs, factor) in names.items():
        columns[theirs] = [value * factor for value in values[ours]] if factor != 1 else values[ours]
    return columns


_OBSCORE = {
    "target_name": ("target_name", 1),
    "ra_deg": ("s_ra", 1),
    "dec_deg": ("s_dec", 1),
    "start_mjd": ("t_min", 1),
    "exposure_s": ("t_exptime", 1),
    "wavelength_min_um": ("em_min", 1e-6),
    "wavelength_max_um": ("em_max", 1e-6),
    "instrument": ("instrument_name", 1),
}


class FakeEso(FakeTap):
    def __init__(self):
        super().__init__(observations("dp_id", **_OBSCORE), "archive.eso.org")

    def reply(self, request):
        if request.host == "www.eso.org":  # astroquery's recording of the token service
            assert request.method == "POST" and "password" in request.form and not request.query
            return Reply(recorded_by_astroquery("eso", "oidc_token.json"))
        return super().reply(request)


class FakeSubaru(FakeTap):
    def __init__(self):
        super().__init__(observations("obs_publisher_did", **_OBSCORE), "ws.cadc-ccda.hia-iha.nrc-cnrc.gc.ca")

    def reply(self, request):
        if request.path == "/ac/login":
            assert "password" in request.form and not request.query
            return Reply(b"synthetic-sso-cookie")
        return super().reply(request)


def keck() -> FakeTap:
    names = {
        "target_name": ("targname", 1),
        "ra_deg": ("ra", 1),
        "dec_deg": ("dec", 1),
        "start_mjd": ("mjd", 1),
        "exposure_s": ("elaptime", 1),
        "wavelength_min_um": ("waveblue", 1e4),
        "wavelength_max_um": ("wavered", 1e4),
        "instrument": ("instrume", 1),
    }
    return FakeTap(observations("koaid", **names), "koa.ipac.caltech.edu", cuts_first=True)


#: The archive's own words for what it calculated.
CALCULATED = "<a refstr=CALCULATED_VALUE href=/docs/pscp_calc.html target=_blank>Calculated Value</a>"


def nasa() -> FakeTap:
    """Values as published for TRAPPIST-1 and Proxima, the rest synthetic."""
    planets = ["Proxima Cen b", "TRAPPIST-1 b", "TRAPPIST-1 e", "TRAPPIST-1 f"]
    columns = {
        "pl_name": planets,
        "hostname": [name[:-2] for name in planets],
        "pl_letter": [name[-1] for name in planets],
        "hd_name": [""] * 4,
        "hip_name": ["HIP 70890", "", "", ""],
        "tic_id": ["TIC 1"] * 4,
        "ra": [217.39, 346.62, 346.62, 346.62],
        "dec": [-62.68, -5.04, -5.04, -5.04],
        "st_teff": [2900.0, 2566.0, 2566.0, 2566.0],
        "st_rad": [0.14, 0.12, 0.12, 0.12],
        "st_mass": [0.12, 0.09, 0.09, 0.09],
        "st_lum": [-2.8, -3.26, -3.26, -3.26],
        "sy_jmag": [5.36] + [11.35] * 3,
        "pl_rade": [1.03, 1.12, 0.92, 1.05],
        "pl_bmasse": [1.07, 1.37, 0.69, 1.04],
        "pl_bmassprov": ["Msini", "Mass", "Mass", "Mass"],
        "pl_orbper": [11.19, 1.51, 6.10, 9.21],
        "pl_orbsmax": [0.0486, 0.0115, 0.0293, 0.0385],
        "pl_orbeccen": [0.0, 0.006, 0.005, 0.01],
        "pl_insol": [0.65, 4.15, 0.646, 0.373],
        "tran_flag": [0, 1, 1, 1],
    }
    measured = (
        "st_teff",
        "st_rad",
        "st_mass",
        "st_lum",
        *(name for name in columns if name.startswith("pl_") and name not in ("pl_name", "pl_letter", "pl_bmassprov")),
    )
    columns |= {f"{name}lim": [0] * 4 for name in measured}
    columns |= {f"{name}_reflink": ["<a refstr=SYNTHETIC_2020 target=ref>Synthetic 2020</a>"] * 4 for name in measured}
    columns["pl_rade_reflink"][0] = CALCULATED  # Proxima Cen b does not transit
    return FakeTap(columns, "exoplanetarchive.ipac.caltech.edu", cuts_first=True)


def exoplanet_eu() -> FakeTap:
    planets = ["Proxima Cen b", "TRAPPIST-1 b", "TRAPPIST-1 e"]
    return FakeTap(
        {
            "granule_uid": ["1", "2", "3"],
            "target_name": planets,
            "alternate_name": ["Alpha Cen C b", "", "K2-112 e"],
            "star_name": [name[:-2] for name in planets],
            "publication_status": ["R"] * 3,
            "ra": [217.4, 346.6, 346.6],
            "dec": [-62.7, -5.0, -5.0],
            "star_teff": [3042.0, 2550.0, 2550.0],
            "star_radius": [0.14, 0.117, 0.117],
            "star_mass": [0.12, 0.08, 0.08],
            "mag_j": [5.36, 11.35, 11.35],
            "radius": [0.1, 0.0997, 0.0819],
            "mass": [0.0037, 0.0043, 0.0022],
            "radius_detection_type": ["Theoretical", "Primary Transit", "Primary Transit"],
            "mass_detection_type": ["Radial Velocity", "TTV", "TTV"],
            "period": [11.18, 1.51, 6.10],
            "semi_major_axis": [0.0485, 0.0115, 0.0293],
            "eccentricity": [0.35, 0.0, 0.0],
        },
        "voparis-tap-planeto.obspm.fr",
    )


def gaia() -> FakeTap:
    """Five stars of astroquery's recording of a cone search in Gaia, their parallaxes synthetic."""
    recorded = json.loads(recorded_by_astroquery("gaia", "cone_search.json"))
    names = [column["name"] for column in recorded["metadata"]]
    stars = sorted((dict(zip(names, row, strict=True)) for row in recorded["data"]), key=lambda star: star["source_id"])
    stars = [star for star in stars if star["pmra"] is not None][:5]
    columns = {
        name: [star[name] for star in stars]
        for name in ("source_id", "ra", "dec", "ref_epoch", "pmra", "pmdec", "phot_g_mean_mag")
    }
    return FakeTap({**columns, "parallax": [50.0] * 5, "teff_gspphot": [3200.0] * 5}, "gea.esac.esa.int")


#: Path → column → value at each point of two synthetic spectra; depths and their errors in percent.
POINTS = {
    "aa/01/Synthetic_1_b_1.tbl": {
        "CENTRALWAVELNG": ["1.2", "0.8", "4.5"],
        "BANDWIDTH": ["0.1", "0.05", "null"],
        "PL_TRANDEP": ["1.50", "1.40", "1.55"],
        "PL_TRANDEPERR1": ["0.010", "0.02", "0.04"],
        "PL_TRANDEPERR2": ["-0.030", "-0.02", "null"],
        "PL_TRANDEPLIM": ["0", "0", "0"],
        "PL_TRANDEP_AUTHORS": ["Synthetic et al. 2020"] * 3,
    },
    "bb/02/Synthetic_2_c_7.tbl": {
        "CENTRALWAVELNG": ["5.0", "6.0"],
        "BANDWIDTH": ["0.5", "0.5"],
        "PL_TRANDEP": ["0.70", "0.71"],
        "PL_TRANDEPERR1": ["0.01", "null"],
        "PL_TRANDEPERR2": ["-0.01", "null"],
        "PL_TRANDEPLIM": ["0", "0"],
        "PL_TRANDEP_AUTHORS": ["Calculated"] * 2,
    },
}
UNITS = {"CENTRALWAVELNG": "microns", "BANDWIDTH": "microns", "PL_TRANDEP": "%"}


def ipac(points: dict[str, list[str]], units: dict[str, str] = UNITS, nulls: bool = True) -> str:
    """A synthetic IPAC table, in the form of the archive's files."""
    kinds = {
        name: "char" if name.endswith("AUTHORS") else "int" if name.endswith("LIM") else "double" for name in points
    }
    heads = {name: [name, kinds[name], units.get(name, ""), *(["null"] if nulls else [])] for name in points}
    widths = {name: max(map(len, [*heads[name], *points[name]])) for name in points}
    lines = ["\\SPEC_TYPE = Transmission", "\\NOTE = synthetic"]
    lines += [f"|{'|'.join(heads[name][line].rjust(widths[name]) for name in points)}|" for line in range(3 + nulls)]
    lines += [
        f" {' '.join(value.rjust(widths[name]) for name, value in zip(points, row, strict=True))} "
        for row in zip(*points.values(), strict=True)
    ]
    return "\n".join(lines) + "\n"


class FakeSpectra(FakeTap):
    """Two synthetic spectra; their files are in the workspace that was opened last, and in no other."""

    def __init__(self):
        names = {"Synthetic-1 b": "James Webb Space Telescope", "Synthetic-2 c": "Hubble Space Telescope"}
        super().__init__(
            {
                "spec_path": list(POINTS),
                "pl_name": list(names),
                "facility": list(names.values()),
                "instrument": ["Near Infrared Spectrograph (NIRSpec)", "Wide Field Camera 3"],
                "authors": ["<a target=ref>D&eacute;sert et al. 2015</a>", "Synthetic et al. 2020"],
                "bibcode": ["2015ApJ...804...59D", "2020Synth...1....1S"],
                "num_datapoints": [3, 2],
            },
            "exoplanetarchive.ipac.caltech.edu",
            cuts_first=True,
        )
        self.files, self.visits = {path: ipac(points) for path, points in POINTS.items()}, 0

    def reply(self, request: Request) -> Reply:
        if request.path.endswith("/nph-firefly"):
            self.visits += 1
            page = f"<html><body onload=\"FF_InitPage('/work/TMP_x{self.visits}/w', '/workspace/TMP_x{self.visits}')\">"
            return Reply(page.encode())
        if request.path.startswith("/workspace/"):
            _, _, workspace, path = request.path.split("/", 3)
            file = self.files.get(path.removeprefix("atmospheres/tab1/data/"))
            there = workspace == f"TMP_x{self.visits}" and file is not None
            return Reply(file.encode()) if there else Reply(b"<html>not found</html>", 404)
        return super().reply(request)

    def expected(self, field) -> list:
        if not len(self.columns["pl_name"]):
            return []
        return {
            "planet": ["Synthetic-1 b"] * 3 + ["Synthetic-2 c"] * 2,
            "reference": ["Désert et al. 2015, 2015ApJ...804...59D"] * 3
            + ["Synthetic et al. 2020, 2020Synth...1....1S"] * 2,
            "wavelength_um": [1.2, 0.8, 4.5, 5.0, 6.0],
            "transit_depth": [0.015, 0.014, 0.0155, 0.007, 0.0071],
            "sigma": [2e-4, 2e-4, 4e-4, 1e-4, None],
        }.get(field.name)
