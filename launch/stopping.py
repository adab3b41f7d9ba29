"""Small decisions of the loop, one class each; what must survive a resume is in their fields."""

import math
import os
import signal
import time
from dataclasses import dataclass, field

import psutil


@dataclass
class EarlyStop:
    """Stop after ``patience`` validations in a row without a lower loss, and decide which weights are the best."""

    patience: int
    best: float = float("inf")
    since_best: int = 0

    def keeps(self, loss: float, error: float = 0.0) -> bool:
        """Take note of a validation; True if its weights are the best so far.

        They do where no validation was better by more than the standard ``error`` of the loss (the rule of Breiman et
        al. 1984): of weights that a small validation split cannot tell apart, the last, which the schedule has led
        nearest to a learning rate of 0, are the best. A loss that is not finite never does.
        """
        kept = math.isfinite(loss) and loss <= self.best + error
        if loss < self.best:
            self.best, self.since_best = loss, 0
        else:
            self.since_best += 1
        return kept

    @property
    def due(self) -> bool:
        return self.since_best >= self.patience


@dataclass
class TimeLimit:
    """Counts the hours of a run over all its resumes."""

    limit_h: float
    before_s: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        return self.before_s + time.monotonic() - self.started

    @property
    def due(self) -> bool:
        return self.elapsed_s >= 3600 * self.limit_h


@dataclass
class CheckpointPolicy:
    """When to save: every so many steps, and every so many hours."""

    every_steps: int
    every_h: float
    saved_at: float = field(default_factory=time.monotonic)

    def due(self, step: int) -> bool:
        return step % self.every_steps == 0 or time.monotonic() - self.saved_at >= 3600 * self.every_h

    def saved(self) -> None:
        self.saved_at = time.monotonic()


class StopRequest:
    """Set by SIGTERM, SIGINT or SIGUSR1, or when the `deepspeed` command has gone; read at each step boundary. A second
    signal ends the rank at once.

    The launcher passes SIGTERM on to its ranks, but its own parent, the `deepspeed` command, does not: killed, it
    leaves ranks behind that nobody sees.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    #: One Ctrl-C reaches a rank more than once, from the terminal and through the launcher.
    SAME_REQUEST_S = 2.0

    def __init__(self):
        self.reason: str | None = None
        self._since = 0.0
        self._command = _deepspeed_command()
        for number in self.SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame) -> None:
        if self.reason is None:
            self.reason, self._since = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._since > self.SAME_REQUEST_S:
            os.write(2, f"{signal.Signals(number).name} again: ending at once, without a checkpoint\n".encode())
            os._exit(128 + number)

    @property
    def asked(self) -> bool:
        if self.reason is None and self._command is not None and not _alive(self._command):
            self.reason = "the deepspeed command has gone"
        return self.reason is not None


def _deepspeed_command() -> psutil.Process | None:
    """The `deepspeed` process above the launcher of this rank, if there is one."""
    if "LOCAL_RANK" not in os.environ:
        return None
    above = psutil.Process().parents()[1:2]
    return above[0] if above and any("deepspeed" in part for part in above[0].cmdline()) else None


def _alive(process: psutil.Process) -> bool:
    """A killed process that nobody has waited for yet is dead all the same."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ignore_stop_signals(worker: int | None = None) -> None:
    """For a rank that is leaving, and for processes that read data, by their ``worker`` number: the launcher sends
    SIGTERM to the whole process tree, but a rank must live on to its next step boundary and needs them."""
    for number in StopRequest.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
