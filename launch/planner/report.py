"""Prints plans: one on the console, many as a Markdown table."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from launch import DS_CONFIGS
from launch.planner.assemble import Plan, plans_of
from launch.planner.hardware import Hardware
from launch.planner.job import make_job
from launch.planner.units import gb, seconds

HEADING = (
    "| model | ds_config | fits | each card | host | NVMe | NVMe in a step, read / written | step | tokens/s | "
    "bound by |\n|---|---|---|---|---|---|---|---|---|---|"
)
#: Host memory of machines that are often rented, in bytes.
HOSTS = (50e9, 100e9, 300e9, 512e9)
_WIDTH = 16  # characters of a bar
_LABELS = {"gpu": "each card", "host": "host", "nvme": "NVMe"}


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Bars against the limits, what fills them, and the time of a step."""
    console = console or Console()
    console.print(
        f"[bold]{plan.model}[/]: {plan.parameters / 1e9:.2f} B parameters, {plan.trainable / 1e9:.2f} B "
        f"trained, on {plan.ranks} rank(s) of {plan.hardware}; micro-batch {plan.micro_batch} × "
        f"{plan.accumulation} accumulated, {plan.tokens} tokens each"
    )
    console.print(
        "[green]fits[/]" if plan.fits else "[red]does not fit[/]",
        "(a prediction: DeepSpeed's own engine, run on tensors without data)",
    )
    console.print(_peaks(plan))
    for label, key in (("training", "training_bytes"), ("validation", "validation_bytes")):
        sizes = [
            f"{gb(size)} of {name}"
            for side, name in ((plan.gpu, "each card"), (plan.host, "the host"))
            if side is not None and (size := getattr(side, key))
        ]
        if sizes:
            console.print(f"{label:10s} takes {' and '.join(sizes)}")
    console.print(_parts(plan))
    time = plan.time
    console.print(
        f"a step     {seconds(time.step_s)} = forward {seconds(time.forward_s)} + backward "
        f"{seconds(time.backward_s)} + optimizer {seconds(time.optimizer_s)}; {time.tokens_per_s:,.0f} "
        f"tokens/s, model FLOPs utilisation {100 * time.mfu:.1f}%, bound by {time.bound_by}"
    )
    if plan.nvme.peak_bytes:
        console.print(
            f"NVMe       {gb(plan.nvme.read_bytes_per_step)} read and {gb(plan.nvme.written_bytes_per_step)} "
            "written a step"
        )
    if plan.checkpoint_bytes:
        console.print(
            f"checkpoint {gb(plan.checkpoint_bytes)}, {seconds(time.save_s)} to save and "
            f"{seconds(time.load_s)} to load at the NVMe's rates; a batch of a validation "
            f"{seconds(time.evaluate_s)}"
        )
    if plan.recipe:
        console.print(
            f"training   {plan.recipe['epochs']} epochs of {plan.recipe['records']:,} records, "
            f"{plan.recipe['steps']:,} steps: {plan.recipe['days']:,.1f} days"
        )
    if plan.largest:
        console.print(
            f"largest    that fits the cards: micro-batch {plan.largest['micro_batch']}, or "
            f"{plan.largest['seq_length']:,} text tokens at micro-batch 1"
        )
    for item in plan.advice:
        console.print(f"advice     {item['text']}")


def _peaks(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("", "peak", "limit", "", "in", "at"):
        table.add_column(heading, justify="right" if heading in ("peak", "limit") else "left")
    for name, side in plan.sides.items():
        table.add_row(
            _LABELS[name],
            gb(side.peak_bytes),
            gb(side.limit_bytes),
            bar(side.peak_bytes, side.limit_bytes, side.fits),
            side.phase,
            getattr(side, "module", ""),
        )
    return table


def _parts(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("parts, in GB")
    for name in plan.sides:
        table.add_column(_LABELS[name], justify="right")
    for part in dict.fromkeys(part for side in plan.sides.values() for part in side.parts):
        table.add_row(
            part, *(f"{side.parts[part] / 1e9:.2f}" if part in side.parts else "" for side in plan.sides.values())
        )
    return table


def bar(value: float, limit: float, fits: bool) -> str:
    filled = min(_WIDTH, round(_WIDTH * value / limit)) if limit else 0
    color = "red" if not fits else "yellow" if value > 0.9 * limit else "green"
    return f"[{color}]{'█' * filled}[/]{'░' * (_WIDTH - filled)} {100 * value / limit:3.0f}%"


def table(models: list[str], hardware: str | Hardware, configs: list[Path] | None = None, **options) -> str:
    """A Markdown table: what each model needs under each ds_config; bytes in GB. Below it the fastest that fits hosts
    of several sizes, all else being equal. ``options``: as `launch.planner.job.make_job` takes them."""
    configs = configs or sorted(DS_CONFIGS.glob("*.json"))
    names = {f"{model} {config.stem}": (model, config) for model in models for config in configs}
    plans = plans_of({name: make_job(*asked, hardware, **options) for name, asked in names.items()})
    rows: list[str] = []
    by_model: dict[str, dict[str, Plan]] = {model: {} for model in models}
    for name, (model, config) in names.items():
        rows.append(_row(model, config.stem, plans[name]))
        by_model[model][config.stem] = plans[name]
    return "\n".join([HEADING, *rows, "", *(_fastest(model, of_model) for model, of_model in by_model.items())])


def _fastest(model: str, plans: dict[str, Plan]) -> str:
    """The fastest ds_config for hosts of several sizes, in a sentence."""
    answers = []
    for host in HOSTS:
        fitting = {
            config: plan.time.step_s
            for config, plan in plans.items()
            if plan.host.peak_bytes <= host and (plan.gpu is None or plan.gpu.fits) and plan.nvme.fits
        }
        best = min(fitting, key=lambda config: fitting[config], default=None)
        answers.append(f"{host / 1e9:.0f} GB: " + (f"`{best}` ({seconds(fitting[best])})" if best else "none"))
    return f"Fastest `{model}` by host memory: {'; '.join(answers)}."


def _row(model: str, config: str, plan: Plan) -> str:
    nvme, time = plan.nvme, plan.time
    too_much = [{"gpu": "card"}.get(name, _LABELS[name]) for name, side in plan.sides.items() if not side.fits]
    card = "-" if plan.gpu is None else f"{plan.gpu.peak_bytes / 1e9:.1f}"
    return (
        f"| `{model}` | `{config}` | {'yes' if plan.fits else 'no: ' + ', '.join(too_much)} | {card} | "
        f"{plan.host.peak_bytes / 1e9:.0f} | {nvme.peak_bytes / 1e9:.0f} | "
        f"{nvme.read_bytes_per_step / 1e9:,.0f} / {nvme.written_bytes_per_step / 1e9:,.0f} | "
        f"{seconds(time.step_s)} | {time.tokens_per_s:,.0f} | {time.bound_by} |"
    )
