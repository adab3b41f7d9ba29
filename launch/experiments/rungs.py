"""The steps of `launch.experiments.acceptance`, the cheapest first."""

import importlib.metadata
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator

import torch
from deepspeed.ops.op_builder.builder import installed_cuda_version

from astrobio.config import load_preset
from launch import DS_CONFIGS
from launch.checkpoints.folder import path_of
from launch.ds_config.check import check
from launch.ds_config.config import DsConfig
from launch.ds_config.facts import model_facts
from launch.ds_config.machine import driver_version
from launch.ds_config.read import read_ds_config
from launch.ds_config.room import file_system
from launch.experiments.acceptance import LAUNCH_S, Acceptance, TimeOver
from launch.experiments.device_checks import Truth
from launch.experiments.full_size import measure_disk
from launch.experiments.measured_run import Row, line, predict, predicted_figures, run_config
from launch.memory import GB, free_bytes, locked_limit, memory_limit
from launch.planner.hardware.measure import card_names

PACKAGES = ("torch", "deepspeed", "transformers", "torch_geometric", "datasets")
DEVICE_CHECKS = ("attention", "precision", "randomness", "copies", "waits")
#: How far a prediction may be off, as a share of the measurement. Times are only printed: other work slows a machine.
TOLERATED = {
    "device_allocated_bytes": 0.10,
    "device_reserved_bytes": 0.10,
    "device_peak_bytes": 0.10,
    "host_peak_bytes": 0.10,
    "nvme_bytes": 0.01,
}
PRINTED = ("nvme_read_bytes", "nvme_written_bytes", "step_s", "forward_s", "backward_s", "optimizer_s")
#: Optimizer steps of each ds_config, and of the runs that are resumed: saved after half of them.
STEPS, RESUMED = 3, 4
#: The least seconds for a whole stack.
WHOLE_STACK_S = 180
#: Relative difference of a loss after a resume: under the same ds_config a CPU computes the same, a card sums in
#: another order; another ds_config also reduces in another order, in 16 bits.
SAME_CPU, SAME_CARD, OTHER = 0.0, 1e-3, 2e-2


def machine(box: Acceptance) -> Iterator[Truth]:
    """Versions, limits and disks; and what `astrobio check` says of every shipped ds_config here."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    yield Truth("versions", None, f"Python {platform.python_version()}, {versions}")
    yield Truth("cards", None, ", ".join(card_names()) or "none: everything below runs on the CPU")
    if torch.version.cuda:
        driver = driver_version()
        yield Truth(
            "CUDA",
            None,
            f"torch is built for {torch.version.cuda}, the driver knows "
            f"{driver // 1000}.{driver % 1000 // 10}, toolkit {_toolkit()}"
            if driver
            else f"torch is built for {torch.version.cuda}, and there is no driver",
        )
    memory, what = memory_limit()
    yield Truth(
        "host memory",
        None,
        f"{memory / GB:.1f} GB ({what}), {free_bytes() / GB:.1f} free; {len(os.sched_getaffinity(0))} cores",
    )
    locked = locked_limit()
    yield Truth("ulimit -l", None, "unlimited" if locked is None else f"{locked / 1e6:.0f} MB")
    yield Truth("disk", None, f"{box.out}: {shutil.disk_usage(box.out).free / GB:.0f} GB free, {file_system(box.out)}")
    facts = model_facts(load_preset(box.model))
    for path in sorted(DS_CONFIGS.glob("*.json")):
        problems = [
            str(finding)
            for finding in check(read_ds_config(path), world_size=box.ranks, facts=facts, nvme_folder=box.out / "nvme")
            if finding.problem
        ]
        yield Truth(f"check of {path.stem}", not problems, "; ".join(problems) or "no problem", "no problem")


def _toolkit() -> str:
    try:
        return ".".join(map(str, installed_cuda_version()))
    except Exception as error:  # deepspeed's own kinds, and what a broken nvcc makes of them
        return f"not found ({str(error).strip('>- ')})"


def device(box: Acceptance) -> Iterator[Truth]:
    """Kernels, precisions, random numbers, copies and waits."""
    for name in DEVICE_CHECKS:
        yield from box.check(name)


def disk(box: Acceptance) -> Iterator[Truth]:
    """`ds_io` in the folder that NVMe offload would use."""
    folder = box.out / "nvme"
    aio = DsConfig.parse(read_ds_config(DS_CONFIGS / "zero3_nvme.json")).aio
    rates = measure_disk(aio, folder, "128M", box.need(LAUNCH_S))
    yield Truth(
        "ds_io, files of 128 MB",
        None,
        f"reads {rates['read_bytes_per_s'] / GB:.2f} GB/s, writes {rates['write_bytes_per_s'] / GB:.2f} GB/s",
    )


def ds_configs(box: Acceptance) -> Iterator[Truth]:
    """Some steps under every ds_config, with predictions beside measurements."""
    longest: float = LAUNCH_S
    for source in sorted(DS_CONFIGS.glob("*.json")):
        box.need(longest)
        started, path, row = time.monotonic(), box.config(source.stem), Row(source.stem, str(source))
        row.predicted, row.no_prediction = predict(box.model, path, box.ranks, box.left)
        run_config(
            row,
            path,
            box.out / "runs" / row.name,
            box.model,
            STEPS,
            box.ranks,
            box.data,
            [],
            box.need(LAUNCH_S),
            box.device,
        )
        if row.cause == "too slow":
            raise TimeOver(f"the {box.minutes:g} minutes were over while {row.name} trained")
        longest = max(longest, time.monotonic() - started)
        box.rows.append(row)
        yield from judged(row)


def judged(row: Row) -> Iterator[Truth]:
    """Results of one ds_config's run: those that must hold, and those that are only printed."""
    if row.status != "done":
        yield Truth(f"{row.name}: trains", False, f"{row.cause}: {row.reason}", f"{STEPS} steps")
        return
    yield Truth(
        f"{row.name}: trains",
        len(row.losses) == STEPS and all(map(math.isfinite, row.losses)),
        line(row),
        f"{STEPS} steps with finite losses",
    )
    if row.predicted is None:
        yield Truth(f"{row.name}: is predicted", False, str(row.no_prediction), "a prediction")
        return
    predicted = predicted_figures(row)
    for key in (*TOLERATED, *PRINTED):
        if row.measured.get(key) and predicted.get(key) is not None:
            measured, expected = row.measured[key], predicted[key]
            off, allowed = expected / measured - 1, TOLERATED.get(key)
            yield Truth(
                f"{row.name}: {key.removesuffix('_bytes').removesuffix('_s').replace('_', ' ')}",
                None if allowed is None else abs(off) <= allowed,
                f"{_unit(key, measured)} measured, {_unit(key, expected)} predicted ({off:+.1%})",
                "" if allowed is None else f"within {allowed:.0%}",
            )


