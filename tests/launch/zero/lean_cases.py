"""Cases of ranks.py about `launch.zero.lean_stage3`: each trains with it, and with DeepSpeed's own class."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import deepspeed
import torch
from cases import CASES, batch_of, case, history, make_engine
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.utils import safe_get_full_grad, safe_get_full_optimizer_state, safe_set_full_grad

from launch.ds_config.config import DsConfig
from launch.zero import engine as zero_engine
from launch.zero.optimizer import own_optimizer

STEPS, OVERFLOWS_AT = 20, 7
CONFIGS = ("zero3_offload", "zero3_offload_bf16", "zero3_nvme", "zero3_resident_nvme_bf16")


def stacks(config: str, changes: dict) -> Iterator[tuple]:
    """The stack's engine as it is, then with DeepSpeed's own class; each goes after its turn."""
    stock = mock.patch.object(zero_engine, "own_optimizer", lambda ds_config: contextlib.nullcontext())
    for name, way in (("lean", contextlib.nullcontext()), ("stock", stock)):
        with way:
            engine = make_engine(config, changes)
        yield name, engine
        engine.destroy()


def bit_for_bit(config: str) -> dict:
    """Losses, norms and fingerprints of 20 steps with accumulation, clipping and, in fp16, one overflow."""
    seen = {}
    for name, engine in stacks(config, {} if "bf16" in config else {"fp16.initial_scale_power": 8}):
        seen[name] = {"class": type(engine.optimizer).__name__} | history(engine, STEPS, OVERFLOWS_AT)
    return seen


for _name in CONFIGS:
    CASES[f"lean:{_name}"] = lambda name=_name: bit_for_bit(name)


class Sometimes(torch.nn.Module):
    """A layer that always takes part, and one whose gradient is all ones where it does."""

    def __init__(self):
        super().__init__()
        self.always, self.sometimes = torch.nn.Linear(8, 1, bias=False), torch.nn.Linear(8, 1, bias=False)

    def forward(self, takes_part: bool):
        x = torch.ones(1, 8, dtype=self.always.weight.dtype)
        return (self.always(x) + (self.sometimes(x) if takes_part else 0)).sum()


OFFLOADED = {
    "train_micro_batch_size_per_gpu": 1,
    "optimizer": {"type": "AdamW", "params": {"lr": 0.0}},
    "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}},
}


def small_models(raw: dict) -> Iterator[tuple]:
    """`Sometimes` and its engine, lean, then with DeepSpeed's own class; each goes after its turn."""
    for name, way in (("lean", own_optimizer(DsConfig.parse(raw))), ("stock", contextlib.nullcontext())):
        model = Sometimes()
        with way:
            engine, *_ = deepspeed.initialize(model=model, config=raw, model_parameters=model.parameters())
        yield name, model, engine
        engine.destroy()


#: Windows of two micro-steps: where the layer takes part, and its gradient, the mean of both.
WINDOWS = (((True, True), 1.0), ((False, False), 0.0), ((False, True), 0.5), ((True, False), 0.5))


@case
def absent_gradients() -> dict:
    """The gradients that Adam gets for a layer which does not take part in each micro-step, and the global norms."""
    found = {"right": [gradient for _, gradient in WINDOWS]}
    raw = OFFLOADED | {"gradient_accumulation_steps": 2, "gradient_clipping": 0.0}
    for name, model, engine in small_models(raw):
        found[name], found[f"{name} norms"], moment = [], [], 0.0
        for takes_part, _ in WINDOWS:
            for each in takes_part:
                engine.backward(engine(each))
                engine.step()
            before, moment = moment, float(safe_get_full_optimizer_state(model.sometimes.weight, "exp_avg").mean())
            found[name].append(round((moment - 0.9 * before) / 0.1, 4))
            found[f"{name} norms"].append(round(float(engine.get_global_grad_norm()) ** 2, 3))
    return found


@case
def overflow_of_an_absent_layer() -> dict:
    """Steps skipped, of one with an infinite gradient and one without, in which the layer does not take part."""
    found = {}
    for name, _, engine in small_models(OFFLOADED | {"fp16": {"enabled": True, "initial_scale_power": 4}}):
        for takes_part, factor in ((True, 1e6), (False, 1.0)):
            engine.backward(factor * engine(takes_part).float())
            engine.step()
        found[name] = engine.skipped_steps
    return found


@case
def gradients_by_hand() -> dict:
    """A gradient read, doubled and written between backward and step."""
    found = {}
    changes = {"fp16.initial_scale_power": 8, "gradient_accumulation_steps": 1}
    for name, engine in stacks("zero3_resident_nvme", changes):
        weight = next(engine.module.fusion.parameters())
        engine.backward(engine(batch_of([0])).loss)
        gradient = safe_get_full_grad(weight)
        safe_set_full_grad(weight, 2 * gradient)
        found[name] = {
            "twice": torch.equal(safe_get_full_grad(weight), 2 * gradient) and bool(gradient.any()),
            "norm": float(gradient.norm()),
        }
        engine.step()
        moment = safe_get_full_optimizer_state(weight, "exp_avg")
        found[name]["moment"] = float(moment.norm())
        found["own class"] = type(engine.optimizer) is DeepSpeedZeroOptimizer_Stage3  # of the last one
    return found
