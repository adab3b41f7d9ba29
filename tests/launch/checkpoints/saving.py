"""Checkpoints made by hand, as two ranks would have saved them."""

from pathlib import Path

import torch
from torch import Tensor

from launch.checkpoints.fingerprint import Fingerprint
from launch.checkpoints.folder import LATEST, path_of, point
from launch.checkpoints.manifest import MANIFEST, Manifest, SavedFile, SavedTensor
from launch.checkpoints.tensors import DTYPES, Entry, TensorWriter


def write_checkpoint(run: Path, step: int, tensors: dict[str, Tensor], **about) -> Path:
    """``tensors`` by KIND/PARAMETER, each cut in two; buffers are rank 0's."""
    folder = path_of(run, step)
    folder.mkdir(parents=True)
    saved: dict[str, SavedTensor] = {}
    files: dict[str, SavedFile] = {}
    for rank in range(2):
        name = f"rank_{rank:05d}.safetensors"
        parts = {}
        for key, tensor in tensors.items():
            cut = tensor.numel() if key.startswith("buffer.") else -(-tensor.numel() // 2)
            start, stop = (0, cut) if rank == 0 else (cut, tensor.numel())
            if stop > start:
                parts[key] = (start, stop)
        writer = TensorWriter(
            folder / name, [Entry(key, tensors[key].dtype, (stop - start,)) for key, (start, stop) in parts.items()]
        )
        for key, (start, stop) in parts.items():
            tensor = tensors[key]
            entry = saved.setdefault(key, SavedTensor(list(tensor.shape), DTYPES[tensor.dtype], str(Fingerprint()), []))
            found = writer.write(key, tensor.reshape(-1)[start:stop], start)
            entry.fingerprint = str(entry.expected + found)
            entry.parts.append((name, start, stop))
        files[name] = SavedFile(*writer.close())
    names = sorted({key.partition("/")[2] for key in tensors if key.startswith("exp_avg/")})
    manifest = Manifest(
        step=step,
        about={"model": "tiny", "dataset": "0" * 64, "global_batch": 32, "ds_config": {}, **about},
        tensors=saved,
        scalars={name: {"step": float(step)} for name in names},
        param_groups=[{"settings": {"lr": 1e-3}, "parameters": names}],
        counters={"global_steps": step, "global_samples": 32 * step, "skipped_steps": 0, "micro_steps": step},
        scheduler=None,
        loss_scale=None,
        random=[{}, {}],
        files=files,
    )
    (folder / MANIFEST).write_text(manifest.text())
    point(run, LATEST, folder)
    return folder


def some_tensors(size: int = 1001) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "fp32/a": torch.randn(size, 3),
        "exp_avg/a": torch.randn(size, 3),
        "exp_avg_sq/a": torch.rand(size, 3),
        "frozen/b": torch.randn(size).half(),
        "buffer.0/c": torch.tensor(5),
    }