def _unit(key: str, value: float) -> str:
    return f"{value:.3f} s" if key.endswith("_s") else f"{value / GB:.3f} GB"


def overflow(box: Acceptance) -> Iterator[Truth]:
    """A loss scale that is too high: its steps are skipped, the scale halves, and training goes on."""
    config = box.config("zero3_offload", fp16__initial_scale_power=24, fp16__hysteresis=1)
    steps = box.train(config, "overflow", 16)
    skipped = [step for step in steps if step["overflow"]]
    scales = [step["loss_scale"] for step in steps]
    yield Truth(
        "steps that overflow are skipped, and told",
        0 < len(skipped) < len(steps),
        f"{len(skipped)} of {len(steps)}",
        "the first ones, not all",
    )
    halved = all(
        after == before / 2
        for step, before, after in zip(steps[1:], scales, scales[1:], strict=False)
        if step["overflow"]
    )
    yield Truth(
        "each halves the loss scale",
        halved,
        " ".join(f"2^{math.log2(scale):.0f}" for scale in scales),
        "half of the one before",
    )
    yield Truth(
        "the losses are finite",
        all(math.isfinite(step["loss"]) for step in steps),
        f"the last is {steps[-1]['loss']:.4f}",
        "finite",
    )


def resume(box: Acceptance) -> Iterator[Truth]:
    """Save, resume under the same and under another ds_config, verify, export, and use the export."""
    half = RESUMED // 2
    whole = box.train(box.config("zero3_offload"), "whole", RESUMED, "--set", f"train.checkpoint_every_steps={half}")
    saved = path_of(box.out / "runs" / "whole", half)
    same = SAME_CPU if box.device == "cpu" else SAME_CARD
    for name, allowed in (("zero3_offload", same), ("zero2_offload", OTHER)):
        steps = box.train(box.config(name), f"resumed_{name}", RESUMED, "--resume", saved)
        yield resumed_as(whole[half:], steps, f"resumed under {name}", allowed)
    box.ask("launch.cli", "checkpoint", "verify", saved)
    yield Truth("checkpoint verify", True, f"every byte of {saved.name} is what was written", "as written")
    exported = box.out / "exported"
    shutil.rmtree(exported, ignore_errors=True)
    box.ask("launch.cli", "checkpoint", "export", saved, "--out", exported)
    yield from box.check("exported", exported)


def resumed_as(expected: list[dict], steps: list[dict], what: str, allowed: float) -> Truth:
    """Compares the losses of a resumed run with those of an uninterrupted one."""
    theirs, ours = ([(step["step"], step["loss"]) for step in records] for records in (expected, steps))
    if [number for number, _ in ours] != [number for number, _ in theirs]:
        return Truth(what, False, f"steps {[number for number, _ in ours]}", f"{[number for number, _ in theirs]}")
    off = max(abs(a - b) / abs(b) for (_, a), (_, b) in zip(ours, theirs, strict=True))
    return Truth(
        what,
        off <= allowed,
        f"losses {', '.join(f'{loss:.6f}' for _, loss in ours)}: {off:.1e} off the run without a break",
        "the same" if not allowed else f"within {allowed:g}",
    )


def whole_stack(box: Acceptance) -> Iterator[Truth]:
    """One step of 17b_frozen, where the plan says that it fits, and time is left for it."""
    name, source = "17b_frozen", DS_CONFIGS / "zero3_offload.json"
    box.need(WHOLE_STACK_S)
    config = box.config(source.stem)
    problems = [
        finding
        for finding in check(read_ds_config(config), world_size=box.ranks, facts=model_facts(load_preset(name)))
        if finding.problem
    ]
    if problems:
        yield Truth(name, None, f"not run: {problems[0]}")
        return
    row = Row(name, str(source))
    row.predicted, row.no_prediction = predict(name, config, box.ranks, box.left)
    if row.predicted is None or not row.predicted["fits"]:
        yield Truth(name, None, f"not run: {row.no_prediction or 'the plan says that it does not fit'}")
        return
    run_config(row, config, box.out / "runs" / name, name, 1, box.ranks, box.data, [], box.need(LAUNCH_S), box.device)
    if row.cause == "too slow":
        raise TimeOver(f"the {box.minutes:g} minutes were over while {name} trained")
    box.rows.append(row)
    yield from judged(row)


LADDER = {
    "the machine": machine,
    "the device": device,
    "the disk": disk,
    "every ds_config": ds_configs,
    "a forced overflow": overflow,
    "save, resume, export": resume,
    "17b_frozen": whole_stack,
}
