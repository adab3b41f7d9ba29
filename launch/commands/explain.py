"""`astrobio explain`: says why a run ended or hangs."""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from launch.commands import new_parser
from launch.postmortem.explain import explain


def add_parser(commands) -> None:
    parser = new_parser(
        commands,
        "explain",
        run,
        "say why a run ended, or stands still",
        "astrobio explain runs/20260131-120000-tiny-zero3_offload",
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    explanation = explain(args.folder)
    if args.json:
        print(json.dumps(asdict(explanation)))
        return 0
    print(f"{explanation.cause}: {explanation.summary}")
    for line in explanation.evidence:
        print(f"  - {line}")
    if explanation.cure:
        print(f"cure: {explanation.cure}")
    now = time.time()
    print(f"{'rank':>4s} {'phase':10s} {'step':>6s} {'collectives':>11s}  {'in':22s} {'last sign of life':>18s}  end")
    for rank in explanation.ranks:
        step = "-" if rank["step"] is None else str(rank["step"])
        inside = rank["collective"] if rank["inside"] else "-"
        end = rank["process"] and f"process {rank['process']}" or rank["end"]
        print(
            f"{rank['rank']:4d} {rank['phase']:10s} {step:>6s} {rank['collectives']:11d}  {inside:22s} "
            f"{now - rank['last_sign_of_life']:14.0f} s ago  {end}"
        )
    return 0
