"""Validation and test: every rank computes its share and gets all figures."""

from collections.abc import Iterator
from typing import Any

import deepspeed.comm as dist
import pandas as pd
import torch

from astrobio.batch import Batch
from astrobio.dataset import AstrobioDataset
from astrobio.metrics import habitability_metrics, loss_error, probability
from launch.checkpoints.together import gathered
from launch.evaluation.predictions import batches, mean_climate, predict
from launch.zero.accelerator import same_randomness_after
from launch.zero.engine import device


@torch.no_grad()
def evaluate(engine, dataset: AstrobioDataset, micro_batch: int) -> dict:
    """Loss and figures of merit over a split.

    Returns, on every rank:
        ``loss``, ``loss_parts`` (means over records), ``loss_error`` (the standard error of the classification loss),
        ``records``, ``accuracy``, ``roc_auc``, ``ece``, ``brier``, ``nll``, and under
        ``observed`` and ``synthetic`` the same figures for real and for drawn planets apart, with their number.
    """
    engine.eval()
    rows: list[tuple[float, ...]] = []
    learned: list[tuple[float, float]] = []
    sums: dict[str, float] = {}
    weight = 0.0
    # The random masks of a training step must not depend on when validations fall.
    with same_randomness_after():
        for batch, counted in _batches(dataset, micro_batch):
            out = engine(batch)
            kept = counted.sum().item()
            weight += kept
            for name, part in (("loss", out.loss), *out.parts.items()):
                sums[name] = sums.get(name, 0.0) + part.item() * kept
            if out.logits is not None:
                chances = probability(out.logits).cpu()
                use = counted & batch.label_probability_known.cpu()
                learned += zip(chances[use].tolist(), engine.module.target(batch).cpu()[use].tolist(), strict=True)
                use = counted & batch.label_present.cpu()
                rows += list(
                    zip(
                        chances[use].tolist(),
                        batch.label.cpu()[use].tolist(),
                        batch.observed.cpu()[use].tolist(),
                        strict=True,
                    )
                )
    engine.train()
    shares = gathered((rows, learned, sums, weight))
    rows = [row for part, *_ in shares for row in part]
    learned = [row for _, part, *_ in shares for row in part]
    total = sum(part for *_, part in shares)
    means = {name: sum(part[name] for *_, part, _ in shares) / total for name in sums}
    chance, label, observed = (
        (torch.tensor([row[i] for row in rows]) for i in range(3))
        if rows
        else (torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool))
    )
    result: dict[str, Any] = {
        "loss": means.pop("loss"),
        "loss_parts": means,
        "loss_error": loss_error(*torch.tensor(learned).reshape(-1, 2).T),
        "records": int(total),
        **habitability_metrics(chance, label),
    }
    for name, chosen in (("observed", observed.bool()), ("synthetic", ~observed.bool())):
        result[name] = {"records": int(chosen.sum()), **habitability_metrics(chance[chosen], label[chosen])}
    return result


def test_predictions(engine, splits: dict[str, AstrobioDataset], micro_batch: int, masked: bool = True) -> pd.DataFrame:
    """`launch.evaluation.predictions.predict` of the test split, shared by all ranks; on every rank, all of it."""
    engine.eval()
    with same_randomness_after():
        own = predict(
            engine, _batches(splits["test"], micro_batch), mean_climate(engine.module, splits["train"]), masked
        )
    engine.train()
    return pd.concat(gathered(own), ignore_index=True)


def _batches(dataset: AstrobioDataset, micro_batch: int) -> Iterator[tuple[Batch, torch.Tensor]]:
    """This rank's share, on its device."""
    for batch, counted in batches(dataset, micro_batch, dist.get_rank(), dist.get_world_size()):
        yield batch.to(device()), counted
