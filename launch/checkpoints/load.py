"""Loading: every rank reads the shards that it holds, then verifies that the engine holds what was saved."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from deepspeed import comm as dist
from safetensors import SafetensorError
from torch import Tensor

from launch.checkpoints.compatibility import keeps_moments, new_settings
from launch.checkpoints.fingerprint import PIECE_BYTES, Fingerprint, fingerprint
from launch.checkpoints.manifest import Damaged, Manifest, SavedTensor, check_sizes
from launch.checkpoints.random_state import is_restored, set_random_state
from launch.checkpoints.tensors import TensorReader, hash_file
from launch.checkpoints.together import gathered
from launch.ds_config.config import DsConfig
from launch.zero.state import FROZEN, MASTER, EngineState, Group, Opened


class LoadFailed(RuntimeError):
    """The engine does not hold what the checkpoint holds, though its files are sound."""


class Loading:
    """One load: fingerprints of what was read, and of what the engine must hold after it."""

    def __init__(self, checkpoint: Path, manifest: Manifest):
        self.checkpoint, self.manifest = checkpoint, manifest
        self.reader = TensorReader(checkpoint)
        self.read: dict[str, Fingerprint] = {}  # of the numbers in the files, as far as this rank read them
        self.held: dict[str, Fingerprint] = {}  # of the same numbers in the dtype that this engine keeps

    def fill(self, key: str, target: Tensor, start: int, held_as: str, counted: tuple[int, int] | None = None) -> None:
        """Put the elements ``start`` and on of the saved tensor ``key`` into the flat ``target``.

        Args:
            held_as: the key under which the engine's own copy is looked at afterwards.
            counted: the elements that no other rank reads; all of them unless it is given.
        """
        saved, stop = self.manifest.tensors[key], start + len(target)
        low, high = counted or (start, stop)
        for file, first, begin, end in _runs(saved, start, stop):
            values = self.reader.read(file, key, begin - first, end - first)
            converted = values.to(target.dtype)
            target[begin - start : end - start].copy_(converted)
            found = fingerprint(values, begin)
            self.held[held_as] = self.held.get(held_as, Fingerprint()) + (
                found if converted.dtype == values.dtype else fingerprint(converted, begin)
            )
            mine = values[max(low - begin, 0) : max(high - begin, 0)]
            self.read[key] = self.read.get(key, Fingerprint()) + (
                found if len(mine) == len(values) else fingerprint(mine, max(low, begin))
            )


def load(
    state: EngineState, checkpoint: Path, ds_config: DsConfig, seed: int = 0, weights_only: bool = False
) -> Manifest:
    """Load a checkpoint into the engine, whatever the layout of either, and verify the result. All ranks call it.

    Args:
        ds_config: this run's. Settings that it changes against the checkpoint's are the new ones.
        seed: for the random numbers of ranks that the saved run did not have.
        weights_only: only the parameters and buffers, for an evaluation; the optimizer's state is then none.

    Raises:
        Damaged: on all ranks; the engine's state is undefined until another checkpoint is loaded.
        LoadFailed: on all ranks.
    """
    manifest = _same_for_all(checkpoint)
    loading = Loading(checkpoint, manifest)
    state.begin_loading()
    _together(checkpoint, lambda: _fill_all(state, loading, ds_config, weights_only))
    state.end_loading()
    _check_files(loading)
    if not weights_only:
        _set_settings(state, manifest, ds_config)
    _check_engine(state, loading, weights_only)
    if not weights_only:
        _set_random(manifest, seed)
    return manifest


def _same_for_all(checkpoint: Path) -> Manifest:
    """The manifest, if every rank finds all files in full length."""
    problems: list[str] = []
    try:
        manifest = check_sizes(checkpoint)
    except Damaged as damaged:
        problems = damaged.problems
    found = sorted({problem for of_rank in gathered(problems) for problem in of_rank})
    if found:
        raise Damaged(checkpoint, found)
    return manifest


def _together(checkpoint: Path, read) -> None:
    """``read`` on every rank; a file that one of them cannot read ends all of them with its name."""
    problem = None
    try:
        read()
    except (OSError, SafetensorError, KeyError) as error:
        problem = f"rank {dist.get_rank()} cannot read it: {error}"
    problems = [problem for problem in gathered(problem) if problem]
    if problems:
        raise Damaged(checkpoint, problems + _broken_files(checkpoint))


def _broken_files(checkpoint: Path) -> list[str]:
    """Files whose contents changed: each rank hashes some of them."""
    manifest = Manifest.read(checkpoint)
    mine = list(manifest.files)[dist.get_rank() :: dist.get_world_size()]
    broken = [name for name in mine if hash_file(checkpoint / name) != manifest.files[name].xxh3_128]
    return [f"{name}: its contents are not what was written" for names in gathered(broken) for name in names]


def _fill_all(state: EngineState, loading: Loading, ds_config: DsConfig, weights_only: bool) -> None:
    manifest = loading.manifest
    kinds = [] if weights_only or not keeps_moments(manifest.ds_config, ds_config) else manifest.moments
    for group in state.groups:
        with state.opened(group, write=True) as opened:
            for part in group.parts:
                if part.stop > part.start:
                    key = _source(manifest, part.name, MASTER)
                    loading.fill(key, part.of(opened.master), part.start, f"{MASTER}/{part.name}")
            if not weights_only:
                _fill_moments(state, loading, group, opened, kinds)
            if opened.round is not None:
                opened.round()
                _hold(loading, group, opened)
    for parameter, part in state.frozen():
        key = _source(manifest, part.name, FROZEN)
        with state.frozen_values(parameter, write=True) as values:
            if state.sharded:
                if part.stop > part.start:
                    loading.fill(key, values[: part.stop - part.start], part.start, f"{FROZEN}/{part.name}")
            else:
                loading.fill(key, values, 0, f"{FROZEN}/{part.name}", counted=(part.start, part.stop))
    rank = dist.get_rank()
    of_rank = rank if rank < manifest.world_size else 0
    for name, buffer in state.buffers().items():
        key = f"buffer.{of_rank}/{name}"
        flat = buffer.detach().view(-1)
        loading.fill(key, flat, 0, f"buffer/{name}")
        if rank != of_rank:
            del loading.read[key]  # rank 0 counts it


def _hold(loading: Loading, group: Group, opened: Opened) -> None:
    """Expect what is in the buffers now of the engine, instead of what was read."""
    for kind, flat in {MASTER: opened.master, **opened.moments()}.items():
        for part in group.parts:
            if f"{kind}/{part.name}" in loading.held:
                loading.held[f"{kind}/{part.name}"] = fingerprint(part.of(flat), part.start)


def _source(manifest: Manifest, name: str, kind: str) -> str:
    """Where a parameter's numbers are: it may have been frozen when it was saved, and be trained now, or the other
    way round."""
    other = FROZEN if kind == MASTER else MASTER
    return f"{kind}/{name}" if f"{kind}/{name}" in manifest.tensors else f"{other}/{name}"


def _fill_moments(state: EngineState, loading: Loading, group: Group, opened: Opened, kinds: list[str]) -> None:
    manifest = loading.manifest
    saved = [part for part in group.parts if any(f"{kind}/{part.name}" in manifest.tensors for kind in kinds)]
    if not saved:  # saved before the optimizer's first step, or by another optimizer
        for moment in opened.moments().values():
            moment.zero_()
        state.set_moments(opened, {}, dict.fromkeys(opened.scalars(), 0.0))
        return
    scalars: dict[str, float] = {}
    for part in saved:
        for key, value in manifest.scalars.get(part.name, {}).items():
            scalars[key] = max(value, scalars.get(key, value))
    state.set_moments(opened, dict.fromkeys(kinds, state.moment_dtype(opened)), scalars)
    for kind in kinds:
        for part in group.parts:
            target = part.of(opened.state[kind])
            if f"{kind}/{part.name}" in manifest.tensors:
                if part.stop > part.start:
                    loading.fill(f"{kind}/{part.name}", target, part.start, f"{kind}/{part.name}")
            else:
                target.zero_()  # it was frozen


def _runs(saved: SavedTensor, start: int, stop: int) -> Iterator[tuple[str, int, int, int]]:
    """The files that make up elements ``start`` to ``stop``, in pieces that are small beside the memory: a file, the
    first element in it, and the piece's begin and end."""
    length = PIECE_BYTES // saved.torch_dtype.itemsize
    for file, low, high in saved.parts:
        for begin in range(max(low, start), min(high, stop), length):
            yield file, low, begin, min(begin + length, high, stop)


