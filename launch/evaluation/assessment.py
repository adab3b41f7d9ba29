"""A stack's predictions beside simple models', task by task; over several runs their mean and spread."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from astrobio.schema import RETRIEVAL_COLUMNS
from launch.evaluation.figures import Figure, classification, mean_score, paired
from launch.evaluation.scores import brier


@dataclass(frozen=True)
class Task:
    """``score``: of each record of a table of predictions, by which models are paired; ``column`` says who takes part
    in it."""

    name: str
    column: str
    measure: str
    higher_is_better: bool
    score: Callable[[pd.DataFrame], np.ndarray]


def _right(table: pd.DataFrame) -> np.ndarray:
    right = (table["habitable"] >= 0.5) == (table["label"] == 1)
    return np.where(table["labelled"], right.astype(float), np.nan)


def _observables(table: pd.DataFrame) -> np.ndarray:
    return np.where(table["labelled"], brier(table["observables"], table["label"]), np.nan)


def _retrieval(table: pd.DataFrame) -> np.ndarray:
    return table[[f"retrieval crps {column.name}" for column in RETRIEVAL_COLUMNS]].mean(axis=1).to_numpy()


TASKS = (
    Task("habitability", "habitable", "accuracy", True, _right),
    Task("habitability from observables", "observables", "Brier score", False, _observables),
    Task("emulation", "emulation rmse", "RMSE (σ)", False, lambda table: table["emulation rmse"].to_numpy()),
    Task("text", "text numbers", "numbers told", True, lambda table: table["text numbers"].to_numpy()),
    Task("retrieval", f"retrieval crps {RETRIEVAL_COLUMNS[0].name}", "CRPS (σ)", False, _retrieval),
)


@dataclass(frozen=True)
class Comparison:
    """A task: the stack's score, the best simple model's, and whether their difference may be chance."""

    task: str
    measure: str
    stack: Figure
    runs: list[float]  # of each run
    best: str
    simple: Figure
    others: dict[str, float]  # every simple model
    gain: float  # of the stack over the best one, positive where it is better
    p: float

    @property
    def verdict(self) -> str:
        if self.p >= 0.05:
            return "no difference"
        return "stack better" if self.gain > 0 else "stack worse"


def compare(tables: list[pd.DataFrame], simple: pd.DataFrame) -> list[Comparison]:
    """Each task that the stack has a head for.

    Args:
        tables: predictions of the same records by one or more runs.
        simple: what simple models say of them (`launch.evaluation.baselines.simple_models`).
    """
    tables = [table.set_index("run_id").sort_index() for table in tables]
    first = tables[0]
    known = ["label", "labelled"]
    found = []
    for task in TASKS:
        if task.column not in first:
            continue
        planets = first["planet_key"].to_numpy()
        scores = np.stack([task.score(table) for table in tables])
        if not np.isfinite(scores).any():
            continue
        others = {
            model: task.score(simple[model].reindex(first.index).join(first[known]))
            for model in simple.columns.get_level_values(0).unique()
            if (model, task.column) in simple.columns
        }
        means = {model: float(np.nanmean(score)) for model, score in others.items()}
        best = (max if task.higher_is_better else min)(means, key=lambda model: means[model])
        difference, p = paired(scores.mean(0), others[best], planets)
        found.append(
            Comparison(
                task.name,
                task.measure,
                mean_score(scores.mean(0), planets),
                [float(np.nanmean(score)) for score in scores],
                best,
                mean_score(others[best], planets),
                means,
                difference if task.higher_is_better else -difference,
                p,
            )
        )
    return found


def figures(table: pd.DataFrame) -> dict[str, dict[str, Figure]]:
    """Figures of merit of one run's predictions, by what they are of: all labelled records, observed and synthetic
    planets apart, records by what they lack, and what is told from a part of each record."""
    found = {}
    labelled = table[table["labelled"]]

    def add(name: str, rows: pd.DataFrame, column: str = "habitable") -> None:
        found[name] = {
            "records": Figure(float(len(rows))),
            **classification(
                rows[column].to_numpy(float), rows["label"].to_numpy(float), rows["planet_key"].to_numpy()
            ),
        }

    if "habitable" not in table:
        return {}
    add("all", labelled)
    add("observed planets", labelled[labelled["observed"]])
    add("synthetic planets", labelled[~labelled["observed"]])
    for column in (name for name in table if name.startswith("with ")):
        if not labelled[column].all():
            add(f"records without {column.removeprefix('with ')}", labelled[~labelled[column]])
    for column in (name for name in table if name.startswith("habitable ")):
        add(column.removeprefix("habitable "), labelled, column)
    if "observables" in table:
        add("from observables", labelled, "observables")
    return found


def mean_scores(table: pd.DataFrame) -> dict[str, Figure]:
    """Mean scores of emulation and retrieval, by name."""
    planets = table["planet_key"].to_numpy()
    return {
        name: mean_score(table[name].to_numpy(float), planets)
        for name in table
        if name.startswith(("emulation ", "retrieval "))
    }


def label_ceiling(table: pd.DataFrame) -> float | None:
    """Mean of max(p, 1 - p) over the records whose label's probability p is known: how often the best guess is right
    for a climate drawn anew from the emulator's distribution."""
    chance = table["label_probability"].to_numpy(float)
    chance = chance[np.isfinite(chance)]
    return float(np.maximum(chance, 1 - chance).mean()) if len(chance) else None


