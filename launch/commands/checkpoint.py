"""`astrobio checkpoint list | verify | convert | export`."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from astrobio.config import ConfigError
from launch.commands import new_parser


def add_parser(commands) -> None:
    parser = new_parser(
        commands,
        "checkpoint",
        run,
        "list | verify | convert | export: a run's checkpoints",
        "astrobio checkpoint list runs/a",
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    def action(name: str, help: str, do: Callable, options: str = "") -> argparse.ArgumentParser:
        parser = new_parser(actions, name, run, help, f"astrobio checkpoint {name} runs/a{options}")
        parser.add_argument("path", type=Path, metavar="RUN", help="a run's folder, or one checkpoint of it")
        parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
        parser.set_defaults(action=do)
        return parser

    action("list", "the checkpoints of a run: step, size, how they were saved", _list)
    action("verify", "read every byte and compare it with what was written", _verify)
    converting = action(
        "convert", "write DeepSpeed's universal format, for programs that know no other", _convert, " --out universal"
    )
    exporting = action(
        "export", "write the model as safetensors, for use without DeepSpeed", _export, " --out exported --dtype bf16"
    )
    for writing in (converting, exporting):
        writing.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that is not there yet")
    exporting.add_argument(
        "--part",
        choices=("whole", "language"),
        default="whole",
        help="whole: for AstrobioStack.from_pretrained; language: for transformers",
    )
    exporting.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), default="bf16")
    exporting.add_argument("--shard_gb", type=float, default=5.0, metavar="N", help="the most that a file holds")
    exporting.add_argument("--tokenizer", type=Path, metavar="DIR", help="a tokenizer's folder, to be copied beside it")


def run(args: argparse.Namespace) -> int:
    return args.action(args)


# torch takes seconds to import, transformers and DeepSpeed more: each action imports what it needs. -------------------


def _list(args: argparse.Namespace) -> int:
    from launch.checkpoints.folder import BEST, LATEST, checkpoints, folder_of, named

    rows = [_row(path) for path in checkpoints(args.path)]
    if not rows:
        raise ConfigError(f"{args.path}: no checkpoints in {folder_of(args.path)}")
    names = {name: named(args.path, name) for name in (LATEST, BEST)}
    for row in rows:
        row["named"] = [name for name, path in names.items() if path is not None and path.name == row["name"]]
    if args.json:
        print(json.dumps({"run": str(args.path), "checkpoints": rows}))
        return 0
    for row in rows:
        if row["problems"]:
            print(f"{row['name']}  broken: {'; '.join(row['problems'])}")
        else:
            print(
                f"{row['name']}  {row['bytes'] / 1e9:9.3f} GB  {row['model']:12s} {row['saved_by']:44s} "
                f"{' '.join(row['named'])}"
            )
    return 0


def _row(path: Path) -> dict:
    from launch.checkpoints.manifest import Damaged, check_sizes

    try:
        manifest = check_sizes(path)
    except Damaged as damaged:
        return {"name": path.name, "problems": damaged.problems}
    where = manifest.ds_config
    return {
        "name": path.name,
        "step": manifest.step,
        "bytes": manifest.nbytes,
        "model": manifest.about["model"],
        "ranks": manifest.world_size,
        "problems": [],
        "saved_by": f"{manifest.world_size} ranks, ZeRO-{where.stage}, {where.precision}, optimizer "
        f"{where.optimizer_offload.device}",
    }


def _verify(args: argparse.Namespace) -> int:
    from launch.checkpoints.folder import checkpoints
    from launch.checkpoints.manifest import Damaged, verify

    paths = [args.path] if args.path.name.startswith("step_") else checkpoints(args.path)
    if not paths:
        raise ConfigError(f"{args.path}: neither a checkpoint nor a run's folder with one")
    result: dict[str, list[str]] = {}
    for path in paths:
        try:
            verify(path, lambda files, path=path: _bar(files, path.name, "file"))
            result[path.name] = []
        except Damaged as damaged:
            result[path.name] = damaged.problems
    if args.json:
        print(json.dumps({"checkpoints": result}))
    else:
        for name, problems in result.items():
            print(f"{name}  {'; '.join(problems) or 'as it was written'}")
    return 2 if any(result.values()) else 0


def _export(args: argparse.Namespace) -> int:
    from launch.checkpoints.export import export

    path = _one(args.path)
    files = export(
        path,
        args.out,
        args.part,
        args.dtype,
        int(1e9 * args.shard_gb),
        args.tokenizer,
        lambda tensors: _bar(tensors, "exporting", "tensor"),
    )
    _print_written(args, path, files)
    return 0


def _convert(args: argparse.Namespace) -> int:
    with contextlib.redirect_stdout(sys.stderr):  # where DeepSpeed is to log
        from launch.checkpoints.universal import convert
    path = _one(args.path)
    files = convert(path, args.out, lambda names: _bar(names, "converting", "parameter"))
    _print_written(args, path, files)
    if not args.json:
        print(
            f'load it with "checkpoint": {{"load_universal": true}} and load_checkpoint({str(args.out)!r}, '
            "tag='universal'); frozen weights and buffers are not restored by DeepSpeed 0.19.8"
        )
    return 0


def _one(path: Path) -> Path:
    """The checkpoint at ``path``, or the newest valid one of the run there."""
    from launch.checkpoints.folder import is_checkpoint, valid_checkpoints
    from launch.checkpoints.manifest import Manifest

    if is_checkpoint(path) or path.name.startswith("step_"):
        Manifest.read(path)
        return path
    valid = valid_checkpoints(path)
    if not valid:
        raise ConfigError(f"{path}: neither a checkpoint nor a run's folder with a valid one")
    return valid[-1]


def _bar(items, doing: str, unit: str):
    return tqdm(items, desc=doing, unit=f" {unit}", disable=not os.isatty(2), leave=False, file=sys.stderr)


def _print_written(args: argparse.Namespace, path: Path, files: list[Path]) -> None:
    size = sum(file.stat().st_size for file in files)
    if args.json:
        print(
            json.dumps(
                {"checkpoint": str(path), "out": str(args.out), "bytes": size, "files": [file.name for file in files]}
            )
        )
    else:
        print(f"{path.name} → {args.out}: {len(files)} files, {size / 1e9:.3f} GB")
