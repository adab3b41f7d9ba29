"""Cases that all ranks of a launch run, many in one launch; what each rank saw is kept as JSON, for a test to judge.

A script registers its cases with `case`, or in `CASES`, and calls `main`; `launching.run_cases` starts it. By hand, in
the project's folder, for all cases or those named: `PYTHONPATH=.:tests/helpers deepspeed --num_gpus 2 SCRIPT DATA OUT`.
"""

import argparse
import gc
import json
import time
import traceback
from pathlib import Path

import deepspeed
import deepspeed.comm as dist
import torch
from project import DS_CONFIGS

from astrobio.config import StackConfig, load_preset
from astrobio.dataset import AstrobioDataset
from launch.checkpoints.fingerprint import fingerprint
from launch.ds_config.auto import resolve
from launch.ds_config.read import read_ds_config
from launch.zero.accelerator import join_ranks, prepare_accelerator
from launch.zero.engine import build_engine, device
from launch.zero.nvme import mend_prefetch
from launch.zero.state import EngineState

CASES = {}
#: Set by `main`: the records, and the folder for results and checkpoints.
DATA: AstrobioDataset
OUT: Path


def case(function):
    CASES[function.__name__] = function
    return function


def make_engine(
    config: str,
    changes: dict | None = None,
    without: tuple[str, ...] = (),
    stack: StackConfig | None = None,
    seed: int = 0,
):
    raw = read_ds_config(DS_CONFIGS[config], {"gradient_accumulation_steps": 2, **(changes or {})})
    for block in without:
        raw.pop(block, None)
    ds_config = resolve(
        raw, world_size=dist.get_world_size(), nvme_folder=OUT / "nvme", total_steps=100, largest_parameter=1 << 20
    )
    return build_engine(stack or load_preset("tiny"), ds_config, seed)


def batch_of(indices):
    return DATA.collate([DATA[i] for i in indices]).to(device())


def step(engine, batches) -> list[float]:
    losses = []
    for batch in batches:
        out = engine(batch)
        engine.backward(out.loss)
        engine.step()
        losses.append(out.loss.item())
    return losses


def history(engine, steps: int, overflows_at: int) -> dict:
    """Losses, norms and fingerprints of the state of some steps of two micro-steps, one of which overflows in fp16."""
    losses, norms, scaler = [], [], engine.optimizer.loss_scaler
    for index in range(steps):
        if index == overflows_at and scaler.dynamic:
            kept, scaler.cur_scale = scaler.cur_scale, 2.0**40
        losses += step(engine, [batch_of([2 * index]), batch_of([2 * index + 1])])
        if index == overflows_at and scaler.dynamic:
            scaler.cur_scale = kept
        norms.append(float(engine.get_global_grad_norm()))
    state, prints = EngineState(engine), {}
    for group in state.groups:
        with state.opened(group) as opened:
            for kind, tensor in {"master": opened.master, **opened.moments()}.items():
                for part in group.parts:
                    prints[f"{part.name} {kind}"] = str(fingerprint(part.of(tensor), part.start))
    return {"losses": losses, "norms": norms, "prints": prints, "skipped": engine.skipped_steps}


def weights(engine) -> dict[str, torch.Tensor]:
    """The parameters by name: whole, in fp32, on the CPU."""
    found = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            found[name] = parameter.detach().float().cpu().clone()
    return found


def main() -> None:
    global DATA, OUT
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--local_rank", type=int)
    args = parser.parse_args()
    prepare_accelerator()
    join_ranks()
    mend_prefetch()
    DATA, OUT = AstrobioDataset(args.data, "train", 64), args.out
    for name in args.cases or CASES:
        started = time.monotonic()
        try:
            result = CASES[name]()
        except Exception:
            result = {"error": traceback.format_exc()}
            print(result["error"], flush=True)  # at once: the other ranks may wait for this one
        gathered: list = [None] * dist.get_world_size()
        torch.distributed.all_gather_object(gathered, result)
        if dist.get_rank() == 0:
            with (args.out / "results.jsonl").open("a") as file:
                file.write(json.dumps({"case": name, "ranks": gathered}) + "\n")
            print(f"done {name} in {time.monotonic() - started:.1f} s", flush=True)
        gc.collect()
    dist.destroy_process_group()  # its threads, left to the interpreter's end, may abort it
