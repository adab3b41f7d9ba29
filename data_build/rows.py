"""Checks of an archive's rows: types, fill values, ranges, unique keys."""

import math
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from data_build.sources.base import DTYPES, FILL, Archive, Field, SourceInfo

#: The least share of an archive's rows that must have a required field; with less, the archive has changed.
REQUIRED_SHARE = 0.95


def row_problems(row: dict[str, Any], archive: Archive | type[Archive]) -> list[str]:
    """Everything wrong with one row of `data_build.sources.base.read`; empty if it is good."""
    problems = [problem for field in archive.info.fields if (problem := _value_problem(row[field.name], field))]
    check = getattr(archive, "check", None)
    return problems if problems or check is None else check(row)


def _value_problem(value: Any, field: Field) -> str:
    if value is None:
        return f"{field.name} is absent" if field.required else ""
    if not isinstance(value, DTYPES[field.dtype]) or (isinstance(value, bool) and field.dtype != "bool"):
        return f"{field.name} is no {field.dtype} but {type(value).__name__}"
    if isinstance(value, np.ndarray):
        return _field_problem(value, field)
    if isinstance(value, (int, float)):
        if field.dtype == "float64" and abs(value) >= FILL:
            return f"{field.name} is the fill value {value:.4g}, not masked"
        if not math.isfinite(value):
            return f"{field.name} is not finite"
        if (field.minimum is not None and value < field.minimum) or (
            field.maximum is not None and value > field.maximum
        ):
            low, high = ("∞" if limit is None else f"{limit:g}" for limit in (field.minimum, field.maximum))
            return f"{field.name} is outside [{low.replace('∞', '-∞')}, {high}] {field.unit}"
    return ""


def _field_problem(values: np.ndarray, field: Field) -> str:
    expected = int(field.dtype.split("[")[1].rstrip("]"))
    if values.shape != (expected,):
        return f"{field.name} is of shape {values.shape}, not ({expected},)"
    if not np.isfinite(values).all():
        return f"{field.name} is not finite"
    fill = float(values[np.abs(values).argmax()])
    return f"{field.name} holds the fill value {fill:.4g}, not masked" if abs(fill) >= FILL else ""


class RowQuality:
    """Statistics of one archive's rows, gathered one row at a time in bounded memory."""

    def __init__(self, info: SourceInfo, seen: Path):
        self._info = info
        self.rows = 0
        self.used = 0
        self.reasons: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()
        self._known: Counter[str] = Counter()
        seen.unlink(missing_ok=True)
        # Keys are on disk: an archive may have more than the memory holds.
        self._seen = sqlite3.connect(seen, isolation_level=None)
        self._seen.execute("PRAGMA synchronous = OFF")
        self._seen.execute("PRAGMA journal_mode = OFF")
        self._seen.execute("CREATE TABLE keys (key TEXT PRIMARY KEY) WITHOUT ROWID")

    def new(self, key: Any) -> bool:
        """Whether this key is new; it is remembered."""
        return self._seen.execute("INSERT OR IGNORE INTO keys VALUES (?)", (str(key),)).rowcount == 1

    def add(self, row: dict[str, Any], problems: list[str], unused: str = "") -> None:
        """Count a row with its problems, or why it is not used though it is good."""
        self.rows += 1
        self.used += not problems and not unused
        self.unused.update([unused] if unused else [])
        self._known.update(name for name, value in row.items() if value is not None)
        for problem in problems:
            self.reasons[problem] += 1

    def close(self) -> None:
        """Close the file of keys."""
        self._seen.close()

    def report(self) -> dict:
        """Rows, reasons of quarantine and of not using a row, with their counts, and how complete each field is."""
        count = max(1, self.rows)
        return {
            "rows": self.rows,
            "quarantined": dict(sorted(self.reasons.items())),
            "unused": dict(sorted(self.unused.items())),
            "completeness": {field.name: round(self._known[field.name] / count, 4) for field in self._info.fields},
        }

    def main_reason(self) -> str:
        """The most frequent reason for which a row is not used."""
        return (self.reasons + self.unused).most_common(1)[0][0]

    def lacking(self) -> list[str]:
        """Required fields present in less than `REQUIRED_SHARE` of the rows, with the share."""
        return [
            f"{field.name} ({self._known[field.name] / self.rows:.0%})"
            for field in self._info.fields
            if field.required and self.rows and self._known[field.name] < REQUIRED_SHARE * self.rows
        ]
