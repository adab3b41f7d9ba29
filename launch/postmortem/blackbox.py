"""What a rank is doing, in a small mapped file of the run's folder that survives a killed process.

``ranks/rank_00000.box`` is written through `mmap`: what is in it when the process dies, however it dies, is in the
page cache and stays; nothing has to be flushed. A store of a few bytes marks each phase and each collective; a thread
writes once a second what the process and its machine have used. `launch.postmortem.explain` reads it.
"""

import contextlib
import faulthandler
import functools
import json
import mmap
import os
import struct
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from launch.memory import host_sample, memory_limit, oom_kills, resident_bytes

MAGIC = b"astrobx1"
#: Behind the magic: phase, when it began; number of collectives, when the last one began, its name, whether in it.
LIVE = struct.Struct("<16s d Q d 24s ?")
#: Then two slots in turns, so that one is whole at any moment: a number that grows, length, checksum, JSON.
SLOT, SLOT_SIZE, FIRST_SLOT = struct.Struct("<Q I I"), 8192, 128
SIZE = FIRST_SLOT + 2 * SLOT_SIZE
COLLECTIVES = (
    "all_reduce",
    "all_reduce_coalesced",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "broadcast",
    "broadcast_object_list",
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_coalesced",
    "all_gather_object",
    "all_to_all_single",
    "all_to_all",
    "send",
    "recv",
    "barrier",
)
#: Seconds between samples; `astrobio compare` looks more often, and keeps all that it sees.
EVERY_S, TRACE = 1.0, "ASTROBIO_TRACE_S"


def box_of(run: Path, rank: int) -> Path:
    return run / "ranks" / f"rank_{rank:05d}.box"


def fault_of(run: Path, rank: int) -> Path:
    return run / "ranks" / f"rank_{rank:05d}.fault"


class BlackBox:
    """The file of one rank.

    Attributes:
        seconds: spent in each phase since `take_seconds`.
        watch: called by each sample, for what only the trainer knows (step, loss scale); must only read.
    """

    def __init__(self, run: Path, rank: int, disks: list[Path]):
        self.run, self.rank, self.disks = run, rank, [run, *disks]
        self.watch: Callable[[], dict[str, Any]] = dict
        self.seconds: dict[str, float] = {}
        path = box_of(run, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, SIZE)  # a disk that fills up later cannot take it away
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), SIZE)
        self._map[: len(MAGIC)] = MAGIC
        self._phase, self._since, self._entered = "start", time.time(), time.perf_counter()
        self._collectives, self._name, self._begun, self._inside = 0, b"", 0.0, False
        self._number, self._lock, self._done = 0, threading.Lock(), threading.Event()
        self._peaks: dict[str, int] = {}
        self._fixed = {
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "rank": rank,
            "world_size": int(os.environ.get("WORLD_SIZE", 1)),
            "boot": boot_id(),
            "host": os.uname().nodename,
            "memory_limit": memory_limit(),
            "rss_at_start": resident_bytes(),
            "oom_kills_at_start": oom_kills(),
        }
        every = os.environ.get(TRACE)
        self._every = float(every) if every else EVERY_S
        self._trace = path.with_suffix(".samples.jsonl").open("a") if every else None
        self._store_live()
        self.sample()
        self._thread = threading.Thread(target=self._watch, name="black box", daemon=True)
        self._thread.start()

    def phase(self, name: str) -> None:
        """Enter a phase: data, forward, backward, reduce, optimizer, save, eval …"""
        now = time.perf_counter()
        self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._entered
        self._phase, self._since, self._entered = name, time.time(), now
        self._store_live()

    def take_seconds(self) -> dict[str, float]:
        """Seconds of each phase since the last call."""
        self.phase(self._phase)
        taken, self.seconds = self.seconds, {}
        return taken

    def collective(self, name: str, inside: bool) -> None:
        """The rank enters one, or leaves it."""
        if inside:
            self._collectives += 1
            self._name, self._begun = name.encode()[:24], time.time()
        self._inside = inside
        self._store_live()

    def _store_live(self) -> None:
        LIVE.pack_into(
            self._map,
            len(MAGIC),
            self._phase.encode()[:16],
            self._since,
            self._collectives,
            self._begun,
            self._name,
            self._inside,
        )

    def _watch(self) -> None:
        while not self._done.wait(self._every):
            self.sample()

    def sample(self, **more: Any) -> None:
        """Record the state of the process and the machine."""
        with self._lock:
            if self._done.is_set() and "ended" not in more:
                return  # it would take the place of the last words
            now = {"time": time.time(), **_usage(self.disks)}
            with contextlib.suppress(AttributeError):  # of an engine that is being taken apart
                now |= self.watch()
            for key, value in now.items():
                if key in PEAKS and value is not None:
                    self._peaks[key] = PEAKS[key](value, self._peaks.get(key, value))
            self._number += 1
            text = json.dumps(self._fixed | {"last": now, "peaks": self._peaks} | more).encode()[
                : SLOT_SIZE - SLOT.size
            ]
            place = FIRST_SLOT + SLOT_SIZE * (self._number % 2)
            self._map[place + SLOT.size : place + SLOT.size + len(text)] = text
            SLOT.pack_into(self._map, place, self._number, len(text), zlib.crc32(text))
            if self._trace is not None:
                with contextlib.suppress(OSError):
                    self._trace.write(json.dumps({"phase": self._phase, **now}) + "\n")
                    self._trace.flush()

    def end(self, error: BaseException | None) -> None:
        """Record how the rank ended by itself. A killed rank records nothing."""
        if self._done.is_set():
            return
        self._done.set()
        self._thread.join(timeout=2 * EVERY_S)  # a disk that hangs must not keep the rank
        if error is None or isinstance(error, SystemExit) and not error.code:
            ended: dict[str, Any] = {"time": time.time(), "error": None}
        else:
            if isinstance(error, SystemExit) and error.__context__ is not None:
                error = error.__context__  # what it was raised for
            told = "".join(traceback.format_exception_only(error)).strip()
            where = traceback.extract_tb(error.__traceback__)[-1:]
            ended = {
                "time": time.time(),
                "error": type(error).__name__,
                "message": told[-2000:],
                "errno": getattr(error, "errno", None),
                "where": f"{where[0].filename}:{where[0].lineno}" if where else None,
            }
        self.sample(ended=ended)
        if self._trace is not None:
            self._trace.close()


