"""Predicted beside published: memory and time that others have measured, and what the planner says of the same runs.

    python benchmarks/published.py [R1 R3 …] [--json]

The runs are in `published_cases.py`; nothing in the planner is fitted to them. Beside each stands what DeepSpeed's own
estimator says (`estimate_zero2/3_model_states_mem_needs`).
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed goes on logging to the stdout that it finds
    from benchmarks.published_cases import CASES, GB, Case
    from launch.ds_config.config import DsConfig
    from launch.planner.assemble import TRAINING, Plan, assemble
    from launch.planner.hardware import load_hardware
    from launch.planner.simulation import pool
    from launch.planner.simulation.spec import Simulation

#: Where a figure stands in a plan.
PLACES = {
    "gpu_allocated": ("gpu", "resident_bytes"),
    "gpu_peak_allocated": ("gpu", "allocated_bytes"),
    "host": ("host", "peak_bytes"),
    "step_s": ("time", "step_s"),
    "forward_s": ("time", "forward_s"),
    "backward_s": ("time", "backward_s"),
    "optimizer_s": ("time", "optimizer_s"),
}


def predict(case: Case) -> dict:
    machine = load_hardware(case.hardware)
    simulation = Simulation(
        case.workload,
        DsConfig.parse({**case.ds_config, "train_micro_batch_size_per_gpu": case.micro_batch}),
        case.ranks,
        case.micro_batch,
        case.seq_length,
        tuple(machine.capability),
        machine.gpu_memory_bytes,
    )
    plan = assemble(pool.run(simulation), simulation, machine)
    found = {"case": case.name, "what": case.what, "assumed": case.assumed, "figures": {}, "plan": plan.to_dict()}
    for key, published in case.published.items():
        if key == "gpu_smi":
            predicted = min(plan.gpu.training_bytes, machine.gpu_memory_bytes)
        elif key == "gpu_training_allocated":
            predicted = max(plan.gpu.phases[phase] for phase in TRAINING)
        elif key == "gpu_smi_init":
            predicted = plan.gpu.reserved_by_phase["init"] + machine.context_bytes
        else:
            predicted = getattr(getattr(plan, PLACES[key][0]), PLACES[key][1])
        error = predicted / published - 1
        found["figures"][key] = {
            "predicted": predicted,
            "published": published,
            "error": error,
            "estimator": estimator(case, plan, key),
            "holds": abs(error) <= case.allowed[key] if key in case.allowed else None,
        }
    if case.fits is not None:
        found["fits"] = {"predicted": plan.gpu.fits, "published": case.fits}
    return found


def estimator(case: Case, plan: Plan, key: str) -> float | None:
    """Bytes that DeepSpeed's estimator gives, by its formulas for a model that is not at hand."""
    if not key.startswith(("gpu", "host")):
        return None
    zero, total = case.ds_config["zero_optimization"], plan.parameters
    on_host = "offload_optimizer" in zero
    if zero["stage"] == 2:
        from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

        cpu, gpu = estimate_zero2_model_states_mem_needs(total, case.ranks, 1, on_host, 1.5)
    else:
        from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

        largest = case.workload["vocabulary"] * case.workload.get("config", {}).get(
            "hidden_size", case.workload.get("config", {}).get("n_embd", 4096)
        )
        cpu, gpu, _ = estimate_zero3_model_states_mem_needs(
            total, largest, case.ranks, 1, on_host, "offload_param" in zero, True, 1.5
        )
    return cpu if key == "host" else gpu


def line(case: str, key: str, figure: dict) -> str:
    def show(value: float | None) -> str:
        if value is None:
            return "-"
        return f"{value:.2f} s" if key.endswith("_s") else f"{value / GB:.2f} GB"

    mark = {True: "holds", False: "does not hold", None: ""}[figure["holds"]]
    return (
        f"{case:16s} {key:20s} {show(figure['predicted']):>12s} {show(figure['published']):>12s} "
        f"{100 * figure['error']:+8.1f}% {show(figure['estimator']):>12s}   {mark}"
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help="R1 R3 …: all whose names begin so")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    chosen = [case for case in CASES if not args.cases or any(case.name.split()[0] == name for name in args.cases)]
    if not args.json:
        print(f"{'':16s} {'':20s} {'predicted':>12s} {'published':>12s} {'error':>9s} {'estimator':>12s}")
    found = []
    for case in chosen:
        result = predict(case)
        found.append(result)
        if args.json:
            continue
        for key, figure in result["figures"].items():
            print(line(case.name, key, figure), flush=True)
        if "fits" in result:
            fits = result["fits"]
            words = {True: "fits", False: "does not fit"}
            holds = "holds" if fits["predicted"] == fits["published"] else "does not hold"
            print(
                f"{case.name:16s} {'on the card':20s} {words[fits['predicted']]:>12s} "
                f"{words[fits['published']]:>12s} {'':24s}{holds}",
                flush=True,
            )
        if case.assumed:
            print(f"{'':16s} assumed: {case.assumed}")
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
