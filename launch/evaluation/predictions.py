"""Predictions of a stack for each record of a split: one row a record."""

from collections.abc import Callable, Iterable, Iterator
from functools import reduce

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from astrobio.batch import Batch
from astrobio.dataset import AstrobioDataset
from astrobio.generation import describe
from astrobio.metrics import probability
from astrobio.mixture import mixture
from astrobio.normalisation import in_units
from astrobio.phrases import numbers_in
from astrobio.schema import MODALITIES, PLANET_COLUMNS, RETRIEVAL_COLUMNS
from astrobio.stack import AstrobioStack, StackOutput
from launch.evaluation.features import fields_of
from launch.evaluation.scores import INTERVALS, emulation_scores, retrieval_scores, share_told

#: A batch, and which of its records count: the others fill it up.
Counted = tuple[Batch, Tensor]


def masks(modalities: list[str]) -> dict[str, tuple[str, ...]]:
    """What is hidden from the stack, by the name of the figure. The text repeats the planet table's numbers, so that
    the two are also hidden together."""
    parts = [*modalities, "text"]
    hidden: dict[str, tuple[str, ...]] = {f"without {part}": (part,) for part in parts}
    if "planet" in modalities:
        hidden["without planet and text"] = ("planet", "text")
    return hidden | {f"only {part}": tuple(other for other in parts if other != part) for part in parts}


@torch.no_grad()
def predict(
    model: Callable[[Batch], StackOutput],
    batches: Iterable[Counted],
    mean_field: np.ndarray | None = None,
    masked: bool = True,
) -> pd.DataFrame:
    """One row for each record that counts.

    Args:
        masked: also read each record with parts of it hidden, which takes a pass for each of `masks`.
        mean_field: the train records' mean climate [F, Y, X], normalised (`mean_climate`), for the emulation's scores.

    Returns:
        ``habitable`` is the probability by the whole record, ``habitable without climate`` and so on that by a part of
        it (`masks`); ``weight …`` what the fusion gives a part. Of other tasks, ``observables`` is a probability, and
        ``emulation …`` and ``retrieval …`` are the scores of `launch.evaluation.scores`, NaN where the record has no
        truth.
    """
    return pd.concat(
        [_rows(model, batch, counted, mean_field, masked) for batch, counted in batches], ignore_index=True
    )


def batches(dataset: AstrobioDataset, size: int, rank: int = 0, ranks: int = 1) -> Iterator[Counted]:
    """The batches of one of ``ranks``: all run equally many, as ZeRO-3 needs it."""
    for start in range(0, len(dataset), size * ranks):
        wanted = [start + rank * size + i for i in range(size)]
        items = [dataset[i] for i in wanted if i < len(dataset)]
        counted = torch.tensor([i < len(dataset) for i in wanted])
        items += [items[0] if items else dataset[0]] * (size - len(items))
        yield dataset.collate(items), counted


def text_scores(stack: AstrobioStack, dataset: AstrobioDataset, batches: Iterable[Counted]) -> pd.DataFrame:
    """``run_id`` and ``text numbers``: the share of a record's known numbers that the stack's own description of it,
    from the modalities alone, tells (`share_told`)."""
    rows = []
    mean, std = dataset.stats["planet"]
    for batch, counted in batches:
        true = in_units(PLANET_COLUMNS, _numpy(batch.planet) * std + mean)
        texts = describe(stack, batch, dataset.tokenizer)
        for i in np.flatnonzero(_numpy(counted)):
            known = {
                column.name: value
                for column, value, there in zip(PLANET_COLUMNS, true[i], batch.planet_known[i], strict=True)
                if there
            }
            rows.append((batch.run_ids[i], share_told(numbers_in(texts[i]), known)))
    return pd.DataFrame(rows, columns=["run_id", "text numbers"])


def mean_climate(stack: AstrobioStack, dataset: AstrobioDataset) -> np.ndarray | None:
    """Mean field [F, Y, X] of the records with a climate, normalised; None for a stack that emulates none, which is
    not scored by it."""
    if stack.config.tasks is None or stack.config.tasks.emulation is None:
        return None
    total, count = np.zeros(1), 0
    for index in range(len(dataset)):
        item = dataset[index]
        if item["present"]["climate"]:
            total = total + fields_of(item)
            count += 1
    return (total / max(count, 1)).astype(np.float32)


def _rows(model, batch: Batch, counted: Tensor, mean_field: np.ndarray | None, masked: bool) -> pd.DataFrame:
    out: StackOutput = model(batch)
    modalities = [name for name in MODALITIES if name in batch.present]
    columns: dict[str, np.ndarray | list[str]] = {
        "run_id": batch.run_ids,
        "planet_key": [run_id.rpartition("/")[0] for run_id in batch.run_ids],
        "observed": _numpy(batch.observed),
        "label": _numpy(batch.label),
        "labelled": _numpy(batch.label_present),
        "label_probability": np.where(_numpy(batch.label_probability_known), _numpy(batch.label_probability), np.nan),
        **{f"with {name}": _numpy(batch.present[name]) for name in modalities},
    }
    if out.logits is not None and out.weights is not None:
        columns["habitable"] = _numpy(probability(out.logits))
        for name, weight in zip([*modalities, "text"], out.weights.unbind(1), strict=True):
            columns[f"weight {name}"] = _numpy(weight)
        for name, hidden in masks(modalities).items() if masked else ():
            columns[f"habitable {name}"] = _numpy(probability(model(reduce(Batch.without, hidden, batch)).logits))
    columns |= _tasks(out, batch, mean_field)
    return pd.DataFrame(columns)[_numpy(counted)]


def _tasks(out: StackOutput, batch: Batch, mean_field: np.ndarray | None) -> dict[str, np.ndarray]:
    observables, climate, posterior = out.tasks
    columns: dict[str, np.ndarray] = {}
    if observables is not None:
        columns["observables"] = _numpy(probability(observables))
    if climate is not None and mean_field is not None:
        scores = emulation_scores(
            _numpy(torch.cat([climate.levels.flatten(1, 2), climate.surface], 1)),
            _numpy(torch.cat([batch.climate_levels.mean(2).flatten(1, 2), batch.climate_surface.mean(2)], 1)),
            mean_field,
        )
        present = _numpy(batch.present["climate"])
        columns |= {f"emulation {name}": np.where(present, values, np.nan) for name, values in scores.items()}
    if posterior is not None:
        columns |= _retrieval(posterior, batch)
    return columns


def _retrieval(posterior: Tensor, batch: Batch) -> dict[str, np.ndarray]:
    found = mixture(posterior, len(RETRIEVAL_COLUMNS))
    position = _numpy(found.cdf(batch.retrieval))
    return retrieval_scores(
        _numpy(found.crps(batch.retrieval)),
        {share: np.abs(position - 0.5) <= share / 2 for share in INTERVALS},
        _numpy(batch.retrieval_known & batch.present["spectrum"][:, None]),
    )


def _numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
