"""Does all of it hold on this machine? `astrobio acceptance` climbs the ladder of `rungs`, the cheapest check first.

Each rung works in processes of its own, so that what faults, hangs or runs out of memory costs one check only. When the
minutes are over it stops, and names the rungs that it did not reach.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from astrobio.config import ConfigError, set_dotted
from astrobio.files import write_whole
from launch import DS_CONFIGS, ROOT
from launch.ds_config.read import read_ds_config
from launch.experiments.device_checks import Truth
from launch.experiments.measured_run import Row, launch, predicted_figures, steps_of
from launch.experiments.page import write_acceptance
from launch.subprocesses import environment

#: The least seconds for a launch: one that fails in less tells nothing of the machine.
LAUNCH_S = 20


class TimeOver(Exception):
    """The minutes ended before the check did."""


class Failed(Exception):
    """A process ended without the result that it was to print."""


@dataclass
class Rung:
    """``status``: holds, fails, not reached, or cut short; ``reason``: why it did not end."""

    name: str
    status: str = "not reached"
    reason: str = ""
    seconds: float = 0.0
    truths: list[Truth] = field(default_factory=list)


@dataclass
class Acceptance:
    """One acceptance run: its machine and options, and its results."""

    out: Path
    model: str
    data: Path
    ranks: int
    device: str  # cpu, or the card's name
    minutes: float
    rungs: list[Rung] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self):
        self._begun = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds."""
        return self._begun + 60 * self.minutes - time.monotonic()

    def need(self, seconds: float) -> float:
        """The seconds left, if there are so many."""
        if self.left < seconds:
            raise TimeOver(
                f"{max(0, self.left):.0f} s of {self.minutes:g} minutes were left, and it takes at least {seconds:.0f}"
            )
        return self.left

    @property
    def failed(self) -> list[Truth]:
        return [truth for rung in self.rungs for truth in rung.truths if truth.holds is False]

    def climb(
        self, ladder: Mapping[str, Callable[["Acceptance"], Iterator[Truth]]], report: Callable[[str], None]
    ) -> None:
        """Go through the rungs in order; the results of each are written when it ends."""
        self.rungs = [Rung(name) for name in ladder]
        try:
            for rung, look in zip(self.rungs, ladder.values(), strict=True):
                self._climb(rung, look, report)
                self._write()
        finally:
            self._write()

    def _climb(
        self, rung: Rung, look: Callable[["Acceptance"], Iterator[Truth]], report: Callable[[str], None]
    ) -> None:
        started = time.monotonic()
        report(f"{rung.name}:")
        try:
            self.need(1)
            for truth in look(self):
                rung.truths.append(truth)
                report(
                    f"  {_mark(truth)} {truth.what}: {truth.seen}"
                    + (f" (must be: {truth.expected})" if truth.holds is False and truth.expected else "")
                )
        except TimeOver as over:
            rung.status, rung.reason = "cut short" if rung.truths else "not reached", str(over)
            report(f"  {rung.status}: {over}")
        except (Failed, ConfigError, OSError, RuntimeError) as error:
            rung.truths.append(Truth(rung.name, False, str(error), "to come to its end"))
            report(f"  FAILS  {error}")
        else:
            rung.status = "holds"
        if any(truth.holds is False for truth in rung.truths):
            rung.status = "fails"
        rung.seconds = time.monotonic() - started

    def _write(self) -> None:
        self.seconds = time.monotonic() - self._begun
        write_whole(self.out / "acceptance.json", json.dumps(self.to_dict(), indent=1) + "\n")
        write_acceptance(self, self.out / "acceptance.html", {row.name: predicted_figures(row) for row in self.rows})

    def to_dict(self) -> dict:
        return {
            "ok": not self.failed,
            "model": self.model,
            "ranks": self.ranks,
            "device": self.device,
            "seconds": round(self.seconds, 1),
            "rungs": [asdict(rung) for rung in self.rungs],
            "ds_configs": [asdict(row) for row in self.rows],
        }

    # Shared by the rungs ---------------------------------------------------------------------------------------------

    def ask(self, *command: object, seconds: float = 600) -> str:
        """What ``python -m command`` prints; killed with its children after ``seconds``, or when the time is over."""
        limit = min(seconds, self.need(1))
        process = subprocess.Popen(
            [sys.executable, "-m", *map(str, command)],
            cwd=ROOT,
            text=True,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            out, error = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            if self.left <= 1:
                raise TimeOver(f"the {self.minutes:g} minutes were over while it ran") from None
            raise Failed(f"no end after {limit:.0f} s: {' '.join(map(str, command))}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode:
            last = [text for text in (error or out).splitlines() if text.strip()][-3:]
            raise Failed(f"{' '.join(map(str, command))}: status {process.returncode}: {' / '.join(last)[-600:]}")
        return out

    def check(self, name: str, model: str | Path | None = None, seconds: float = 600) -> list[Truth]:
        """One of `launch.experiments.device_checks`."""
        out = self.ask(
            "launch.experiments.device_checks",
            name,
            "--model",
            model or self.model,
            "--data",
            self.data,
            seconds=seconds,
        )
        return [Truth(**truth) for truth in json.loads(out.splitlines()[-1])]

    def config(self, name: str, **changes) -> Path:
        """The shipped ds_config with one micro-batch a step, and with these ``changes``, as a file of this run. Its
        loss scale begins so low that no step of a few overflows: one that is skipped runs no optimizer."""
        config = read_ds_config(DS_CONFIGS / f"{name}.json")
        config.pop("train_batch_size", None)
        scale = {"fp16__initial_scale_power": 8} if "fp16" in config else {}
        for key, value in {"gradient_accumulation_steps": 1, **scale, **changes}.items():
            set_dotted(config, key.replace("__", "."), value)
        path = self.out / "configs" / f"{name}{'_changed' if changes else ''}.json"
        write_whole(path, json.dumps(config, indent=1) + "\n")
        return path

    def train(self, config: Path, name: str, steps: int, *options: object) -> list[dict]:
        """Launch training into a run of that name; returns the records of its steps."""
        run = self.out / "runs" / name
        shutil.rmtree(run, ignore_errors=True)
        status = launch(
            config,
            run,
            "--model",
            self.model,
            "--data",
            self.data,
            "--max_steps",
            steps,
            *options,
            ranks=self.ranks,
            timeout_s=self.need(LAUNCH_S),
        )
        if status is None:
            raise TimeOver(f"the {self.minutes:g} minutes were over while it trained")
        if status:
            last = [text for text in (run / "launch.log").read_text(errors="replace").splitlines() if text.strip()]
            raise Failed(f"{name} ended with status {status}: {' / '.join(last[-3:])[-600:]} ({run / 'launch.log'})")
        return steps_of(run / "metrics.jsonl")


def _mark(truth: Truth) -> str:
    return {True: "holds ", False: "FAILS ", None: "      "}[truth.holds]
