"""Build a model at its real size, run it forward, train it some steps, and measure each phase: `make run_17b`.

    deepspeed --num_gpus 1 launch/experiments/full_size.py --ds_config ds_configs/zero3_nvme.json --model 17b_frozen \\
        --max_steps 2 --run runs/17b

Takes the options of launch/train.py and needs an NVMe ds_config. Writes report.json into the run's folder and prints
it as a table. The swap files are removed at the end, also of an interrupted run.
"""

import hashlib
import itertools
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run from a checkout, installed or not
import launch  # noqa: F401, I001  before torch, which it tells how to allocate

import deepspeed
import deepspeed.comm as dist
import psutil
import torch
from deepspeed.accelerator import get_accelerator

from astrobio.config import ConfigError
from astrobio.dataset import AstrobioDataset
from astrobio.files import write_whole
from launch.ds_config.config import SUB_GROUP, Aio
from launch.ds_config.room import swapped_bytes
from launch.memory import GB, available_bytes, peak_resident_bytes
from launch.options import parse_arguments
from launch.subprocesses import environment
from launch.preflight import preflight, user_errors, write_config
from launch.run_plan import RunPlan
from launch.stopping import ignore_stop_signals
from launch.train import quiet_libraries, removed_at_end
from launch.zero.accelerator import join_ranks, prepare_accelerator
from launch.zero.engine import build_engine, device

_LONGEST_MEASUREMENT_S = 300  # three times 512 MB


def main(argv: list[str] | None = None) -> None:
    prepare_accelerator()
    with user_errors():
        plan = preflight(parse_arguments(argv))
        need = check_room(plan, plan.parameters, plan.trainable)
    quiet_libraries()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    with removed_at_end(plan.swap):
        report = run(plan, need)
        if report is not None:
            write_whole(plan.run / "report.json", json.dumps(report, indent=2) + "\n")
            print_report(report, plan.run / "report.json")
        dist.barrier()
        dist.destroy_process_group()


def _leave(number: int, _) -> None:
    """Leave by the same door as always: the swap files go. DeepSpeed's launcher sends a second signal after the first,
    which must not end that."""
    ignore_stop_signals()
    sys.exit(128 + number)


def check_room(plan: RunPlan, parameters: int, trainable: int) -> dict[str, int]:
    """Bytes that the run will need on NVMe, and at least in host memory over all ranks.

    On NVMe each parameter takes 2 bytes, and each that trains `swapped_bytes` more.
    In memory stand the swap buffers: DeepSpeed allocates ``buffer_count`` for parameters (``buffer_size`` elements of
    2 bytes) and for the optimizer (a sub-group of 4 bytes), and keeps ``max_in_cpu`` parameters there.

    Raises:
        ConfigError: no NVMe config, or less room than that.
    """
    param, optimizer = plan.ds_config.parameter_offload, plan.ds_config.optimizer_offload
    if (param.device, optimizer.device) != ("nvme", "nvme"):
        raise ConfigError(
            "a full-size run needs a ds_config that keeps parameters and optimizer on NVMe: ds_configs/zero3_nvme.json"
        )
    disk = 2 * parameters + swapped_bytes(plan.ds_config) * trainable
    memory = plan.world_size * (
        param.buffer_count * param.buffer_size * 2
        + optimizer.buffer_count * min(plan.ds_config.sub_group_size or SUB_GROUP, trainable) * 4
    ) + 2 * min(param.max_in_cpu, trainable)
    folder = plan.swap[0]
    free, available = shutil.disk_usage(folder).free, available_bytes()
    if free < 1.02 * disk:
        raise ConfigError(
            f"{folder}: {free / GB:.1f} GB free, {1.02 * disk / GB:.1f} GB needed for the parameters and "
            "the optimizer: set ASTROBIO_NVME to a folder on a larger disk"
        )
    if available < memory:
        raise ConfigError(
            f"{available / GB:.1f} GB of memory available, {memory / GB:.1f} GB needed for swap buffers "
            "alone: lower zero_optimization.sub_group_size or the buffer_count of both offload blocks"
        )
    return {"nvme_bytes": disk, "host_bytes_at_least": memory}


