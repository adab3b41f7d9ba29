"""The `astrobio` command; `launch.commands` has its commands."""

import argparse
import sys

from astrobio.config import ConfigError
from launch.commands import acceptance, carry, check, checkpoint, compare, data, evaluate, explain, params, plan

COMMANDS = (data, check, compare, acceptance, evaluate, carry, explain, params, plan, checkpoint)


def main(argv: list[str] | None = None) -> int:
    """Run one of the commands; returns the exit status: 0, or 2 for a mistake in the options or the input."""
    parser = argparse.ArgumentParser(prog="astrobio", description="Train a multimodal astrobiology stack.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except ConfigError as error:
        print(f"error: {error}".replace("\n", "\nerror: "), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
