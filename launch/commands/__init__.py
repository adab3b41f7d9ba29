"""The commands of `astrobio`, one module each: ``add_parser(commands)`` describes its options, ``run(args)`` returns
the exit status.

All of them are imported at each start. What takes seconds to import (torch, DeepSpeed, transformers) is imported where
the command runs.
"""

import argparse
from collections.abc import Callable


def new_parser(
    commands, name: str, run: Callable[[argparse.Namespace], int], help: str, example: str
) -> argparse.ArgumentParser:
    """The parser of one of ``commands``, whose arguments go to ``run``."""
    parser = commands.add_parser(
        name,
        help=help,
        description=help,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser
