"""Reads a ds_config and checks its keys; what it comes down to is in `launch.zero.strategy`."""

import collections
import json
from pathlib import Path
from typing import Any

from astrobio.config import ConfigError, set_dotted, suggestion
from launch.zero.ds_auto import resolve
from launch.zero.ds_keys import key_findings
from launch.zero.finding import raise_problems
from launch.zero.strategy import AUTO, Strategy, batch_sizes, nvme_blocks, nvme_paths, strategy

__all__ = ["AUTO", "Strategy", "batch_sizes", "load_ds_config", "nvme_blocks", "nvme_paths", "read_ds_config",
           "resolve", "strategy"]


def load_ds_config(path: Path, changes: dict[str, Any] | None = None) -> dict:
    """The JSON in ``path`` with ``changes`` (dotted keys) put in, its keys checked.

    Raises:
        ConfigError: no such file, malformed JSON, keys and values that DeepSpeed does not know: all of them, a line
            each.
    """
    config = read_ds_config(path, changes)
    raise_problems(key_findings(config), f"--ds_config {path}")
    return config


def read_ds_config(path: Path, changes: dict[str, Any] | None = None) -> dict:
    """The same, its keys unchecked.

    Raises:
        ConfigError: no such file, malformed JSON, a key that is there twice.
    """
    try:
        text = path.read_text()
    except OSError as error:
        near = suggestion(path.stem, [p.stem for p in path.parent.glob("*.json")]) if path.parent.is_dir() else ""
        raise ConfigError(f"--ds_config {path}: {error.strerror.lower()}{near}") from None

    def unique(pairs: list[tuple[str, Any]]) -> dict:
        twice = [key for key, count in collections.Counter(key for key, _ in pairs).items() if count > 1]
        if twice:
            raise ConfigError(f"--ds_config {path}: {', '.join(map(repr, twice))} is there twice: leave one out")
        return dict(pairs)

    try:
        config = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--ds_config {path}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"--ds_config {path}: must hold an object, holds {type(config).__name__}")
    for key, value in (changes or {}).items():
        set_dotted(config, key, value)
    return config
