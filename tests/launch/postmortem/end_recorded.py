"""Ends as it is told, with the black box on: end_recorded.py RUN END, where END is of `ERRORS` or `ENDS`."""

import ctypes
import errno
import os
import signal
import sys
import time
from pathlib import Path

from launch.postmortem import blackbox

ERRORS = {
    "no host memory": MemoryError(),
    "no device memory": RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "full disk": OSError(errno.ENOSPC, "No space left on device"),
    "minimum loss scale": Exception(
        "Current loss scale already at minimum - cannot decrease scale anymore. Exiting run."
    ),
    "a bug": KeyError("planet"),
}


def read_beyond_a_swap_file(run: Path) -> None:
    """DeepSpeed's aio asserts: a swap file is shorter than what is read of it."""
    import torch  # these take seconds, and only this end needs them
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.swap_tensor.utils import swap_in_tensors

    from launch.zero.accelerator import prepare_accelerator

    prepare_accelerator()
    aio = get_accelerator().create_op_builder("AsyncIOBuilder").load().aio_handle(1 << 20, 8, False, True, 1)
    swap_in_tensors(aio, [torch.empty(1 << 12)], [str(run / "short.swp")])


ENDS = {
    "kill": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "fault": lambda _: ctypes.string_at(0),
    "short swap file": read_beyond_a_swap_file,
    "at once": lambda _: None,
    "after a sleep": lambda _: time.sleep(0),
}

if __name__ == "__main__":
    run, end = Path(sys.argv[1]), sys.argv[2]
    with blackbox.recording(run, []):
        blackbox.watch(lambda: {"step": 7, "loss_scale": 256.0})
        blackbox.phase("backward")
        blackbox._box.collective("all_gather_into_tensor", True)
        blackbox._box.sample()
        if end in ERRORS:
            raise ERRORS[end]
        ENDS[end](run)
