"""What a run does beside training steps, in a ghost run: it validates, saves and loads."""

import torch

from launch.checkpoints.fingerprint import pieces
from launch.planner.simulation.recorder import Ledger, numbers
from launch.zero.state import EngineState


def validate(engine, loss_of) -> None:
    """A batch of `launch.evaluate.evaluate`."""
    engine.eval()
    with torch.no_grad():
        loss, _ = loss_of(engine)
        loss.item()
    engine.train()


def save(engine, ledger: Ledger) -> int:
    """What `launch.checkpoints.save` brings to the host and writes, piece by piece; returns this rank's bytes."""
    state, file, total = EngineState(engine), next(numbers), 0
    for flat in _flats(state, write=False):
        for piece, _ in pieces(flat):
            on_host = piece.cpu()
            ledger.trace.append(("host_wait_disk", file))
            ledger.trace.append(("host", 2 * on_host.nbytes))  # its fingerprint and the file's hash
            ledger.trace.append(("write", file, on_host.nbytes))
            total += on_host.nbytes
        ledger.trace.append(("host_wait_disk", file))
    return total


def load(engine, ledger: Ledger) -> None:
    """What `launch.checkpoints.load` reads, piece by piece, and puts into the engine, and its second look."""
    state, file = EngineState(engine), next(numbers)
    state.begin_loading()
    for flat in _flats(state, write=True):
        for piece, _ in pieces(flat):
            values = torch.empty(piece.shape, dtype=piece.dtype, device="cpu")
            ledger.touch(values)
            ledger.trace += [("read", file, values.nbytes), ("host_wait_disk", file), ("host", values.nbytes)]
            piece.copy_(values)
    state.end_loading()
    for flat in _flats(state, write=False):
        for piece, _ in pieces(flat):
            ledger.trace.append(("host", piece.nbytes))


def _flats(state: EngineState, write: bool):
    """Every flat buffer of this rank's state while it is in memory."""
    for group in state.groups:
        with state.opened(group, write) as opened:
            yield opened.master
            yield from opened.moments().values()
    for parameter, part in state.frozen():
        if part.stop > part.start:
            with state.frozen_values(parameter, write) as values:
                yield values[:part.stop - part.start] if state.sharded else values[part.start:part.stop]
