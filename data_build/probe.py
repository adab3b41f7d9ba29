"""``astrobio data probe``: one row from each archive, live, held against what its class expects."""

import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_build.cache import DataError
from data_build.credentials import find, how_to, redacted
from data_build.fetch import RefusedSignIn
from data_build.policy import Policy
from data_build.recipe import did_you_mean
from data_build.sources import ARCHIVES
from data_build.sources.base import ArchiveChanged, connect, first_row_changes, guarded

OK, CHANGED, UNREACHABLE, NEEDS_CREDENTIALS = "ok", "changed", "unreachable", "needs credentials"
_THREADS = 4


def live_policy(root: Path) -> Policy:
    """Answers kept only in ``root``: what builds have cached is neither used nor replaced. A probe waits for no one."""
    return Policy(root=root, tries=2, timeout_s=(10.0, 60.0), longest_wait_s=30.0)


def probe(names: Iterable[str] = ()) -> list[dict]:
    """Name, title, status and details of each named archive, of all if none is named.

    Raises:
        DataError: there is no archive of that name.
    """
    chosen = list(dict.fromkeys(names)) or list(ARCHIVES)
    for name in chosen:
        if name not in ARCHIVES:
            raise DataError(f"unknown archive {name!r}{did_you_mean(name, ARCHIVES)}; there is: {', '.join(ARCHIVES)}")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(_THREADS) as pool:
        policy = live_policy(Path(folder))
        return list(pool.map(lambda name: _probed(name, policy), chosen))


def failed(found: list[dict], named: bool) -> bool:
    """Whether an archive has changed or is out of reach; of a named one also whether it was not let in."""
    return any(entry["status"] in (CHANGED, UNREACHABLE, *([NEEDS_CREDENTIALS] if named else [])) for entry in found)


def table(found: list[dict]) -> str:
    """The findings for people: a line each, and how many of each kind."""
    width = max(len(entry["name"]) for entry in found)
    lines = [
        f"{entry['name'].ljust(width)}  {entry['status'].ljust(len(NEEDS_CREDENTIALS))}  {'; '.join(entry['details'])}"
        for entry in found
    ]
    counts = Counter(entry["status"] for entry in found)
    return "\n".join([*(line.rstrip() for line in lines), ", ".join(f"{counts[kind]} {kind}" for kind in counts)])


def _probed(name: str, policy: Policy) -> dict:
    archive = ARCHIVES[name]()
    status, details = _status(archive, policy)
    return {
        "name": name,
        "title": archive.info.title,
        "status": status,
        "details": [redacted(" ".join(detail.split())) for detail in details],
    }


def _status(archive, policy: Policy) -> tuple[str, list[str]]:
    sign_in = archive.info.sign_in
    try:
        if sign_in is not None and sign_in.required and find(sign_in) is None:
            return NEEDS_CREDENTIALS, [how_to(sign_in)]
        session = connect(archive, policy)
        differences = getattr(archive, "changes", lambda session: first_row_changes(archive, session))
        details = guarded(archive.info, lambda: differences(session))
    except RefusedSignIn as error:
        return UNREACHABLE if sign_in is None else NEEDS_CREDENTIALS, [str(error)]
    except ArchiveChanged as error:
        return CHANGED, [str(error)]
    except DataError as error:
        return UNREACHABLE, [str(error)]
    return (CHANGED if details else OK), details
