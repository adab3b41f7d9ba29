"""Saving: every rank writes what it holds, and the folder gets its name when all of it is on the disk."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed.comm as dist
import torch

from astrobio.files import sync, write_whole
from launch.checkpoints.fingerprint import Fingerprint
from launch.checkpoints.folder import BEST, LATEST, PARTIAL, damage_of, path_of, point, set_aside
from launch.checkpoints.manifest import MANIFEST, Manifest, SavedFile, SavedTensor
from launch.checkpoints.random_state import random_state
from launch.checkpoints.tensors import DTYPES, Entry, TensorWriter, header
from launch.checkpoints.together import from_rank_0, gathered, on_rank_0
from launch.zero.state import FROZEN, MASTER, EngineState

#: Left free on the disk, for the logs beside the checkpoint, in bytes.
SPARE = 1 << 24


class SaveFailed(Exception):
    """A checkpoint that could not be written; nothing of it is left, and those before it are as they were."""


@dataclass
class Written:
    """A part of a tensor in a rank's file."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    file: str
    start: int
    stop: int
    fingerprint: Fingerprint


@dataclass
class Share:
    """What one rank wrote, or why it could not."""

    parts: list[Written]
    scalars: dict[str, dict[str, float]]
    files: dict[str, SavedFile]
    random: dict
    problem: str | None = None


def save(
    state: EngineState, run: Path, about: dict[str, Any], best: bool = False, frozen_in: Path | None = None
) -> Path:
    """Save the engine's state as the checkpoint of its present step. All ranks call it.

    Args:
        about: what else the run needs to go on, as JSON.
        best: let ``best`` name it.
        frozen_in: a checkpoint of this run on as many ranks, whose frozen parameters are those of the engine: they are
            linked instead of written again.

    Raises:
        SaveFailed: on all ranks, when the disk is too small or one of them cannot write.
    """
    target = path_of(run, state.engine.global_steps)
    partial = target.with_name(target.name + PARTIAL)
    if not from_rank_0(lambda: _is_saved(target)):
        _begin(state, partial, frozen_in)
        shares = _write_all(state, partial, frozen_in)
        problems = [f"rank {rank}: {share.problem}" for rank, share in enumerate(shares) if share.problem]
        if not problems:
            problems = on_rank_0(lambda: _finish(state, partial, target, about, shares, frozen_in))
        if problems:
            on_rank_0(lambda: shutil.rmtree(partial, ignore_errors=True))
            raise SaveFailed(
                f"{target.name} could not be saved: {'; '.join(problems)}; the checkpoints before it are as they were"
            )

    def name_it() -> None:
        for name in (LATEST, BEST) if best else (LATEST,):
            point(run, name, target)

    problems = on_rank_0(name_it)
    if problems:
        raise SaveFailed(f"{target.name} is saved, but could not be named: {'; '.join(problems)}")
    return target


def _is_saved(target: Path) -> bool:
    if target.is_dir() and damage_of(target) is not None:
        set_aside(target)
    return target.is_dir()


def _begin(state: EngineState, partial: Path, frozen_in: Path | None) -> None:
    """Make the staging folder, if the disk has room for what all ranks are going to write into it."""
    needed = torch.tensor(
        sum(
            len(header(entries)) + sum(entry.nbytes for entry in entries)
            for entries in (_entries(state), [] if frozen_in else _frozen_entries(state))
        ),
        device=state.engine.device,
    )
    dist.all_reduce(needed)

    def make() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        free = shutil.disk_usage(partial).free
        if free < int(needed) + SPARE:
            partial.rmdir()
            raise OSError(
                f"it takes {int(needed) / 1e9:.3f} GB and {partial.parent} has {free / 1e9:.3f} GB free: "
                "make room there, or keep fewer (--set train.keep_last=1)"
            )

    problems = on_rank_0(make)
    if problems:
        raise SaveFailed(
            f"step {state.engine.global_steps} is not saved: {problems[0]}; nothing was written, and the "
            "checkpoints before it are as they were"
        )


def _entries(state: EngineState) -> list[Entry]:
    """What this rank's own file will hold, in order."""
    entries = []
    for group in state.groups:
        master, moments, _ = state.layout(group)
        for kind, dtype in ((MASTER, master), *sorted(moments.items())):
            entries += [
                Entry(f"{kind}/{part.name}", dtype, (part.stop - part.start,))
                for part in group.parts
                if part.stop > part.start
            ]
    entries += [
        Entry(f"buffer.{dist.get_rank()}/{name}", buffer.dtype, (buffer.numel(),))
        for name, buffer in state.buffers().items()
    ]
    return entries


def _frozen_entries(state: EngineState) -> list[Entry]:
    return [
        Entry(f"{FROZEN}/{part.name}", parameter.dtype, (part.stop - part.start,))
        for parameter, part in state.frozen()
        if part.stop > part.start
    ]


