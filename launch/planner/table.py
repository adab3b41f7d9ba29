"""Plans of every shipped ds_config, as the table in the README."""

from pathlib import Path

from launch import ROOT
from launch.planner.hardware.profile import load_hardware
from launch.planner.plan import assemble, make_job
from launch.planner.report import seconds
from launch.planner.simulation import run as ghost

GB = 1e9
CONFIGS = ROOT / "ds_configs"
HEADING = ("| model | ds_config | fits | each card | host | NVMe | NVMe in a step, read / written | step | tokens/s | "
           "bound by |\n|---|---|---|---|---|---|---|---|---|---|")
#: Host memory of machines that are often rented, in bytes.
HOSTS = (50 * GB, 100 * GB, 300 * GB, 512 * GB)


def table(models: list[str], hardware: str, configs: list[Path] | None = None) -> str:
    """A Markdown table: what each model needs under each ds_config; bytes in 10⁹. Below it the fastest that fits hosts
    of several sizes, all else being equal."""
    machine = load_hardware(hardware)
    jobs = {f"{model} {config.stem}": make_job(model, config, machine)
            for model in models for config in configs or sorted(CONFIGS.glob("*.json"))}
    plans = {name: assemble(result, jobs[name], machine) for name, result in ghost.run_all(jobs).items()}
    return "\n".join([HEADING, *(row(name, plan) for name, plan in plans.items()), "",
                      *(fastest(model, {name.split()[1]: plan for name, plan in plans.items()
                                        if name.split()[0] == model}) for model in models)])


def fastest(model: str, plans: dict[str, dict]) -> str:
    """The fastest ds_config for hosts of several sizes, in a sentence."""
    said = []
    for host in HOSTS:
        fitting = {config: plan["time"]["step_s"] for config, plan in plans.items()
                   if plan["host"]["peak_bytes"] <= host and (plan["gpu"] is None or plan["gpu"]["fits"])
                   and plan["nvme"]["fits"]}
        best = min(fitting, key=fitting.get, default=None)
        said.append(f"{host / GB:.0f} GB: " + (f"`{best}` ({seconds(fitting[best])})" if best else "none"))
    return f"Fastest `{model}` by host memory: {'; '.join(said)}."


def row(name: str, plan: dict) -> str:
    model, config = name.split()
    nvme, time = plan["nvme"], plan["time"]
    too_much = [label for key, label in (("gpu", "card"), ("host", "host"), ("nvme", "NVMe")) if not plan[key]["fits"]]
    return (f"| `{model}` | `{config}` | {'yes' if plan['fits'] else 'no: ' + ', '.join(too_much)} | "
            f"{plan['gpu']['peak_bytes'] / GB:.1f} | {plan['host']['peak_bytes'] / GB:.0f} | "
            f"{nvme['peak_bytes'] / GB:.0f} | {nvme['read_bytes_per_step'] / GB:,.0f} / "
            f"{nvme['written_bytes_per_step'] / GB:,.0f} | {seconds(time['step_s'])} | {time['tokens_per_s']:,.0f} | "
            f"{time['bound_by']} |")
