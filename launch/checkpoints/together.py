"""Agreement between ranks, so that one rank's error ends all of them with its reason."""

from collections.abc import Callable
from typing import Any, TypeVar

import deepspeed.comm as dist

T = TypeVar("T")


def gathered(value: T) -> list[T]:
    """Every rank's ``value``, on every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_rank_0(make: Callable[[], T]) -> T:
    """What ``make`` returns on rank 0, on every rank."""
    values: list[Any] = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def on_rank_0(do: Callable[[], object]) -> list[str]:
    """Do something with files on rank 0; what went wrong, on every rank."""

    def attempt() -> list[str]:
        try:
            do()
        except OSError as error:
            return [f"{error.strerror} ({error.filename})" if error.strerror else str(error)]
        return []

    return from_rank_0(attempt)