def _write_all(state: EngineState, partial: Path, frozen_in: Path | None) -> list[Share]:
    """Write this rank's files; returns what every rank has written."""
    share = Share([], {}, {}, random_state())
    try:
        _write_rank(state, partial, share)
        if frozen_in is None:
            _write_frozen(state, partial, share)
        else:
            _link_frozen(partial, frozen_in, share)
    except OSError as error:
        share.problem = f"{error.strerror or error} ({partial.parent})"
    return gathered(share)


def _write_rank(state: EngineState, partial: Path, share: Share) -> None:
    name = f"rank_{dist.get_rank():05d}.safetensors"
    shapes = {state.names[parameter]: state.parameter_shape(parameter) for parameter in state.names}
    with TensorWriter(partial / name, _entries(state)) as writer:
        for group in state.groups:
            with state.opened(group) as opened:
                for kind, flat in ((MASTER, opened.master), *sorted(opened.moments().items())):
                    for part in group.parts:
                        if part.stop > part.start:
                            found = writer.write(f"{kind}/{part.name}", part.of(flat), part.start)
                            share.parts.append(
                                Written(
                                    f"{kind}/{part.name}",
                                    shapes[part.name],
                                    DTYPES[flat.dtype],
                                    name,
                                    part.start,
                                    part.stop,
                                    found,
                                )
                            )
                for part in group.parts:
                    share.scalars[part.name] = opened.scalars()
                writer.wait()  # before the buffers are given back
        for buffer_name, buffer in state.buffers().items():
            key = f"buffer.{dist.get_rank()}/{buffer_name}"
            share.parts.append(
                Written(
                    key,
                    tuple(buffer.shape),
                    DTYPES[buffer.dtype],
                    name,
                    0,
                    buffer.numel(),
                    writer.write(key, buffer.detach().reshape(-1)),
                )
            )
        share.files[name] = SavedFile(*writer.close())


def _write_frozen(state: EngineState, partial: Path, share: Share) -> None:
    name = _frozen_file()
    entries = _frozen_entries(state)
    if not entries:
        return
    with TensorWriter(partial / name, entries) as writer:
        for parameter, part in state.frozen():
            if part.stop > part.start:
                with state.frozen_values(parameter) as values:
                    # Where nothing is sharded the values are those of the whole parameter.
                    own = values[: part.stop - part.start] if state.sharded else values[part.start : part.stop]
                    found = writer.write(f"{FROZEN}/{part.name}", own, part.start)
                    writer.wait()
                share.parts.append(
                    Written(
                        f"{FROZEN}/{part.name}",
                        state.parameter_shape(parameter),
                        DTYPES[parameter.dtype],
                        name,
                        part.start,
                        part.stop,
                        found,
                    )
                )
        share.files[name] = SavedFile(*writer.close())


def _link_frozen(partial: Path, frozen_in: Path, share: Share) -> None:
    """The frozen parameters have not changed since they were written: give the file a second name."""
    name = _frozen_file()
    saved = Manifest.read(frozen_in).files.get(name)
    if saved is not None:
        os.link(frozen_in / name, partial / name)
        share.files[name] = saved


def _frozen_file() -> str:
    return f"frozen_{dist.get_rank():05d}.safetensors"


def _finish(
    state: EngineState, partial: Path, target: Path, about: dict[str, Any], shares: list[Share], frozen_in: Path | None
) -> None:
    """The manifest of all that was written, and the folder's name. Rank 0 only."""
    tensors = _joined(shares)
    if frozen_in is not None:
        tensors |= {
            key: saved for key, saved in Manifest.read(frozen_in).tensors.items() if key.startswith(f"{FROZEN}/")
        }
    manifest = Manifest(
        step=state.engine.global_steps,
        about=about,
        tensors=tensors,
        scalars={name: scalars for share in shares for name, scalars in share.scalars.items()},
        param_groups=state.param_groups(),
        counters=state.counters(),
        scheduler=state.scheduler(),
        loss_scale=state.loss_scale(),
        random=[share.random for share in shares],
        files={name: file for share in shares for name, file in share.files.items()},
    )
    write_whole(partial / MANIFEST, manifest.text())
    sync(partial)
    os.rename(partial, target)
    sync(target.parent)


def _joined(shares: list[Share]) -> dict[str, SavedTensor]:
    """The tensors that the ranks' parts make up."""
    tensors: dict[str, SavedTensor] = {}
    for share in shares:
        for part in share.parts:
            if part.key not in tensors:
                tensors[part.key] = SavedTensor(list(part.shape), part.dtype, str(Fingerprint()), [])
            whole = tensors[part.key]
            whole.fingerprint = str(whole.expected + part.fingerprint)
            whole.parts.append((part.file, part.start, part.stop))
    for whole in tensors.values():
        whole.parts.sort(key=lambda part: part[1])
    return tensors
