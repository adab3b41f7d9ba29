"""Runs of the real launcher on two CPU ranks."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from project import ROOT

#: By which a script of the tests finds its modules.
IMPORTS = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests/helpers'}"}


@dataclass
class Finished:
    """A launch that has ended: its exit ``status`` and all it printed."""

    status: int
    output: str
    run: Path | None = None

    def metrics(self, kind: str) -> list[dict]:
        """Lines of metrics.jsonl of one kind."""
        lines = (self.run / "metrics.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["kind"] == kind]

    def events(self, name: str) -> list[dict]:
        return [record for record in self.metrics("event") if record["event"] == name]


def start(script: Path, *arguments, ranks: int = 2, **environment) -> subprocess.Popen:
    """``deepspeed --num_gpus ranks script arguments``, in a process group of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        Path(sys.executable).with_name("deepspeed"),
        "--num_gpus",
        ranks,
        "--master_port",
        port,
        script,
        *arguments,
    ]
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "WANDB_MODE": "offline", "WANDB_API_KEY": "", **environment},
    )


def finish(process: subprocess.Popen, timeout: float = 400) -> Finished:
    """Wait for a launch; one that hangs is killed with all its ranks and fails the test."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"no end after {timeout} s:\n{output[-4000:]}")
    return Finished(process.returncode, output)


def train(config: str, data: Path, run: Path, *arguments, **environment) -> Finished:
    """launch/train.py with the tiny preset and small batches."""
    done = finish(start_training(config, data, run, *arguments, **environment))
    done.run = run
    return done


def start_training(config: str, data: Path, run: Path, *arguments, **environment) -> subprocess.Popen:
    return start(
        ROOT / "launch/train.py",
        "--ds_config",
        f"ds_configs/{config}.json",
        "--model",
        "tiny",
        "--data",
        data,
        "--run",
        run,
        *arguments,
        **environment,
    )


def run_script(script: Path, *arguments, **environment) -> subprocess.CompletedProcess:
    """A script of the tests, in a process of its own until it ends."""
    return subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=120,
        env={**os.environ, **IMPORTS, **environment},
    )


def run_cases(script: Path, cases: list[str], data: Path, out: Path, ranks: int = 2) -> dict[str, list[dict]]:
    """Cases of a script (see `cases`) → what each rank saw."""
    results = out / "results.jsonl"
    results.unlink(missing_ok=True)
    done = finish(start(script, data, out, *cases, ranks=ranks, **IMPORTS), timeout=1800)
    assert done.status == 0, done.output[-4000:]
    return {line["case"]: line["ranks"] for line in map(json.loads, results.read_text().splitlines())}


def try_all(folder, configs: dict[str, dict], data, *options) -> dict[str, int | str]:
    """How each ends (`try_configs.py`). Files have numbers for names, since these may be any text."""
    folder.mkdir(exist_ok=True)
    for number, config in enumerate(configs.values()):
        (folder / f"{number:04d}.json").write_text(json.dumps(config))
    subprocess.run(
        [sys.executable, ROOT / "tests/launch/ds_config/try_configs.py", folder, data, *options],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **IMPORTS, "ASTROBIO_NVME": str(folder / "nvme")},
    )
    results = json.loads((folder / "results.json").read_text())
    shutil.rmtree(folder / "runs", ignore_errors=True)
    return dict(zip(configs, [results[f"{number:04d}"] for number in range(len(configs))], strict=True))


def last_line(folder, number: int) -> str:
    lines = [line for line in (folder / f"{number:04d}.log").read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def in_browser(page: Path, folder: Path) -> str:
    """The page as Chromium has it after loading; a screenshot of it is made too. ``folder``: for the browser's own.

    Skips the test where there is no Chromium.
    """
    browser = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if browser is None:
        pytest.skip("no chromium is installed: apt-get install chromium")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1100,1800",
        f"--user-data-dir={folder / 'browser'}",
    ]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    picture = folder / "page.png"
    subprocess.run([*command, f"--screenshot={picture}", page.as_uri()], capture_output=True, timeout=120, check=True)
    assert picture.stat().st_size > 20_000
    return done.stdout


def ranks_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes of launch/train.py below a launch, without their helpers."""
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if any("--local_rank" in part for part in child.cmdline())
        and "launch.py" not in " ".join(child.cmdline())
        and "deepspeed.launcher" not in " ".join(child.cmdline())
    ]


def wait_for_step(run: Path, step: int, timeout: float = 300) -> None:
    """Until metrics.jsonl has a training step of at least that number."""
    file = run / "metrics.jsonl"

    def reached() -> bool:
        return file.exists() and any(
            record["kind"] == "train" and record["step"] >= step
            for record in map(json.loads, file.read_text().splitlines())
        )

    wait_until(reached, f"{run}: step {step} was not reached", timeout)


def wait_until(condition: Callable[[], bool], otherwise: str, timeout: float) -> None:
    """Fails the test with ``otherwise`` after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{otherwise} in {timeout} s")
        time.sleep(0.2)


#: Global batches of 12: four steps are an epoch of the mini dataset's 48 records.
FAST = ("--set", "ds_config.gradient_accumulation_steps=6", "train.eval_micro_batch=8")
