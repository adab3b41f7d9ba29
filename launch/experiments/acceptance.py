"""Does all of it hold on this machine? `astrobio acceptance` goes up a ladder, the cheapest truths first.

Each rung asks in processes of its own, so that what faults, hangs or runs out of memory costs one answer. When the
minutes are over it stops, and says what was not reached.
"""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from deepspeed.ops.op_builder.builder import installed_cuda_version

from astrobio.config import ConfigError, load_preset, set_dotted
from astrobio.files import write_whole
from launch import ROOT
from launch.checkpoints.folder import path_of
from launch.ds_config.check import check
from launch.ds_config.facts import model_facts
from launch.ds_config.machine import driver_version, file_system
from launch.ds_config.read import read_ds_config
from launch.experiments.compare import Row, launch, line, predict, predicted_figures, run_config, steps_of
from launch.experiments.device_checks import Truth
from launch.experiments.full_size import measure_disk
from launch.experiments.page import write_acceptance
from launch.memory import GB, free_bytes, locked_limit, memory_limit
from launch.planner.hardware.measure import card_names
from launch.subprocesses import environment

DS_CONFIGS = ROOT / "ds_configs"
PACKAGES = ("torch", "deepspeed", "transformers", "torch_geometric", "datasets")
DEVICE_CHECKS = ("attention", "precision", "randomness", "copies", "waits")
#: How far a prediction may be off, as a share of what is measured. Times are only told: other work slows a machine.
TOLERATED = {
    "device_allocated_bytes": 0.10,
    "device_reserved_bytes": 0.10,
    "device_peak_bytes": 0.10,
    "host_peak_bytes": 0.10,
    "nvme_bytes": 0.01,
}
TOLD = ("nvme_read_bytes", "nvme_written_bytes", "step_s", "forward_s", "backward_s", "optimizer_s")
#: Optimizer steps of each ds_config, and of the runs that are resumed: saved after half of them.
STEPS, RESUMED = 3, 4
#: Seconds that a launch is given no less than; one that fails in less tells nothing of the machine.
LAUNCH_S, WHOLE_STACK_S = 20, 180
#: Relative difference of a loss after a resume: under the same ds_config a CPU computes the same, a card sums in
#: another order; another ds_config also reduces in another order, in 16 bits.
SAME_CPU, SAME_CARD, OTHER = 0.0, 1e-3, 2e-2


class TimeOver(Exception):
    """The minutes are over before this was seen."""


class Failed(Exception):
    """A process that had to tell something did not."""


@dataclass
class Rung:
    """``status``: holds, fails, not reached, or cut short; ``reason``: why it is not whole."""

    name: str
    status: str = "not reached"
    reason: str = ""
    seconds: float = 0.0
    truths: list[Truth] = field(default_factory=list)


@dataclass
class Acceptance:
    """One run: what is asked of which machine, and what was found."""

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

    def climb(self, ladder: dict[str, Callable[["Acceptance"], Iterator[Truth]]], told: Callable[[str], None]) -> None:
        """Go through the rungs in order; what each found is written as soon as it is."""
        self.rungs = [Rung(name) for name in ladder]
        try:
            for rung, look in zip(self.rungs, ladder.values(), strict=True):
                self._climb(rung, look, told)
                self._write()
        finally:
            self._write()

    def _climb(self, rung: Rung, look: Callable[["Acceptance"], Iterator[Truth]], told: Callable[[str], None]) -> None:
        started = time.monotonic()
        told(f"{rung.name}:")
        try:
            self.need(1)
            for truth in look(self):
                rung.truths.append(truth)
                told(
                    f"  {_mark(truth)} {truth.what}: {truth.seen}"
                    + (f" (must be: {truth.expected})" if truth.holds is False and truth.expected else "")
                )
        except TimeOver as over:
            rung.status, rung.reason = "cut short" if rung.truths else "not reached", str(over)
            told(f"  {rung.status}: {over}")
        except (Failed, ConfigError, OSError, RuntimeError) as error:
            rung.truths.append(Truth(rung.name, False, str(error), "to come to its end"))
            told(f"  FAILS  {error}")
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

    # What the rungs share --------------------------------------------------------------------------------------------

    def ask(self, *command: object, seconds: float = 600) -> str:
        """What ``python -m command`` prints; it is killed with all it started when its time, or all, is over."""
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
        """The shipped ds_config with one micro-batch a step, and with these ``changes``, as a file of this run."""
        config = read_ds_config(DS_CONFIGS / f"{name}.json")
        config.pop("train_batch_size", None)
        for key, value in {"gradient_accumulation_steps": 1, **changes}.items():
            set_dotted(config, key.replace("__", "."), value)
        path = self.out / "configs" / f"{name}{'_changed' if changes else ''}.json"
        write_whole(path, json.dumps(config, indent=1) + "\n")
        return path

    def train(self, config: Path, name: str, steps: int, *options: object) -> list[dict]:
        """Launch training into a run of that name; the records of its steps."""
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


