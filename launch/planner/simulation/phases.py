"""What a run does beside training steps, in a ghost run: it validates, saves and loads."""

import torch

from launch.checkpoints.fingerprint import pieces
from launch.planner.simulation import trace
from launch.planner.simulation.recorder import Recorder
from launch.zero.state import EngineState


def validate(engine, loss_of) -> None:
    """A batch of `launch.evaluate.evaluate`."""
    engine.eval()
    with torch.no_grad():
        loss, _ = loss_of(engine)
        loss.item()
    engine.train()


def save(engine, recorder: Recorder) -> int:
    """What `launch.checkpoints.save` brings to the host and writes, piece by piece; returns this rank's bytes."""
    state, file, total = EngineState(engine), trace.next_number(), 0
    for flat in _flats(state, write=False):
        for piece, _ in pieces(flat):
            on_host = piece.cpu()
            recorder.trace.append(trace.HostWaitsForDisk(file))
            recorder.trace.append(trace.HostWork(2 * on_host.nbytes))  # its fingerprint and the file's hash
            recorder.trace.append(trace.DiskWrite(file, on_host.nbytes))
            total += on_host.nbytes
        recorder.trace.append(trace.HostWaitsForDisk(file))
    return total


def load(engine, recorder: Recorder) -> None:
    """What `launch.checkpoints.load` reads, piece by piece, and puts into the engine, and its second look."""
    state, file = EngineState(engine), trace.next_number()
    state.begin_loading()
    for flat in _flats(state, write=True):
        for piece, _ in pieces(flat):
            values = torch.empty(piece.shape, dtype=piece.dtype, device="cpu")
            recorder.touch(values)
            recorder.trace += [
                trace.DiskRead(file, values.nbytes),
                trace.HostWaitsForDisk(file),
                trace.HostWork(values.nbytes),
            ]
            piece.copy_(values)
    state.end_loading()
    for flat in _flats(state, write=False):
        for piece, _ in pieces(flat):
            recorder.trace.append(trace.HostWork(piece.nbytes))


def _flats(state: EngineState, write: bool):
    """Every flat buffer of this rank's state while it is in memory."""
    for group in state.groups:
        with state.opened(group, write) as opened:
            yield opened.master
            yield from opened.moments().values()
    for parameter, part in state.frozen():
        if part.stop > part.start:
            with state.frozen_values(parameter, write) as values:
                yield values[: part.stop - part.start] if state.sharded else values[part.start : part.stop]
