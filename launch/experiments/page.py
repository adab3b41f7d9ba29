"""The pages of a comparison and of an acceptance: HTML files without anything from elsewhere, charts drawn as SVG."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from astrobio.files import write_whole

WIDTH, LABEL, RIGHT = 940, 190, 90
#: Hues that also differ in lightness (Okabe & Ito 2008).
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")
PHASE_COLOURS = {
    "data": PALETTE[7],
    "forward": PALETTE[0],
    "backward": PALETTE[1],
    "reduce": PALETTE[3],
    "optimizer": PALETTE[2],
    "report": PALETTE[4],
    "other": "#cccccc",
}
#: Parts of what is measured: what each rank held before its model was built, and the rest, or all of it. `plan` has
#: ``LIBRARIES``, which is more than the first: a process that computes needs more beside its tensors than one that has
#: only begun.
LIBRARIES, START, MEASURED = "Python and libraries", "measured before the model was built", "measured"
SMALL = "smaller parts"
#: Rows of the table: key, heading, unit.
TABLE = (
    ("step_s", "step", "s"),
    ("forward_s", "forward", "s"),
    ("backward_s", "backward", "s"),
    ("optimizer_s", "optimizer", "s"),
    ("tokens_per_s", "text tokens", "/s"),
    ("device_peak_bytes", "device, peak of a rank", "B"),
    ("device_reserved_bytes", "of it reserved", "B"),
    ("device_allocated_bytes", "of it allocated", "B"),
    ("host_peak_bytes", "host, peak of all ranks", "B"),
    ("nvme_bytes", "NVMe, resident", "B"),
    ("nvme_read_bytes", "NVMe, read a step", "B"),
    ("nvme_written_bytes", "NVMe, written a step", "B"),
)


def write_page(found, path: Path, predicted: dict[str, dict[str, float]]) -> None:
    """Write the page of a `launch.experiments.compare.Comparison`; ``predicted`` are the figures by row."""
    done = [row for row in found.rows if row.status == "done"]
    write_whole(
        path,
        _template("page.html.j2").render(
            found=found,
            done=done,
            **_figures(found, predicted),
            timelines=[(row.name, timeline(row.timeline)) for row in done if row.timeline],
            phases=PHASE_COLOURS,
            silent=_reasons(found.rows),
            timeline_of="resident memory of rank 0" if found.device == "cpu" else "memory of rank 0's card",
        ),
    )


def write_acceptance(found, path: Path, predicted: dict[str, dict[str, float]]) -> None:
    """Write the page of a `launch.experiments.acceptance.Acceptance`."""
    whole = all(rung.status == "holds" for rung in found.rungs)
    headline = (
        f"{len(found.failed)} of what must hold does not."
        if found.failed
        else "Everything that was asked holds."
        if whole
        else "All that was reached holds."
    )
    write_whole(
        path,
        _template("acceptance.html.j2").render(
            found=found,
            headline=headline,
            where="the CPU" if found.device == "cpu" else found.device,
            **_figures(found, predicted),
        ),
    )


def _template(name: str):
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template(name)


def _figures(found, predicted: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The table and the charts of ``found.rows``."""
    places = [("host", "Host memory of all ranks", "host_peak_bytes"), ("nvme", "NVMe", "nvme_bytes")]
    if found.device != "cpu":
        places.insert(0, ("gpu", "Memory of one card", "device_peak_bytes"))
    memory = [(title, chart) for place, title, key in places if (chart := memory_bars(found.rows, place, key))]
    return {"table": _table(found.rows, predicted), "memory": memory, "time": time_bars(found.rows, predicted)}


