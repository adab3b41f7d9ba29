"""Building a stack under ZeRO-3: `launch.zero.weights` beside bare `deepspeed.zero.Init`, in one run.

    deepspeed --num_gpus 2 benchmarks/build.py --model 1b

Bare `zero.Init` leaves the language model with torch's default weights, not transformers' own: to draw those again
would take it as long once more.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deepspeed
import deepspeed.comm as dist

from astrobio.config import load_preset
from astrobio.stack import AstrobioStack
from launch import ROOT
from launch.ds_config.auto import resolve
from launch.ds_config.read import read_ds_config
from launch.zero.accelerator import join_ranks, prepare_accelerator
from launch.zero.engine import build_stack


def seconds(build: Callable[[], AstrobioStack]) -> float:
    dist.barrier()
    started = time.perf_counter()
    stack = build()
    dist.barrier()
    taken = time.perf_counter() - started
    del stack
    gc.collect()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="1b")
    parser.add_argument("--local_rank", type=int)
    args = parser.parse_args()
    prepare_accelerator()
    join_ranks()
    config = load_preset(args.model)
    ds_config = resolve(
        read_ds_config(ROOT / "ds_configs/zero3_offload_bf16.json"),
        world_size=dist.get_world_size(),
        nvme_folder=ROOT,
        total_steps=10,
        largest_parameter=1,
    )

    def bare() -> AstrobioStack:
        with deepspeed.zero.Init(config_dict_or_path=ds_config.raw):
            return AstrobioStack(config)

    theirs, ours = seconds(bare), seconds(lambda: build_stack(config, ds_config, seed=0))
    if dist.get_rank() == 0:
        print(
            f"{args.model} on {dist.get_world_size()} rank(s): zero.Init {theirs:.1f} s, launch.zero.weights "
            f"{ours:.1f} s, ratio {theirs / ours:.1f}"
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
