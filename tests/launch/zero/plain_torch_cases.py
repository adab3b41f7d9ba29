"""Cases of ranks.py that stand beside plain torch on one process: gradients and whole trajectories."""

import functools

import cases
import deepspeed.comm as dist
import peft
import torch
from cases import CASES, batch_of, make_engine, step
from deepspeed.utils import safe_get_full_grad
from peft import LoraConfig

from astrobio.config import load_preset
from astrobio.sampler import SampleOrder
from launch.ds_config.config import DsConfig
from launch.planner.search import LAYERS
from launch.zero.engine import build_stack

#: Wide enough that in fp32 half a large weight is above the 1 MiB from which DeepSpeed puts it on NVMe.
WIDE = {"language.config.hidden_size": 256, "language.config.intermediate_size": 2048, "climate.hidden_size": 384}
#: As `astrobio plan --advice` recommends it.
WHOLE_LAYERS = {"zero_optimization.leaf_module.classes": LAYERS}
TRAINED_IN_PART = {
    "all": {},
    "frozen language": {"freeze": ["language"]},
    "frozen datacube": {"freeze": ["climate"]},
    "adapters": {"language.lora": {"rank": 4}},
}


def gradients(which: str) -> dict:
    """Gradients of the second step in fp32, beside those of plain torch on one process: with and without activation
    checkpointing, parameters on the CPU and on NVMe. The learning rate is 0, so that the weights stay."""
    # An adapter starts as zero, and so would half of its gradients.
    peft.LoraConfig = functools.partial(LoraConfig, init_lora_weights=False)
    config = load_preset("tiny", {**WIDE, **TRAINED_IN_PART[which]})
    shares = [batch_of(range(2 * rank, 2 * rank + 2)) for rank in range(dist.get_world_size())]

    def loss_of(module, rank):
        torch.manual_seed(100 + rank)  # masks, noise and dropped modalities
        return module(shares[rank]).loss

    reference = build_stack(config, DsConfig.parse({}), seed=0).train()
    for rank in range(len(shares)):
        (loss_of(reference, rank) / len(shares)).backward()
    expected = {name: p.grad for name, p in reference.named_parameters() if p.requires_grad}
    largest = max(float(grad.norm()) for grad in expected.values())

    found = {"expected": len(expected), "frozen": sum(not p.requires_grad for p in reference.parameters())}
    on_nvme = {"zero_optimization.offload_param.max_in_cpu": 0}
    kept = ("activation_checkpointing",)
    for name, ds_config, changes, without in (
        ("cpu, checkpointing", "zero3_offload", {}, ()),
        ("cpu, kept activations", "zero3_offload", {}, kept),
        ("nvme, checkpointing", "zero3_nvme", on_nvme, ()),
        ("nvme, kept activations", "zero3_nvme", on_nvme, kept),
        ("whole layers, checkpointing", "zero3_resident", WHOLE_LAYERS, ()),
        ("whole layers, kept activations", "zero3_resident", WHOLE_LAYERS, kept),
    ):
        engine = make_engine(
            ds_config,
            {
                "fp16": {"enabled": False},
                "gradient_accumulation_steps": 1,
                "zero_optimization.offload_optimizer": {"device": "cpu"},
                **changes,
                "optimizer.params": {"lr": 0.0, "weight_decay": 0.0},
            },
            without=("scheduler", *without),
            stack=config,
        )
        engine.backward(loss_of(engine, dist.get_rank()))
        engine.step()
        engine.backward(loss_of(engine, dist.get_rank()))
        missing, differences = [], {}
        for parameter, p in engine.module.named_parameters():
            if parameter in expected:
                grad = safe_get_full_grad(p)
                if grad is None or (float(grad.norm()) == 0 and float(expected[parameter].norm()) > 0):
                    missing.append(parameter)
                else:
                    differences[parameter] = float((grad - expected[parameter]).norm()) / max(
                        float(expected[parameter].norm()), 1e-4 * largest
                    )
        there = [p for p in engine.module.parameters() if p.ds_tensor.final_location == "nvme"]
        found[name] = {
            "missing": missing,
            "worst": max((value, parameter) for parameter, value in differences.items()),
            "on_nvme": len(there),
            "frozen_on_nvme": sum(not p.requires_grad for p in there),
        }
        engine.step()
        engine.destroy()
    return found


for _which in TRAINED_IN_PART:
    CASES[f"gradients:{_which}"] = lambda which=_which: gradients(which)


STEPS = 200
PRECISIONS = {
    "fp32": {"fp16": {"enabled": False}},
    "fp16": {"fp16.initial_scale_power": 8},  # no step is skipped until a loss scale is found
    "bf16": {"fp16": {"enabled": False}, "bf16": {"enabled": True}},
}


def trajectory(precision: str) -> dict:
    """The losses of `STEPS` optimizer steps through the engine, as zero3_offload has them, and of a plain loop of torch
    over the same records with the same random numbers, in fp32."""
    rise = round(0.3 * STEPS)
    engine = make_engine(
        "zero3_offload",
        {
            "gradient_accumulation_steps": 1,
            "scheduler.params.cycle_first_step_size": rise,
            "scheduler.params.cycle_second_step_size": STEPS - rise,
            **PRECISIONS[precision],
        },
    )
    ranks, order = dist.get_world_size(), SampleOrder(len(cases.DATA), 0)
    micro_batches = [
        [batch_of(order.indices(2 * (ranks * i + rank), 2)) for rank in range(ranks)] for i in range(STEPS)
    ]
    found = [step(engine, [shares[dist.get_rank()]])[0] for shares in micro_batches]
    skipped = engine.skipped_steps
    engine.destroy()
    mean = torch.tensor(found)
    dist.all_reduce(mean)
    return {"launcher": (mean / ranks).tolist(), "plain": plain_loop(micro_batches, rise), "skipped": skipped}


def plain_loop(micro_batches: list[list], rise: int) -> list[float]:
    """What anybody would write: one process, fp32, AdamW with clipping, a learning rate that rises and falls."""
    stack = build_stack(load_preset("tiny"), DsConfig.parse({}), seed=0).train()
    optimizer = torch.optim.AdamW(stack.parameters(), lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=1e-5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: 0.1 + 0.9 * (i / rise if i <= rise else 1 - (i - rise) / (STEPS - rise))
    )
    draws = [torch.Generator().manual_seed(1 + rank).get_state() for rank in range(len(micro_batches[0]))]
    losses = []
    for shares in micro_batches:
        total = 0.0
        for rank, batch in enumerate(shares):  # each rank draws its own masks and noise
            torch.set_rng_state(draws[rank])
            loss = stack(batch).loss / len(shares)
            draws[rank] = torch.get_rng_state()
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(stack.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


for _precision in PRECISIONS:
    CASES[f"trajectory:{_precision}"] = lambda precision=_precision: trajectory(precision)