def _reasons(rows) -> list[tuple[str, str]]:
    """Why there are no predictions, and for which rows."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.no_prediction:
            found.setdefault(row.no_prediction, []).append(row.name)
    return [(", ".join(names), why) for why, names in found.items()]


def _table(rows, predicted) -> list[dict[str, Any]]:
    table = []
    for key, heading, unit in TABLE:
        cells = [(row.measured.get(key), predicted[row.name].get(key)) for row in rows]
        if any(value is not None for cell in cells for value in cell):
            table.append(
                {
                    "heading": heading,
                    "cells": [
                        {"measured": told(one, unit), "predicted": told(two, unit), "error": _error(one, two)}
                        for one, two in cells
                    ],
                }
            )
    return table


def told(value: float | None, unit: str) -> str:
    """``12.3 GB``; nothing for None."""
    if value is None:
        return ""
    if unit != "B":
        return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
    for size, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if value >= size:
            return f"{value / size:.2f} {name}"
    return f"{value / 1e3:.1f} kB" if value else "0"


def _error(measured: float | None, predicted: float | None) -> str:
    if not measured or predicted is None:
        return ""
    off = (predicted - measured) / measured
    return f"{off:+.0%}" if abs(off) >= 0.1 else f"{off:+.1%}" if predicted != measured else "exact"


def memory_bars(rows, place: str, key: str) -> Markup | None:
    """A bar for what was measured and one for what was predicted, the latter in its parts, up to the limit."""
    bars = []
    for row in rows:
        plan = (row.predicted or {}).get(place) or {}
        if key in row.measured:
            start = row.measured.get("host_at_start_bytes", 0) if place == "host" else 0
            measured = [(START, start), (MEASURED, row.measured[key] - start)]
            bars.append((row.name, [part for part in measured if part[1] > 0], "measured"))
        if plan.get("peak_bytes"):
            parts = {
                name: size
                for name, size in (plan.get("parts") or {}).items()
                if isinstance(size, int | float) and size > 0
            }
            rest = plan["peak_bytes"] - sum(parts.values())
            if rest > 0.01 * plan["peak_bytes"]:
                parts["other"] = rest
            bars.append(("", sorted(parts.items(), key=lambda part: -part[1]), "predicted"))
    if not any(parts for _, parts, _ in bars):
        return None
    limits = [row.limits[place] for row in rows if place in row.limits]
    most: dict[str, float] = {}
    for _, sizes, _ in bars:
        for name, size in sizes:
            most[name] = max(most.get(name, 0), size)
    fixed = {MEASURED: "#444444", START: PALETTE[7], LIBRARIES: PALETTE[7], SMALL: "#cccccc"}
    names = sorted(most.keys() - fixed.keys(), key=lambda name: most[name], reverse=True)
    colours = dict(zip(names, PALETTE[:-1], strict=False)) | fixed  # as many as there are hues
    bars = [(label, _joined(parts, colours), kind) for label, parts, kind in bars]
    return _bars(bars, colours, lambda value: told(value, "B"), limits[0] if limits else None)


def _joined(parts: list[tuple[str, float]], colours: dict[str, str]) -> list[tuple[str, float]]:
    """The parts that have a colour, and the others as one."""
    small = sum(size for name, size in parts if name not in colours)
    return [*((name, size) for name, size in parts if name in colours), *([(SMALL, small)] if small else [])]


def time_bars(rows, predicted: dict[str, dict[str, float]]) -> Markup:
    """The phases of a step, end to end; a rank can overlap them, so that predicted ones may add up to more."""
    bars = []
    for row in rows:
        if row.status == "done":
            parts = [(phase, row.measured.get(f"{phase}_s", 0.0)) for phase in PHASE_COLOURS if phase != "other"]
            rest = row.measured.get("step_s", 0.0) - sum(seconds for _, seconds in parts)
            bars.append((row.name, [*parts, ("other", max(0.0, rest))], "measured"))
        else:
            bars.append((row.name, [], f"failed: {row.cause}"))
        parts = [
            (phase, predicted[row.name][f"{phase}_s"])
            for phase in ("forward", "backward", "optimizer")
            if f"{phase}_s" in predicted[row.name]
        ]
        if parts:
            bars.append(("", parts, "predicted"))
    return _bars(bars, PHASE_COLOURS, lambda value: told(value, "s"), None)


def _bars(bars, colours: dict[str, str], unit, limit: float | None) -> Markup:
    high, gap, top = 20, 6, 26
    totals = [sum(size for _, size in parts) for _, parts, _ in bars]
    largest = max(totals, default=0) or 1.0
    scale_to = max(largest, limit) if limit is not None and limit < 4 * largest else largest
    width = WIDTH - LABEL - RIGHT
    height = top + len(bars) * (high + gap) + 4
    drawn = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img">']
    for number, (name, parts, kind) in enumerate(bars):
        y, x = top + number * (high + gap), float(LABEL)
        label = name if len(name) <= 26 else name[:25] + "…"
        drawn.append(f'<text x="{LABEL - 8}" y="{y + 14}" text-anchor="end">{escape(label or kind)}</text>')
        for part, size in parts:
            wide = width * size / scale_to
            drawn.append(
                f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{high}" fill="{colours[part]}" '
                f'class="{kind}"><title>{escape(part)}: {escape(unit(size))} ({kind})</title></rect>'
            )
            x += wide
        drawn.append(
            f'<text x="{x + 6:.1f}" y="{y + 14}" class="{"failed" if not parts else "value"}">'
            f"{escape(unit(totals[number]) if parts else kind)}</text>"
        )
    if limit is not None:
        if limit <= scale_to:
            x = LABEL + width * limit / scale_to
            drawn.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="16" y2="{height}" class="limit"/>'
                f'<text x="{x:.1f}" y="12" text-anchor="middle" class="limit">limit {escape(unit(limit))}'
                "</text>"
            )
        else:
            drawn.append(
                f'<text x="{WIDTH - RIGHT}" y="12" text-anchor="end" class="limit">limit '
                f"{escape(unit(limit))}, beyond the right edge</text>"
            )
    drawn.append("</svg>")
    return Markup("\n".join([_legend(bars, colours), *drawn]))


def _legend(bars, colours: dict[str, str]) -> str:
    used = list(dict.fromkeys(part for _, parts, _ in bars for part, size in parts if size > 0))
    return (
        '<p class="legend">'
        + " ".join(f'<span><i style="background:{colours[part]}"></i>{escape(part)}</span>' for part in used)
        + "</p>"
    )


def timeline(points: list[tuple[float, int, str]]) -> Markup:
    """Memory over the seconds of a step, on a ground that shows the phase."""
    height, bottom, top = 190, 24, 10
    end = max(points[-1][0], 1e-3)
    most = max(size for _, size, _ in points)
    width, room = WIDTH - LABEL - RIGHT, height - top - bottom

    def x(seconds: float) -> float:
        return LABEL + width * seconds / end

    drawn = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img">']
    start = 0
    for i in range(1, len(points) + 1):
        if i == len(points) or points[i][2] != points[start][2]:
            until = points[i][0] if i < len(points) else end
            drawn.append(
                f'<rect x="{x(points[start][0]):.1f}" y="{top}" width="{x(until) - x(points[start][0]):.1f}" '
                f'height="{room}" fill="{PHASE_COLOURS.get(points[start][2], "#ccc")}" fill-opacity="0.25">'
                f"<title>{escape(points[start][2])}</title></rect>"
            )
            start = i
    line = " ".join(f"{x(seconds):.1f},{top + room * (1 - size / most):.1f}" for seconds, size, _ in points)
    drawn.append(f'<polyline points="{line}" class="line"/>')
    for share in (0, 0.5, 1):
        y = top + room * (1 - share)
        drawn.append(
            f'<text x="{LABEL - 8}" y="{y + 4:.0f}" text-anchor="end">{escape(told(share * most, "B"))}</text>'
            f'<line x1="{LABEL}" x2="{LABEL + width}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        )
    drawn += [
        f'<text x="{LABEL}" y="{height - 6}">0</text><text x="{LABEL + width}" y="{height - 6}" '
        f'text-anchor="end">{end:.2f} s</text>',
        "</svg>",
    ]
    return Markup("\n".join(drawn))
