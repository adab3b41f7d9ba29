"""Run several ds_configs one after the other, and write their figures side by side: `astrobio compare`."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from deepspeed.accelerator import get_accelerator

from astrobio.config import load_preset
from astrobio.files import write_whole
from launch.ds_config.read import read_ds_config
from launch.experiments.measured_run import Row, line, predict, predicted_figures, run_config
from launch.experiments.page import write_page
from launch.options import parse_changes
from launch.planner.hardware.measure import card_names

FEW = 6  # keys that the headline names; the page lists all
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
        _write(found, out)  # after each, so that a crash later loses nothing
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
        pairs = ", ".join(f"{name}: {json.dumps(value)}" for name, value in zip(names, values, strict=True))
        return f"they differ in one key, {key} ({pairs})"
    keys = list(different)
    more = f" and {len(keys) - FEW} more" if len(keys) > FEW else ""
    return f"they differ in {len(keys)} keys: {', '.join(keys[:FEW])}{more}"


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


def device_name() -> str:
    """``cpu``, or the name of this machine's card, asked without torch, which would open a context on it."""
    kind = get_accelerator().device_name()
    return kind if kind == "cpu" else next(iter(card_names()), kind)
