"""Tables of archives that speak the Virtual Observatory's Table Access Protocol, by pyvo: whole, page by page.

Rows are asked for in the order of a key, a page at a time, each page beginning after the last key of the one before.
A page that the archive cut short, whether it says so (``OVERFLOW``) or not, is thereby continued where it was cut; in
the end the rows are counted against the archive's own ``COUNT(*)``.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import requests
from pyvo.dal import TAPService

from data_build.cache import DataError
from data_build.sources.base import SourceInfo, require_columns

PAGE = 2000  # rows; below the synchronous limits of all archives here


def tap_rows(
    info: SourceInfo, session: requests.Session, url: str, table: str, where: str = ""
) -> Iterator[Mapping[str, Any]]:
    """Every row of ``table`` that meets ``where`` (ADQL), in the order of the first field of ``info``, its key.

    Raises:
        DataError: fewer rows came than the archive says there are, or a page came out of order.
    """
    key = info.fields[0].column
    columns = ", ".join(field.column for field in info.fields)
    service = TAPService(url, session=session)
    condition = f" WHERE {where}" if where else ""
    expected = int(service.run_sync(f"SELECT COUNT(*) AS n FROM {table}{condition}").to_table()[0][0])
    last, seen = None, 0
    while seen < expected:
        after = "" if last is None else f"{key} > {_literal(last)}"
        condition = " AND ".join(part for part in (f"({where})" if where and after else where, after) if part)
        query = f"SELECT TOP {PAGE} {columns} FROM {table}" + (f" WHERE {condition}" if condition else "")
        page = service.run_sync(f"{query} ORDER BY {key}").to_table()
        names = {name.lower(): name for name in page.colnames}
        if len(page):
            require_columns(info, [field.column for field in info.fields if field.column.lower() in names])
        else:
            raise DataError(
                f"{info.title}: {table} gave {seen} rows, but counts {expected}: the answer was cut short; "
                "try again later, what was fetched is kept"
            )
        for row in page:
            yield {field.column: row[names[field.column.lower()]] for field in info.fields}
        first, end = (_plain(page[index][names[key.lower()]]) for index in (0, -1))
        if last is not None and last in (first, end):
            raise DataError(
                f"{info.title}: {table} gave rows after {key} = {last!r} that begin or end with it: it "
                f"does not keep the order of {key} that was asked for"
            )
        last, seen = end, seen + len(page)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _literal(value: Any) -> str:
    """An ADQL literal."""
    return str(value) if isinstance(value, (int, float)) else "'" + str(value).replace("'", "''") + "'"
