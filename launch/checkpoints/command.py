"""``astrobio checkpoint list | verify | convert | export``."""

import json
import os
import sys
from pathlib import Path

from tqdm import tqdm

from astrobio.config import ConfigError
from launch.checkpoints import folder
from launch.checkpoints.export import DTYPES, PARTS, export
from launch.checkpoints.manifest import Damaged, Manifest, check_sizes, verify
from launch.checkpoints.universal import convert
from launch.ds_config.strategy import strategy


def add_commands(commands) -> None:
    """Add ``checkpoint`` and what follows it to the `astrobio` command's parser."""
    checkpoint = commands.add_parser("checkpoint", help="list | verify | convert | export: a run's checkpoints")
    actions = checkpoint.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, help: str, run):
        parser = actions.add_parser(name, help=help, description=help)
        parser.add_argument("path", type=Path, metavar="RUN", help="a run's folder, or one checkpoint of it")
        parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
        parser.set_defaults(run=run)
        return parser

    action("list", "the checkpoints of a run: step, size, how they were saved", _list)
    action("verify", "read every byte and compare it with what was written", _verify)
    converting = action("convert", "write DeepSpeed's universal format, for programs that know no other", _convert)
    converting.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that is not there yet")
    exporting = action("export", "write the model as safetensors, for use without DeepSpeed", _export)
    exporting.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that is not there yet")
    exporting.add_argument("--part", choices=PARTS, default="whole",
                           help="whole: for AstrobioStack.from_pretrained; language: for transformers")
    exporting.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    exporting.add_argument("--shard_gb", type=float, default=5.0, metavar="N", help="the most that a file holds")
    exporting.add_argument("--tokenizer", type=Path, metavar="DIR", help="a tokenizer's folder, to be copied beside it")


def _list(args) -> int:
    rows = [_row(path) for path in folder.checkpoints(args.path)]
    if not rows:
        raise ConfigError(f"{args.path}: no checkpoints in {folder.folder_of(args.path)}")
    run = args.path
    names = {name: folder.named(run, name) for name in (folder.LATEST, folder.BEST)}
    for row in rows:
        row["named"] = [name for name, path in names.items() if path is not None and path.name == row["name"]]
    if args.json:
        print(json.dumps({"run": str(run), "checkpoints": rows}))
        return 0
    for row in rows:
        if row["problems"]:
            print(f"{row['name']}  broken: {'; '.join(row['problems'])}")
        else:
            print(f"{row['name']}  {row['bytes'] / 1e9:9.3f} GB  {row['model']:12s} {row['saved_by']:44s} "
                  f"{' '.join(row['named'])}")
    return 0


def _row(path: Path) -> dict:
    try:
        manifest = check_sizes(path)
    except Damaged as damaged:
        return {"name": path.name, "problems": damaged.problems}
    where = strategy(manifest.about["ds_config"])
    return {"name": path.name, "step": manifest.step, "bytes": manifest.nbytes, "model": manifest.about["model"],
            "ranks": manifest.world_size, "problems": [],
            "saved_by": f"{manifest.world_size} ranks, ZeRO-{where.stage}, {where.precision}, optimizer "
                        f"{where.optimizer_device}"}


def _verify(args) -> int:
    paths = [args.path] if args.path.name.startswith("step_") else folder.checkpoints(args.path)
    if not paths:
        raise ConfigError(f"{args.path}: neither a checkpoint nor a run's folder with one")
    found = {}
    for path in paths:
        try:
            verify(path, lambda files, path=path: _bar(files, path.name, "file"))
            found[path.name] = []
        except Damaged as damaged:
            found[path.name] = damaged.problems
    if args.json:
        print(json.dumps({"checkpoints": found}))
    else:
        for name, problems in found.items():
            print(f"{name}  {'; '.join(problems) or 'as it was written'}")
    return 2 if any(found.values()) else 0


def _export(args) -> int:
    path = _one(args.path)
    files = export(path, args.out, args.part, args.dtype, int(1e9 * args.shard_gb), args.tokenizer,
                   lambda tensors: _bar(tensors, "exporting", "tensor"))
    _done(args, path, files)
    return 0


def _convert(args) -> int:
    path = _one(args.path)
    files = convert(path, args.out, lambda names: _bar(names, "converting", "parameter"))
    _done(args, path, files)
    if not args.json:
        print(f"load it with \"checkpoint\": {{\"load_universal\": true}} and load_checkpoint({str(args.out)!r}, "
              "tag='universal'); frozen weights and buffers are not restored by DeepSpeed 0.19.8")
    return 0


def _one(path: Path) -> Path:
    """The checkpoint at ``path``, or the newest valid one of the run there."""
    if folder.is_checkpoint(path) or path.name.startswith("step_"):
        Manifest.read(path)
        return path
    valid = folder.valid_checkpoints(path)
    if not valid:
        raise ConfigError(f"{path}: neither a checkpoint nor a run's folder with a valid one")
    return valid[-1]


def _bar(items, doing: str, unit: str):
    return tqdm(items, desc=doing, unit=f" {unit}", disable=not os.isatty(2), leave=False, file=sys.stderr)


def _done(args, path: Path, files: list[Path]) -> None:
    size = sum(file.stat().st_size for file in files)
    if args.json:
        print(json.dumps({"checkpoint": str(path), "out": str(args.out), "bytes": size,
                          "files": [file.name for file in files]}))
    else:
        print(f"{path.name} → {args.out}: {len(files)} files, {size / 1e9:.3f} GB")
