"""A ghost run: DeepSpeed's real engine, the real model and the real ds_config on a simulated GPU.

`deepspeed.initialize`, forward, backward and step run on tensors that have shapes but no data
(`launch.planner.simulation.device`); a `Recorder` writes down every allocation and all work. Nothing of DeepSpeed's
memory or order of work is modelled: it happens. A simulation changes torch and DeepSpeed for good, so each runs in a
process of its own (`launch.planner.simulation.pool`).
"""

import dataclasses
import functools
import gc
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from astrobio.config import StackConfig, parse
from launch.planner.model import nominal_batch
from launch.planner.simulation import device, phases, values
from launch.planner.simulation.recorder import Recorder
from launch.planner.simulation.spec import MICRO_STEPS, Result, Simulation
from launch.zero import engine as zero_engine


def run(simulation: Simulation) -> Result:
    """Simulate in this process, which is of no other use afterwards."""
    mode, recorder = device.simulate(simulation)
    # The backward pass runs in this thread: autograd's own threads would look for the card.
    with mode, recorder, torch.autograd.set_multithreading_enabled(False):
        engine, loss_of = _workload(simulation, mode)
        _watch_modules(engine.module, recorder)
        gc.collect()
        gc.freeze()  # the engine stays; to collect it again and again takes a twentieth of the time
        accumulation = engine.gradient_accumulation_steps()
        tokens = 0
        for ends in MICRO_STEPS[accumulation > 1]:
            engine.micro_steps = accumulation - 1 if ends else 0
            recorder.begin("forward")
            loss, tokens = loss_of(engine)
            recorder.begin("backward")
            engine.backward(loss)
            del loss
            if ends:
                recorder.begin("optimizer")
            engine.step()
        checkpoint_bytes = 0
        if simulation.beyond_training and "stack" in simulation.workload:
            recorder.begin("evaluate")
            phases.validate(engine, functools.partial(loss_of, size=simulation.eval_micro_batch))
            recorder.begin("save")
            checkpoint_bytes = phases.save(engine, recorder)
            recorder.begin("load")
            phases.load(engine, recorder)
        recorder.begin("end")
    parameters = list(engine.module.parameters())
    sizes = [getattr(p, "ds_numel", p.numel()) for p in parameters]
    return Result(
        recorder.phases,
        recorder.trace,
        recorder.allocations,
        recorder.files,
        recorder.operators,
        sum(sizes),
        sum(n for n, p in zip(sizes, parameters, strict=True) if p.requires_grad),
        tokens,
        accumulation,
        checkpoint_bytes,
    )


def _workload(simulation: Simulation, mode) -> tuple[Any, Callable]:
    if "function" in simulation.workload:
        module, _, name = simulation.workload["function"].partition(":")
        return getattr(importlib.import_module(module), name)(simulation, mode)
    return stack_workload(simulation)


def stack_workload(simulation: Simulation) -> tuple[Any, Callable]:
    """What launch/train.py builds, and how its loop makes a loss."""
    config = parse(StackConfig, simulation.workload["stack"], "the model")
    engine = zero_engine.build_engine(config, simulation.ds_config, seed=0)
    length = simulation.seq_length or config.language.max_text_tokens

    def loss_of(engine, size=simulation.micro_batch):
        with _disable_current_modes():
            batch = nominal_batch(config, size, length)
        batch = _without_data(batch).to(zero_engine.device())
        return engine(batch).loss, size * length

    return engine, loss_of


def _without_data(batch):
    """The batch with fake tensors in place of real ones."""
    fakes: dict[int, Any] = {}  # a tensor may stand in several places

    def fake(value):
        if isinstance(value, dict):
            return {key: fake(part) for key, part in value.items()}
        if isinstance(value, torch.Tensor):
            if id(value) not in fakes:
                fakes[id(value)] = values.without_data(value)
            return fakes[id(value)]
        if hasattr(value, "apply"):  # a PyG graph
            return value.apply(fake)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.replace(
                value, **{f.name: fake(getattr(value, f.name)) for f in dataclasses.fields(value)}
            )
        return value

    return fake(batch)


def _watch_modules(module, recorder: Recorder) -> None:
    """Let the recorder know which module runs."""

    def enter(name):
        return lambda *_: recorder.enter(name)

    for name, child in module.named_modules():
        child.register_forward_pre_hook(enter(name or type(child).__name__), prepend=True)
        child.register_forward_hook(lambda *_: recorder.leave(), always_call=True)
