"""Host time of DeepSpeed's ZeRO-3 hooks: what a module costs beside its own arithmetic.

    python benchmarks/hooks.py

Trains a chain of tiny linear layers on one CPU rank, with ZeRO-3 and without DeepSpeed, and divides the difference in
CPU time by the number of hooks that ran: before and after each module's forward and backward pass, and for each
gradient. The result is the ``hook_s`` of the planner's hardware profiles, for a host of this kind.
"""

import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import deepspeed
import torch
from torch import nn

from launch.zero.accelerator import prepare_accelerator

LAYERS, SIZE, REPEATS = 100, 8, 15


def chain() -> nn.Module:
    return nn.Sequential(*(nn.Linear(SIZE, SIZE) for _ in range(LAYERS)))


def median_seconds(step) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    return statistics.median(times[3:])  # DeepSpeed learns the order of the modules in the first


def main() -> None:
    prepare_accelerator()
    torch.set_num_threads(1)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29733")
    from launch.planner.stand_ins import count_hooks
    x, plain = torch.ones(1, SIZE), chain()
    alone = median_seconds(lambda: plain(x).sum().backward())
    counted = [0]

    def count():
        counted[0] += 1

    count_hooks(count)
    model = chain()
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config={
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1000,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}})

    def step():
        counted[0] = 0
        engine.backward(engine(x).sum())

    under = median_seconds(step)
    print(f"{1e3 * alone:.2f} ms alone, {1e3 * under:.2f} ms under ZeRO-3, {counted[0]} hooks: "
          f"{1e6 * (under - alone) / counted[0]:.0f} microseconds each")


if __name__ == "__main__":
    main()
