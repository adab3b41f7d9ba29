"""``astrobio data``, or ``python -m data_build``: build and check datasets, list and fetch their sources."""

import argparse
import json
import sys
from pathlib import Path

from data_build.cache import DataError


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 good, 1 a dataset or an archive has problems, 2 the user must mend it."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except DataError as error:
        print(f"error: {error}".replace("\n", "\nerror: "), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="astrobio data", description=__doc__.split(": ", 1)[1])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    build = commands.add_parser("build", help="build a dataset from a recipe; a stopped build goes on where it was")
    build.add_argument("recipe", metavar="RECIPE", help="name of a recipe, sample or full, or a .yaml file")
    build.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder of the dataset")
    build.add_argument(
        "--limit",
        metavar="N",
        type=int,
        help="at most N planets, and N rows of each archive that is no catalogue, for a quick try",
    )
    build.add_argument("--workers", metavar="N", type=int, default=2, help="processes (default 2)")
    build.add_argument("--offline", action="store_true", help="use only answers of archives that are in the cache")
    build.add_argument("--refresh", action="store_true", help="ask the archives again for what is in the cache")
    build.set_defaults(run=_build)

    validate = commands.add_parser("validate", help="check a dataset's files and every record")
    validate.add_argument("folder", metavar="DIR", type=Path)
    validate.set_defaults(run=_validate)

    sources = commands.add_parser("sources", help="list the archives and models a dataset is made from")
    sources.add_argument("--json", action="store_true", help="print JSON")
    sources.set_defaults(run=_sources)

    probe = commands.add_parser(
        "probe",
        help="read one row of each archive, live, and compare it with what the sources expect",
        description="Read one row of each archive, live, and compare its columns, types and units with what the source "
        "expects. Exits with 1 if an archive has changed or cannot be reached, or a named one needs credentials.",
        epilog="example:\n  astrobio data probe gaia nasa_pscomppars --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    probe.add_argument("names", metavar="NAME", nargs="*", help="an archive of `astrobio data sources` (default: all)")
    probe.add_argument("--json", action="store_true", help="print JSON")
    probe.set_defaults(run=_probe)

    sample = commands.add_parser("sample", help="the first records of a dataset, small enough to carry elsewhere")
    sample.add_argument(
        "--of", metavar="DIR", type=Path, default=Path("data/sample"), help="a built dataset (default: data/sample)"
    )
    sample.add_argument("--records", metavar="N", type=int, default=40, help="in all, of all splits (default: 40)")
    sample.add_argument("--out", metavar="DIR", type=Path, required=True, help="a folder that is not there yet")
    sample.set_defaults(run=_sample)

    fetch = commands.add_parser("fetch", help="fetch the data files that a recipe's installed sources need")
    fetch.add_argument("recipe", metavar="RECIPE")
    fetch.set_defaults(run=_fetch)
    return parser


# The commands import what they need: `--help` should not wait for the models to load.


def _build(arguments: argparse.Namespace) -> int:
    from data_build.pipeline import build
    from data_build.policy import Policy

    if arguments.offline and arguments.refresh:
        raise DataError("--offline and --refresh contradict each other: give one of them")
    policy = Policy(offline=arguments.offline, refresh=arguments.refresh)
    manifest = build(arguments.recipe, arguments.out, limit=arguments.limit, workers=arguments.workers, policy=policy)
    for split, kinds in manifest["counts"].items():
        told = ", ".join(
            f"{count.get('records', 0)} records of {count['planets']} {kind} planets" for kind, count in kinds.items()
        )
        print(f"{split}: {told}")
    print(f"{arguments.out}: content {manifest['content_sha256']}")
    failed = manifest.get("failed_archives", {})
    for name, reason in failed.items():
        print(f"not read: {name}: {reason}", file=sys.stderr)
    if failed:
        print(
            f"warning: {arguments.out} is without {len(failed)} of {len(manifest['recipe']['archives'])} archives: "
            f"{', '.join(failed)}; to try them again remove it and run the same command: what was fetched is kept",
            file=sys.stderr,
        )
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    from data_build.validation import validate

    problems = validate(arguments.folder)
    for problem in problems:
        print(problem)
    if not problems:
        print(f"{arguments.folder}: good")
    return 1 if problems else 0


def _sources(arguments: argparse.Namespace) -> int:
    from data_build.inventory import inventory, table

    entries = inventory()
    print(json.dumps({"sources": entries}, indent=1) if arguments.json else table(entries))
    return 0


def _probe(arguments: argparse.Namespace) -> int:
    from data_build.probe import failed, probe, table

    found = probe(arguments.names)
    print(json.dumps({"archives": found}, indent=1) if arguments.json else table(found))
    return 1 if failed(found, named=bool(arguments.names)) else 0


def _sample(arguments: argparse.Namespace) -> int:
    from data_build.excerpt import excerpt, shares

    manifest = excerpt(arguments.of, arguments.out, shares(arguments.records))
    size = sum(file["bytes"] for file in manifest["files"].values())
    print(f"{arguments.out}: {sum(shares(arguments.records).values())} records, {size / 1e6:.1f} MB")
    return 0


def _fetch(arguments: argparse.Namespace) -> int:
    from data_build.pipeline import fetch

    for name in fetch(arguments.recipe):
        print(f"{name}: there, checked")
    return 0


if __name__ == "__main__":
    sys.exit(main())
