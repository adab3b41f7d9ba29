"""Plans of every shipped ds_config, as the table in the README."""

from pathlib import Path

from launch.planner import ghost
from launch.planner.hardware import load_hardware
from launch.planner.plan import assemble, make_job
from launch.planner.report import seconds

GB = 1e9
CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
HEADING = ("| model | ds_config | fits | each card | host | NVMe | NVMe in a step, read / written | step | tokens/s | "
           "bound by |\n|---|---|---|---|---|---|---|---|---|---|")


def table(models: list[str], hardware: str, configs: list[Path] | None = None) -> str:
    """A Markdown table: what each model needs under each ds_config; bytes in 10⁹."""
    machine = load_hardware(hardware)
    jobs = {f"{model} {config.stem}": make_job(model, config, machine)
            for model in models for config in configs or sorted(CONFIGS.glob("*.json"))}
    rows = [row(name, assemble(result, jobs[name], machine)) for name, result in ghost.run_all(jobs).items()]
    return "\n".join([HEADING, *rows])


def row(name: str, plan: dict) -> str:
    model, config = name.split()
    nvme, time = plan["nvme"], plan["time"]
    too_much = [label for key, label in (("gpu", "card"), ("host", "host"), ("nvme", "NVMe")) if not plan[key]["fits"]]
    return (f"| `{model}` | `{config}` | {'yes' if plan['fits'] else 'no: ' + ', '.join(too_much)} | "
            f"{plan['gpu']['peak_bytes'] / GB:.1f} | {plan['host']['peak_bytes'] / GB:.0f} | "
            f"{nvme['peak_bytes'] / GB:.0f} | {nvme['read_bytes_per_step'] / GB:,.0f} / "
            f"{nvme['written_bytes_per_step'] / GB:,.0f} | {seconds(time['step_s'])} | {time['tokens_per_s']:,.0f} | "
            f"{time['bound_by']} |")
