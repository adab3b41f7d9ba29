"""Runs ExoPlaSim in a process of its own: ``python exoplasim_run.py FOLDER``, with FOLDER/config.json.

ExoPlaSim changes the working directory, prints a good deal, and compiles into its own package; none of that should
happen in a build's process. This file imports nothing of the project, so that it starts at once.

config.json has ``configure`` (what `exoplasim.TLaquaplanet.configure` takes; only compile where it is null), ``years``
at most, and ``balance``: in W m-2, what absorbed and outgoing flux may differ by in a steady state. result.json tells
``years`` and ``imbalance``, or the year in which the model ``crashed`` and the ``error``; the fields of the last year
are in FOLDER/last.npz, in ExoPlaSim's own layout, their units in FOLDER/units.npz.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path


def main(folder: Path) -> None:
    """Run the model a year at a time, until it is balanced or its years are over."""
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    import exoplasim  # takes a while, and is installed only where a recipe asks for it
    import numpy as np

    config = json.loads((folder / "config.json").read_text())
    model = exoplasim.TLaquaplanet(
        workdir=str(folder / "run"),
        modelname="run",
        resolution="T21",
        layers=10,
        ncpus=1,
        precision=8,
        outputtype=".npz",
    )
    if config["configure"] is None:
        return
    model.configure(**config["configure"])
    result: dict = {"years": 0}
    for year in range(config["years"]):
        try:
            model.run(years=1, crashifbroken=True)
        except Exception as error:  # noqa: BLE001 - it raises bare Exceptions and RuntimeErrors alike
            result |= {"crashed": year + 1, "error": str(error)[:300]}
            break
        output = folder / "run" / f"MOST.{year:05d}.npz"
        with np.load(output) as data:
            weights = np.cos(np.deg2rad(data["lat"]))
            net = (data["rst"] + data["rlut"]).mean((0, 2))  # rlut is the net flux: downward, negative
            result = {"years": year + 1, "imbalance": float((net * weights).sum() / weights.sum())}
        shutil.copy(output, folder / "last.npz")
        shutil.copy(output.with_name(output.stem + "_metadata.npz"), folder / "units.npz")
        if abs(result["imbalance"]) <= config["balance"]:
            break
    (folder / "result.json").write_text(json.dumps(result))


def _end_with_parent(parent: int) -> None:
    """A model whose build was killed would run on for hours: it ends with all it started."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    sys.path.pop(0)  # this file's folder, whose exoplasim.py is not the package
    main(Path(sys.argv[1]))
