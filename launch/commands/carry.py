"""`astrobio carry`: fills a folder for a machine without a network."""

import argparse
from pathlib import Path

from launch.commands import new_parser


def add_parser(commands) -> None:
    parser = new_parser(
        commands,
        "carry",
        run,
        "a folder that runs acceptance on a machine without a network",
        "astrobio carry --box box.txt --python 3.12 --out carried",
    )
    parser.add_argument(
        "--box", required=True, type=Path, metavar="FILE", help="what `python3 -m pip list --format=freeze` says there"
    )
    parser.add_argument("--python", default="3.12", metavar="X.Y", help="Python there (default: 3.12)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="a folder that is not there yet")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data/sample"),
        metavar="DIR",
        help="a built dataset, whose first records go along (default: data/sample)",
    )
    parser.add_argument("--records", type=int, default=40, metavar="N", help="in all (default: 40)")
    parser.add_argument("--limit_mib", type=float, default=64, metavar="N", help="of the folder (default: 64)")


def run(args: argparse.Namespace) -> int:
    """
    Raises:
        ConfigError: as `launch.experiments.carry.carry`.
    """
    from launch.experiments.carry import LEFT_OUT, carry  # torch and datasets take seconds to import

    wheels, sizes = carry(args.box, args.out, args.data, args.records, args.python, args.limit_mib)
    print(f"{len(wheels)} wheels: {', '.join(f'{name} {version}' for name, version in wheels.items())}")
    for name, size in sizes.items():
        print(f"{name:10s} {size / 1e6:5.1f} MB")
    for name, what in LEFT_OUT.items():
        print(f"without {name}: {what}")
    print(f"there:     sh {args.out.name}/run.sh")
    return 0
