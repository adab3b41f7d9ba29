"""Reads the file of a ds_config."""

import collections
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hjson
import yaml

from astrobio.config import ConfigError, set_dotted, suggestion

#: Keys of accelerate's own configuration files.
ACCELERATE = {"compute_environment", "deepspeed_config", "distributed_type"}


def read_ds_config(path: Path, changes: dict[str, Any] | None = None) -> dict:
    """The JSON in ``path`` with ``changes`` (dotted keys) put in; `launch.ds_config.check` judges it.

    Raises:
        ConfigError: no such file, malformed JSON, a key that is there twice.
    """
    try:
        text = path.read_text()
    except OSError as error:
        near = suggestion(path.stem, [p.stem for p in path.parent.glob("*.json")]) if path.parent.is_dir() else ""
        raise ConfigError(f"--ds_config {path}: {(error.strerror or str(error)).lower()}{near}") from None

    def unique(pairs: list[tuple[str, Any]]) -> dict:
        twice = [key for key, count in collections.Counter(key for key, _ in pairs).items() if count > 1]
        if twice:
            raise ConfigError(f"--ds_config {path}: {', '.join(map(repr, twice))} is there twice: leave one out")
        return dict(pairs)

    config = _parsed(text, unique, path)
    if not isinstance(config, dict):
        raise ConfigError(f"--ds_config {path}: must hold an object, holds {type(config).__name__}")
    for key, value in (changes or {}).items():
        set_dotted(config, key, value)
    return config


def _parsed(text: str, unique: Callable, path: Path) -> Any:
    """JSON, or what DeepSpeed reads beside it: hjson, with comments and trailing commas."""
    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        told = error
    with contextlib.suppress(yaml.YAMLError):
        found = yaml.safe_load(text)
        if isinstance(found, dict) and ACCELERATE & set(found):
            inner = found.get("deepspeed_config")
            file = inner.get("deepspeed_config_file") if isinstance(inner, dict) else None
            raise ConfigError(
                f"--ds_config {path}: is a configuration of accelerate: "
                + (
                    f"give the file that it names, {file}"
                    if file
                    else "its `deepspeed_config` has names of accelerate's "
                    "own; start from one of ds_configs/ and put its values there"
                )
            )
        if isinstance(found, dict) and path.suffix in (".yaml", ".yml"):
            raise ConfigError(
                f"--ds_config {path}: is YAML, and DeepSpeed reads JSON: python3 -c 'import json, sys, "
                f"yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout, indent=2)' < {path} > "
                f"{path.with_suffix('.json').name}"
            )
    try:
        return hjson.loads(text, object_pairs_hook=unique)
    except hjson.HjsonDecodeError:
        raise ConfigError(f"--ds_config {path}: not valid JSON: {told}") from None
