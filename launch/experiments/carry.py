"""A folder to carry to a machine that reaches no network: `astrobio carry`.

It holds this project, a few records of a dataset, and those of the tested versions that the machine lacks, as wheels.
There one command runs `astrobio acceptance`, and installs nothing outside the folder.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from astrobio.config import ConfigError
from astrobio.files import whole_folder
from data_build.excerpt import excerpt, shares
from launch import ROOT

PROJECT = ("astrobio", "launch", "data_build", "ds_configs", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
#: Packages that acceptance does without, and what is off for it.
LEFT_OUT = {"wandb": "runs are not recorded by Weights & Biases"}
#: Packages that no wheel of this size replaces: the machine has to have them.
OWN = "torch"
#: glibc's versions that a wheel may ask for, as manylinux names them; 2.28 is that of the distributions of 2019.
GLIBC = range(5, 29)

RUN = """\
#!/bin/sh
# Does all of astrobio hold on this machine? Takes what Python here has, and wheels/ for the rest; all stays in here.
set -e
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
find "$here/wheels" -name '*.whl' -exec "$python" -m pip install --quiet --disable-pip-version-check --no-index \\
  --no-deps --no-compile --upgrade --target "$here/site" {} +
export PYTHONPATH="$here/project:$here/site" WANDB_MODE=disabled
exec "$python" -m launch.cli acceptance --data "$here/data" --out "$here/acceptance" "$@"
"""


def read_box(path: Path) -> dict[str, Version | None]:
    """The packages of a machine, by normalised name, from what `pip list --format=freeze` says there.

    Args:
        path: lines ``NAME==VERSION``, or ``NAME`` where the version is not known: it is taken for good enough.

    Raises:
        ConfigError: no such file, or a line that is neither.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ConfigError(
            f"--box {path}: {error.strerror}; make it there: python3 -m pip list --format=freeze > {path.name}"
        ) from None
    found: dict[str, Version | None] = {}
    for number, line in enumerate(lines, 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        match = re.fullmatch(r"([\w.-]+)(?:==([\w.!+-]+))?", line)
        if match is None:
            raise ConfigError(f"--box {path}, line {number}: '{line}' is neither NAME==VERSION nor NAME")
        found[canonicalize_name(match[1])] = Version(match[2]) if match[2] else None
    return found


def missing(box: dict[str, Version | None], python: str) -> dict[str, str]:
    """What a machine lacks of the project's requirements and of theirs: names and the versions that are installed here.

    Args:
        box: the packages there.
        python: its version there, as 3.12.

    Raises:
        ConfigError: torch there is too old or not there, or a package that is to be carried is not installed here.
    """
    markers = {"extra": "", "python_version": python, "python_full_version": f"{python}.0"}
    taken: dict[str, str] = {}
    asked = [Requirement(text) for text in importlib.metadata.requires("astrobio") or []]
    while asked:
        requirement = asked.pop()
        name = canonicalize_name(requirement.name)
        if name in taken or name in LEFT_OUT or requirement.marker and not requirement.marker.evaluate(markers):
            continue
        there = box.get(name)
        if name in box and (there is None or requirement.specifier.contains(there, prereleases=True)):
            continue
        if name == OWN:
            raise ConfigError(
                f"--box: {OWN} is {there or 'not there'}, and {requirement} is needed; it is too "
                f"large to carry: install it there"
            )
        try:
            here = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            raise ConfigError(f"{requirement} is needed there and not installed here") from None
        taken[name] = here.version
        asked += [Requirement(text) for text in here.requires or []]
    return dict(sorted(taken.items()))


def carry(
    box: Path, out: Path, data: Path, records: int, python: str, limit_mib: float
) -> tuple[dict[str, str], dict[str, int]]:
    """Fill ``out``; returns the wheels in it, names and versions, and the bytes of each of its entries.

    Raises:
        ConfigError: see `read_box` and `missing`; there is no such wheel, or the folder is over the limit.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: is there already; remove it, or name another folder")
    wheels = missing(read_box(box), python)
    with whole_folder(out) as folder:
        for name in PROJECT:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / "project" / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, folder / "project" / name)
        excerpt(data, folder / "data", shares(records))
        _wheels([f"{name}=={version}" for name, version in wheels.items()], folder / "wheels", python)
        (folder / "run.sh").write_text(RUN)
        (folder / "run.sh").chmod(0o755)
        sizes = {path.name: _bytes(path) for path in folder.iterdir()}
        largest = sorted((folder / "wheels").iterdir(), key=_bytes, reverse=True)[:3]
        limit = int(limit_mib * 2**20)
        if sum(sizes.values()) > limit:
            raise ConfigError(
                f"--limit_mib {limit_mib:g}: {out} would take {sum(sizes.values()) / 1e6:.1f} MB, and "
                f"{limit / 1e6:.1f} are allowed; the largest wheels are "
                + ", ".join(f"{path.name} ({_bytes(path) / 1e6:.1f} MB)" for path in largest)
                + "; install these there, or allow more"
            )
    return wheels, sizes


def _wheels(wanted: Iterable[str], into: Path, python: str) -> None:
    """Wheels for that Python on x86-64 Linux; for a package without any, one built here that fits every Python."""
    names = [*(f"manylinux_2_{minor}" for minor in GLIBC), "manylinux2014", "manylinux2010", "manylinux1"]
    platforms = [part for name in names for part in ("--platform", f"{name}_x86_64")]
    into.mkdir()
    for requirement in wanted:
        if not _pip(
            "download",
            "--only-binary=:all:",
            "--python-version",
            python,
            "--implementation",
            "cp",
            *platforms,
            "--dest",
            str(into),
            requirement,
        ):
            continue
        with tempfile.TemporaryDirectory() as place:
            if failed := _pip("wheel", "--wheel-dir", place, requirement, environment={"DS_BUILD_OPS": "0"}):
                raise ConfigError(f"{requirement}: no wheel for Python {python}, and none could be built: {failed}")
            wheel = next(Path(place).glob("*.whl"))
            if not wheel.name.endswith("-none-any.whl"):
                raise ConfigError(
                    f"{requirement}: no wheel for Python {python}; what was built here, {wheel.name}, "
                    "fits this machine alone"
                )
            shutil.move(wheel, into / wheel.name)


def _pip(*options: str, environment: dict[str, str] | None = None) -> str:
    """The last line of pip's complaint; nothing where all went well."""
    run = subprocess.run(
        [sys.executable, "-m", "pip", *options, "--no-deps", "--quiet", "--disable-pip-version-check"],
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    return "" if run.returncode == 0 else run.stderr.strip().rpartition("\n")[2]


def _bytes(path: Path) -> int:
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )
