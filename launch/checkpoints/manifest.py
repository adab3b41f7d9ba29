"""The manifest of a checkpoint, which is written last, and the checks that make a checkpoint valid."""

import dataclasses
import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash

from astrobio.config import ConfigError
from launch.checkpoints.fingerprint import Fingerprint
from launch.checkpoints.tensors import TORCH_DTYPES, hash_file
from launch.ds_config.config import DsConfig

MANIFEST = "manifest.json"
FORMAT = 1


class Damaged(ConfigError):
    """A checkpoint that is not what was saved; ``problems`` name the files and tensors, a line each."""

    def __init__(self, checkpoint: Path, problems: list[str]):
        self.checkpoint, self.problems = checkpoint, problems
        super().__init__("\n".join(f"{checkpoint}: {problem}" for problem in problems))


@dataclass
class SavedTensor:
    """A tensor, whole: its flat parts are (file, start, stop), in elements, each under the tensor's key."""

    shape: list[int]
    dtype: str
    fingerprint: str
    parts: list[tuple[str, int, int]]

    @property
    def torch_dtype(self) -> torch.dtype:
        return TORCH_DTYPES[self.dtype]

    @property
    def expected(self) -> Fingerprint:
        return Fingerprint.parse(self.fingerprint)


@dataclass
class SavedFile:
    bytes: int
    xxh3_128: str


@dataclass
class Manifest:
    """All of a checkpoint but the numbers of its tensors, whose keys are KIND/PARAMETER: ``fp32``, ``frozen``, the
    optimizer's own (``exp_avg``, ``exp_avg_sq``), and ``buffer.RANK``."""

    step: int
    about: dict[str, Any]  # the run's own: model, dataset, ds_config, order of the samples, …
    tensors: dict[str, SavedTensor]
    scalars: dict[str, dict[str, float]]  # of each parameter's optimizer state: Adam's step
    param_groups: list[dict]
    counters: dict[str, int]
    scheduler: dict | None
    loss_scale: dict[str, float] | None
    random: list[dict]  # of each rank
    files: dict[str, SavedFile]
    format: int = field(default=FORMAT)

    @functools.cached_property
    def ds_config(self) -> DsConfig:
        """The saved run's."""
        return DsConfig.parse(self.about["ds_config"])

    @property
    def world_size(self) -> int:
        return len(self.random)

    @property
    def nbytes(self) -> int:
        return sum(file.bytes for file in self.files.values())

    def of_kind(self, kind: str) -> dict[str, SavedTensor]:
        """Tensors of one kind, by parameter."""
        return {key.partition("/")[2]: saved for key, saved in self.tensors.items() if key.startswith(f"{kind}/")}

    @property
    def moments(self) -> list[str]:
        """The kinds that are the optimizer's own."""
        kinds = {key.partition("/")[0] for key in self.tensors}
        return sorted(kind for kind in kinds - {"fp32", "frozen"} if not kind.startswith("buffer."))

    def text(self) -> str:
        """As JSON, with a hash of itself in its last line."""
        body = json.dumps(dataclasses.asdict(self), separators=(",", ":"))
        return f"{body}\n{xxhash.xxh3_128_hexdigest(body.encode())}\n"

    @classmethod
    def read(cls, checkpoint: Path) -> "Manifest":
        """
        Raises:
            Damaged: it is missing, or not as it was written.
        """
        try:
            text = (checkpoint / MANIFEST).read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror.lower() if isinstance(error, OSError) and error.strerror else "not text"
            raise Damaged(
                checkpoint, [f"{MANIFEST}: {reason}; without it nothing in the folder can be trusted"]
            ) from None
        body, _, written = text.rstrip("\n").rpartition("\n")
        if xxhash.xxh3_128_hexdigest(body.encode()) != written:
            raise Damaged(checkpoint, [f"{MANIFEST}: not as it was written (its hash does not match)"])
        fields = json.loads(body)
        if fields["format"] != FORMAT:
            raise Damaged(checkpoint, [f"{MANIFEST}: format {fields['format']}, this version reads {FORMAT}"])
        fields["tensors"] = {key: SavedTensor(**saved) for key, saved in fields["tensors"].items()}
        fields["files"] = {name: SavedFile(**saved) for name, saved in fields["files"].items()}
        return cls(**fields)


def check_sizes(checkpoint: Path) -> Manifest:
    """The manifest, if every file is there in full length: what can be checked at once, whatever the size.

    Raises:
        Damaged
    """
    manifest = Manifest.read(checkpoint)
    problems = []
    for name, saved in manifest.files.items():
        try:
            size = (checkpoint / name).stat().st_size
        except OSError:
            problems.append(f"{name} is missing")
            continue
        if size != saved.bytes:
            problems.append(f"{name} has {size} bytes, {saved.bytes} were written")
    if problems:
        raise Damaged(checkpoint, problems)
    return manifest


def verify(checkpoint: Path, progress=lambda files: files) -> Manifest:
    """The manifest, if every byte is as it was written. Needs neither a GPU nor a process group.

    Args:
        progress: wraps the list of files to be hashed.

    Raises:
        Damaged
    """
    manifest = check_sizes(checkpoint)
    problems = []
    for name in progress(list(manifest.files)):
        try:
            found = hash_file(checkpoint / name)
        except OSError as error:
            problems.append(f"{name} cannot be read ({error.strerror})")
            continue
        if found != manifest.files[name].xxh3_128:
            problems.append(
                f"{name}: its contents are not what was written (hash {found[:12]}…, "
                f"{manifest.files[name].xxh3_128[:12]}… in {MANIFEST})"
            )
    if problems:
        raise Damaged(checkpoint, problems)
    return manifest
