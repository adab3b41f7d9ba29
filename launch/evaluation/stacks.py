"""A trained stack, from a run's folder or an export, its dataset, and its predictions of a split."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import yaml

from astrobio.config import ConfigError
from astrobio.dataset import AstrobioDataset
from astrobio.files import write_whole
from astrobio.pretrained import CONFIG
from astrobio.stack import AstrobioStack
from launch.checkpoints.export import export
from launch.checkpoints.folder import BEST, LATEST, named
from launch.evaluation.predictions import batches, mean_climate, predict, text_scores

MICRO_BATCH = 16


@dataclass(frozen=True)
class Trained:
    """A run's folder or an exported stack."""

    folder: Path

    @property
    def is_export(self) -> bool:
        return (self.folder / CONFIG).is_file()

    def data(self) -> Path | None:
        """The dataset that the run was trained on; None of an export."""
        path = self.folder / "config.yaml"
        return Path(yaml.safe_load(path.read_text())["data"]["folder"]) if path.is_file() else None

    def stack(self) -> AstrobioStack:
        """The best weights in fp32, in evaluation mode.

        Raises:
            ConfigError: neither a run with a checkpoint nor an export.
        """
        if self.is_export:
            return AstrobioStack.from_pretrained(self.folder, torch.float32)
        best = named(self.folder, BEST) or named(self.folder, LATEST)
        if best is None:
            raise ConfigError(f"{self.folder}: neither an exported stack nor a run with a checkpoint")
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            export(best, Path(folder) / "export", dtype="fp32")
            return AstrobioStack.from_pretrained(Path(folder) / "export")

    def kept(self, split: str) -> Path:
        """The file with the predictions of a split."""
        return self.folder / f"predictions-{split}.parquet"


def predictions(trained: Trained, data: Path, split: str, again: bool = False, texts: bool = False) -> pd.DataFrame:
    """The stack's predictions of a split; those kept in its folder, unless ``again`` or none are there.

    Args:
        texts: also let it describe each record, and score the numbers in it.
    """
    path = trained.kept(split)
    table = pd.read_parquet(path) if path.is_file() and not again else None
    if table is not None and ("text numbers" in table or not texts):
        return table
    stack = trained.stack()
    longest = stack.config.language.max_text_tokens
    dataset = AstrobioDataset(data, split, longest)
    if table is None:
        table = predict(
            stack, batches(dataset, MICRO_BATCH), mean_climate(stack, AstrobioDataset(data, "train", longest))
        )
    if texts:
        table = table.merge(text_scores(stack, dataset, batches(dataset, MICRO_BATCH)), on="run_id")
    keep(table, path)
    return table


def keep(table: pd.DataFrame, path: Path) -> None:
    """Write predictions as Parquet, whole or not at all."""
    write_whole(path, table.to_parquet())
