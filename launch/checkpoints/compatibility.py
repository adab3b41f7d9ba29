"""What a resumed run may change, and the effect of each change."""

import json
from pathlib import Path
from typing import Any

from deepspeed.accelerator import get_accelerator

from astrobio.stack import AstrobioStack
from launch.checkpoints.manifest import Manifest
from launch.ds_config.config import DsConfig

#: Optimizers whose state means the same.
SAME_STATE = ({"adam", "adamw"},)


def dataset_hash(data: Path) -> str:
    return json.loads((data / "manifest.json").read_text())["content_sha256"]


def refusals(manifest: Manifest, network: AstrobioStack, model: str, data: Path) -> list[str]:
    """Reasons why the run cannot resume from the checkpoint: another model or another dataset."""
    shapes = {name: list(parameter.shape) for name, parameter in network.named_parameters()}
    saved = {name: tensor.shape for kind in ("fp32", "frozen") for name, tensor in manifest.of_kind(kind).items()}
    problems = []
    if saved != shapes:
        examples = [
            *(
                f"{name} is {saved[name]} there and {shape} here"
                for name, shape in shapes.items()
                if name in saved and saved[name] != shape
            ),
            *(f"{name} is not in it" for name in shapes if name not in saved),
            *(f"{name} is only in it" for name in saved if name not in shapes),
        ]
        problems.append(
            f"it was saved from model {manifest.about['model']!r}, whose network is not that of "
            f"{model!r}: {examples[0]}"
            f"{f', and {len(examples) - 1} more differences' if len(examples) > 1 else ''}"
        )
    before, now = manifest.about["dataset"], dataset_hash(data)
    if before != now:
        problems.append(f"it was trained on a dataset of content_sha256 {before[:12]}…, {data} has {now[:12]}…")
    return problems


def changes(manifest: Manifest, network: AstrobioStack, new: DsConfig, world_size: int) -> list[str]:
    """What this run changes against the saved one, a line each, with the effect where the resume cannot be exact."""
    old, lines = manifest.ds_config, []

    def differs(what: str, was: Any, now: Any, means: str = "") -> None:
        if was != now:
            lines.append(f"{what}: {was} before, {now} now{f'; {means}' if means else ''}")

    differs("ZeRO stage", old.stage, new.stage)
    differs("optimizer on", old.optimizer_offload.device, new.optimizer_offload.device)
    differs("parameters on", old.parameter_offload.device, new.parameter_offload.device)
    differs(
        "ranks",
        manifest.world_size,
        world_size,
        "new ranks draw random numbers of their own" if world_size > manifest.world_size else "",
    )
    differs(
        "device",
        manifest.random[0].get("device_type", get_accelerator().device_name()),
        get_accelerator().device_name(),
        "masks and noise are drawn anew from the seed",
    )
    if world_size != manifest.world_size and len(_buffers(manifest)) > len(_distinct_buffers(manifest)):
        lines.append("buffers that differed between the ranks: new ranks take those of rank 0")
    differs("train_micro_batch_size_per_gpu", old.micro_batch, new.micro_batch)
    differs("gradient_accumulation_steps", old.accumulation, new.accumulation)
    differs("sub_group_size", old.sub_group_size, new.sub_group_size)
    differs("precision", old.precision, new.precision, _precision(manifest, old.precision, new.precision))
    differs("optimizer state", _state(old), _state(new), _state_change(old, new))
    if new.compression and old.compression == new.compression and world_size != manifest.world_size:
        lines.append("blocks of 8-bit moments that the new ranks cut are rounded anew")
    differs("moments", old.moments, new.moments, "rounded, or no finer than they were saved")
    if not keeps_moments(old, new):
        differs(
            "optimizer",
            old.optimizer.type,
            new.optimizer.type,
            "the moments of the one mean nothing to the other: they begin at zero",
        )
    for key in sorted(new_settings(old, new)):
        differs(f"optimizer.params.{key}", old.optimizer.params.get(key), new.optimizer.params.get(key))
    if old.scheduler != new.scheduler:
        lines.append(
            f"scheduler: {old.scheduler} before, {new.scheduler} now; it goes on at step {manifest.step} of the new one"
        )
    return lines + _thawed(manifest, network)


def _precision(manifest: Manifest, old: str, new: str) -> str:
    notes = []
    if new == "fp16" and old != "fp16":
        notes.append("the loss scale begins anew")
    elif old == "fp16":
        notes.append("the loss scale is dropped")
    if manifest.of_kind("frozen"):
        notes.append("frozen parameters are rounded to it, which cannot be undone")
    return "; ".join(notes)


def _state(config: DsConfig) -> str:
    compression = config.compression
    if compression is None:
        return "as the optimizer has it"
    return f"8-bit moments in blocks of {compression.block_size}, remainders of {compression.remainder_bits} bits"


def _state_change(old: DsConfig, new: DsConfig) -> str:
    if new.compression is None:
        return "exactly what it was"
    exact = new.compression.remainder_bits == 16 and new.precision == "bf16"
    return f"moments are rounded to 8 bits, {'master weights are exact' if exact else 'master weights are rounded too'}"


def _thawed(manifest: Manifest, network: AstrobioStack) -> list[str]:
    trained, frozen = manifest.of_kind("fp32"), manifest.of_kind("frozen")
    now = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    lines = []
    cold = [name for name in trained if not now.get(name, True)]
    if cold:
        lines.append(f"{len(cold)} parameters ({cold[0]}, …) are frozen now: their moments are dropped")
    warm = [name for name in frozen if now.get(name, False)]
    if warm:
        lines.append(f"{len(warm)} parameters ({warm[0]}, …) are trained now: their moments begin at zero")
    return lines


def keeps_moments(before: DsConfig, now: DsConfig) -> bool:
    """Whether the two optimizers' states are interchangeable."""
    kinds = {config.optimizer.type.lower() for config in (before, now)}
    return len(kinds) == 1 or any(kinds <= family for family in SAME_STATE)


def new_settings(before: DsConfig, now: DsConfig) -> set[str]:
    """Keys of ``optimizer.params`` whose values differ from the saved ds_config's."""
    old, new = before.optimizer.params, now.optimizer.params
    return {key for key in {*old, *new} if old.get(key) != new.get(key)}


def _buffers(manifest: Manifest) -> list[str]:
    return [key for key in manifest.tensors if key.startswith("buffer.")]


def _distinct_buffers(manifest: Manifest) -> set[tuple[str, str]]:
    return {(key.partition("/")[2], manifest.tensors[key].fingerprint) for key in _buffers(manifest)}
