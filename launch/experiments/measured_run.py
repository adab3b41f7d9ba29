"""Measures one training run under a ds_config, beside what `astrobio plan` predicts.

It runs through the `deepspeed` launcher and launch/train.py in processes of its own: what fails there costs its row and
nothing else.
"""

import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from astrobio.config import ConfigError
from launch import ROOT
from launch.planner.assemble import WORKERS
from launch.postmortem.blackbox import TRACE, read_box
from launch.postmortem.explain import explain

#: Seconds between samples of memory: 1% of a core.
LOOK_S = 0.05
PHASES = ("data", "forward", "backward", "reduce", "optimizer", "report")
#: Phases of a plan that a run of some steps goes through: it ends with a checkpoint, and without a validation.
RAN = ("init", "forward", "backward", "optimizer", "save")


@dataclass
class Row:
    """One config: ``status`` done or failed, with the ``reason`` (of a done one: what is odd); what was ``measured``
    and ``predicted`` (None, with ``no_prediction`` saying why); ``limits`` in bytes; ``timeline`` of memory: seconds,
    bytes and phase."""

    name: str
    ds_config: str
    status: str = "done"
    cause: str | None = None
    reason: str | None = None
    cure: str | None = None
    seconds: float = 0.0
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)
    predicted: dict[str, Any] | None = None
    no_prediction: str | None = None
    limits: dict[str, int] = field(default_factory=dict)
    timeline: list[tuple[float, int, str]] = field(default_factory=list)


def predict(model: str, ds_config: Path, ranks: int, timeout_s: float = 600) -> tuple[dict | None, str | None]:
    """The prediction of `astrobio plan` for this machine; or None and the reason."""
    command = [
        sys.executable,
        "-m",
        "launch.cli",
        "plan",
        "--model",
        model,
        "--ds_config",
        str(ds_config),
        "--hardware",
        "this",
        "--ranks",
        str(ranks),
        "--json",
    ]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return None, f"no prediction within {timeout_s:.0f} s"
    try:
        found = json.loads(done.stdout)
    except ValueError:
        found = None
    if not isinstance(found, dict) or "host" not in found:
        last = [text for text in (done.stderr or done.stdout).splitlines() if text.strip()]
        return None, last[-1].strip()[:300] if last else f"astrobio plan ended with status {done.returncode}"
    # Measured is the memory of the ranks, without that of the processes that read ahead.
    ahead = found["host"].get("parts", {}).pop(WORKERS, 0)
    found["host"]["peak_bytes"] -= ahead
    found["host"]["phases"] = {phase: size - ahead for phase, size in found["host"]["phases"].items()}
    return found, None


def run_config(
    row: Row,
    config: Path,
    run: Path,
    model: str,
    steps: int,
    ranks: int,
    data: Path | None,
    others: list[str],
    timeout_s: float,
    device: str,
) -> None:
    """One launch; its results go into ``row``. The arguments are those of `compare`; ``others`` are ``--set`` options
    that do not change the ds_config."""
    shutil.rmtree(run, ignore_errors=True)
    if device != "cpu":  # else the clock would only measure how fast kernels are launched
        others = [*others, "ds_config.wall_clock_breakdown=true"]
    started = time.monotonic()
    status = launch(
        config,
        run,
        "--model",
        model,
        "--max_steps",
        steps,
        *(["--data", data] if data else []),
        *(["--set", *others] if others else []),
        ranks=ranks,
        timeout_s=timeout_s,
        environment={TRACE: str(LOOK_S)},
    )
    row.seconds = time.monotonic() - started
    _measure(row, run, ranks, device)
    if status and row.steps >= steps and _finished(run):
        row.reason = f"all steps done; after that, while it was taken apart, a process ended with status {status}"
    elif status != 0 or row.steps < steps:
        _fail(row, run, status, timeout_s)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)


def launch(
    config: Path, run: Path, *options: object, ranks: int, timeout_s: float, environment: dict[str, str] | None = None
) -> int | None:
    """``deepspeed launch/train.py`` with these options; what it prints goes into ``run``'s launch.log. Returns its
    status, or None: it was killed, with all its ranks, after ``timeout_s``."""
    command = [
        sys.executable,
        "-m",
        "deepspeed.launcher.runner",
        "--num_gpus",
        ranks,
        "--master_port",
        _free_port(),
        ROOT / "launch/train.py",
        "--ds_config",
        config,
        "--run",
        run,
        *options,
    ]
    run.mkdir(parents=True, exist_ok=True)
    with (run / "launch.log").open("w") as log:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "WANDB_MODE": "disabled", **(environment or {})},
            start_new_session=True,
        )
        try:
            return process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _fail(row: Row, run: Path, status: int | None, timeout_s: float) -> None:
    row.status = "failed"
    text = (run / "launch.log").read_text(errors="replace")
    refused = list(dict.fromkeys(re.findall(r"^error: (.*)$", text, re.MULTILINE)))
    if status == 2 or refused and not (run / "ranks").exists():
        row.cause, row.reason = "refused", "; ".join(refused) or f"status {status}"
        return
    try:
        found = explain(run)
        row.cause, row.reason, row.cure = found.cause, found.summary, found.cure
    except ConfigError:
        last = [line for line in text.splitlines() if line.strip()]
        row.cause, row.reason = "error", last[-1][:300] if last else f"ended with status {status}"
    if status is None:
        row.cause, row.reason = "too slow", f"killed after {timeout_s:.0f} s; {row.reason}"


def _finished(run: Path) -> bool:
    """Whether every rank recorded an end without an error."""
    boxes = [read_box(path) for path in (run / "ranks").glob("*.box")]
    return bool(boxes) and all(box and box.get("ended") and not box["ended"]["error"] for box in boxes)


