"""Run several ds_configs one after the other, and put what they took side by side: `astrobio compare`.

Each runs through the `deepspeed` launcher and launch/train.py in processes of its own, so that one that fails costs
its row and nothing else. Beside what is measured stands what `astrobio plan` predicts.
"""

import csv
import io
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
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from deepspeed.accelerator import get_accelerator

from astrobio.config import ConfigError, load_preset
from astrobio.files import write_whole
from launch import ROOT
from launch.ds_config.read import read_ds_config
from launch.experiments.page import write_page
from launch.options import parse_changes
from launch.planner.assemble import WORKERS
from launch.planner.hardware.measure import card_names
from launch.postmortem.blackbox import TRACE, read_box
from launch.postmortem.explain import explain

#: Seconds between looks at memory: 1% of a core.
LOOK_S = 0.05
PHASES = ("data", "forward", "backward", "reduce", "optimizer", "report")
FEW = 6  # keys are named in one sentence; the page lists all
#: Columns of the CSV: the key in a row's ``measured`` or ``predicted``.
FIGURES = (
    "step_s",
    "forward_s",
    "backward_s",
    "optimizer_s",
    "tokens_per_s",
    "device_peak_bytes",
    "device_reserved_bytes",
    "device_allocated_bytes",
    "host_peak_bytes",
    "nvme_bytes",
    "nvme_read_bytes",
    "nvme_written_bytes",
)
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


@dataclass
class Comparison:
    model: str
    ranks: int
    steps: int
    device: str
    differences: dict[str, list[Any]]
    headline: str
    rows: list[Row]


def compare(
    model: str,
    ds_configs: list[Path],
    steps: int,
    out: Path,
    *,
    ranks: int,
    data: Path | None = None,
    changes: list[str] | None = None,
    timeout_s: float = 3600.0,
    device: str = "cpu",
    report: Callable[[str], None] = print,
) -> Comparison:
    """Run them all; writes compare.json, compare.csv and compare.html into ``out``.

    Args:
        steps: optimizer steps of each; the first one, in which ops are compiled and traces recorded, is not counted.
        changes: ``--set`` options for all of them.
        timeout_s: after which a run is killed.
        report: prints a line: what they differ in, and each run.

    Raises:
        ConfigError: a file that cannot be read, or two of the same content.
    """
    parsed = parse_changes(changes or [])
    named = _names(ds_configs)
    configs = {name: read_ds_config(path, parsed["ds_config"]) for name, path in named.items()}
    out.mkdir(parents=True, exist_ok=True)
    for name, config in configs.items():
        write_whole(out / "configs" / f"{name}.json", json.dumps(config, indent=2) + "\n")
    different = differences(configs)
    found = Comparison(model, ranks, steps, device, different, headline(list(configs), different), [])
    report(found.headline)
    others = [
        f"{section}.{key}={json.dumps(value)}"
        for section in ("model", "train")
        for key, value in parsed[section].items()
    ]
    planned = model
    if parsed["model"]:
        planned = str(out / f"{Path(model).stem}.yaml")
        write_whole(Path(planned), yaml.safe_dump(asdict(load_preset(model, parsed["model"]))))
    for name in configs:
        row = Row(name, str(named[name]))
        path = out / "configs" / f"{name}.json"
        row.predicted, row.no_prediction = predict(planned, path, ranks)
        run_config(row, path, out / "runs" / name, model, steps, ranks, data, others, timeout_s, device)
        found.rows.append(row)
        report(line(row))
        _write(found, out)  # after each, so that what was measured stays whatever comes
    return found


def _names(paths: list[Path]) -> dict[str, Path]:
    """A short name of each file."""
    named: dict[str, Path] = {}
    for path in paths:
        name, number = path.stem, 2
        while name in named:
            name, number = f"{path.stem}_{number}", number + 1
        named[name] = path
    return named


def differences(configs: dict[str, dict]) -> dict[str, list[Any]]:
    """Dotted keys whose values are not the same in all configs, with each one's value; None where it has none."""
    flat = [dict(_flat(config)) for config in configs.values()]
    keys = sorted({key for each in flat for key in each})
    return {
        key: [each.get(key) for each in flat]
        for key in keys
        if any(each.get(key, ...) != flat[0].get(key, ...) for each in flat)
    }


