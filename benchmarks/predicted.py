"""Predicted beside measured, on this machine: real runs of small models on the CPU, one rank, with and without NVMe.

    python benchmarks/predicted.py [--out report.json]

Each run takes the micro-steps that a ghost run takes, on the same nominal batch: one that teaches DeepSpeed the order
of the parameters, one within an accumulation and one at its end. Compared are the bytes read from and written to the
disk (/proc/PID/io, which counts direct reads and writes), the largest resident memory (VmHWM), and the most elements of
gathered parameters there ever were.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from astrobio.config import load_preset
from launch import ROOT
from launch.planner.assemble import WORKERS, assemble
from launch.planner.cost import overhead
from launch.planner.job import make_job
from launch.planner.simulation import pool
from launch.planner.simulation.spec import Simulation

#: Three sizes: 1 M, 10 M and 110 M parameters.
MODELS = {
    "tiny": ("tiny", {}),
    "small": ("small", {}),
    "wide": (
        "small",
        {
            "language.config.hidden_size": 768,
            "language.config.intermediate_size": 2048,
            "language.config.num_hidden_layers": 8,
            "climate.hidden_size": 768,
            "climate.heads": 12,
        },
    ),
}
CONFIGS = (
    "zero3_offload_bf16",
    "zero3_nvme",
    "zero3_offload_nvme",
    "zero3_resident_nvme",
    "zero2_offload",
    "zero3_offload_8bit",
    "zero3_resident_nvme_8bit",
)
CHANGES = {
    "fp16.enabled": False,
    "bf16.enabled": True,
    "gradient_accumulation_steps": 4,
    "zero_optimization.sub_group_size": 20_000_000,
    "zero_optimization.reduce_bucket_size": 5_000_000,
}


def watch_gathered(engine, file: Path) -> None:
    """Keep in ``file`` the most elements of parameters that were gathered, or on their way, at a time."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    parameters, most = list(engine.module.parameters()), 0
    fetch = PartitionedParameterCoordinator.fetch_sub_module

    def fetch_and_count(self, *args, **kwargs):
        nonlocal most
        result = fetch(self, *args, **kwargs)
        now = sum(p.ds_numel for p in parameters if p.ds_status is not ZeroParamStatus.NOT_AVAILABLE)
        if now > most:
            most = now
            file.write_text(str(most))
        return result

    PartitionedParameterCoordinator.fetch_sub_module = fetch_and_count


def watched_stack(simulation: Simulation, mode):
    """A workload: the stack, with `watch_gathered`."""
    from launch.planner.simulation.run import stack_workload  # changes the process that imports it

    engine, loss_of = stack_workload(simulation)
    watch_gathered(engine, Path(simulation.workload["gathered"]))
    return engine, loss_of


def measure(simulation: Simulation) -> dict:
    """Run it for real, in this process."""
    from launch.experiments.real_run import run  # all that a training process imports

    return run(simulation, lambda engine: watch_gathered(engine, Path(simulation.workload["gathered"])))


def compare(model: str, config: str, folder: Path) -> dict:
    """One row: what a ghost run says and what a real run does."""
    preset, changes = MODELS[model]
    job = make_job(
        load_preset(preset, changes),
        ROOT / "ds_configs" / f"{config}.json",
        "cpu",
        ranks=1,
        changes={key: value for key, value in CHANGES.items() if not (key.startswith("fp16") and "bf16" in config)},
    )
    simulation = job.simulation(beyond_training=False)  # the real run neither validates nor saves
    simulation.ds_config = job.ds_config.changed(dict.fromkeys(job.ds_config.nvme_paths, str(folder / "nvme")))
    files = {name: folder / f"gathered_{name}" for name in ("predicted", "measured")}
    simulation.workload.update(function="benchmarks.predicted:watched_stack", gathered=str(files["predicted"]))
    result = pool.run(simulation)
    predicted = assemble(result, simulation, job.hardware)
    steps = [[]]
    for phase in result.phases[1:]:
        if phase.name == "forward":
            steps.append([])
        steps[-1].append(phase)
    simulation.workload["gathered"] = str(files["measured"])
    with overhead.start(simulation, "benchmarks.predicted", "--measure") as process:
        measured = overhead.finish(process)
    row = {
        "model": model,
        "config": config,
        "parameters": predicted.parameters,
        "host_peak": (
            predicted.host.peak_bytes - predicted.host.parts.get(WORKERS, 0),
            measured["host_peak"],
        ),  # nothing reads ahead here
        "gathered": tuple(int(file.read_text()) if file.exists() else 0 for file in files.values()),
    }
    for key, name in (("read", "nvme_read"), ("written", "nvme_written")):
        row[key] = (sum(getattr(phase, name) for phase in steps[-1]), measured["micro_steps"][-1][key])
    return row


def beside(said: int, was: int) -> str:
    """A prediction, what was measured, and how far it is off."""
    if not said and not was:
        return "none"
    off = "exact" if said == was else f"{said / was - 1:+.1%}" if was else "wrong"
    return f"{said / 1e6:9.2f} {was / 1e6:9.2f} {off:>7s}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--out", type=Path, help="a JSON file")
    args = parser.parse_args()
    if args.measure:
        from launch.experiments import real_run

        real_run.main(measure)
    columns = {
        "host_peak": "host peak, MB",
        "read": "NVMe read, MB",
        "written": "NVMe written, MB",
        "gathered": "gathered, 1e6 elements",
    }
    print(" " * 27 + "".join(f"{heading:>28s}" for heading in columns.values()))
    print(f"{'model':6s} {'config':20s}" + f"{'predicted  measured':>21s}{'':7s}" * len(columns))
    rows = []
    for model in args.models:
        for config in args.configs:
            with tempfile.TemporaryDirectory(dir=os.environ.get("ASTROBIO_NVME")) as folder:
                row = compare(model, config, Path(folder))
            rows.append(row)
            print(f"{model:6s} {config:20s}" + "".join(f"{beside(*row[key]):>28s}" for key in columns), flush=True)
    print(
        "largest deviation"
        + " " * 10
        + "".join(
            f"{max((abs(said / was - 1) for said, was in (row[key] for row in rows) if was), default=0):>28.1%}"
            for key in columns
        )
    )
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
