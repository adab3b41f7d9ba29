"""The `astrobio` command."""

import argparse
import contextlib
import gc
import json
import signal
import sys
from pathlib import Path

from astrobio.config import ConfigError, preset_names


def main(argv: list[str] | None = None) -> int:
    """Run one of the commands; returns the exit status: 0, or 2 for a mistake in the options or the input."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["data"]:  # its own parser and help
        from data_build.__main__ import main as data
        return data(arguments[1:])
    parser = argparse.ArgumentParser(prog="astrobio", description="Train a multimodal astrobiology stack.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("data", help="sources | build | fetch | sample | validate: datasets", add_help=False)
    check = commands.add_parser("check", help="name every problem of a ds_config")
    check.add_argument("--ds_config", required=True, type=Path)
    check.add_argument("--model", help="also check it against this preset")
    check.add_argument("--ranks", type=int, help="devices it will run on (default: this machine's)")
    check.add_argument("--json", action="store_true", help="one JSON object on stdout")
    check.set_defaults(run=_check)
    compare = commands.add_parser("compare", help="run several ds_configs, and put what they take side by side")
    compare.add_argument("--model", required=True, help="preset that all of them train")
    compare.add_argument("--ds_configs", required=True, nargs="+", type=Path, metavar="FILE")
    compare.add_argument("--steps", type=int, default=5, metavar="N", help="optimizer steps of each (default: 5)")
    compare.add_argument("--out", required=True, type=Path, metavar="DIR", help="for the page, the table and the runs")
    compare.add_argument("--data", type=Path, metavar="DIR", help="a built dataset (default: data/sample)")
    compare.add_argument("--ranks", type=int, metavar="N", help="default: this machine's devices; 2 on a CPU")
    compare.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                         help="as launch/train.py takes it, for all of them")
    compare.add_argument("--timeout_s", type=float, default=3600, help="after which a run is killed (default: 3600)")
    compare.set_defaults(run=_compare)
    acceptance = commands.add_parser("acceptance", help="does all of it hold on this machine? In ten minutes")
    acceptance.add_argument("--out", type=Path, default=Path("runs/acceptance"), metavar="DIR",
                            help="for the page, the JSON and the runs (default: runs/acceptance)")
    acceptance.add_argument("--minutes", type=float, default=10, metavar="N", help="it stops then (default: 10)")
    acceptance.add_argument("--model", default="tiny", metavar="NAME", help="preset that is trained (default: tiny)")
    acceptance.add_argument("--data", type=Path, metavar="DIR", help="a built dataset (default: data/sample); a small "
                            "one does: astrobio data sample")
    acceptance.add_argument("--json", action="store_true", help="one JSON object on stdout")
    acceptance.set_defaults(run=_acceptance)
    carry = commands.add_parser("carry", help="a folder that runs acceptance on a machine without a network")
    carry.add_argument("--box", required=True, type=Path, metavar="FILE",
                       help="what `python3 -m pip list --format=freeze` says there")
    carry.add_argument("--python", default="3.12", metavar="X.Y", help="Python there (default: 3.12)")
    carry.add_argument("--out", required=True, type=Path, metavar="DIR", help="a folder that is not there yet")
    carry.add_argument("--data", type=Path, default=Path("data/sample"), metavar="DIR",
                       help="a built dataset, whose first records go along (default: data/sample)")
    carry.add_argument("--records", type=int, default=40, metavar="N", help="in all (default: 40)")
    carry.add_argument("--limit_mib", type=float, default=64, metavar="N", help="of the folder (default: 64)")
    carry.set_defaults(run=_carry)
    explain = commands.add_parser("explain", help="say why a run ended, or stands still")
    explain.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    explain.add_argument("--json", action="store_true", help="one JSON object on stdout")
    explain.set_defaults(run=_explain)
    params = commands.add_parser("params", help="count parameters and arithmetic of a model")
    params.add_argument("--model", required=True, metavar="NAME|FILE|DIR",
                        help=f"{', '.join(preset_names())}, a YAML file, or a Hugging Face folder with a config.json")
    params.add_argument("--json", action="store_true", help="one JSON object on stdout")
    params.set_defaults(run=_params)
    plan = commands.add_parser("plan", help="predict memory and time of a model under a ds_config on some hardware")
    plan.add_argument("--model", required=True, metavar="NAME|FILE|DIR",
                      help=f"{', '.join(preset_names())}, a YAML file, or the folder of a Hugging Face model")
    plan.add_argument("--ds_config", type=Path, metavar="FILE", help="not needed with --table")
    plan.add_argument("--hardware", default="a5000x2", metavar="NAME|FILE|this",
                      help="a profile of launch/planner/hardware, a YAML file, or this machine")
    plan.add_argument("--seq_length", type=int, metavar="N", help="text tokens (default: as many as the model reads)")
    plan.add_argument("--micro_batch", type=int, metavar="N", help="in place of the ds_config's")
    plan.add_argument("--ranks", type=int, metavar="N", help="default: as many as the hardware has cards")
    plan.add_argument("--data", type=Path, metavar="DIR", help="a built dataset: how long training on it takes")
    plan.add_argument("--epochs", type=int, metavar="N", help="of it (default: as launch/train.py)")
    plan.add_argument("--json", action="store_true", help="one JSON object on stdout")
    plan.add_argument("--advice", action="store_true",
                      help="also look for changes that fit or are faster; each takes as long as the plan")
    plan.add_argument("--largest", action="store_true",
                      help="also look for the largest micro-batch and the longest text that fit the cards")
    plan.add_argument("--table", action="store_true",
                      help="every ds_config of ds_configs/ for the models named, as Markdown: --model 17b,17b_frozen")
    plan.set_defaults(run=_plan)
    if arguments[:1] == ["checkpoint"]:  # DeepSpeed takes seconds to import
        from launch.checkpoints.command import add_commands
        add_commands(commands)
    else:
        commands.add_parser("checkpoint", help="list | verify | convert | export: a run's checkpoints", add_help=False)
    args = parser.parse_args(arguments)
    try:
        return args.run(args)
    except ConfigError as error:
        print(f"error: {error}".replace("\n", "\nerror: "), file=sys.stderr)
        return 2


def _check(args) -> int:
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed logs to stdout
        from launch.ds_config.check import run
    return run(args.ds_config, args.model, args.ranks, args.json)


def _compare(args) -> int:
    from launch.experiments.compare import run_command
    return run_command(args)


def _acceptance(args) -> int:
    with contextlib.redirect_stdout(sys.stderr):
        from launch.experiments.acceptance import run_command
    return run_command(args)


def _carry(args) -> int:
    from launch.experiments.carry import run_command
    return run_command(args)


def _explain(args) -> int:
    with contextlib.redirect_stdout(sys.stderr):
        from launch.postmortem.explain import run_command
    return run_command(args.folder, args.json)


def _params(args) -> int:
    """Parameters, memory and arithmetic of each part."""
    from launch.planner.model import count, load_model
    parts = count(load_model(args.model))
    if args.json:
        print(json.dumps({"model": args.model} | {
            key: {part.name: getattr(part, field) for part in parts} for key, field in
            (("parameters", "parameters"), ("trainable", "trainable"), ("fp16_bytes", "fp16_bytes"),
             ("flops_per_sample", "flops"))}))
        return 0
    print(f"{args.model:12s} {'parameters':>15s} {'trainable':>15s} {'fp16':>10s} {'forward of a sample':>20s}")
    for part in parts:
        print(f"{part.name:12s} {part.parameters:>15,d} {part.trainable:>15,d} {part.fp16_bytes / 1e9:>7.3f} GB "
              f"{part.flops / 1e9:>14,.1f} GFLOP")
    return 0


def _plan(args) -> int:
    """Predict what a model costs under a ds_config."""
    if args.ds_config is None and not args.table:
        raise ConfigError("--ds_config is missing: give one of ds_configs/, or your own")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # which ends the ghost runs too
    if args.table and (args.ds_config or args.data or args.advice or args.largest):
        raise ConfigError("--table shows every ds_config: not with --ds_config, --data, --advice or --largest")
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed's remarks, from its import on
        from launch.planner.simulation import pool
        pool.start()  # imports libraries while this process does
        gc.disable()  # a trace has events by the hundred thousand, none of which is garbage
        from launch.planner.job import make_job
        from launch.planner.plan import plan
        from launch.planner.report import print_plan, table
        options = {"seq_length": args.seq_length, "micro_batch": args.micro_batch, "ranks": args.ranks}
        if args.table:
            text = table(args.model.split(","), args.hardware, **options)
        else:
            answer = plan(make_job(args.model, args.ds_config, args.hardware, **options), advice=args.advice,
                          largest=args.largest, data=args.data, epochs=args.epochs)
    if args.table:
        print(text)
    elif args.json:
        print(json.dumps(answer.to_dict()))
    else:
        print_plan(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
