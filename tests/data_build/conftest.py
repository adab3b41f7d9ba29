"""The datasets the tests read: a small one built for the session, and the whole sample."""

import os
from pathlib import Path

import pytest

from data_build.pipeline import build

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def small_limit() -> int:
    """Planets of the small dataset."""
    return 24


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory, small_limit) -> Path:
    """A dataset of a few planets, built with two workers. Read it, do not change it."""
    folder = tmp_path_factory.mktemp("small") / "dataset"
    build("sample", folder, limit=small_limit, workers=2, progress=False)
    return folder


@pytest.fixture(scope="session")
def sample_dataset() -> Path:
    """The whole sample: ``$ASTROBIO_SAMPLE``, else data/sample, which is built if absent."""
    folder = Path(os.environ.get("ASTROBIO_SAMPLE") or ROOT / "data/sample")
    build("sample", folder, progress=False)
    return folder