def _flat(values: dict, above: str = ""):
    for key, value in values.items():
        dotted = f"{above}.{key}" if above else key
        if isinstance(value, dict) and value:
            yield from _flat(value, dotted)
        else:
            yield dotted, value


def headline(names: list[str], different: dict[str, list[Any]]) -> str:
    """What the configs differ in, in a sentence."""
    if len(names) == 1:
        return names[0]
    if not different:
        return f"{' and '.join(names)} are the same"
    if len(different) == 1:
        ((key, values),) = different.items()
        told = ", ".join(f"{name}: {json.dumps(value)}" for name, value in zip(names, values, strict=True))
        return f"they differ in one key, {key} ({told})"
    keys = list(different)
    more = f" and {len(keys) - FEW} more" if len(keys) > FEW else ""
    return f"they differ in {len(keys)} keys: {', '.join(keys[:FEW])}{more}"


def predict(model: str, ds_config: Path, ranks: int, timeout_s: float = 600) -> tuple[dict | None, str | None]:
    """What `astrobio plan` says of this machine, or why it says nothing."""
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
    # What is measured is what the ranks hold, without the processes that read ahead.
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
    """One launch, and what it left behind, put into ``row``; the arguments are those of `compare`, ``others`` what
    ``--set`` changes beside the ds_config."""
    shutil.rmtree(run, ignore_errors=True)
    if device != "cpu":  # else the clock would measure how fast work is handed to the device
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


def _finished(run: Path) -> bool:
    """Whether every rank has said that it had ended without an error."""
    boxes = [read_box(path) for path in (run / "ranks").glob("*.box")]
    return bool(boxes) and all(box and box.get("ended") and not box["ended"]["error"] for box in boxes)


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
    """Lines of JSON, of metrics only the training steps; a last line that was cut is left out."""
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


def _write(found: Comparison, out: Path) -> None:
    write_whole(out / "compare.json", json.dumps(asdict(found), indent=1) + "\n")
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(
        [
            "config",
            "status",
            "reason",
            "steps",
            "loss",
            *FIGURES,
            *(f"predicted_{key}" for key in FIGURES),
            "no_prediction",
        ]
    )
    for row in found.rows:
        predicted = predicted_figures(row)
        table.writerow(
            [
                row.name,
                row.status,
                row.reason or "",
                row.steps,
                row.losses[-1] if row.losses else "",
                *(row.measured.get(key, "") for key in FIGURES),
                *(predicted.get(key, "") for key in FIGURES),
                row.no_prediction or "",
            ]
        )
    write_whole(out / "compare.csv", text.getvalue())
    write_page(found, out / "compare.html", {row.name: predicted_figures(row) for row in found.rows})


def predicted_figures(row: Row) -> dict[str, float]:
    """The prediction by the names of what is measured."""
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
    """Of the console."""
    if row.status != "done":
        return f"{row.name:28s} FAILED after {row.seconds:.0f} s: {row.cause}: {row.reason}"
    told, predicted = row.measured, predicted_figures(row)
    beside = f" (predicted {predicted['step_s']:.2f})" if "step_s" in predicted else ""
    return (
        f"{row.name:28s} step {told['step_s']:.2f} s{beside}: forward {told['forward_s']:.2f}, backward "
        f"{told['backward_s']:.2f}, optimizer {told['optimizer_s']:.2f}; host "
        f"{told['host_peak_bytes'] / 1e9:.2f} GB"
        + (f", device {told['device_peak_bytes'] / 1e9:.2f} GB" if "device_peak_bytes" in told else "")
        + (f", NVMe {told['nvme_bytes'] / 1e9:.3f} GB" if "nvme_bytes" in told else "")
        + f"; loss {row.losses[-1]:.4f}"
    )


def device_name() -> str:
    """``cpu``, or the name of this machine's card; torch would open a context on it, beside those of the runs."""
    kind = get_accelerator().device_name()
    return kind if kind == "cpu" else next(iter(card_names()), kind)
