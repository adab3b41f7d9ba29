"""`astrobio evaluate`: how good a trained stack is, beside simple models."""

import argparse
import contextlib
import json
import sys
from pathlib import Path

from launch.commands import new_parser


def add_parser(commands) -> None:
    parser = new_parser(
        commands,
        "evaluate",
        run,
        "evaluate a trained stack beside tuned simple models; for several runs, mean and spread",
        "astrobio evaluate runs/science/*",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN|EXPORT", help="a run's folder, or an exported stack")
    parser.add_argument("--data", type=Path, metavar="DIR", help="default: the run's dataset")
    parser.add_argument("--split", default="test", metavar="NAME", help="default: test")
    parser.add_argument(
        "--texts", action="store_true", help="also let it describe each record, and check the numbers in it"
    )
    parser.add_argument("--again", action="store_true", help="compute anew what is kept in the run's folder")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Returns 0; a run that cannot be evaluated raises ConfigError."""
    with contextlib.redirect_stdout(sys.stderr):  # where DeepSpeed is to log; it, torch and scikit-learn take seconds
        from launch.evaluation.assessment import assess
        from launch.evaluation.baselines import simple_models
        from launch.evaluation.stacks import Trained, predictions
        from launch.preflight import DEFAULT_DATA

    trained = [Trained(folder) for folder in args.runs]
    data = args.data or next((found for run in trained if (found := run.data()) is not None), DEFAULT_DATA)
    tables = [predictions(run, data, args.split, args.again or args.data is not None, args.texts) for run in trained]
    assessment = assess(tables, simple_models(data, args.split) if tables[0]["labelled"].any() else None)
    print(json.dumps(assessment.to_dict()) if args.json else assessment)
    return 0
