"""Saving and loading a checkpoint: `launch.checkpoints` beside bare DeepSpeed, on the same engine in one run.

    deepspeed --num_gpus 2 benchmarks/checkpoints.py --ds_config ds_configs/zero3_offload.json --folder /a/disk

Bare DeepSpeed does not bring its files to the disk (fsync); its time is given without and with that. What ours adds,
the fingerprints of all state and the hashes of all files, is timed alone too. With root's rights loads are cold: the
files are dropped from memory before.
"""

import argparse
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deepspeed.comm as dist
import torch
import xxhash

from astrobio.config import load_preset
from astrobio.files import sync
from launch import ROOT
from launch.checkpoints.keeper import Checkpoints
from launch.checkpoints.load import fingerprints
from launch.ds_config.auto import resolve
from launch.ds_config.read import read_ds_config
from launch.zero.accelerator import join_ranks, prepare_accelerator
from launch.zero.engine import build_engine
from launch.zero.state import EngineState


def seconds(do: Callable[[], object]) -> float:
    dist.barrier()
    started = time.perf_counter()
    do()
    dist.barrier()
    return time.perf_counter() - started


def trained_engine(args, ds_config: dict):
    """A language model of the size asked for, after one step: its moments are there."""
    stack = load_preset(
        "tiny",
        {
            "language.config.hidden_size": args.hidden_size,
            "language.config.num_hidden_layers": args.layers,
            "language.config.intermediate_size": 4 * args.hidden_size,
            "language.config.num_attention_heads": 8,
            "language.config.num_key_value_heads": 8,
            "planet": None,
            "climate": None,
            "metabolism": None,
            "spectrum": None,
            "tasks": None,
            "fusion": None,
        },
    )
    engine = build_engine(stack, ds_config, seed=0)
    tokens = torch.arange(16)[None] + 5
    text_logits = engine.module.language
    engine.module.forward = lambda tokens: text_logits(None, tokens, torch.ones_like(tokens, dtype=torch.bool))[1]
    engine.backward(engine(tokens).float().square().mean())
    engine.step()
    return engine


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def to_disk(folder: Path) -> None:
    for path in files_of(folder)[dist.get_rank() :: dist.get_world_size()]:
        sync(path)


def forget_files() -> bool:
    """Drop files from memory, where that is allowed."""
    if dist.get_rank() == 0:
        os.sync()
        if os.access("/proc/sys/vm/drop_caches", os.W_OK):
            Path("/proc/sys/vm/drop_caches").write_text("3")
    dist.barrier()
    return os.access("/proc/sys/vm/drop_caches", os.W_OK)


def hash_as_much(folder: Path) -> None:
    """This rank's share of the folder's bytes, from memory."""
    block = torch.zeros(1 << 24, dtype=torch.uint8).numpy()
    for _ in range(sum(path.stat().st_size for path in files_of(folder)) // len(block) // dist.get_world_size()):
        xxhash.xxh3_128_digest(block)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ds_config", type=Path, default=ROOT / "ds_configs/zero3_offload.json")
    parser.add_argument("--folder", type=Path, default=ROOT / "build/checkpoints")
    parser.add_argument("--hidden_size", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--local_rank", type=int)
    args = parser.parse_args()
    prepare_accelerator()
    join_ranks()
    ds_config = resolve(
        read_ds_config(args.ds_config, {"gradient_accumulation_steps": 1, "fp16.initial_scale_power": 4}),
        world_size=dist.get_world_size(),
        nvme_folder=args.folder / "nvme",
        total_steps=10,
        largest_parameter=4 * args.hidden_size**2,
    )
    engine = trained_engine(args, ds_config)
    state, first = EngineState(engine), dist.get_rank() == 0
    times: dict[str, list[float]] = {}

    def note(name: str, taken: float) -> None:
        times.setdefault(name, []).append(taken)

    for number in range(args.rounds):
        theirs, ours = args.folder / "bare", args.folder / "ours"
        if first:
            shutil.rmtree(theirs, ignore_errors=True)
            shutil.rmtree(ours, ignore_errors=True)
        forget_files()
        tag = f"round_{number}"
        bare = seconds(lambda tag=tag, theirs=theirs: engine.save_checkpoint(str(theirs), tag=tag))
        synced = seconds(lambda theirs=theirs: to_disk(theirs))
        note("save, bare", bare)
        note("save, bare with fsync", bare + synced)
        forget_files()
        checkpoints = Checkpoints(engine, ours, ds_config)
        note("save, ours", seconds(lambda checkpoints=checkpoints: checkpoints.save({"model": "benchmark"})))
        [saved] = (ours / "checkpoints").glob("step_*")
        forget_files()
        note("load, bare", seconds(lambda tag=tag, theirs=theirs: engine.load_checkpoint(str(theirs), tag=tag)))
        forget_files()
        note("load, ours", seconds(lambda checkpoints=checkpoints, saved=saved: checkpoints.resume([saved])))
        note("  fingerprints alone", seconds(lambda: fingerprints(state)))
        note("  hashes alone", seconds(lambda saved=saved: hash_as_much(saved)))
    cold = forget_files()
    if first:
        parameters = sum(
            parameter.ds_numel if hasattr(parameter, "ds_numel") else parameter.numel()
            for parameter in engine.module.parameters()
        )
        sizes = {name: sum(path.stat().st_size for path in files_of(args.folder / name)) for name in ("bare", "ours")}
        print(
            f"{parameters / 1e6:.0f} M parameters, {dist.get_world_size()} ranks, ZeRO-{ds_config.stage}, optimizer on "
            f"{ds_config.optimizer_offload.device}; {args.rounds} rounds, medians; loads {'cold' if cold else 'warm'}"
        )
        for name, taken in times.items():
            print(f"{name:24s} {statistics.median(taken):8.2f} s   ({min(taken):.2f} to {max(taken):.2f})")
        for what, base in (("save", "save, bare"), ("save", "save, bare with fsync"), ("load", "load, bare")):
            ratio = statistics.median(
                ours / theirs for ours, theirs in zip(times[f"{what}, ours"], times[base], strict=True)
            )
            print(f"ours / {base:22s} {ratio:5.2f}")
        print(f"bytes: bare {sizes['bare']:,d}, ours {sizes['ours']:,d}")
        shutil.rmtree(args.folder)
    dist.barrier()
    engine.destroy()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
