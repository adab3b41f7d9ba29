"""`astrobio data`: builds and checks datasets; `data_build` has its own parser and help."""

import argparse


def add_parser(commands) -> None:
    # Without a prefix character nothing is an option, and -h too goes to data_build.
    parser = commands.add_parser(
        "data", help="sources | probe | build | fetch | sample | validate: datasets", add_help=False, prefix_chars="\0"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from data_build.__main__ import main  # imports datasets, for seconds

    return main(args.arguments)