@dataclass(frozen=True)
class Assessment:
    """Figures and mean scores of each run, by name, and the tasks beside simple models."""

    figures: list[dict[str, dict[str, Figure]]]
    scores: list[dict[str, Figure]]
    ceiling: float | None
    tasks: list[Comparison]

    def to_dict(self) -> dict:
        """For JSON."""
        return {
            "runs": [
                {"figures": _plain(figures), "scores": _plain(scores)}
                for figures, scores in zip(self.figures, self.scores, strict=True)
            ],
            "label_ceiling": self.ceiling,
            "tasks": [_plain(asdict(task)) | {"verdict": task.verdict} for task in self.tasks],
        }

    def __str__(self) -> str:
        """Tables: of the first run, and of the tasks over all runs."""
        parts = [_figures_table(self.figures[0])] if self.figures[0] else []
        if self.ceiling is not None:
            parts.append(f"Bayes ceiling of climates drawn anew: {self.ceiling:.3f}; who sees the climate can pass it")
        if self.scores[0]:
            parts.append("\n".join(f"{name:55s} {figure}" for name, figure in self.scores[0].items()))
        if self.tasks:
            parts.append(_tasks_table(self.tasks))
        return "\n\n".join(parts)


def assess(tables: list[pd.DataFrame], simple: pd.DataFrame | None) -> Assessment:
    """Assess the predictions of the same records by one or more runs; see `compare`."""
    return Assessment(
        [figures(table) for table in tables],
        [mean_scores(table) for table in tables],
        label_ceiling(tables[0]),
        [] if simple is None else compare(tables, simple),
    )


def _plain(value):
    if isinstance(value, Figure):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return value


def _figures_table(figures: dict[str, dict[str, Figure]]) -> str:
    lines = [f"{'':32s} {'records':>7s}  {'accuracy':21s}  {'ROC-AUC':21s}  {'Brier':21s}  {'NLL':21s}  ECE"]
    for name, row in figures.items():
        numbers = "  ".join(f"{row[key]!s:21s}" for key in ("accuracy", "roc_auc", "brier", "nll", "ece"))
        lines.append(f"{name:32s} {row['records'].value or 0:7.0f}  {numbers}".rstrip())
    return "\n".join(lines)


def _tasks_table(tasks: list[Comparison]) -> str:
    lines = [f"{'task':30s} {'measure':12s} {'stack':22s} {'best simple model':22s}        p"]
    for task in tasks:
        spread = f"; the stack's runs ± {np.std(task.runs, ddof=1):.3f}" if len(task.runs) > 1 else ""
        lines.append(
            f"{task.task:30s} {task.measure:12s} {task.stack!s:22s} {task.simple!s:22s} {task.p:8.4f}  "
            f"{task.verdict} ({task.best}{spread})"
        )
    return "\n".join(lines)