def _measure(row: Row, run: Path, ranks: int, device: str) -> None:
    records = steps_of(run / "metrics.jsonl")
    row.steps, row.losses = len(records), [record["loss"] for record in records]
    boxes = [box for path in sorted((run / "ranks").glob("*.box")) if (box := read_box(path))]
    if boxes:
        limit, _ = boxes[0]["memory_limit"]
        row.limits["host"] = limit
        row.measured["host_peak_bytes"] = sum(box["peaks"]["rss"] for box in boxes)
        row.measured["host_at_start_bytes"] = sum(box["rss_at_start"] for box in boxes)
        if device != "cpu" and "device_bytes" in boxes[0]["peaks"]:
            for key, column in (
                ("device_bytes", "device_peak_bytes"),
                ("device_reserved", "device_reserved_bytes"),
                ("device_allocated", "device_allocated_bytes"),
            ):
                row.measured[column] = max(box["peaks"].get(key, 0) for box in boxes)
            row.limits["gpu"] = boxes[0]["last"]["device_total"]
    counted = records[1:] or records
    if not counted:
        return
    if all(record.get("overflow") for record in records):
        row.reason = (
            "every step overflowed fp16 and was skipped, so that the optimizer never ran: take more steps, or lower "
            "fp16.initial_scale_power"
        )
    for key in ("step_s", "tokens_per_s"):
        row.measured[key] = statistics.median(record[key] for record in counted)
    for phase in PHASES:
        row.measured[f"{phase}_s"] = statistics.median(record["phase_s"].get(phase, 0.0) for record in counted)
    if "nvme_bytes" in counted[-1]:
        row.measured["nvme_bytes"] = max(record["nvme_bytes"] for record in counted)
        row.limits["nvme"] = counted[-1]["nvme_free_bytes"] + counted[-1]["nvme_bytes"]
        # The ranks hold equal shares; rank 0 writes the metrics.
        for key, column in (("io_read_bytes", "nvme_read_bytes"), ("io_written_bytes", "nvme_written_bytes")):
            counts = [record[key] for record in records if key in record]
            if len(counts) > 1:
                steps = [after - before for before, after in zip(counts, counts[1:], strict=False)]
                row.measured[column] = ranks * statistics.median(steps)
    row.timeline = timeline(steps_of(run / "ranks" / "rank_00000.samples.jsonl"), device)


def steps_of(path: Path) -> list[dict]:
    """The records of a file of JSON lines; of metrics the training steps only. A last line that was cut is left out."""
    found = []
    if path.is_file():
        for text in path.read_text().splitlines():
            try:
                record = json.loads(text)
            except ValueError:
                continue
            if record.get("kind", "train") == "train":
                found.append(record)
    return found


def timeline(samples: list[dict], device: str) -> list[tuple[float, int, str]]:
    """Seconds, bytes and phase of one step, the last whole one; of all steps where one is too short to see."""
    key = "rss" if device == "cpu" else "device_bytes"
    samples = [sample for sample in samples if key in sample and sample["phase"] in PHASES and "step" in sample]
    if not samples:
        return []
    last = samples[-1]["step"] - 1
    chosen = [sample for sample in samples if sample["step"] == last]
    if len(chosen) < 10:
        chosen = samples
    return [(round(sample["time"] - chosen[0]["time"], 3), sample[key], sample["phase"]) for sample in chosen]


def predicted_figures(row: Row) -> dict[str, float]:
    """The prediction, under the names of the measured figures."""
    if row.predicted is None:
        return {}
    plan, found = row.predicted, {}
    for key in ("step_s", "forward_s", "backward_s", "optimizer_s", "tokens_per_s"):
        found[key] = (plan.get("time") or {}).get(key)
    gpu, host, nvme = (plan.get(place) or {} for place in ("gpu", "host", "nvme"))
    found["host_peak_bytes"], found["nvme_bytes"] = _most(host.get("phases")), nvme.get("peak_bytes")
    found["device_allocated_bytes"] = _most(gpu.get("phases"))
    found["device_reserved_bytes"] = _most(gpu.get("reserved_by_phase"))
    if gpu:  # beside what the allocator takes, a card holds the context
        found["device_peak_bytes"] = found["device_reserved_bytes"] + gpu["peak_bytes"] - gpu["reserved_bytes"]
    for key in ("read_bytes", "written_bytes"):
        found[f"nvme_{key}"] = nvme.get(f"{key}_per_step")
    return {key: value for key, value in found.items() if value or value == 0 and not key.startswith("nvme")}


def _most(phases: dict[str, int] | None) -> int | None:
    return max((size for phase, size in (phases or {}).items() if phase in RAN), default=None)


def line(row: Row) -> str:
    """The row as one line of text."""
    if row.status != "done":
        return f"{row.name:28s} FAILED after {row.seconds:.0f} s: {row.cause}: {row.reason}"
    measured, predicted = row.measured, predicted_figures(row)
    beside = f" (predicted {predicted['step_s']:.2f})" if "step_s" in predicted else ""
    return (
        f"{row.name:28s} step {measured['step_s']:.2f} s{beside}: forward {measured['forward_s']:.2f}, backward "
        f"{measured['backward_s']:.2f}, optimizer {measured['optimizer_s']:.2f}; host "
        f"{measured['host_peak_bytes'] / 1e9:.2f} GB"
        + (f", device {measured['device_peak_bytes'] / 1e9:.2f} GB" if "device_peak_bytes" in measured else "")
        + (f", NVMe {measured['nvme_bytes'] / 1e9:.3f} GB" if "nvme_bytes" in measured else "")
        + f"; loss {row.losses[-1]:.4f}"
    )