def _check_files(loading: Loading) -> None:
    """Compare what all ranks read together with the saved fingerprints."""
    read: dict[str, Fingerprint] = {}
    for share in gathered(loading.read):
        for key, found in share.items():
            read[key] = read.get(key, Fingerprint()) + found
    wrong = [key for key, found in read.items() if found != loading.manifest.tensors[key].expected]
    if wrong:
        raise Damaged(
            loading.checkpoint, [f"{_some(wrong)}: not the numbers that were saved", *_broken_files(loading.checkpoint)]
        )


def _check_engine(state: EngineState, loading: Loading, weights_only: bool) -> None:
    """Read everything back from where the engine keeps it, NVMe included."""
    held = fingerprints(state, weights_only)
    wrong = [key for key, expected in loading.held.items() if held.get(key) != expected]
    if not weights_only:
        wrong += _wrong_settings(state, loading.manifest)
    everywhere = sorted({key for share in gathered(wrong) for key in share})
    if everywhere:
        raise LoadFailed(
            f"{loading.checkpoint}: after loading the engine does not hold what was saved: {_some(everywhere)}"
        )


def fingerprints(state: EngineState, weights_only: bool = False) -> dict[str, Fingerprint]:
    """Fingerprints of everything this rank holds, by KIND/PARAMETER."""
    found: dict[str, Fingerprint] = {}
    for group in state.groups:
        with state.opened(group) as opened:
            flats = {MASTER: opened.master} | ({} if weights_only else opened.moments())
            for kind, flat in flats.items():
                for part in group.parts:
                    if part.stop > part.start:
                        found[f"{kind}/{part.name}"] = fingerprint(part.of(flat), part.start)
    for parameter, part in state.frozen():
        with state.frozen_values(parameter) as values:
            if state.sharded and part.stop > part.start:
                found[f"{FROZEN}/{part.name}"] = fingerprint(values[: part.stop - part.start], part.start)
            elif not state.sharded:
                found[f"{FROZEN}/{part.name}"] = fingerprint(values)
    for name, buffer in state.buffers().items():
        found[f"buffer/{name}"] = fingerprint(buffer)
    return found


