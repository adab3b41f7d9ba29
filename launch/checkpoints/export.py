"""A checkpoint as safetensors that others read: the language part for `transformers`, the whole for `AstrobioStack`."""

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from astrobio.config import ConfigError, StackConfig, parse
from astrobio.files import whole_folder, write_whole
from astrobio.language import language_config
from astrobio.pretrained import CONFIG, INDEX
from astrobio.stack import exported_config
from launch.checkpoints.fingerprint import Fingerprint, fingerprint
from launch.checkpoints.manifest import Damaged, Manifest, SavedTensor, check_sizes
from launch.checkpoints.tensors import Entry, TensorReader, TensorWriter

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LANGUAGE = "language.model."


@dataclass
class Exported:
    """A tensor of the export: its name, shape and dtype there, and what reads it from the checkpoint."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def entry(self) -> Entry:
        return Entry(self.name, self.dtype, self.shape)


def export(
    checkpoint: Path,
    out: Path,
    part: str = "whole",
    dtype: str = "bf16",
    shard_bytes: int = 5_000_000_000,
    tokenizer: Path | None = None,
    progress=lambda tensors: tensors,
) -> list[Path]:
    """Write the model of a checkpoint into ``out``; returns the safetensors files. One tensor at a time is in memory.

    Args:
        part: ``whole``, for `AstrobioStack.from_pretrained`, or ``language``, for `transformers`; adapters are merged
            into the layers beside which they stand.
        dtype: of the parameters: ``fp32``, ``fp16`` or ``bf16``; buffers keep theirs.
        shard_bytes: the most that a file holds, unless a single tensor is larger.
        tokenizer: a folder to be copied beside it.

    Raises:
        ConfigError: ``out`` is not empty.
        Damaged: a file of the checkpoint is missing or broken.
    """
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"--out {out}: is not empty; nothing in it is overwritten")
    manifest = check_sizes(checkpoint)
    stack = parse(StackConfig, manifest.about["stack"], f"{checkpoint}: stack")
    source = Source(checkpoint, manifest)
    tensors = list(_language(source, stack, DTYPES[dtype]) if part == "language" else _whole(source, DTYPES[dtype]))
    with whole_folder(out) as folder:
        names = _write_shards(folder, tensors, shard_bytes, progress)
        if part == "language":
            config = language_config(stack.language)
            config.dtype = DTYPES[dtype]
            config.save_pretrained(folder)
        else:
            write_whole(folder / CONFIG, json.dumps(exported_config(stack, dtype), indent=2))
        if tokenizer is not None:
            for path in tokenizer.iterdir():
                shutil.copy2(path, folder)
    return [out / name for name in names]


class Source:
    """Whole tensors of a checkpoint, each compared with its fingerprint."""

    def __init__(self, checkpoint: Path, manifest: Manifest):
        self.checkpoint, self.manifest = checkpoint, manifest
        self.parameters = {
            key.partition("/")[2]: key for key in manifest.tensors if key.startswith(("fp32/", "frozen/"))
        }
        self.buffers = {key.partition("/")[2]: key for key in manifest.tensors if key.startswith("buffer.0/")}

    def saved(self, name: str) -> SavedTensor:
        return self.manifest.tensors[self.parameters[name]]

    def read(self, key: str) -> Tensor:
        """
        Raises:
            Damaged
        """
        saved, found = self.manifest.tensors[key], Fingerprint()
        reader = TensorReader(self.checkpoint)  # for this tensor only: what it has mapped counts as memory
        flat = torch.empty(torch.Size(saved.shape).numel(), dtype=saved.torch_dtype)
        for file, start, stop in saved.parts:
            flat[start:stop] = reader.read(file, key, 0, stop - start)
            found += fingerprint(flat[start:stop], start)
        if found != saved.expected:
            raise Damaged(
                self.checkpoint,
                [f"{key}: not the numbers that were saved; `astrobio checkpoint verify` names the file"],
            )
        return flat.view(saved.shape)


def _whole(source: Source, dtype: torch.dtype) -> Iterator[Exported]:
    for name, key in source.parameters.items():
        yield Exported(name, tuple(source.saved(name).shape), dtype, functools.partial(source.read, key))
    for name, key in source.buffers.items():
        saved = source.manifest.tensors[key]
        yield Exported(name, tuple(saved.shape), saved.torch_dtype, functools.partial(source.read, key))


def _language(source: Source, stack: StackConfig, dtype: torch.dtype) -> Iterator[Exported]:
    for name, key in source.parameters.items():
        if name.startswith(LANGUAGE) and ".lora_" not in name:
            own = name.removeprefix(LANGUAGE).replace(".base_layer.", ".")
            yield Exported(
                own, tuple(source.saved(name).shape), dtype, functools.partial(_merged, source, stack, name, key)
            )
    for name, key in source.buffers.items():
        if name.startswith(LANGUAGE):
            saved = source.manifest.tensors[key]
            yield Exported(
                name.removeprefix(LANGUAGE), tuple(saved.shape), saved.torch_dtype, functools.partial(source.read, key)
            )


def _merged(source: Source, stack: StackConfig, name: str, key: str) -> Tensor:
    """A weight with what its adapter adds: W + alpha / rank · B A (Hu et al. 2021)."""
    weight = source.read(key)
    down, up = (
        source.parameters.get(name.replace("base_layer.weight", f"lora_{letter}.default.weight")) for letter in "AB"
    )
    lora = stack.language.lora
    if ".base_layer.weight" not in name or lora is None or down is None or up is None:
        return weight
    return weight.float() + lora.alpha / lora.rank * (source.read(up).float() @ source.read(down).float())


def _write_shards(out: Path, tensors: list[Exported], shard_bytes: int, progress) -> list[str]:
    shards: list[list[Exported]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(other.entry.nbytes for other in shards[-1]) + tensor.entry.nbytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = ["model.safetensors"]
    bar = iter(progress(tensors))
    for name, shard in zip(names, shards, strict=True):
        with TensorWriter(out / name, [tensor.entry for tensor in shard], {"format": "pt"}) as writer:
            for tensor in shard:
                next(bar)
                writer.write(tensor.name, tensor.make().to(tensor.dtype))
                writer.wait()
            writer.close()
    next(bar, None)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.entry.nbytes for tensor in tensors)},
            "weight_map": {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard},
        }
        write_whole(out / INDEX, json.dumps(index, indent=2))
    return names
