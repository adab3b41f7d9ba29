"""A plan for people: bars against the limits, what fills them, and the time of a step."""

from typing import Any

from rich.console import Console
from rich.table import Table

GIB = 1 << 30
_WIDTH = 16  # characters of a bar


def print_plan(plan: dict[str, Any], console: Console | None = None) -> None:
    console = console or Console()
    console.print(f"[bold]{plan['model']}[/]: {plan['parameters'] / 1e9:.2f} B parameters, "
                  f"{plan['trainable'] / 1e9:.2f} B trained, on {plan['ranks']} rank(s) of {plan['hardware']}; "
                  f"micro-batch {plan['micro_batch']} × {plan['accumulation']} accumulated, {plan['tokens']} tokens "
                  "each")
    console.print("[green]fits[/]" if plan["fits"] else "[red]does not fit[/]",
                  "(a prediction: DeepSpeed's own engine, run on tensors without data"
                  + (", with an eighth and a quarter of the layers)" if plan["quick"] else ")"))
    table = Table(box=None, pad_edge=False)
    for heading, justify in (("", "left"), ("peak", "right"), ("limit", "right"), ("", "left"), ("in", "left"),
                             ("at", "left")):
        table.add_column(heading, justify=justify)
    for name, label in (("gpu", "each GPU"), ("host", "host"), ("nvme", "NVMe")):
        side = plan[name]
        if side is not None:
            table.add_row(label, f"{side['peak_bytes'] / GIB:.1f} GiB", f"{side['limit_bytes'] / GIB:.1f} GiB",
                          bar(side["peak_bytes"], side["limit_bytes"], side["fits"]), side["phase"],
                          side.get("module", ""))
    console.print(table)
    for label, key in (("training", "training_bytes"), ("validation", "validation_bytes")):
        sizes = [f"{plan[side][key] / GIB:.1f} GiB of {name}"
                 for side, name in (("gpu", "each GPU"), ("host", "the host")) if plan[side] and plan[side][key]]
        if sizes:
            console.print(f"{label:10s} takes {' and '.join(sizes)}")
    parts = Table(box=None, pad_edge=False)
    parts.add_column("of this")
    for name, label in (("gpu", "each GPU"), ("host", "host"), ("nvme", "NVMe")):
        if plan[name] is not None:
            parts.add_column(label, justify="right")
    sides = [plan[name] for name in ("gpu", "host", "nvme") if plan[name] is not None]
    for part in dict.fromkeys(part for side in sides for part in side["parts"]):
        parts.add_row(part, *(f"{side['parts'][part] / GIB:.2f}" if part in side["parts"] else "" for side in sides))
    console.print(parts)
    time, nvme = plan["time"], plan["nvme"]
    console.print(f"a step     {seconds(time['step_s'])} = forward {seconds(time['forward_s'])} + backward "
                  f"{seconds(time['backward_s'])} + optimizer {seconds(time['optimizer_s'])}; "
                  f"{time['tokens_per_s']:,.0f} tokens/s, model FLOPs utilisation {100 * time['mfu']:.1f}%, bound by "
                  f"{time['bound_by']}")
    if nvme["peak_bytes"]:
        console.print(f"NVMe       {nvme['read_bytes_per_step'] / 1e9:,.1f} GB read and "
                      f"{nvme['written_bytes_per_step'] / 1e9:,.1f} GB written a step")
    if plan["checkpoint_bytes"]:
        console.print(f"checkpoint {plan['checkpoint_bytes'] / 1e9:,.1f} GB, {seconds(time['save_s'])} to save and "
                      f"{seconds(time['load_s'])} to load at the NVMe's rates; a batch of a validation "
                      f"{seconds(time['evaluate_s'])}")
    if plan["recipe"]:
        recipe = plan["recipe"]
        console.print(f"recipe     {recipe['epochs']} epochs of {recipe['records']:,} records, {recipe['steps']:,} "
                      f"steps: {recipe['days']:,.1f} days")
    if plan["largest"]:
        console.print(f"largest    that fits the cards: micro-batch {plan['largest']['micro_batch']}, or "
                      f"{plan['largest']['seq_length']:,} text tokens at micro-batch 1")
    for item in plan["advice"]:
        console.print(f"advice     {item['text']}")


def bar(value: float, limit: float, fits: bool) -> str:
    filled = min(_WIDTH, round(_WIDTH * value / limit)) if limit else 0
    color = "red" if not fits else "yellow" if value > 0.9 * limit else "green"
    return f"[{color}]{'█' * filled}[/]{'░' * (_WIDTH - filled)} {100 * value / limit:3.0f}%"


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 100 else f"{value:,.0f} s" if value < 6000 else f"{value / 3600:.1f} h"