def _set_settings(state: EngineState, manifest: Manifest, ds_config: DsConfig) -> None:
    """Restore counters, schedule, loss scale and each param group's own settings."""
    state.set_counters(manifest.counters)
    group_of = {name: group for group in manifest.param_groups for name in group["parameters"]}
    chosen = new_settings(manifest.ds_config, ds_config)
    for index, group in enumerate(state.param_groups()):
        saved = next((group_of[name] for name in group["parameters"] if name in group_of), None)
        if saved is not None:
            state.set_param_group(index, {key: value for key, value in saved["settings"].items() if key not in chosen})
    if manifest.scheduler is not None and state.scheduler() is not None:
        state.set_scheduler(manifest.scheduler, changed=manifest.ds_config.scheduler != ds_config.scheduler)
    if manifest.loss_scale is not None and state.loss_scale() is not None:
        state.set_loss_scale(manifest.loss_scale)


def _wrong_settings(state: EngineState, manifest: Manifest) -> list[str]:
    wrong = [
        f"{name} ({found}, saved {manifest.counters[name]})"
        for name, found in state.counters().items()
        if name != "micro_steps" and found != manifest.counters[name]
    ]
    if manifest.scheduler is not None and state.scheduler() is not None and state.scheduler() != manifest.scheduler:
        wrong.append("scheduler")
    if manifest.loss_scale is not None and state.loss_scale() is not None and state.loss_scale() != manifest.loss_scale:
        wrong.append("loss_scale")
    for group in state.groups:
        _, moments, scalars = state.layout(group)
        for key, value in scalars.items():
            saved = [manifest.scalars.get(part.name, {}).get(key) for part in group.parts]
            if (
                moments
                and any(number is not None for number in saved)
                and not math.isclose(value, max(number for number in saved if number is not None), abs_tol=0.5)
            ):
                wrong.append(f"{key} of {group.parts[0].name} ({value:g})")
    return wrong


def _set_random(manifest: Manifest, seed: int) -> None:
    """Restore this rank's random state; a rank that the saved run did not have starts a stream of its own."""
    rank = dist.get_rank()
    own = seed + 1 + rank + 1_000_003 * manifest.step
    if rank < manifest.world_size:
        set_random_state(manifest.random[rank], own)
        if not is_restored(manifest.random[rank]):
            raise LoadFailed(f"rank {rank}: the random state is not the one that was saved")
    else:
        torch.manual_seed(own)


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(sorted(names)[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
