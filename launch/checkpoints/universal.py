"""A checkpoint in DeepSpeed's universal format, with what bare DeepSpeed needs to go on from it."""

from collections.abc import Callable, Iterable
from pathlib import Path

import deepspeed
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

from astrobio.config import ConfigError
from astrobio.files import sync, whole_folder, write_whole
from launch.checkpoints.export import Source
from launch.checkpoints.manifest import Manifest, check_sizes
from launch.ds_config.config import LossScaling

TAG = "universal"


def convert(checkpoint: Path, out: Path, progress: Callable[[list], Iterable] = lambda names: names) -> list[Path]:
    """Write ``out``/universal, which ``"checkpoint": {"load_universal": true}`` reads under any ZeRO stage and any
    number of ranks; returns the files of its tensors.

    DeepSpeed 0.19.8 restores from it what is trained, with one step count and the first param group's settings for
    all; frozen weights are written, but not restored, and buffers have no place in it. `--resume` of this project
    reads its own checkpoints, without these losses.

    Raises:
        ConfigError: ``out`` is there already, or the optimizer is none of Adam's kind.
        Damaged: a file of the checkpoint is missing or broken.
    """
    if out.exists():
        raise ConfigError(f"--out {out}: is there already; nothing is overwritten")
    manifest = check_sizes(checkpoint)
    if manifest.moments != ["exp_avg", "exp_avg_sq"]:
        raise ConfigError(
            f"{checkpoint}: the universal format knows Adam's moments only, this one has "
            f"{', '.join(manifest.moments) or 'none'}"
        )
    with whole_folder(out) as partial:
        files = _write(Source(checkpoint, manifest), manifest, partial / TAG, progress)
        write_whole(partial / "latest_universal", TAG)
    return [out / path.relative_to(partial) for path in files]


def _write(source: Source, manifest: Manifest, folder: Path, progress: Callable[[list], Iterable]) -> list[Path]:
    files = []
    for name, key in progress(list(source.parameters.items())):
        where = folder / "zero" / name
        where.mkdir(parents=True)
        files += _save(where / "fp32.pt", {"param": source.read(key).float()})
        for kind in manifest.moments:
            if f"{kind}/{name}" in manifest.tensors:
                files += _save(where / f"{kind}.pt", {"param": source.read(f"{kind}/{name}")})
        if name in manifest.scalars:
            files += _save(where / "step.pt", int(manifest.scalars[name]["step"]))
    steps = max(scalars["step"] for scalars in manifest.scalars.values())
    settings = [{**group["settings"], "params": [index]} for index, group in enumerate(manifest.param_groups)]
    optimizer = {
        "zero_stage": manifest.ds_config.stage,
        "dynamic_loss_scale": manifest.loss_scale is not None,
        "overflow": False,
        "ds_version": deepspeed.__version__,
        "partition_count": manifest.world_size,
        "base_optimizer_state": {"state": {}, "param_groups": settings},
        "optimizer_state_dict": {"state": {0: {"step": int(steps)}}, "param_groups": settings},
        "param_groups": settings,
    }
    if manifest.loss_scale is not None:
        optimizer["loss_scaler"] = _loss_scaler(manifest.loss_scale, manifest.ds_config.loss_scaling)
    _save(folder / "zero/optimizer_state.pt", optimizer)
    model = {
        "module": {},
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [],
        "frozen_param_shapes": None,
        "frozen_param_fragments": None,
        "shared_params": {},
        "lr_scheduler": manifest.scheduler,
        "data_sampler": None,
        "random_ltd": None,
        "sparse_tensor_module_names": set(),
        "dp_world_size": manifest.world_size,
        "mp_world_size": 1,
        "ds_config": manifest.ds_config.raw,
        "ds_version": deepspeed.__version__,
        "universal_checkpoint_info": {"universal_checkpoint_version": 0.2},
        **{name: manifest.counters[name] for name in ("global_steps", "global_samples", "skipped_steps")},
    }
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        _save(folder / name, model)
    return files


def _save(path: Path, content) -> list[Path]:
    torch.save(content, path)
    sync(path)
    return [path]


def _loss_scaler(state: dict[str, float], scaling: LossScaling) -> DynamicLossScaler:
    """DeepSpeed's loss scaler for the ds_config, with its saved state."""
    scaler = DynamicLossScaler(
        init_scale=state["cur_scale"],
        scale_window=scaling.loss_scale_window,
        min_scale=scaling.min_loss_scale,
        delayed_shift=scaling.hysteresis,
        consecutive_hysteresis=scaling.consecutive_hysteresis,
    )
    for key, value in state.items():
        setattr(scaler, key, value)
    return scaler
