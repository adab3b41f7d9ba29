"""What every source declares, and how an archive is read."""

import errno
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import requests

from data_build.cache import DataError
from data_build.credentials import Credentials, SignIn, find, redacted, require
from data_build.fetch import Transport, open_session
from data_build.planets import Planet
from data_build.policy import Policy, RateLimit
from data_build.store import AnswerStore


class ArchiveChanged(DataError):
    """An archive answers otherwise than its class expects."""


@dataclass(frozen=True)
class Field:
    """One number or text of an archive's record.

    ``dtype`` is one of `DTYPES`. ``minimum`` and ``maximum``, in ``unit``, are the possible range: a value outside is
    an error in the data. A ``required`` field is never null. ``name`` is ours; ``theirs`` is the archive's, if other,
    and ``factor`` turns the archive's unit into ours.
    """

    name: str
    dtype: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    required: bool = False
    theirs: str = ""
    factor: float = 1.0

    @property
    def column(self) -> str:
        """The archive's name of the field."""
        return self.theirs or self.name


#: dtype of a field → the Python type of its values; a vector is a NumPy array.
DTYPES = {
    "string": str,
    "float64": float,
    "int64": int,
    "bool": bool,
    "float32[6144]": np.ndarray,
    "float32[102400]": np.ndarray,
}

#: Numbers at least as large as this are fill values that nothing declared as such: netCDF's default 9.96921e36, the
#: 1e20 of CMIP, 1e30 and 1e36 of older models. No quantity here comes near.
FILL = 1e19
T = TypeVar("T")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class SourceInfo:
    """Where data come from, for provenance, the dataset card and ``astrobio data sources``.

    ``kind`` is one of `astrobio.schema.PROVENANCE_KINDS`, ``modality`` one of its parts. An archive, which is
    read over the network, also declares: ``title`` for messages, the ``client`` library, the ``fields`` of a record,
    the first of which is its key, the ``requests_per_second`` the archive allows, and its ``sign_in``.
    """

    name: str
    modality: str
    version: str
    licence: str
    citation: str
    kind: str
    title: str = ""
    client: str = ""
    fields: tuple[Field, ...] = ()
    requests_per_second: float | None = None
    sign_in: SignIn | None = None

    def provenance(self, quality: float) -> dict:
        """The record's provenance struct for one part, with ``quality`` from 0 to 1."""
        return {
            "source": self.name,
            "version": self.version,
            "licence": self.licence,
            "kind": self.kind,
            "quality": float(quality),
        }

    def as_dict(self) -> dict:
        """Plain values, for manifest.json and ``astrobio data sources --json``."""
        return {
            "name": self.name,
            "title": self.title or self.name,
            "modality": self.modality,
            "version": self.version,
            "licence": self.licence,
            "citation": self.citation,
            "kind": self.kind,
            "client": self.client,
            "requests_per_second": self.requests_per_second,
            "fields": [{"name": field.name, "dtype": field.dtype, "unit": field.unit} for field in self.fields],
        }


class Archive(Protocol):
    """An archive, read over the network: a small class with its ``info`` and a way to read rows.

    It may also have ``authorise(credentials, ask) -> Authorisation``, ``settled(method, head) -> bool``,
    ``absent(ask) -> bool`` and ``volatile`` (see `data_build.fetch.Transport`); ``check(row) -> list[str]``, for what
    `Field` cannot check; ``unused(row) -> str``, why a good row is not used, empty if it is; and ``changes(session) ->
    list[str]``, what it has otherwise than expected, where `first_row_changes` would fetch too much to tell.
    """

    info: SourceInfo

    def rows(self, session: requests.Session) -> Iterator[Mapping[str, Any]]:
        """Every row of the archive's query with the archive's own names and values, in a fixed order, page by page.

        A truncated answer is continued or refused with a `DataError`, never taken for complete.
        """
        ...


class PlanetArchive(Archive, Protocol):
    """An archive of planets."""

    @classmethod
    def planet(cls, row: dict[str, Any]) -> Planet:
        """A row as a planet."""
        ...


class ClimateArchive(Archive, Protocol):
    """An archive of climates; it declares the source and the provenance kind of its planets' numbers."""

    planet_source: str
    planet_kind: str


