"""Validation and test: every rank computes its share, rank 0 gets the figures."""

from collections.abc import Iterator

import deepspeed.comm as dist
import torch

from astrobio.batch import Batch
from astrobio.dataset import AstrobioDataset
from astrobio.metrics import habitability_metrics, loss_error, probability
from astrobio.schema import MODALITIES
from launch.zero.accelerator import same_randomness_after
from launch.zero.engine import device


@torch.no_grad()
def evaluate(engine, dataset: AstrobioDataset, micro_batch: int, without: tuple[str, ...] = ()) -> dict:
    """Loss and figures of merit over a split, with some modalities (or ``text``) masked if wanted.

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
            for part in without:
                batch = batch.without(part)
            out = engine(batch)
            kept = counted.sum().item()
            weight += kept
            for name, part in (("loss", out.loss), *out.parts.items()):
                sums[name] = sums.get(name, 0.0) + part.item() * kept
            if out.logits is not None:
                chances = probability(out.logits).cpu()
                use = counted & batch.label_probability_known.cpu()
                learned += zip(chances[use].tolist(), batch.label_probability.cpu()[use].tolist(), strict=True)
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
    gathered: list = [None] * dist.get_world_size()
    torch.distributed.all_gather_object(gathered, (rows, learned, sums, weight))
    rows = [row for part, *_ in gathered for row in part]
    learned = [row for _, part, *_ in gathered for row in part]
    total = sum(part for *_, part in gathered)
    means = {name: sum(part[name] for *_, part, _ in gathered) / total for name in sums}
    chance, label, observed = (
        (torch.tensor([row[i] for row in rows]) for i in range(3))
        if rows
        else (torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.bool))
    )
    result = {
        "loss": means.pop("loss"),
        "loss_parts": means,
        "loss_error": loss_error(*torch.tensor(learned).reshape(-1, 2).T),
        "records": int(total),
        **habitability_metrics(chance, label),
    }
    for name, chosen in (("observed", observed.bool()), ("synthetic", ~observed.bool())):
        result[name] = {"records": int(chosen.sum()), **habitability_metrics(chance[chosen], label[chosen])}
    return result


def _batches(dataset: AstrobioDataset, micro_batch: int) -> Iterator[tuple[Batch, torch.Tensor]]:
    """This rank's batches and which of their records count: all ranks must run equally many, so that the last ones
    are filled up with records that do not."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for start in range(0, len(dataset), micro_batch * ranks):
        wanted = [start + rank * micro_batch + i for i in range(micro_batch)]
        items = [dataset[i] for i in wanted if i < len(dataset)]
        counted = torch.tensor([i < len(dataset) for i in wanted])
        items += [items[0] if items else dataset[0]] * (micro_batch - len(items))
        yield dataset.collate(items).to(device()), counted


def masked_figures(engine, dataset: AstrobioDataset, micro_batch: int) -> dict[str, dict]:
    """`evaluate` once for each modality of the stack, and the text, with that one masked; and without the planet
    table and the text, which repeats its numbers."""
    parts: list[tuple[str, ...]] = [
        (name,) for name in (*MODALITIES, "text") if name in (*engine.module.modalities, "text")
    ]
    if "planet" in engine.module.modalities:
        parts.insert(1, ("planet", "text"))
    return {" and ".join(names): evaluate(engine, dataset, micro_batch, without=names) for names in parts}
