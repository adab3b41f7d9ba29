"""What two ranks do together, many cases in one launch; test_ranks.py judges what they saw.

Here are the cases about training under each ds_config; others are in `compressed_cases`, `language_model_cases`,
`lean_cases`, `plain_torch_cases` and `upstream_cases`.
"""

import gc
import os
import weakref
from pathlib import Path

import cases
import compressed_cases  # noqa: F401 - it registers its cases
import deepspeed
import deepspeed.comm as dist
import language_model_cases  # noqa: F401 - it registers its cases
import lean_cases  # noqa: F401 - it registers its cases
import torch
import upstream_cases  # noqa: F401 - it registers its cases
from cases import CASES, batch_of, case, make_engine, step, weights
from plain_torch_cases import WHOLE_LAYERS
from project import DS_CONFIGS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from launch.diagnose import GradientWatch, nonfinite_forward


class LiveBytes(TorchDispatchMode):
    """Counts bytes of the storages made under it that are still alive."""

    def __init__(self):
        super().__init__()
        self.live, self._seen = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def gone(_):
            self.live -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.live += size


def trained(config: str) -> dict:
    """Two optimizer steps, each over samples with their modalities and samples with none; which parameters moved."""
    in_bf16 = "bf16" in config
    engine = make_engine(
        config,
        {
            "scheduler.params.cycle_min_lr": 1e-2,
            "scheduler.params.cycle_max_lr": 2e-2,
            **({} if in_bf16 else {"fp16.initial_scale_power": 8}),
        },
    )
    before = weights(engine)
    rank = dist.get_rank()
    size = 2 if in_bf16 else 8  # bf16 takes most processors ten times as long
    batches = [batch_of(range(size * (2 * i + rank), size * (2 * i + rank + 1))) for i in range(4)]
    for i in (1, 3):
        for name in engine.module.modalities:
            batches[i] = batches[i].without(name)
    losses = step(engine, batches)
    after = weights(engine)
    norm = engine.get_global_grad_norm()
    return {
        "losses": losses,
        "steps": engine.global_steps,
        "skipped": engine.skipped_steps,
        "grad_norm": float(norm),
        "unmoved": [name for name in before if torch.equal(before[name], after[name])],
        "parameters": len(before),
    }


for _name in DS_CONFIGS:
    CASES[f"ds_config:{_name}"] = lambda name=_name: trained(name)


@case
def accumulation_over_buckets() -> dict:
    """The gradient norm of a batch, and of the same batch accumulated twice, with buckets much smaller than the model:
    most gradients are reduced within the backward pass."""
    norms = {}
    for accumulated in (1, 2):
        engine = make_engine(
            "zero3_offload_bf16",
            {"gradient_accumulation_steps": accumulated, "zero_optimization.reduce_bucket_size": 20000},
        )
        for _ in range(accumulated):
            torch.manual_seed(1)
            step(engine, [batch_of([0, 1])])
        norms[accumulated] = float(engine.get_global_grad_norm())
        engine.destroy()
    return norms


@case
def climate_on_one_rank() -> dict:
    """Rank 0 gets only records with climate, rank 1 only without."""
    rank = dist.get_rank()
    mine = [i for i in range(len(cases.DATA)) if bool(cases.DATA.records[i]["climate_present"]) == (rank == 0)]
    found = {}
    for name, steps, changes in (("", 20, {}), ("whole layers", 3, WHOLE_LAYERS)):
        engine = make_engine(
            "zero3_offload", {"fp16.initial_scale_power": 8, "gradient_accumulation_steps": 1, **changes}
        )
        losses, norms = [], []
        for i in range(steps):
            batch = batch_of([mine[i % len(mine)]])
            assert bool(batch.present["climate"]) == (rank == 0)
            losses += step(engine, [batch])
            norms.append(float(engine.get_global_grad_norm()))
        found[name] = {"losses": losses, "norms": norms, "skipped": engine.skipped_steps}
        engine.destroy()
    return found


@case
def activation_checkpointing() -> dict:
    """One forward and backward pass with the JSON block, and without it: loss, gradient norm, bytes kept."""
    seen = {}
    block = "activation_checkpointing"
    for name, changes in (
        ("without", {}),
        ("with", {}),
        ("partitioned", {f"{block}.partition_activations": True}),
        ("cpu", {f"{block}.cpu_checkpointing": True}),
    ):
        engine = make_engine(
            "zero3_offload",
            {"fp16.initial_scale_power": 8, "gradient_accumulation_steps": 1, **changes},
            without=(block,) if name == "without" else (),
        )
        batch = batch_of(range(4))
        torch.manual_seed(7)
        gc.collect()
        with LiveBytes() as bytes_now:
            out = engine(batch)
            gc.collect()
            kept = bytes_now.live
        engine.backward(out.loss)
        engine.step()
        seen[name] = {"loss": out.loss.item(), "kept_bytes": kept, "grad_norm": float(engine.get_global_grad_norm())}
        engine.destroy()
    return seen


@case
def shared_memory() -> dict:
    """What of this launch has a name in shared memory, where a killed run would leave it."""
    return {"left": [path.name for path in Path("/dev/shm").glob(f"deepspeed_*_{os.environ['MASTER_PORT']}_*")]}


@case
def nonfinite() -> dict:
    """A weight that is not a number, found in the forward pass and in the backward pass."""
    engine = make_engine("zero3_offload", {"gradient_accumulation_steps": 1, "fp16.initial_scale_power": 8})
    batches = [batch_of([0, 1])]
    clean = nonfinite_forward(engine, batches)
    watch = GradientWatch(engine.module)
    watch.arm()
    step(engine, batches)
    clean_gradient = watch.origin()
    parameter = engine.module.spectrum.queries.out[1].weight
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.data[0, 0] = float("nan")
    forward = nonfinite_forward(engine, batches)
    step(engine, batches)
    return {"clean": clean, "clean_gradient": clean_gradient, "forward": forward, "backward": watch.origin()}


if __name__ == "__main__":
    cases.main()