def connect(archive: Archive, policy: Policy, explicit: Mapping[str, str] | None = None) -> requests.Session:
    """A session for an archive; credentials are looked up now and used with the first request.

    Raises:
        DataError: the archive needs a sign-in and there is none (but not offline, without requests).
    """
    info = archive.info
    given: Credentials | None = None
    if info.sign_in is not None and not policy.offline:
        given = require(info.sign_in, info.title, explicit) if info.sign_in.required else find(info.sign_in, explicit)
    # Every archive with a sign_in has the method.
    authorise = None if given is None else partial(archive.authorise, given)  # type: ignore[attr-defined]
    transport = Transport(
        info.title,
        AnswerStore(info.name, policy.root),
        RateLimit(info.requests_per_second or 1.0),
        policy,
        authorise=authorise,
        sign_in=info.sign_in,
        settled=getattr(archive, "settled", lambda method, head: True),
        volatile=getattr(archive, "volatile", None),
        absent=getattr(archive, "absent", None),
    )
    return open_session(transport)


def read(archive: Archive, session: requests.Session) -> Iterator[dict[str, Any]]:
    """The archive's rows with our names, units and types (`Field`), in order.

    A value that cannot be converted to its field's type stays as it is, and `data_build.rows` sets the row aside.

    Raises:
        DataError: the archive could not be read; the message says what to do.
    """
    info = archive.info
    rows = archive.rows(session)
    while (row := guarded(info, lambda: next(rows, None))) is not None:
        yield {field.name: _converted(row.get(field.column), field) for field in info.fields}


def guarded(info: SourceInfo, step: Callable[[], T]) -> T:
    """``step()`` of an archive's client, whose own errors become a `DataError`."""
    problem: DataError | OSError
    try:
        return step()
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - seven client libraries, each with its own errors
        problem = _ours(error) or ArchiveChanged(
            f"{info.title}: the answer is not what {info.client} can read ({type(error).__name__}: "
            f"{redacted(str(error))[:300]}); if it persists the archive has changed: please report it"
        )
    raise problem  # outside the handler: a chained error may quote a credential


def first_row_changes(archive: Archive, session: requests.Session) -> list[str]:
    """What the archive's first row has otherwise than its class expects: fields that are not there, other types."""
    row = next(archive.rows(session), None)
    if row is None:
        return ["it gave no row"]
    fields = archive.info.fields
    lacking = [f"{field.column} is missing" for field in fields if field.column not in row]
    values = {field: _converted(row.get(field.column), field) for field in fields}
    return lacking + [
        f"{field.column} is {type(value).__name__}, {field.dtype} is expected"
        for field, value in values.items()
        if value is not None and not isinstance(value, DTYPES[field.dtype])
    ]


def require_columns(info: SourceInfo, columns, needed: Iterable[str] | None = None) -> None:
    """Raise an `ArchiveChanged` that names the columns, those of the fields if not ``needed``, that an answer lacks."""
    needed = [field.column for field in info.fields] if needed is None else needed
    lacking = [column for column in needed if column not in columns]
    if lacking:
        raise ArchiveChanged(
            f"{info.title}: the answer lacks {', '.join(lacking)}; it has {', '.join(list(columns)[:20])}: "
            "the archive has changed, please report it"
        )


def good(response: requests.Response, info: SourceInfo) -> requests.Response:
    """The response if its status is good; else a `DataError` with the archive's message."""
    if response.status_code >= 400:
        raise (ArchiveChanged if response.status_code < 500 else DataError)(
            f"{info.title}: {response.request.method} {redacted(response.url)} gave {response.status_code} "
            f"{response.reason}: {' '.join(redacted(response.text).split())[:200]}"
        )
    return response


@contextmanager
def downloaded(session: requests.Session, url: str, info: SourceInfo) -> Iterator[Path]:
    """A temporary copy of an archive's file, for readers that seek."""
    with tempfile.NamedTemporaryFile() as file:
        for block in good(session.get(url, stream=True), info).iter_content(1 << 20):
            file.write(block)
        file.flush()
        yield Path(file.name)


def _ours(error: BaseException | None) -> DataError | OSError | None:
    """The `DataError`, or the error of a full disk, that a client wrapped in an error of its own."""
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, DataError) or (isinstance(error, OSError) and error.errno in _DISK_FULL):
            return error
        error, seen = error.__cause__ or error.__context__ or getattr(error, "cause", None), seen + 1
    return None


def _converted(value: Any, field: Field) -> Any:
    """The value in our unit and type; None where it is absent; unchanged where it is of another type."""
    if isinstance(value, np.ndarray) and value.ndim:
        return value
    if value is None or value == "" or type(value).__name__ == "MaskedConstant":
        return None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    try:
        if field.dtype == "float64":
            number = float(value) * field.factor
            return None if math.isnan(number) else number
        if field.dtype == "int64":
            return int(value) if not isinstance(value, float) or value.is_integer() else value
        if field.dtype == "string":
            return str(value).strip() or None
    except (TypeError, ValueError):
        return value
    return value
