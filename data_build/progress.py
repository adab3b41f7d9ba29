"""Progress on stderr: bars on a terminal, one line a stage elsewhere, nothing if switched off."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from data_build.harvest import Told


class Stages:
    """What a build tells while it runs."""

    def __init__(self, on: bool):
        self._on, self._bars = on, on and sys.stderr.isatty()

    def say(self, text: str) -> None:
        """Tell that a stage begins."""
        if self._on:
            print(text, file=sys.stderr, flush=True)

    def bar(self, name: str, items: Iterable, total: int) -> Iterator:
        """Pass ``items`` on and show how many of ``total`` have come."""
        if not self._bars:
            self.say(f"{name}: {total} batches")
        return iter(tqdm(items, desc=name, total=total, disable=not self._bars, file=sys.stderr))

    @contextmanager
    def rows(self, archives: Iterable[str]) -> Iterator[Told]:
        """Count the rows that come from several archives at once."""
        self.say(f"archives: {', '.join(archives)}")
        with tqdm(desc="rows", unit=" rows", disable=not self._bars, file=sys.stderr) as bar:
            yield Told(bar)
