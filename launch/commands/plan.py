"""`astrobio plan`: predicts what a model costs under a ds_config."""

import argparse
import contextlib
import gc
import json
import signal
import sys
from pathlib import Path

from astrobio.config import ConfigError, preset_names
from launch.commands import new_parser


def add_parser(commands) -> None:
    parser = new_parser(
        commands,
        "plan",
        run,
        "predict memory and time of a model under a ds_config on some hardware",
        "astrobio plan --model 17b --ds_config ds_configs/zero3_offload.json --hardware a5000x2",
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME|FILE|DIR",
        help=f"{', '.join(preset_names())}, a YAML file, or the folder of a Hugging Face model",
    )
    parser.add_argument("--ds_config", type=Path, metavar="FILE", help="not needed with --table")
    parser.add_argument(
        "--hardware",
        default="a5000x2",
        metavar="NAME|FILE|this",
        help="a profile of launch/planner/hardware, a YAML file, or this machine",
    )
    parser.add_argument("--seq_length", type=int, metavar="N", help="text tokens (default: as many as the model reads)")
    parser.add_argument("--micro_batch", type=int, metavar="N", help="in place of the ds_config's")
    parser.add_argument("--ranks", type=int, metavar="N", help="default: as many as the hardware has cards")
    parser.add_argument("--data", type=Path, metavar="DIR", help="a built dataset: how long training on it takes")
    parser.add_argument("--epochs", type=int, metavar="N", help="of it (default: as launch/train.py)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "--advice",
        action="store_true",
        help="also look for changes that fit or are faster; each takes as long as the plan",
    )
    parser.add_argument(
        "--largest",
        action="store_true",
        help="also look for the largest micro-batch and the longest text that fit the cards",
    )
    parser.add_argument(
        "--table",
        action="store_true",
        help="every ds_config of ds_configs/ for the models named, as Markdown: --model 17b,17b_frozen",
    )


def run(args: argparse.Namespace) -> int:
    if args.ds_config is None and not args.table:
        raise ConfigError("--ds_config is missing: give one of ds_configs/, or your own")
    if args.table and (args.ds_config or args.data or args.advice or args.largest or args.json):
        raise ConfigError(
            "--table shows every ds_config as Markdown: not with --ds_config, --data, --advice, --largest or --json"
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # which ends the ghost runs too
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed's remarks, from its import on
        # torch and DeepSpeed take seconds to import: those who simulate import them while this process does.
        from launch.planner.simulation import pool

        pool.start()
        gc.disable()  # a trace has events by the hundred thousand, none of which is garbage
        from launch.planner.job import make_job
        from launch.planner.plan import plan
        from launch.planner.report import print_plan, table

        options = {"seq_length": args.seq_length, "micro_batch": args.micro_batch, "ranks": args.ranks}
        if args.table:
            text = table(args.model.split(","), args.hardware, **options)
        else:
            result = plan(
                make_job(args.model, args.ds_config, args.hardware, **options),
                advice=args.advice,
                largest=args.largest,
                data=args.data,
                epochs=args.epochs,
            )
    if args.table:
        print(text)
    elif args.json:
        print(json.dumps(result.to_dict()))
    else:
        print_plan(result)
    return 0
