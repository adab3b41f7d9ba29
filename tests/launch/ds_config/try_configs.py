"""Train each of many ds_configs for two steps, with a checkpoint, each in a process forked from this one.

    PYTHONPATH=. python tests/launch/ds_config/try_configs.py FOLDER DATA [unchecked]

FOLDER holds NAME.json and gets NAME.log and results.json: {NAME: the exit status, "signal N" or "hangs"}.
``unchecked``: what `check` says is not heeded, to see what it keeps from happening.
"""

import json
import os
import socket
import sys
import time
import traceback
from pathlib import Path

import launch  # noqa: F401  before torch

# isort: split
import torch

from launch import preflight, train
from launch.zero.accelerator import prepare_accelerator

LIMIT_S = 180  # one may have to compile its optimizer


def main(folder: Path, data: str, unchecked: bool) -> None:
    prepare_accelerator()
    if unchecked:
        preflight.check = lambda *args, **kwargs: []
    results = {}
    for config in sorted(folder.glob("*.json")):
        name = config.stem
        child = os.fork()
        if child == 0:
            _train(folder, name, data)
        results[name] = _end_of(child)
        (folder / "results.json.tmp").write_text(json.dumps(results))
    os.replace(folder / "results.json.tmp", folder / "results.json")


def _train(folder: Path, name: str, data: str) -> None:
    """Never returns: the process ends as a rank does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.setsid()
    log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "CROSS_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_SIZE": "1",
        "CROSS_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WANDB_MODE": "disabled",
    }
    torch.set_num_threads(1)
    status = 1
    try:
        train.main(
            [
                "--ds_config",
                str(folder / f"{name}.json"),
                "--model",
                "tiny",
                "--data",
                data,
                "--run",
                str(folder / "runs" / name),
                "--max_steps",
                "2",
                "--set",
                "train.checkpoint_every_steps=2",
                "train.data_workers=0",
            ]
        )
        status = 0
    except SystemExit as end:
        print(end.code if isinstance(end.code, str) else "", flush=True)
        status = end.code if isinstance(end.code, int) else 1 if end.code else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _end_of(child: int) -> int | str:
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        time.sleep(0.05)
    os.killpg(child, 9)
    os.waitpid(child, 0)
    return "hangs"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], "unchecked" in sys.argv[3:])
