"""Stand-ins for the archives of climates, and the files that they hold; see `fake_archives`."""

import json
import re
from pathlib import Path

import numpy as np
import xarray
from archive_server import Reply

from data_build.sources import copernicus

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
