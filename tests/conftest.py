"""Datasets that all tests may read, and must not change."""

import json
import os
import shutil
from pathlib import Path

import datasets
import pytest

from astrobio.dataset import MANIFEST
from astrobio.schema import sha256_of
from data_build.pipeline import build

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def sample_dataset() -> Path:
    """The whole sample: ``$ASTROBIO_SAMPLE``, else data/sample, which is built if absent."""
    folder = Path(os.environ.get("ASTROBIO_SAMPLE") or ROOT / "data/sample")
    build("sample", folder, progress=False)
    return folder


@pytest.fixture(scope="session")
def mini_dataset(sample_dataset, tmp_path_factory) -> Path:
    """The first records of each split of the sample, a dataset of its own with a manifest that fits."""
    return subset(sample_dataset, tmp_path_factory.mktemp("mini") / "dataset",
                  {"train": 48, "validation": 16, "test": 16})


def subset(source: Path, folder: Path, records: dict[str, int]) -> Path:
    """A dataset of the first ``records`` of each split."""
    datasets.disable_progress_bars()
    parts = datasets.load_from_disk(str(source))
    datasets.DatasetDict({split: parts[split].select(range(count)) for split, count in records.items()}
                         ).save_to_disk(str(folder))
    shutil.copytree(source / "tokenizer", folder / "tokenizer")
    for name in ("stats.json", "quality.json", "README.md", "quarantine.jsonl"):
        shutil.copy(source / name, folder)
    manifest = json.loads((source / MANIFEST).read_text())
    manifest["content_sha256"] = "subset of " + manifest["content_sha256"]
    manifest["files"] = {str(path.relative_to(folder)): {"sha256": sha256_of(path), "bytes": path.stat().st_size}
                         for path in sorted(folder.rglob("*")) if path.is_file()}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder
