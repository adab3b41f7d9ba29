"""`astrobio params`: parameters, memory and arithmetic of each part of a model."""

import argparse
import json

from astrobio.config import preset_names
from launch.commands import new_parser


def add_parser(commands) -> None:
    parser = new_parser(
        commands, "params", run, "count parameters and arithmetic of a model", "astrobio params --model 17b"
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME|FILE|DIR",
        help=f"{', '.join(preset_names())}, a YAML file, or a Hugging Face folder with a config.json",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    from launch.planner.model import count, load_model  # torch and transformers take seconds to import

    parts = count(load_model(args.model))
    if args.json:
        print(
            json.dumps(
                {"model": args.model}
                | {
                    key: {part.name: getattr(part, field) for part in parts}
                    for key, field in (
                        ("parameters", "parameters"),
                        ("trainable", "trainable"),
                        ("fp16_bytes", "fp16_bytes"),
                        ("flops_per_sample", "flops"),
                    )
                }
            )
        )
        return 0
    print(f"{args.model:12s} {'parameters':>15s} {'trainable':>15s} {'fp16':>10s} {'forward of a sample':>20s}")
    for part in parts:
        print(
            f"{part.name:12s} {part.parameters:>15,d} {part.trainable:>15,d} {part.fp16_bytes / 1e9:>7.3f} GB "
            f"{part.flops / 1e9:>14,.1f} GFLOP"
        )
    return 0
