"""`astrobio check`: names every problem of a ds_config."""

import argparse
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from launch.commands import new_parser


def add_parser(commands) -> None:
    parser = new_parser(
        commands,
        "check",
        run,
        "name every problem of a ds_config",
        "astrobio check --ds_config ds_configs/zero3_offload.json --model 17b --ranks 2",
    )
    parser.add_argument("--ds_config", required=True, type=Path)
    parser.add_argument("--model", help="also check it against this preset")
    parser.add_argument("--ranks", type=int, help="devices it will run on (default: this machine's)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Returns 0, or 2 if there is a problem.

    Raises:
        ConfigError: the file cannot be read, or there is no such model.
    """
    with contextlib.redirect_stdout(sys.stderr):  # where DeepSpeed is to log, whose import takes seconds
        from launch.ds_config.auto import auto_values
        from launch.ds_config.check import check, likely_ranks
        from launch.ds_config.config import without
        from launch.ds_config.facts import model_facts
        from launch.ds_config.read import read_ds_config
    config, facts = read_ds_config(args.ds_config), None
    if args.model is not None:
        from launch.planner.model import load_model  # transformers takes seconds more, which only this needs

        facts = model_facts(load_model(args.model))
    ranks = args.ranks or likely_ranks(config)
    folder = os.environ.get("ASTROBIO_NVME")
    findings = check(config, world_size=ranks, facts=facts, nvme_folder=Path(folder) if folder else None)
    problems = [finding for finding in findings if finding.problem]
    autos = auto_values(
        without(config, {finding.key for finding in problems}),
        world_size=ranks,
        nvme_folder=folder,
        largest_parameter=None if facts is None else facts.largest,
        hidden_size=None if facts is None else facts.hidden_size,
    )
    if args.json:
        print(
            json.dumps(
                {
                    "ds_config": str(args.ds_config),
                    "model": args.model,
                    "ranks": ranks,
                    "ok": not problems,
                    "problems": [finding.as_json() for finding in problems],
                    "remarks": [finding.as_json() for finding in findings if not finding.problem],
                    "auto": autos,
                }
            )
        )
        return 2 if problems else 0
    for finding in findings:
        print(f"{'error' if finding.problem else 'remark'}: {finding}", file=sys.stderr if finding.problem else None)
    for key, value in autos.items():
        print(f"auto: {key} becomes {_value(key, value)}")
    print(
        f"{args.ds_config}: {len(problems) or 'no'} problem{'s' if len(problems) > 1 else ''} found, for {ranks} ranks"
    )
    return 2 if problems else 0


def _value(key: str, value: Any) -> str:
    if value is not None:
        return json.dumps(value)
    return (
        "a folder in the run's"
        if key.endswith("nvme_path")
        else "what the length of the run says"
        if key.startswith("scheduler")
        else "what the model says (--model)"
    )
