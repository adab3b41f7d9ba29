"""What a run prints at its beginning and its end."""

from launch.monitor import duration
from launch.run_plan import RunPlan


def print_plan(plan: RunPlan) -> None:
    """What is about to run, in a few lines."""
    where = plan.ds_config
    print(
        f"model      {plan.model_reason}\n"
        f"attention  {plan.attention}\n"
        f"strategy   ZeRO-{where.stage}, {where.precision}, optimizer on "
        f"{_place(where.optimizer_offload.device)}, parameters on {_place(where.parameter_offload.device)}\n"
        f"batch      {plan.global_batch} = {plan.micro_batch} × {plan.accumulation} accumulated × "
        f"{plan.world_size} ranks\n"
        f"steps      {plan.total_steps} = {plan.train.epochs} epochs of {plan.steps_per_epoch:.1f}"
        f"{f', stopping after {plan.max_steps}' if plan.max_steps else ''}; at most "
        f"{duration(3600 * plan.train.time_limit_h)}\n"
        f"data       {plan.data}\n"
        f"run        {plan.run}{f', resumed from {plan.resume[0].name}' if plan.resume else ''}",
        flush=True,
    )
    for kind, lines in (("resume", plan.resume_notes), ("remark", plan.remarks)):
        for line in lines:
            print(f"{kind:10s} {line}", flush=True)


def _place(name: str) -> str:
    return {"none": "the device", "cpu": "the host", "nvme": "NVMe"}[name]


def print_test(plan: RunPlan, result: dict) -> None:
    """The test figures: real and drawn planets apart, each modality masked, and the baselines."""

    def line(name: str, figures: dict) -> str:
        numbers = ("-" if figures[key] is None else f"{figures[key]:.4f}" for key in ("accuracy", "roc_auc", "ece"))
        return f"{name:28s} {figures['records']:7d}   " + "   ".join(f"{number:>8s}" for number in numbers)

    rows = [
        f"\ntest of {result['weights']}, on planets that training never saw",
        f"{'':28s} {'records':>7s}   {'accuracy':>8s}   {'ROC-AUC':>8s}   {'ECE':>8s}",
    ]
    if result["accuracy"] is None:
        rows = [f"\ntest of {result['weights']}: loss {result['loss']:.4f} on {result['records']} records"]
    else:
        rows += [
            line("all", result),
            line("observed planets", result["observed"]),
            line("synthetic planets", result["synthetic"]),
        ]
        rows += [line(f"without {name}", figures) for name, figures in result["masked"].items()]
        rows += [f"{name.replace('_', ' '):36s}   {value:8.4f}" for name, value in result["baselines"].items()]
    print("\n".join([*rows, f"\nrun        {plan.run}"]), flush=True)
