"""What a run reports: metrics.jsonl, train.log, the progress bar, Weights & Biases. Only rank 0 writes."""

import contextlib
import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from deepspeed.accelerator import get_accelerator
from tqdm import tqdm

from launch.ds_config.config import DsConfig
from launch.memory import available_bytes, resident_bytes
from launch.zero.accelerator import on_cpu

log = logging.getLogger("astrobio")


class MetricsFile:
    """Appends JSON objects to a file, a line each: a whole line or nothing, also on a full disk."""

    def __init__(self, path: Path):
        self.path = path
        with path.open("ab"):
            pass
        self._end_broken_line()

    def write(self, record: dict[str, Any]) -> None:
        """Raises OSError, naming the file, where the line does not fit; what was there before stays."""
        line = (json.dumps(record) + "\n").encode()
        before = self.path.stat().st_size
        try:
            with self.path.open("ab", buffering=0) as file:
                written = file.write(line)
                if written != len(line):
                    raise OSError(28, os.strerror(28))
        except OSError as error:
            os.truncate(self.path, before)
            raise OSError(
                error.errno,
                f"{error.strerror}: metrics could not be written; all earlier lines are kept",
                str(self.path),
            ) from None

    def _end_broken_line(self) -> None:
        """Cut off a last line that a killed process left half-written."""
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            os.truncate(self.path, whole)


class Monitor:
    """Writes what the loop reports. On other ranks than 0 it does nothing.

    Args:
        run: the run's folder.
        rank: of this process.
        config: what Weights & Biases shows as the run's configuration.
        project: its project; without ``WANDB_API_KEY`` the run is recorded offline in the run's folder.
        wandb_id: of the run that is continued.
    """

    def __init__(self, run: Path, rank: int, config: dict[str, Any], project: str, wandb_id: str | None = None):
        self.active = rank == 0
        self.wandb_id = wandb_id
        self._wandb: Any = None
        self._bar: tqdm | None = None
        if not self.active:
            return
        self.metrics = MetricsFile(run / "metrics.jsonl")
        _log_to(run / "train.log")
        self._start_wandb(run, config, project)

    def _start_wandb(self, run: Path, config: dict[str, Any], project: str) -> None:
        if os.environ.get("WANDB_MODE") == "disabled":
            return
        import wandb  # takes seconds, which a run without it saves

        if not os.environ.get("WANDB_API_KEY"):
            os.environ.setdefault("WANDB_MODE", "offline")
        self._wandb = wandb.init(
            project=project,
            id=self.wandb_id,
            name=run.name,
            dir=run,
            resume="allow",
            config=config,
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.wandb_id = self._wandb.id

    def start_bar(self, total: int, initial: int) -> None:
        if self.active:
            self._bar = tqdm(
                total=total, initial=initial, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True
            )

    def train(self, record: dict[str, Any]) -> None:
        """One optimizer step."""
        if not self.active:
            return
        self.metrics.write({"kind": "train", **record})
        self._to_wandb("train", record)
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix(loss=f"{record['loss']:.3f}", scale=record["loss_scale"])
        # On a terminal the bar shows the steps; the log has them in any case.
        log.log(
            logging.INFO if self._bar is None or self._bar.disable else logging.DEBUG,
            "step %d  epoch %.2f  loss %.4f  grad_norm %.3g  lr %.2e  scale %g  %.2f samples/s  left %s",
            record["step"],
            record["epoch"],
            record["loss"],
            record["grad_norm"] or float("nan"),
            record["lr"],
            record["loss_scale"],
            record["samples_per_s"],
            duration(record["left_s"]),
        )

    def evaluation(self, record: dict[str, Any]) -> None:
        if not self.active:
            return
        self.metrics.write({"kind": "eval", **record})
        self._to_wandb(record["split"], record)
        log.info(
            "%s  step %d  loss %.4f  accuracy %.4f  roc_auc %.4f  ece %.4f  (%d records)",
            record["split"],
            record["step"],
            record["loss"],
            *(_number(record[k]) for k in ("accuracy", "roc_auc", "ece")),
            record["records"],
        )

    def event(self, step: int, event: str, message: str, level: int = logging.INFO, **details: Any) -> None:
        """Something that is not a number: a checkpoint, an overflow, the reason for a stop."""
        if not self.active:
            return
        self.metrics.write({"kind": "event", "step": step, "event": event, "message": message, **details})
        log.log(level, message)

    def _to_wandb(self, prefix: str, record: dict[str, Any]) -> None:
        if self._wandb is None:
            return
        flat = {f"{prefix}/{key}": value for key, value in record.items() if isinstance(value, int | float)}
        flat |= {
            f"{prefix}/{key}/{part}": value
            for key, inner in record.items()
            if isinstance(inner, dict)
            for part, value in inner.items()
            if isinstance(value, int | float)
        }
        self._tell_wandb(self._wandb.log, flat | {"step": record["step"]})

    def _tell_wandb(self, function, *arguments) -> None:
        """Weights & Biases' own process may be gone before this one: the launcher ends a run by SIGTERM to all that
        the ranks have started. A run must not fail for it; metrics.jsonl has everything."""
        try:
            function(*arguments)
        except OSError as error:
            self._wandb = None
            log.warning("Weights & Biases does not answer (%s): the run goes on without it", error)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._wandb is not None:
            self._tell_wandb(self._wandb.finish)
            self._wandb = None


def usage(ds_config: DsConfig) -> dict[str, int]:
    """Bytes of the device at its peak, of the host, of the NVMe swap files of this machine, and read and written.

    On a CPU the device is the host, and its bytes are those resident now.
    """
    resident = resident_bytes()
    record = {
        "device_peak_bytes": resident if on_cpu() else get_accelerator().max_memory_allocated(),
        "host_rss_bytes": resident,
        "host_available_bytes": available_bytes(),
    }
    folders = set(ds_config.nvme_paths.values())
    if folders:
        record["nvme_bytes"] = sum(
            file.stat().st_size for folder in folders for file in Path(folder).rglob("*") if file.is_file()
        )
        record["nvme_free_bytes"] = min(shutil.disk_usage(folder).free for folder in folders)
    with contextlib.suppress(OSError, psutil.Error, NotImplementedError):
        io = psutil.Process().io_counters()  # of this rank since it began
        record |= {"io_read_bytes": io.read_bytes, "io_written_bytes": io.write_bytes}
    return record


def duration(seconds: float) -> str:
    """``2 d 03:04:05``."""
    days, rest = divmod(int(seconds), 86400)
    return (f"{days} d " if days else "") + time.strftime("%H:%M:%S", time.gmtime(rest))


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _log_to(path: Path) -> None:
    log.setLevel(logging.DEBUG)
    log.propagate = False
    log.handlers.clear()
    for handler, level, form in (
        (logging.FileHandler(path), logging.DEBUG, "%(asctime)s %(levelname)s %(message)s"),
        (_AboveBar(), logging.INFO, "%(message)s"),
    ):
        handler.setLevel(level)
        handler.setFormatter(logging.Formatter(form))
        log.addHandler(handler)


class _AboveBar(logging.Handler):
    """Prints above a running progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)