# The rungs ------------------------------------------------------------------------------------------------------------


def machine(box: Acceptance) -> Iterator[Truth]:
    """Versions, limits and disks; and what `astrobio check` says of every shipped ds_config here."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    yield Truth("versions", None, f"Python {platform.python_version()}, {versions}")
    yield Truth("cards", None, ", ".join(card_names()) or "none: everything below runs on the CPU")
    if torch.version.cuda:
        driver = driver_version()
        yield Truth(
            "CUDA",
            None,
            f"torch is built for {torch.version.cuda}, the driver knows "
            f"{driver // 1000}.{driver % 1000 // 10}, toolkit {_toolkit()}"
            if driver
            else f"torch is built for {torch.version.cuda}, and there is no driver",
        )
    memory, what = memory_limit()
    yield Truth(
        "host memory",
        None,
        f"{memory / GB:.1f} GB ({what}), {free_bytes() / GB:.1f} free; {len(os.sched_getaffinity(0))} cores",
    )
    locked = locked_limit()
    yield Truth("ulimit -l", None, "unlimited" if locked is None else f"{locked / 1e6:.0f} MB")
    yield Truth("disk", None, f"{box.out}: {shutil.disk_usage(box.out).free / GB:.0f} GB free, {file_system(box.out)}")
    facts = model_facts(load_preset(box.model))
    for path in sorted(DS_CONFIGS.glob("*.json")):
        problems = [
            str(finding)
            for finding in check(read_ds_config(path), world_size=box.ranks, facts=facts, nvme_folder=box.out / "nvme")
            if finding.problem
        ]
        yield Truth(f"check of {path.stem}", not problems, "; ".join(problems) or "no problem", "no problem")


def _toolkit() -> str:
    try:
        return ".".join(map(str, installed_cuda_version()))
    except Exception as error:  # deepspeed's own kinds, and what a broken nvcc makes of them
        return f"not found ({str(error).strip('>- ')})"


def device(box: Acceptance) -> Iterator[Truth]:
    """Kernels, precisions, random numbers, copies and waits."""
    for name in DEVICE_CHECKS:
        yield from box.check(name)


def disk(box: Acceptance) -> Iterator[Truth]:
    """`ds_io` in the folder that NVMe offload would use."""
    folder = box.out / "nvme"
    rates = measure_disk(read_ds_config(DS_CONFIGS / "zero3_nvme.json"), folder, "128M", box.need(LAUNCH_S))
    yield Truth(
        "ds_io, files of 128 MB",
        None,
        f"reads {rates['read_bytes_per_s'] / GB:.2f} GB/s, writes {rates['write_bytes_per_s'] / GB:.2f} GB/s",
    )


def ds_configs(box: Acceptance) -> Iterator[Truth]:
    """Some steps under every ds_config, predicted beside measured."""
    longest = LAUNCH_S
    for source in sorted(DS_CONFIGS.glob("*.json")):
        box.need(longest)
        started, path, row = time.monotonic(), box.config(source.stem), Row(source.stem, str(source))
        row.predicted, row.no_prediction = predict(box.model, path, box.ranks, box.left)
        run_config(
            row,
            path,
            box.out / "runs" / row.name,
            box.model,
            STEPS,
            box.ranks,
            box.data,
            [],
            box.need(LAUNCH_S),
            box.device,
        )
        if row.cause == "too slow":
            raise TimeOver(f"the {box.minutes:g} minutes were over while {row.name} trained")
        longest = max(longest, time.monotonic() - started)
        box.rows.append(row)
        yield from judged(row)


def judged(row: Row) -> Iterator[Truth]:
    """What must hold of one ds_config's run, and what is only told."""
    if row.status != "done":
        yield Truth(f"{row.name}: trains", False, f"{row.cause}: {row.reason}", f"{STEPS} steps")
        return
    yield Truth(
        f"{row.name}: trains",
        len(row.losses) == STEPS and all(map(math.isfinite, row.losses)),
        line(row),
        f"{STEPS} steps with finite losses",
    )
    if row.predicted is None:
        yield Truth(f"{row.name}: is predicted", False, str(row.no_prediction), "a prediction")
        return
    predicted = predicted_figures(row)
    for key in (*TOLERATED, *TOLD):
        if row.measured.get(key) and predicted.get(key) is not None:
            measured, told = row.measured[key], predicted[key]
            off, allowed = told / measured - 1, TOLERATED.get(key)
            yield Truth(
                f"{row.name}: {key.removesuffix('_bytes').removesuffix('_s').replace('_', ' ')}",
                None if allowed is None else abs(off) <= allowed,
                f"{_unit(key, measured)} measured, {_unit(key, told)} predicted ({off:+.1%})",
                "" if allowed is None else f"within {allowed:.0%}",
            )


