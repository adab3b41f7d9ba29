"""A synthetic stand-in for the package."""

import os
import time

import numpy as np

UNITS = {
    "ta": "K",
    "hus": "1",
    "cl": "1",
    "ua": "m s-1",
    "va": "m s-1",
    "ts": "K",
    "ps": "hPa",
    "rst": "W m-2",
    "rlut": "W m-2",
}


class TLaquaplanet:
    def __init__(self, workdir, modelname, resolution, layers, ncpus, precision, outputtype):
        assert (resolution, layers, ncpus, outputtype) == ("T21", 10, 1, ".npz")
        os.makedirs(workdir)
        os.chdir(workdir)
        print("much")
        self.workdir, self.year = workdir, 0

    def configure(self, **settings):
        self.settings = settings

    def run(self, years, crashifbroken):
        told = self.settings
        if told["flux"] > 4000:
            raise RuntimeError("ExoPlaSim has crashed; its files were moved")
        if os.environ.get("MODEL_RUNS") and self.year == 0:
            with open(os.environ["MODEL_RUNS"], "a") as file:
                file.write("run ")
            if os.path.getsize(os.environ["MODEL_RUNS"]) == 4 * int(os.environ["MODEL_BREAKS"]):
                os._exit(9)
        if os.environ.get("SLOW_MODEL"):
            open(os.environ["SLOW_MODEL"], "w").write(str(os.getpid()))
            time.sleep(600)
        latitude = -np.linspace(-85.76, 85.76, 32)
        sun = np.maximum(np.cos(np.deg2rad(np.arange(64) * 5.625 - told["substellarlon"])), 0)
        levels = (12, 10, 32, 64)
        warmth = told["flux"] / 5 + 10 * told["pCO2"]
        surface = np.zeros((12, 32, 64)) + warmth + 20 * sun
        pressure = 1000 * (told["pN2"] + told["pCO2"] + told["pCH4"])
        sigma = np.linspace(told["modeltop"] / 2 / pressure, 0.985, 10)
        drift = 30 * 0.3**self.year
        data = {
            "ta": 150 + (surface[:, None] - 150) * sigma[:, None, None],
            "hus": 1e-3 * np.exp((np.minimum(surface, 310)[:, None] - 290) / 6) * sigma[:, None, None] ** 3,
            "cl": np.full(levels, 0.3),
            "ua": np.full(levels, 5.0),
            "va": np.zeros(levels),
            "ts": surface,
            "ps": np.full((12, 32, 64), pressure),
            "rst": np.full((12, 32, 64), told["flux"] / 4),
            "rlut": np.full((12, 32, 64), -told["flux"] / 4 + drift),
        }
        name = f"{self.workdir}/MOST.{self.year:05d}"
        np.savez(
            name + ".npz",
            lat=latitude,
            lon=np.arange(64) * 5.625,
            lev=sigma,
            **{key: value.astype("f4") for key, value in data.items()},
        )
        np.savez(
            name + "_metadata.npz",
            **{
                key: np.array(
                    [key, "synthetic", unit, "0", "time/lev/lat/lon" if data[key].ndim == 4 else "time/lat/lon"]
                )
                for key, unit in UNITS.items()
            },
        )
        self.year += 1
