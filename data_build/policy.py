"""How archives are read: retries, pauses, mirror, and the rate of requests."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Policy:
    """How archives are read: cached answers, retries, pauses, mirror.

    Attributes:
        offline: use cached answers only.
        refresh: send requests even if their answers are cached.
        tries: how often a request is sent before it counts as failed.
        timeout_s: seconds to connect, and between two pieces of an answer.
        backoff_s: the pause after the first failure; it doubles with each further one.
        longest_wait_s: an archive that asks for a longer pause counts as failed.
        mirror: request ``<mirror>/<host>/<path>`` in place of ``https://<host>/<path>``, for tests and for institutes
            with a copy of an archive.
        root: folder of cached answers; `astrobio.files.cache_root` if None.
    """

    offline: bool = False
    refresh: bool = False
    tries: int = 5
    timeout_s: tuple[float, float] = (20.0, 120.0)
    backoff_s: float = 1.0
    longest_wait_s: float = 300.0
    mirror: str | None = None
    root: Path | None = None


class RateLimit:
    """At most ``per_second`` requests a second, evenly spaced, over all threads."""

    def __init__(self, per_second: float):
        self._pause = 1.0 / per_second
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self) -> None:
        """Return when the next request may go out."""
        with self._lock:
            now = time.monotonic()
            due = max(now, self._next)
            self._next = due + self._pause
        time.sleep(max(0.0, due - now))
