"""ExoPlaSim: a real general circulation model, where a recipe asks for it and it is installed.

It runs as CLERO's planets are: tidally locked, covered by an ocean, the star above longitude 0; T21 (32 × 64) and ten
layers up to 10 hPa. Its radiation knows CO2 and water; CH4 counts for the pressure and the gas constant alone.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import xarray

from data_build.cache import DataError
from data_build.planets import Atmosphere, Planet
from data_build.sources import exoplasim_run
from data_build.sources.base import SourceInfo
from data_build.sources.climate import climate_row
from data_build.sources.netcdf import Mean, means_of

VERSION = "3.4.2"
TOP_HPA = 10.0  # the emulator's highest level
#: A run ends when absorbed and outgoing flux differ by less than this share of a quarter of the instellation, well
#: inside `data_build.checks.ENERGY_BALANCE_LIMIT`.
BALANCE = 0.01
_TIMESTEP_MIN = 30.0


class ExoPlaSim:
    """Climates on 10 levels × 32 latitudes × 64 longitudes; about six minutes for a simulated year on one core."""

    info = SourceInfo(
        name="exoplasim",
        title="ExoPlaSim",
        modality="climate",
        version=f"{VERSION}, T21, 10 layers",
        kind="simulated",
        client="exoplasim",
        licence="GPL-2.0",
        citation="Paradise et al. 2022, MNRAS 511, 3272",
    )

    def ensure(self) -> None:
        """Raise a `DataError` where the model cannot run."""
        cure = (
            f"pip install exoplasim=={VERSION} (it compiles Fortran: apt-get install gfortran), or take the key "
            "exoplasim out of the recipe"
        )
        if importlib.util.find_spec("exoplasim") is None:
            raise DataError(f"ExoPlaSim is not installed, and it is optional: {cure}")
        try:
            installed = version("exoplasim")
        except PackageNotFoundError:
            installed = "unknown"
        if installed != VERSION:
            raise DataError(
                f"ExoPlaSim is of version {installed}, it must be {VERSION}, as another one makes other "
                f"climates: {cure}"
            )
        lacking = [name for name in ("gfortran", "gcc", "make") if shutil.which(name) is None]
        if lacking:
            raise DataError(
                f"ExoPlaSim compiles Fortran and finds no {', '.join(lacking)}: apt-get install gfortran "
                "gcc make (Debian, Ubuntu), or dnf install gcc-gfortran gcc make (Fedora, RHEL)"
            )

    def prepare(self) -> None:
        """Compile the model if necessary, before several run at once: it compiles into its own package.

        Raises:
            DataError: it does not compile.
        """
        with tempfile.TemporaryDirectory() as folder:
            _run(Path(folder), {"configure": None})

    def climate(self, run_id: str, planet: Planet, atmosphere: Atmosphere, years: int) -> dict[str, Any]:
        """Run the model for a planet, for at most ``years``.

        Returns:
            A row of `data_build.sources.climate`, the mean over the last year; with problems if it crashed.

        Raises:
            DataError: the model could not be run at all.
        """
        values = planet.values
        mean_flux = values["instellation_w_m2"] / 4
        pressure = atmosphere.surface_pressure_bar
        carbon, methane = atmosphere.co2_vmr * pressure, atmosphere.ch4_vmr * pressure
        config = {
            "years": years,
            "balance": BALANCE * mean_flux,
            "configure": {
                "flux": values["instellation_w_m2"],
                "startemp": values["stellar_temperature_k"],
                "rotationperiod": values["rotation_period_d"],
                "gravity": values["gravity_m_s2"],
                "radius": values["radius_earth"],
                "pN2": pressure - carbon - methane,
                "pCO2": carbon,
                "pCH4": methane,
                "substellarlon": 0.0,
                "vtype": 4,
                "modeltop": TOP_HPA,
                "timestep": _TIMESTEP_MIN,
                "snapshots": None,
            },
        }
        with tempfile.TemporaryDirectory() as folder:
            result = _run(Path(folder), config)
            means: dict[str, Mean] = {}
            if "crashed" in result:
                problems = [f"ExoPlaSim crashed in year {result['crashed']}: {result['error'].replace(';', ',')}"]
            else:
                means, problems = read_last_year(Path(folder))
        return climate_row(
            run_id,
            planet.name or planet.key,
            {**values, "co2_vmr": atmosphere.co2_vmr, "ch4_vmr": atmosphere.ch4_vmr},
            means,
            problems,
        )


def read_last_year(folder: Path) -> tuple[dict[str, Mean], list[str]]:
    """The means of ``last.npz``, fields in ExoPlaSim's own layout, and what is wrong with them."""
    with np.load(folder / "last.npz") as data, np.load(folder / "units.npz", allow_pickle=True) as about:
        coordinates = {name: data[name] for name in ("lat", "lon", "lev")}
        # Of each field: name, CF name, unit, code, dimensions.
        fields = {
            name: (tuple(str(about[name][4]).split("/")), data[name], {"units": str(about[name][2])})
            for name in ("ta", "hus", "cl", "ua", "va", "ts", "ps", "rst", "rlut")
        }
    fields["trnf_toa"] = fields.pop("rlut")  # CMIP's name, but counted downward
    return means_of(xarray.Dataset(fields, coordinates))


def _run(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The result of ``exoplasim_run.py`` in ``folder``; an empty dict if it only compiled."""
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "log").open("w+") as log:
        ended = subprocess.run(
            [sys.executable, exoplasim_run.__file__, str(folder)],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )
        log.seek(0)
        last = " ".join(log.read()[-600:].split())
    if ended.returncode or (config["configure"] and not (folder / "result.json").is_file()):
        raise DataError(
            f'ExoPlaSim could not be run (status {ended.returncode}): {last}; run `python -c "import '
            'exoplasim; exoplasim.sysconfigure()"` to see why; its package folder must be writable'
        )
    return json.loads((folder / "result.json").read_text()) if config["configure"] else {}
