"""`astrobio acceptance`: checks that everything works on this machine."""

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from astrobio.config import ConfigError, load_preset
from launch.commands import new_parser

if TYPE_CHECKING:  # see `run`
    from launch.experiments.acceptance import Acceptance


def add_parser(commands) -> None:
    parser = new_parser(
        commands,
        "acceptance",
        run,
        "does all of it hold on this machine? In ten minutes",
        "astrobio acceptance --minutes 20 --out runs/acceptance",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/acceptance"),
        metavar="DIR",
        help="for the page, the JSON and the runs (default: runs/acceptance)",
    )
    parser.add_argument("--minutes", type=float, default=10, metavar="N", help="it stops then (default: 10)")
    parser.add_argument("--model", default="tiny", metavar="NAME", help="preset that is trained (default: tiny)")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="a built dataset (default: data/sample); a small one does: astrobio data sample",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Returns 0, or 1 if a required check fails.

    Raises:
        ConfigError: no such model, or no dataset.
    """
    with contextlib.redirect_stdout(sys.stderr):  # where DeepSpeed is to log, whose import takes seconds
        from astrobio.dataset import dataset_problems
        from launch.ds_config.machine import usual_ranks
        from launch.experiments.acceptance import Acceptance
        from launch.experiments.compare import device_name
        from launch.experiments.rungs import LADDER
        from launch.preflight import DEFAULT_DATA
    load_preset(args.model)
    data = (args.data or DEFAULT_DATA).resolve()
    if problems := dataset_problems(data, hash_files=False):
        raise ConfigError("\n".join(f"--data {problem}" for problem in problems))
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    acceptance = Acceptance(out, args.model, data, usual_ranks(), device_name(), args.minutes)
    acceptance.climb(LADDER, lambda text: print(text, file=sys.stderr if args.json else sys.stdout, flush=True))
    if args.json:
        print(json.dumps(acceptance.to_dict()))
    else:
        print(f"\n{summary(acceptance)}\npage         {args.out / 'acceptance.html'}")
    return 1 if acceptance.failed else 0


def summary(acceptance: "Acceptance") -> str:
    """In a few lines."""
    truths = [truth for rung in acceptance.rungs for truth in rung.truths if truth.holds is not None]
    lines = [
        f"{sum(bool(truth.holds) for truth in truths)} of {len(truths)} hold, in {acceptance.seconds / 60:.1f} minutes "
        f"on {'the CPU' if acceptance.device == 'cpu' else acceptance.device}, {acceptance.ranks} rank(s)"
    ]
    lines += [f"FAILS        {truth.what}: {truth.seen}" for truth in acceptance.failed]
    lines += [f"{rung.status:12s} {rung.name}: {rung.reason}" for rung in acceptance.rungs if rung.reason]
    return "\n".join(lines)
