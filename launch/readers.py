"""The processes that read ahead."""

import gc
import multiprocessing
import signal
from collections.abc import Iterable, Iterator

import torch
from torch.utils.data import DataLoader

from astrobio.batch import Batch
from astrobio.dataset import AstrobioDataset
from launch.stopping import ignore_stop_signals


class Readers:
    """Start ``number`` processes that read a split; make it before the engine.

    They are forked, and share the rank's memory until it writes there: then they keep what was. Forked beside the
    engine, each would come to hold a second copy of the offloaded optimizer, 12 bytes a parameter.
    """

    def __init__(self, split: AstrobioDataset, number: int):
        self._order: Iterable[list[int]] = ()
        self._loader = DataLoader(
            split,
            collate_fn=split.collate,
            batch_sampler=self,
            num_workers=number,
            persistent_workers=number > 0,
            generator=torch.Generator(),  # else it draws from the model's random numbers at each start
            worker_init_fn=ignore_stop_signals if number else None,
        )
        if number:
            gc.freeze()  # else a collection writes into every object that they share with the rank
            iter(self._loader)  # starts them, with nothing to read

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._order)

    def batches(self, order: Iterable[list[int]]) -> Iterator[Batch]:
        """The batches of these lists of indices, in order."""
        self._order = order
        return iter(self._loader)


def end_readers() -> None:
    """To be registered with `atexit`: Python ends what is left of its helpers by SIGTERM, which they ignore, and waits
    for them; a rank that ended by an error would stand still for ever, and all others with it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise for each one that is killed
    for child in multiprocessing.active_children():
        child.kill()