#: What is kept of all samples: the most, or of what is free the least.
PEAKS = {
    "rss": max,
    "cgroup_used": max,
    "device_bytes": max,
    "device_reserved": max,
    "device_allocated": max,
    "available": min,
}


def _usage(disks: list[Path]) -> dict[str, Any]:
    usage = {**host_sample(), "disks": {str(path): free for path in disks if (free := _free(path)) is not None}}
    with contextlib.suppress(OSError, psutil.Error, NotImplementedError):
        io = psutil.Process().io_counters()
        usage |= {"read_bytes": io.read_bytes, "written_bytes": io.write_bytes}
    return usage | _device()


def _free(path: Path) -> tuple[int, int] | None:
    """Bytes free and in all; None where the folder is gone."""
    try:
        disk = os.statvfs(path)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize


def _device() -> dict[str, int]:
    torch = sys.modules.get("torch")  # who has not imported it uses no card
    if torch is None or not torch.cuda.is_initialized():
        return {}
    # This is asked in a thread, whose own device is card 0: to ask that one would open a context there in every rank.
    card = int(os.environ.get("LOCAL_RANK", 0))
    with contextlib.suppress(RuntimeError):  # a card that is in error: the rank itself says of what
        free, total = torch.cuda.mem_get_info(card)
        return {
            "device_bytes": total - free,
            "device_total": total,
            "device_reserved": torch.cuda.max_memory_reserved(card),
            "device_allocated": torch.cuda.max_memory_allocated(card),
        }
    return {}


def boot_id() -> str | None:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


def read_box(path: Path) -> dict[str, Any] | None:
    """What a rank left behind; None where the file is not one, or was never written to."""
    content = path.read_bytes()
    if len(content) != SIZE or not content.startswith(MAGIC):
        return None
    best: tuple[int, bytes] | None = None
    for place in (FIRST_SLOT, FIRST_SLOT + SLOT_SIZE):
        number, length, checksum = SLOT.unpack_from(content, place)
        text = content[place + SLOT.size : place + SLOT.size + length]
        if number and zlib.crc32(text) == checksum and (best is None or number > best[0]):
            best = number, text
    if best is None:
        return None
    phase, since, collectives, begun, name, inside = LIVE.unpack_from(content, len(MAGIC))
    found = json.loads(best[1])
    life = max(found["last"]["time"], since, begun)
    return found | {
        "phase": phase.rstrip(b"\0").decode(),
        "phase_since": since,
        "collectives": collectives,
        "collective": name.rstrip(b"\0").decode() or None,
        "collective_since": begun,
        "inside": inside,
        "last_sign_of_life": life,
    }


_box: BlackBox | None = None  # of this process


def phase(name: str) -> None:
    """See `BlackBox.phase`; does nothing where nothing is recorded."""
    if _box is not None:
        _box.phase(name)


def take_seconds() -> dict[str, float]:
    return {} if _box is None else _box.take_seconds()


def watch(function: Callable[[], dict[str, Any]]) -> None:
    if _box is not None:
        _box.watch = function


@contextlib.contextmanager
def recording(run: Path, disks: list[Path]) -> Iterator[None]:
    """Record this rank, and how it ends."""
    global _box
    _box = box = BlackBox(run, int(os.environ.get("RANK", 0)), disks)
    faults = fault_of(run, box.rank).open("w")
    faulthandler.enable(faults)  # where compiled code faults, Python leaves the stack there
    try:
        yield
    except BaseException as error:
        box.end(error)
        raise
    finally:
        box.end(None)
        _box = None
        faulthandler.enable()
        faults.close()


def record_collectives() -> None:
    """Record each collective that DeepSpeed starts; call after `deepspeed.init_distributed`."""
    from deepspeed.comm import comm  # not above: `astrobio explain`, which reads boxes, would wait for it

    for name in COLLECTIVES:
        function = getattr(comm.cdb, name, None)
        if function is not None and not hasattr(function, "__wrapped__"):
            setattr(comm.cdb, name, _noted(name, function))


def _noted(name: str, function: Callable) -> Callable:
    @functools.wraps(function)
    def noted(*args, **kwargs):
        box = _box
        if box is None:
            return function(*args, **kwargs)
        box.collective(name, True)
        result = function(*args, **kwargs)
        box.collective(name, False)  # one that failed stays the one it was in
        return result

    return noted