def _unit(key: str, value: float) -> str:
    return f"{value:.3f} s" if key.endswith("_s") else f"{value / GB:.3f} GB"


def overflow(box: Acceptance) -> Iterator[Truth]:
    """A loss scale that is too high: its steps are skipped, the scale halves, and training goes on."""
    config = box.config("zero3_offload", fp16__initial_scale_power=24, fp16__hysteresis=1)
    steps = box.train(config, "overflow", 16)
    skipped = [step for step in steps if step["overflow"]]
    scales = [step["loss_scale"] for step in steps]
    yield Truth(
        "steps that overflow are skipped, and told",
        0 < len(skipped) < len(steps),
        f"{len(skipped)} of {len(steps)}",
        "the first ones, not all",
    )
    halved = all(
        after == before / 2
        for step, before, after in zip(steps[1:], scales, scales[1:], strict=False)
        if step["overflow"]
    )
    yield Truth(
        "each halves the loss scale",
        halved,
        " ".join(f"2^{math.log2(scale):.0f}" for scale in scales),
        "half of the one before",
    )
    yield Truth(
        "the losses are finite",
        all(math.isfinite(step["loss"]) for step in steps),
        f"the last is {steps[-1]['loss']:.4f}",
        "finite",
    )


def resume(box: Acceptance) -> Iterator[Truth]:
    """Save, resume under the same and under another ds_config, verify, export, and use what was exported."""
    calm, half = {"fp16__initial_scale_power": 8}, RESUMED // 2
    whole = box.train(
        box.config("zero3_offload", **calm), "whole", RESUMED, "--set", f"train.checkpoint_every_steps={half}"
    )
    saved = path_of(box.out / "runs" / "whole", half)
    same = SAME_CPU if box.device == "cpu" else SAME_CARD
    for name, allowed in (("zero3_offload", same), ("zero2_offload", OTHER)):
        steps = box.train(box.config(name, **calm), f"resumed_{name}", RESUMED, "--resume", saved)
        yield resumed_as(whole[half:], steps, f"resumed under {name}", allowed)
    box.ask("launch.cli", "checkpoint", "verify", saved)
    yield Truth("checkpoint verify", True, f"every byte of {saved.name} is what was written", "as written")
    exported = box.out / "exported"
    shutil.rmtree(exported, ignore_errors=True)
    box.ask("launch.cli", "checkpoint", "export", saved, "--out", exported)
    yield from box.check("exported", exported)


def resumed_as(expected: list[dict], steps: list[dict], what: str, allowed: float) -> Truth:
    """The losses of a resumed run beside those of the one that was not interrupted."""
    theirs, ours = ([(step["step"], step["loss"]) for step in records] for records in (expected, steps))
    if [number for number, _ in ours] != [number for number, _ in theirs]:
        return Truth(what, False, f"steps {[number for number, _ in ours]}", f"{[number for number, _ in theirs]}")
    off = max(abs(a - b) / abs(b) for (_, a), (_, b) in zip(ours, theirs, strict=True))
    return Truth(
        what,
        off <= allowed,
        f"losses {', '.join(f'{loss:.6f}' for _, loss in ours)}: {off:.1e} off the run without a break",
        "the same" if not allowed else f"within {allowed:g}",
    )


def whole_stack(box: Acceptance) -> Iterator[Truth]:
    """One step of 17b_frozen, where the plan says that it fits, and time is left for it."""
    name, source = "17b_frozen", DS_CONFIGS / "zero3_offload.json"
    box.need(WHOLE_STACK_S)
    config = box.config(source.stem)
    problems = [
        finding
        for finding in check(read_ds_config(config), world_size=box.ranks, facts=model_facts(load_preset(name)))
        if finding.problem
    ]
    if problems:
        yield Truth(name, None, f"not run: {problems[0]}")
        return
    row = Row(name, str(source))
    row.predicted, row.no_prediction = predict(name, config, box.ranks, box.left)
    if row.predicted is None or not row.predicted["fits"]:
        yield Truth(name, None, f"not run: {row.no_prediction or 'the plan says that it does not fit'}")
        return
    run_config(row, config, box.out / "runs" / name, name, 1, box.ranks, box.data, [], box.need(LAUNCH_S), box.device)
    if row.cause == "too slow":
        raise TimeOver(f"the {box.minutes:g} minutes were over while {name} trained")
    box.rows.append(row)
    yield from judged(row)


LADDER = {
    "the machine": machine,
    "the device": device,
    "the disk": disk,
    "every ds_config": ds_configs,
    "a forced overflow": overflow,
    "save, resume, export": resume,
    "17b_frozen": whole_stack,
}
