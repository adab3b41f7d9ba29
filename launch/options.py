"""What the command line and its ``--set`` options say."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from astrobio.config import ConfigError, parse, set_dotted, suggestion

SECTIONS = ("ds_config", "model", "train")


@dataclass(config=ConfigDict(extra="forbid"), kw_only=True)
class TrainConfig:
    """What is neither the network's size nor DeepSpeed's business; change with ``--set train.KEY=VALUE``."""

    seed: int = Field(default=0, ge=0)  # weights, order of the samples, dropout
    epochs: int = Field(default=100, ge=1)  # the scheduler's cycle spans them
    validate_every_epochs: int = Field(default=1, ge=1)
    patience: int = Field(default=20, ge=1)  # validations without a better one before training stops early
    time_limit_h: float = Field(default=672.0, gt=0)  # of the whole run, over all its resumes
    checkpoint_every_steps: int = Field(default=500, ge=1)
    checkpoint_every_h: float = Field(default=2.0, gt=0)
    keep_last: int = Field(default=2, ge=1)  # checkpoints, beside the best one
    keep_every_h: float | None = Field(default=None, gt=0)  # and the first of every so many hours
    eval_micro_batch: int = Field(default=8, ge=1)
    masked_test: bool = True  # the last test also reads each record with parts of it hidden, in 11 more passes
    data_workers: int = Field(default=1, ge=0)  # processes that read ahead, for each rank
    report_overflows_after: int = Field(default=3, ge=1)  # skipped steps in a row
    wandb_project: str = "astrobio"


@dataclasses.dataclass
class Options:
    """A parsed command line; ``changes`` maps each of `SECTIONS` to its dotted keys."""

    ds_config: Path
    model: str
    data: Path | None
    run: Path | None
    resume: str | None
    max_steps: int | None
    changes: dict[str, dict[str, Any]]

    def train_config(self) -> TrainConfig:
        data: dict[str, Any] = {}
        for key, value in self.changes["train"].items():
            set_dotted(data, key, value)
        return parse(TrainConfig, data, "--set train")


def parse_arguments(argv: list[str] | None = None) -> Options:
    """The options of launch/train.py. None of them may be a prefix of one of the `deepspeed` command's own: its
    parser matches prefixes even behind the script's name."""
    parser = argparse.ArgumentParser(
        prog="deepspeed --num_gpus N launch/train.py",
        allow_abbrev=False,
        description="Train the stack as one ds_config says.",
    )
    parser.add_argument("--ds_config", required=True, type=Path, metavar="FILE", help="one of ds_configs/, or your own")
    parser.add_argument(
        "--model",
        default="auto",
        metavar="NAME|FILE|auto",
        help="preset; auto (the default) takes the largest that fits this machine",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="a built dataset (default: data/sample, built on first need)"
    )
    parser.add_argument("--run", type=Path, metavar="DIR", help="the run's folder (default: a dated one under runs/)")
    parser.add_argument(
        "--resume",
        metavar="auto|DIR",
        help="auto: the newest valid checkpoint of --run (without --run: of the newest run), or a "
        "fresh start where there is none; DIR: a run's folder or one checkpoint",
    )
    parser.add_argument(
        "--max_steps",
        type=int,
        metavar="N",
        help="stop after N optimizer steps in all; a run stopped within its first epoch is not tested",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change one value: ds_config.fp16.initial_scale_power=8 model.language.max_text_tokens=32 train.epochs=3",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # given by the deepspeed launcher
    args = parser.parse_args(argv)
    if args.max_steps is not None and args.max_steps < 1:
        raise ConfigError(f"--max_steps {args.max_steps}: must be at least 1")
    return Options(
        args.ds_config, args.model, args.data, args.run, args.resume, args.max_steps, parse_changes(args.set)
    )


def parse_changes(pairs: list[str]) -> dict[str, dict[str, Any]]:
    """``["train.epochs=3"]`` as ``{"ds_config": {}, "model": {}, "train": {"epochs": 3}}``; values are JSON or text."""
    changes: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        section, dot, rest = key.partition(".")
        if not equals or not dot or not rest:
            raise ConfigError(f"--set {pair}: write it as SECTION.KEY=VALUE, with SECTION one of {', '.join(SECTIONS)}")
        if section not in SECTIONS:
            raise ConfigError(f"--set {pair}: unknown section {section!r}{suggestion(section, SECTIONS)}")
        try:
            changes[section][rest] = json.loads(value)
        except ValueError:
            changes[section][rest] = value
    return changes
