"""The result of a check: a problem, with which no run may start, or a remark, with which it may."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from astrobio.config import ConfigError

ABSENT = "(not given)"  # the value of a key that is missing


@dataclass(frozen=True)
class Finding:
    """One thing about one key: its ``value``, the ``limit`` it meets, and the ``cure``."""

    key: str
    value: Any
    limit: str
    cure: str = ""
    problem: bool = True

    def __str__(self) -> str:
        value = "" if self.value == ABSENT else f" = {json.dumps(self.value, default=str)}"
        return f"{self.key}{value}: {self.limit}{f': {self.cure}' if self.cure else ''}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"problem": self.problem, "text": str(self)}


def remark(key: str, value: Any, limit: str, cure: str = "") -> Finding:
    return Finding(key, value, limit, cure, problem=False)


def raise_problems(findings: Iterable[Finding], where: str) -> None:
    """Raises ConfigError with all problems, a line each, if there are any."""
    problems = [f"{where}: {finding}" for finding in findings if finding.problem]
    if problems:
        raise ConfigError("\n".join(problems))
