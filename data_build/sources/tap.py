"""Tables of archives that speak the Virtual Observatory's Table Access Protocol, by pyvo: whole, page by page.

Services differ in what ``TOP n … ORDER BY key`` means. ADQL sorts first and then cuts; NExScI's (the NASA Exoplanet
Archive, Keck) turns it into Oracle's ``ROWNUM <= n``, which cuts first and sorts what is left; some cut short of ``n``
without a word. So a page counts only if the archive itself counts as many rows in the range of keys that the page
spans; else a shorter range is asked for. In the end the rows are counted against the table's own ``COUNT(*)``.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import astropy.units as u
import requests
from astropy.table import Table
from pyvo.dal import TAPService

from data_build.cache import DataError
from data_build.sources.base import Field, SourceInfo, require_columns

#: dtype of a field → kinds of NumPy types that hold it.
_KINDS = {"string": "OUS", "float64": "fiu", "int64": "fiu", "bool": "b"}
_TYPES = {**dict.fromkeys("OUS", "string"), "f": "float64", "i": "int64", "u": "int64", "b": "bool"}
PAGE = 2000  # rows; below the synchronous limits of all archives here
_FAILED = re.compile(rb"""value=["']ERROR["']|ORA-\d{5}""")  # NExScI passes Oracle's own errors on


class TapArchive:
    """An archive whose rows are those of one table.

    Attributes:
        service: address of the TAP service.
        table: the table's name.
        where: which of its rows, in ADQL; all if empty.
    """

    info: SourceInfo
    service: str
    table: str
    where: str = ""

    @property
    def columns(self) -> Sequence[str]:
        """The columns that are asked for; the first is the table's key."""
        return [field.column for field in self.info.fields]

    def rows(self, session: requests.Session) -> Iterator[Mapping[str, Any]]:
        """Every row that meets ``where``, in the order of the key."""
        return table_rows(self, session)

    def first(self, session: requests.Session) -> Table:
        """One row with all of the table's columns, their types and units."""
        condition = f" WHERE {self.where}" if self.where else ""
        query = f"SELECT TOP 1 * FROM {self.table}{condition}"
        return TAPService(self.service, session=session).run_sync(query).to_table()

    def changes(self, session: requests.Session) -> list[str]:
        """What the table has otherwise than expected: columns that are not there, other types and units."""
        row = self.first(session)
        there = {name.lower(): row[name] for name in row.colnames}
        fields = [field for field in self.info.fields if field.column.lower() in there]
        return [
            *(["it gave no row"] if not len(row) else []),
            *(f"{column} is missing" for column in self.columns if column.lower() not in there),
            *filter(None, (_change(there[field.column.lower()], field) for field in fields)),
        ]

    @staticmethod
    def settled(method: str, head: bytes) -> bool:
        """Services report failures in a VOTable, and some of them with the status 200."""
        return not _FAILED.search(head)


def table_rows(archive: TapArchive, session: requests.Session) -> Iterator[Mapping[str, Any]]:
    """Every row of the archive's table, in the order of its key.

    Raises:
        DataError: fewer rows came than the archive says there are, or rows came out of order.
    """
    table = _Keyed(archive, session)
    last, seen, expected = None, 0, table.count(None, None)
    while seen < expected:
        page = table.page(last, seen, expected)
        for row in page:
            yield {column: row[column] for column in archive.columns}
        last, seen = _plain(page[-1][table.key]), seen + len(page)


class _Keyed:
    """An archive's table, read by ranges of its key."""

    def __init__(self, archive: TapArchive, session: requests.Session):
        self._archive, self._service = archive, TAPService(archive.service, session=session)
        self.key = archive.columns[0]

    def count(self, last: Any, end: Any) -> int:
        """How many rows the archive counts after the key ``last``, up to and with ``end``."""
        query = f"SELECT COUNT(*) AS n FROM {self._archive.table}{self._condition(last, end)}"
        return int(self._service.run_sync(query).to_table()[0][0])

    def page(self, last: Any, seen: int, expected: int) -> Table:
        """The rows next after the key ``last``, none of them left out."""
        title, end = self._archive.info.title, None
        while True:
            page = self._ask(last, end)
            if not len(page):
                raise DataError(
                    f"{title}: {self._archive.table} gave {seen} rows, but counts {expected}: the answer was cut "
                    "short; try again later, what was fetched is kept"
                )
            keys = [_plain(value) for value in page[self.key]]
            if last in (keys[0], keys[-1]):
                raise DataError(
                    f"{title}: {self._archive.table} gave rows after {self.key} = {last!r} that begin or end with it: "
                    f"it does not keep the order of {self.key} that was asked for"
                )
            there = expected - seen
            if len(keys) == there or len(keys) == (there := self.count(last, keys[-1])):
                return page
            # As a sample of the range, this share of the page spans about as many rows as a page holds.
            end = keys[(len(keys) - 1) * len(keys) // max(there, len(keys))]
            if there < len(keys) or end == keys[-1]:
                raise DataError(
                    f"{title}: {self._archive.table} gave {len(keys)} rows up to {self.key} = {keys[-1]!r}, but counts "
                    f"{there}: it does not keep the order of {self.key} that was asked for, or cuts its answers short"
                )

    def _ask(self, last: Any, end: Any) -> Table:
        """A page of rows, under the names that were asked for."""
        archive = self._archive
        query = f"SELECT TOP {PAGE} {', '.join(archive.columns)} FROM {archive.table}{self._condition(last, end)}"
        page = self._service.run_sync(f"{query} ORDER BY {self.key}").to_table()
        names = {name.lower(): name for name in page.colnames}
        if len(page):
            require_columns(archive.info, [name for name in archive.columns if name.lower() in names], archive.columns)
            page = page[[names[name.lower()] for name in archive.columns]]
            page.rename_columns(page.colnames, list(archive.columns))
        return page

    def _condition(self, last: Any, end: Any) -> str:
        bounds = [f"{self.key} {sign} {_literal(key)}" for sign, key in ((">", last), ("<=", end)) if key is not None]
        where = self._archive.where
        parts = [f"({where})" if where and bounds else where, *bounds]
        return f" WHERE {' AND '.join(part for part in parts if part)}" if any(parts) else ""


def _change(column: Any, field: Field) -> str:
    """What a column's type or unit has otherwise than the field expects; units that astropy cannot read are left."""
    if column.dtype.kind not in _KINDS[field.dtype]:
        return f"{field.column} is {_TYPES.get(column.dtype.kind, column.dtype)}, {field.dtype} is expected"
    theirs, ours = (u.Unit(str(unit or ""), parse_strict="silent") for unit in (column.unit, field.unit))
    if any(unit == u.dimensionless_unscaled or isinstance(unit, u.UnrecognizedUnit) for unit in (theirs, ours)):
        return ""
    same = theirs.is_equivalent(ours) and math.isclose(theirs.to(ours), field.factor, rel_tol=0.01)
    expected = field.unit if field.factor == 1 else f"{1 / field.factor:g} {field.unit}"
    return "" if same else f"{field.column} is in {column.unit}, {expected} is expected"


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _literal(value: Any) -> str:
    """An ADQL literal."""
    return str(value) if isinstance(value, (int, float)) else "'" + str(value).replace("'", "''") + "'"
