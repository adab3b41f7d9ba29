"""The order of the samples: a seeded permutation for each epoch, laid end to end."""

import dataclasses
from dataclasses import dataclass

import numpy as np


@dataclass
class SampleOrder:
    """An endless stream of record indices whose whole state is ``{seed, epoch, consumed_global}``.

    Epoch ``e`` is the permutation of ``size`` records drawn from ``(seed, e)``; a global batch may reach over the end
    of an epoch, so that every record is seen exactly once in each. The stream knows nothing of ranks: which rank
    reads what is decided by `micro_batch` alone, so resume is exact in the midst of an epoch and under another number
    of ranks.
    """

    size: int
    seed: int
    consumed_global: int = 0

    @property
    def epoch(self) -> int:
        return self.consumed_global // self.size

    def indices(self, start: int, count: int) -> list[int]:
        """Record indices at the places ``start`` to ``start + count`` of the stream."""
        out: list[int] = []
        while len(out) < count:
            epoch, offset = divmod(start + len(out), self.size)
            out.extend(self._permutation(epoch)[offset : offset + count - len(out)].tolist())
        return out

    def micro_batches(self, micro_batch: int, rank: int, world_size: int):
        """Index lists for this rank from here on, without end: micro-step k of all ranks together is contiguous."""
        place = self.consumed_global + rank * micro_batch
        while True:
            yield self.indices(place, micro_batch)
            place += micro_batch * world_size

    def _permutation(self, epoch: int) -> np.ndarray:
        if getattr(self, "_cached", (None,))[0] != epoch:
            self._cached = (epoch, np.random.default_rng([self.seed, epoch]).permutation(self.size))
        return self._cached[1]

    def state_dict(self) -> dict[str, int]:
        return {**dataclasses.asdict(self), "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where ``state`` stopped; a data set of another size has another order and is refused."""
        if state["size"] != self.size:
            raise ValueError(
                f"the order was saved over {state['size']} training records, this data set has "
                f"{self.size}: resume with the data the run began with, or start a new run"
            )
        self.seed, self.consumed_global = state["seed"], state["consumed_global"]
