"""Datasets that all tests may read, and must not change."""

import os
from pathlib import Path

import pytest
from project import ROOT

from data_build.excerpt import excerpt
from data_build.pipeline import build


@pytest.fixture(scope="session")
def sample_dataset() -> Path:
    """The whole sample: ``$ASTROBIO_SAMPLE``, else data/sample, which is built if absent."""
    folder = Path(os.environ.get("ASTROBIO_SAMPLE") or ROOT / "data/sample")
    build("sample", folder, progress=False)
    return folder


@pytest.fixture(scope="session")
def mini_dataset(sample_dataset, tmp_path_factory) -> Path:
    """The first records of each split of the sample, a dataset of its own with a manifest that fits."""
    folder = tmp_path_factory.mktemp("mini") / "dataset"
    excerpt(sample_dataset, folder, {"train": 48, "validation": 16, "test": 16})
    return folder
