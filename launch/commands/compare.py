"""`astrobio compare`: runs several ds_configs one after the other."""

import argparse
from functools import partial
from pathlib import Path

from launch.commands import new_parser


def add_parser(commands) -> None:
    parser = new_parser(
        commands,
        "compare",
        run,
        "run several ds_configs, and put what they take side by side",
        "astrobio compare --model tiny --ds_configs ds_configs/zero3*.json --out runs/compared",
    )
    parser.add_argument("--model", required=True, help="preset that all of them train")
    parser.add_argument("--ds_configs", required=True, nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="optimizer steps of each (default: 5)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="for the page, the table and the runs")
    parser.add_argument("--data", type=Path, metavar="DIR", help="a built dataset (default: data/sample)")
    parser.add_argument("--ranks", type=int, metavar="N", help="default: this machine's devices; 2 on a CPU")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="as launch/train.py takes it, for all of them",
    )
    parser.add_argument("--timeout_s", type=float, default=3600, help="after which a run is killed (default: 3600)")


def run(args: argparse.Namespace) -> int:
    """Returns 0 if at least one ds_config ran, else 1."""
    from launch.ds_config.machine import usual_ranks  # DeepSpeed takes seconds to import
    from launch.experiments.compare import compare, device_name

    result = compare(
        args.model,
        args.ds_configs,
        args.steps,
        args.out.resolve(),
        ranks=args.ranks or usual_ranks(),
        data=args.data and args.data.resolve(),
        changes=args.set,
        timeout_s=args.timeout_s,
        device=device_name(),
        report=partial(print, flush=True),
    )
    print(f"page         {args.out / 'compare.html'}")
    return 0 if any(row.status == "done" for row in result.rows) else 1
