"""Cases of ranks.py about `launch.zero.compressed_stage3`."""

import torch
from cases import CASES, batch_of, case, history, make_engine, step
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)

STEPS, OVERFLOWS_AT = 8, 3
COMPRESSED = {"enabled": True, "remainder_bits": 16, "block_size": 128}
#: The same training, its state and weights in every place; the last is the same without compression.
PLACES: dict[str, tuple[str, dict]] = {
    "host": ("zero3_offload", {"compressed_optimizer": COMPRESSED}),
    "card": ("zero3_resident", {"compressed_optimizer": COMPRESSED}),
    "nvme": ("zero3_resident_nvme", {"compressed_optimizer": COMPRESSED}),
    "pipelined": ("zero3_resident_nvme_8bit", {"compressed_optimizer": COMPRESSED}),
    "all on nvme": (
        "zero3_nvme",
        {"compressed_optimizer": COMPRESSED, "zero_optimization.offload_param.max_in_cpu": 0},
    ),
    "small sub-groups": (
        "zero3_offload",
        {"compressed_optimizer": COMPRESSED, "zero_optimization.sub_group_size": 50_000},
    ),
    "fp32 gradients": (
        "zero3_offload",
        {"compressed_optimizer": COMPRESSED, "data_types": {"grad_accum_dtype": "fp32"}},
    ),
    "uncompressed": ("zero3_offload", {}),
}


def trained(place: str) -> dict:
    """Losses, norms and fingerprints of some steps with accumulation, clipping and one overflow."""
    config, changes = PLACES[place]
    rates = {"scheduler.params.cycle_min_lr": 1e-3, "scheduler.params.cycle_max_lr": 2e-3}
    engine = make_engine(config, {"fp16.initial_scale_power": 8, **rates, **changes})
    seen = history(engine, STEPS, OVERFLOWS_AT)
    seen["class"] = type(engine.optimizer).__name__
    engine.destroy()
    return seen


for _place in PLACES:
    CASES[f"compressed:{_place}"] = lambda place=_place: trained(place)


@case
def compressed_by_hand() -> dict:
    """Master weights and moments read and written through DeepSpeed's functions, on NVMe, before and after a step."""
    engine = make_engine("zero3_resident_nvme_8bit", {"fp16.initial_scale_power": 8})
    step(engine, [batch_of([0]), batch_of([1])])
    weight, found = next(engine.module.fusion.parameters()), {}
    master = safe_get_full_fp32_param(weight)
    safe_set_full_fp32_param(weight, master + 0.125)
    found["master"] = float((safe_get_full_fp32_param(weight) - master - 0.125).abs().max())
    moment = torch.full_like(master, 0.5)
    safe_set_full_optimizer_state(weight, moment, "exp_avg_sq")
    found["moment"] = float((safe_get_full_optimizer_state(weight, "exp_avg_sq") - moment).abs().max())
    step(engine, [batch_of([2]), batch_of([3])])
    found["decayed"] = float((safe_get_full_optimizer_state(weight, "exp_avg_sq") / moment).mean())
    try:
        engine.optimizer.state_dict()
    except NotImplementedError as error:
        found["refused"] = str(error)
    engine.destroy()
    return found