class Phases:
    """Seconds and NVMe bytes of each phase of this process."""

    def __init__(self):
        self.found: dict[str, dict[str, float]] = {}

    def measure(self, name: str, function):
        """Run ``function()``; the slowest rank's seconds and all ranks' bytes are what counts."""
        before, started = psutil.Process().io_counters(), time.monotonic()
        result = function()
        get_accelerator().synchronize()  # a card's work is done later than it is asked for
        after = psutil.Process().io_counters()
        seconds = over_ranks(time.monotonic() - started, dist.ReduceOp.MAX)
        self.found[name] = {
            "seconds": round(seconds, 2),
            "read_bytes": int(over_ranks(after.read_bytes - before.read_bytes)),
            "written_bytes": int(over_ranks(after.write_bytes - before.write_bytes)),
            "host_peak_bytes": int(over_ranks(peak_resident_bytes())),
        }
        if dist.get_rank() == 0:
            print(phase_line(name, self.found[name]), flush=True)
        return result


def run(plan: RunPlan, need: dict[str, int]) -> dict[str, Any] | None:
    """All phases; the report on rank 0."""
    join_ranks()
    if dist.get_rank() == 0:
        write_config(plan)
        print(
            f"{plan.model_reason}, {plan.world_size} rank(s), {need['nvme_bytes'] / GB:.1f} GB on {plan.swap[0]}\n"
            f"{HEADING}",
            flush=True,
        )
    phases = Phases()
    size = min(max(need["nvme_bytes"] // 4, 16 << 20), 512 << 20) >> 20
    bandwidth = phases.measure(
        "measure the disk",
        lambda: {} if dist.get_rank() else measure_disk(plan.ds_config.aio, plan.swap[0], f"{size}M"),
    )
    engine = phases.measure("build", lambda: build_engine(plan.stack, plan.ds_config, plan.train.seed))
    dataset = AstrobioDataset(plan.data, "train", plan.stack.language.max_text_tokens, plan.tokenizer)
    batch = dataset.collate(whole_records(dataset, plan.micro_batch, dist.get_rank())).to(device())

    def forward():
        engine.eval()
        with torch.no_grad():
            loss = engine(batch).loss.item()
        engine.train()
        return loss

    watched = watched_parameters(engine.module)
    before = {name: fingerprint(parameter) for name, parameter in watched.items()}
    # DeepSpeed notes in the second pass the order in which parameters are used, and from the third on reads ahead.
    losses = [phases.measure(name, forward) for name in ("first forward", "second forward", "forward")]
    for number in range(1, (plan.max_steps or 1) + 1):
        out = phases.measure(f"step {number}: forward", lambda: engine(batch))
        phases.measure(f"step {number}: backward", lambda out=out: engine.backward(out.loss))
        losses.append(out.loss.item())
        phases.measure(f"step {number}: optimizer", engine.step)
    after = phases.measure("read some weights", lambda: {name: fingerprint(p) for name, p in watched.items()})
    changed = {name: before[name] != after[name] for name in watched}
    steps = engine.global_steps - engine.skipped_steps
    engine.destroy()
    if dist.get_rank():
        return None
    read_once = 2 * plan.parameters / bandwidth["read_bytes_per_s"]
    return {
        "model": plan.stack.name,
        "parameters": plan.parameters,
        "ranks": plan.world_size,
        "tokens": int(batch.real.sum()) * plan.world_size,
        "precision": plan.ds_config.precision,
        "device": "cpu" if device().type == "cpu" else torch.cuda.get_device_name(),
        "disk": bandwidth,
        **need,
        "phases": phases.found,
        "losses": losses,
        "finite": all(map(math.isfinite, losses)),
        "updates": steps,
        "host_peak_bytes": max(phase["host_peak_bytes"] for phase in phases.found.values()),
        "read_parameters_once_s": round(read_once, 2),
        "forward_over_read_once": round(phases.found["forward"]["seconds"] / read_once, 3),
        "changed": {name: {"trainable": watched[name].requires_grad, "changed": changed[name]} for name in watched},
        "frozen_unchanged": not any(changed[name] for name, p in watched.items() if not p.requires_grad),
        "trainable_changed": all(changed[name] for name, p in watched.items() if p.requires_grad),
    }


def measure_disk(aio: Aio, swap: Path, size: str, timeout_s: float | None = None) -> dict[str, float]:
    """Bytes per second that `ds_io` reads and writes in files of that size in the folder ``swap``, with a ds_config's
    ``aio``; each way within ``timeout_s`` (300 if None)."""
    timeout_s = timeout_s or _LONGEST_MEASUREMENT_S
    folder = swap / "ds_io"
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "launch.experiments.ds_io",
        "--folder",
        str(folder),
        "--io_size",
        size,
        "--loops",
        "3",
        "--block_size",
        str(aio.block_size),
        "--queue_depth",
        str(aio.queue_depth),
        "--io_parallel",
        str(aio.intra_op_parallelism),
        "--different_file_each_iteration",
        *(["--single_submit"] if aio.single_submit else []),
        *([] if aio.overlap_events else ["--sequential_requests"]),
    ]
    found = {}
    for key, option in (("write_bytes_per_s", []), ("read_bytes_per_s", ["--read"])):
        try:
            done = subprocess.run(
                [*command, *option], capture_output=True, text=True, env=environment(), timeout=timeout_s
            )
        except subprocess.TimeoutExpired:  # a pool of processes waits for ever for one that has died
            raise RuntimeError(
                f"ds_io did not end within {timeout_s:g} s in {folder}: the disk is slower "
                "than 5 MB/s, or one of ds_io's processes was killed; start again"
            ) from None
        speed = re.search(r"E2E \w+ Speed = ([\d.]+) GB/sec", done.stdout)
        if speed is None:
            raise RuntimeError(f"ds_io measured nothing:\n{(done.stdout + done.stderr)[-2000:]}")
        found[key] = float(speed[1]) * 2**30
    shutil.rmtree(folder)
    return found


def whole_records(dataset: AstrobioDataset, count: int, rank: int) -> list[dict]:
    """The rank's share of the records that have all modalities."""
    whole = (item for item in map(dataset.__getitem__, range(len(dataset))) if all(item["present"].values()))
    return list(itertools.islice(whole, rank * count, (rank + 1) * count))


def watched_parameters(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Of each part that whole records use the largest parameter that trains, and the largest that is frozen."""
    found = {}
    for part, child in module.named_children():
        if part == "absent":
            continue
        named = [(f"{part}.{name}", p) for name, p in child.named_parameters()]
        for wanted in (True, False):
            fitting = [(name, p) for name, p in named if p.requires_grad is wanted]
            if fitting:
                name, parameter = max(fitting, key=lambda item: item[1].ds_numel)
                found[name] = parameter
    return found


def fingerprint(parameter: torch.nn.Parameter) -> str:
    """sha256 of all its bytes."""
    with deepspeed.zero.GatheredParameters([parameter]):
        return hashlib.sha256(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data).hexdigest()


def over_ranks(number: float, operation=dist.ReduceOp.SUM) -> float:
    """The ranks' numbers, summed or otherwise made one; on the device, which is all that NCCL can reach."""
    total = torch.tensor([number], dtype=torch.float64, device=device())
    dist.all_reduce(total, op=operation)
    return total.item()


HEADING = f"{'':22s} {'seconds':>9s} {'NVMe read':>12s} {'written':>12s} {'host peak so far':>18s}"


def phase_line(name: str, phase: dict[str, float]) -> str:
    return (
        f"{name:22s} {phase['seconds']:9.1f} {phase['read_bytes'] / GB:9.2f} GB {phase['written_bytes'] / GB:9.2f} "
        f"GB {phase['host_peak_bytes'] / GB:15.2f} GB"
    )


def print_report(report: dict[str, Any], path: Path) -> None:
    disk = report["disk"]
    print(
        f"\nmodel          {report['model']}, {report['parameters'] / 1e9:.3f} B parameters, {report['precision']}, "
        f"{report['ranks']} rank(s) on {report['device']}, {report['tokens']} text tokens\n"
        f"disk           reads {disk['read_bytes_per_s'] / GB:.2f} GB/s, writes {disk['write_bytes_per_s'] / GB:.2f} "
        f"GB/s (ds_io, same aio settings)\n"
        f"forward pass   {report['phases']['forward']['seconds']:.1f} s = {report['forward_over_read_once']:.2f} × "
        f"reading all parameters once ({report['read_parameters_once_s']:.1f} s)\n"
        f"host memory    {report['host_peak_bytes'] / GB:.2f} GB at its peak, all ranks\n"
        f"loss           {', '.join(f'{loss:.4f}' for loss in report['losses'])} over {report['updates']} updates\n"
        f"weights        frozen unchanged: {report['frozen_unchanged']}, trained changed: "
        f"{report['trainable_changed']}\n"
        f"report         {path}",
        flush=True,
    )


if __name__ == "__main__":
    main()
