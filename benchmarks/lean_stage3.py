"""Host memory and step time with an offloaded optimizer: `launch.zero.lean_stage3` beside DeepSpeed's own ZeRO-3.

    python benchmarks/lean_stage3.py [--ds_config ds_configs/zero3_resident.json] [--ranks 2]

The stack with 110 M parameters takes two steps of two micro-steps, in processes of their own for each way. Printed are
the largest resident memory (VmHWM) of all ranks together during a boundary's `engine.step()`, in bytes a parameter, and
its seconds.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deepspeed.comm as dist
import torch

from astrobio.config import load_preset
from benchmarks.predicted import MODELS
from launch import ROOT
from launch.ds_config.auto import resolve
from launch.ds_config.read import read_ds_config
from launch.memory import forget_peak, peak_resident_bytes
from launch.planner.model import nominal_batch
from launch.zero import engine as zero_engine
from launch.zero.accelerator import join_ranks, prepare_accelerator

WAYS = ("deepspeed", "lean")
CHANGES = {
    "gradient_accumulation_steps": 2,
    "fp16.initial_scale_power": 4,
    "zero_optimization.sub_group_size": 5_000_000,
    "zero_optimization.reduce_bucket_size": 5_000_000,
}


def measure(way: str, path: Path, out: Path) -> None:
    """In each rank: train, and let rank 0 write what was measured."""
    prepare_accelerator()
    join_ranks()
    preset, changes = MODELS["wide"]
    config = load_preset(preset, changes)
    ds_config = resolve(
        read_ds_config(path, CHANGES),
        world_size=dist.get_world_size(),
        nvme_folder=out.with_suffix(".nvme"),
        total_steps=10,
        largest_parameter=1 << 20,
    )
    own = mock.patch.object(zero_engine, "own_optimizer", lambda ds_config: contextlib.nullcontext())
    with own if way == "deepspeed" else contextlib.nullcontext():
        engine = zero_engine.build_engine(config, ds_config, seed=0)
    batch = nominal_batch(config, 1, 64).to(zero_engine.device())
    for _ in range(4):  # the last one is measured
        engine.backward(engine(batch).loss)
        dist.barrier()
        forget_peak()
        started = time.perf_counter()
        engine.step()
        dist.barrier()
        seconds, peak = time.perf_counter() - started, torch.tensor([peak_resident_bytes()])
    dist.all_reduce(peak)
    parameters = sum(parameter.ds_numel for parameter in engine.module.parameters())
    if dist.get_rank() == 0:
        out.write_text(json.dumps({"bytes": peak.item(), "parameters": parameters, "step_s": seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ds_config", type=Path, default=ROOT / "ds_configs/zero3_resident.json")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "build/lean_stage3")
    parser.add_argument("--way", choices=WAYS, help="measure this one, as a rank")
    parser.add_argument("--local_rank", type=int)
    args = parser.parse_args()
    if args.way:
        measure(args.way, args.ds_config, args.out / f"{args.way}.json")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for way in WAYS:
        launcher = [Path(sys.executable).with_name("deepspeed"), "--num_gpus", args.ranks, __file__]
        options = ["--way", way, "--ds_config", args.ds_config.resolve(), "--out", args.out.resolve()]
        subprocess.run(
            [str(part) for part in (*launcher, *options)],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
        )
        found[way] = json.loads((args.out / f"{way}.json").read_text())
        print(
            f"{way:10s} {found[way]['bytes'] / found[way]['parameters']:6.1f} bytes a parameter, "
            f"step {found[way]['step_s']:.2f} s"
        )
    own, lean = (found[way] for way in WAYS)
    saved = (own["bytes"] - lean["bytes"]) / lean["parameters"]
    print(f"saved {saved:.1f} bytes a parameter; a step {own['step_s'] / lean['step_s']:.2f} times as fast")


if __name__ == "__main__":
    main()
