"""What a run prints at its beginning and its end."""

from launch.evaluation.assessment import Assessment
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


def print_test(plan: RunPlan, result: dict, assessment: Assessment | None) -> None:
    """The test figures, and each task beside the best simple model."""
    print(f"\ntest of {result['weights']}, on planets that training never saw: loss {result['loss']:.4f}")
    if assessment is not None:
        print(f"\n{assessment}\n")
    print(f"run        {plan.run}", flush=True)
