"""A checkpoint on disk, of a Hugging Face model or of an exported stack, read a slice of a tensor at a time."""

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from astrobio.config import ConfigError

INDEX, SINGLE, CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"


class Pretrained:
    """A folder with config.json and safetensors, in one file or in shards with an index.

    Args:
        part: what starts from it: the language model from a Hugging Face checkpoint, an encoder from an exported stack.

    Raises:
        ConfigError: the folder or one of its files is missing, damaged or no safetensors; the message says what to do.
    """

    def __init__(self, folder: str | Path, part: str = "language"):
        self.folder, self.key = Path(folder), f"{part}.init_from"
        if not self.folder.is_dir():
            what = (
                f"a Hugging Face checkpoint ({CONFIG} and safetensors)"
                if part == "language"
                else "a stack that `astrobio checkpoint export` wrote"
            )
            raise ConfigError(f"{self.key} = {str(folder)!r}: no such folder; it must hold {what}")
        self._open: tuple[Path, contextlib.ExitStack, object] | None = None

    @property
    def config(self) -> PreTrainedConfig:
        """The `transformers` configuration of the checkpoint's model."""
        if not (self.folder / CONFIG).is_file():
            raise ConfigError(f"{self.key}: {self.folder / CONFIG} is missing")
        try:
            return AutoConfig.from_pretrained(self.folder, trust_remote_code=False)  # else it asks at the terminal
        except Exception as error:  # each model's checks raise their own kinds of errors
            raise ConfigError(f"{self.key}: {self.folder / CONFIG}: {error}") from error

    @property
    def has_tokenizer(self) -> bool:
        return (self.folder / "tokenizer_config.json").is_file()

    def files(self) -> dict[str, Path]:
        """The file of each tensor, from the headers of all files."""
        if (self.folder / INDEX).is_file():
            try:
                names = sorted(set(json.loads((self.folder / INDEX).read_text())["weight_map"].values()))
            except (ValueError, KeyError, AttributeError):
                raise ConfigError(f"{self.key}: {self.folder / INDEX}: not an index of safetensors") from None
        elif (self.folder / SINGLE).is_file():
            names = [SINGLE]
        else:
            raise ConfigError(
                f"{self.key}: {self.folder} has neither {SINGLE} nor {INDEX}; a checkpoint of "
                "another format becomes one with `save_pretrained`"
            )
        return {tensor: self.folder / name for name in names for tensor in self._file(self.folder / name).keys()}

    def problems(self, model: PreTrainedModel, names: dict[nn.Parameter, str]) -> list[str]:
        """Why this checkpoint cannot fill the parameters of the language ``model`` in ``names``, one line each."""
        # Tied weights are one parameter under several names; some files hold buffers that models no longer have.
        also = set(model.state_dict()) | set(getattr(model, "all_tied_weights_keys", None) or ())
        ignored = [
            re.compile(pattern)
            for pattern in (*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq$")
        ]
        return self._problems(
            names, lambda name: name not in also and not any(pattern.search(name) for pattern in ignored)
        )

    def part_problems(self, part: str, names: dict[nn.Parameter, str]) -> list[str]:
        """Why this exported stack cannot fill the parameters of its ``part`` in ``names``, one line each."""
        return self._problems(names, lambda name: name.startswith(f"{part}."))

    def _problems(self, names: dict[nn.Parameter, str], superfluous: Callable[[str], bool]) -> list[str]:
        """What is missing or of another shape, and what else there is that is ``superfluous``."""
        files, wanted = self.files(), {name: tuple(p.shape) for p, name in names.items()}
        problems = [f"{self.folder}: lacks {name} {list(shape)}" for name, shape in wanted.items() if name not in files]
        problems += [
            f"{files[name]}: holds {name}, which the model has not"
            for name in sorted(files)
            if name not in wanted and superfluous(name)
        ]
        for name, shape in wanted.items():
            if name in files:
                found = tuple(self._file(files[name]).get_slice(name).get_shape())
                if found != shape:
                    problems.append(f"{files[name]}: {name} is {list(found)}, the model's is {list(shape)}")
        return [f"{self.key}: {problem}" for problem in problems]

    def read(self, name: str, start: int, stop: int, file: Path) -> Tensor:
        """Elements ``start`` to ``stop`` of the flattened tensor; reads only the rows that hold them."""
        tensor = self._file(file).get_slice(name)
        shape = tensor.get_shape()
        if not shape:
            return self._file(file).get_tensor(name).reshape(1)[start:stop]
        row = max(1, torch.Size(shape[1:]).numel())
        first, last = start // row, -(-stop // row)
        return tensor[first:last].reshape(-1)[start - first * row : stop - first * row]

    def _file(self, path: Path):
        """The opened file; closes the previous one, whose pages would count as this process's memory."""
        if self._open is None or self._open[0] != path:
            self.close()
            stack = contextlib.ExitStack()
            try:
                self._open = path, stack, stack.enter_context(safe_open(path, "pt"))
            except FileNotFoundError:
                raise ConfigError(f"{self.key}: {path} is missing, but {INDEX} names it") from None
            except (SafetensorError, OSError) as error:
                raise ConfigError(f"{self.key}: {path}: damaged or cut short ({error}); fetch it again") from None
        return self._open[2]

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None
