"""The most probable cause of a run's end or hang, from its ranks' black boxes."""

import os
import re
from dataclasses import dataclass, field
from typing import Any

import psutil

from launch.memory import GB, oom_kills
from launch.postmortem.blackbox import boot_id

#: A rank is behind the others if its last sign of life is older than theirs by so many seconds: the launcher notices a
#: death, and stops the other ranks, within one.
SILENT_S = 5.0
#: Memory this near to its limit explains a kill; a disk with less than this is full.
FULL, DISK_LEFT = 0.93, 16 << 20
#: Causes, and the words of an error that show them. The first that matches counts.
ERRORS = (
    ("minimum loss scale", r"loss scale already at minimum"),
    (
        "disk full",
        r"No space left on device|\[Errno 28\]|errno: ?28|Disk quota exceeded|ENOSPC|"
        r"is not saved: it takes .* GB free",
    ),
    ("file size limit", r"File too large|\[Errno 27\]"),
    ("device memory", r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED|out of memory on device"),
    (
        "host memory",
        r"can't allocate memory|Cannot allocate memory|MemoryError|std::bad_alloc|\[Errno 12\]|"
        r"failed to map|not enough memory|DefaultCPUAllocator|can't start new thread",
    ),
    ("non-finite numbers", r"NonFinite"),
    (
        "lost another rank",
        r"Connection (closed|reset)|Broken pipe|Socket Timeout|[Tt]imed out|NCCL.*(remote|abort)|"
        r"recvBytes|readBytes|broken connection|Connection refused",
    ),
)


@dataclass
class Explanation:
    """The most probable ``cause``, the ``rank`` it struck, the ``evidence``, and the ``cure``."""

    cause: str
    rank: int | None
    summary: str
    evidence: list[str] = field(default_factory=list)
    cure: str = ""
    ranks: list[dict[str, Any]] = field(default_factory=list)


def cause_of(boxes: list[dict]) -> Explanation:
    """The explanation without what `explain` adds from the run's other files."""
    errors = [box for box in boxes if box.get("ended") and box["ended"]["error"]]
    named = [(kind, box) for box in errors if (kind := _kind(box)) != "lost another rank"]
    vanished = [box for box in boxes if not box.get("ended") and not box["alive"]]
    alive = [box for box in boxes if box["alive"] and not box.get("ended")]
    if named:  # a rank that recorded its own error
        kind, box = min(named, key=lambda pair: pair[1]["ended"]["time"])
        first = min(vanished, key=lambda other: other["last_sign_of_life"], default=None)
        if first is None or first["last_sign_of_life"] > box["ended"]["time"] - 1 or kind != "error":
            return Explanation(
                kind,
                box["rank"],
                f"rank {box['rank']} ended in {_doing(box)}: {_words(box)}",
                _of_the_limits(box, kind),
            )
    if alive and (behind := _behind(boxes)) is not None:
        return behind
    if alive and not vanished:
        return Explanation("running", None, f"the run goes on, in {_doing(alive[0])}")
    if vanished:
        return _killed(boxes, vanished)
    if errors:
        box = min(errors, key=lambda box: box["ended"]["time"])
        return Explanation(
            "lost another rank",
            box["rank"],
            f"rank {box['rank']} lost the others in {_doing(box)}: {_words(box)}",
            cure="look at the other machines' ranks, and at the network between them",
        )
    unsaved = next((box for box in boxes if box["last"].get("unsaved")), None)
    if unsaved is not None:
        kind = _kind_of(unsaved["last"]["unsaved"])
        return Explanation(
            "not saved" if kind == "error" else kind,
            unsaved["rank"],
            f"the run ended by itself, but its last step could not be saved: {unsaved['last']['unsaved'][:300]}",
            _of_the_limits(unsaved, kind),
        )
    stop = next((box["last"].get("stop") for box in boxes if box["last"].get("stop")), None)
    return Explanation(
        "stopped" if stop else "finished",
        None,
        f"the run stopped as asked ({stop}), with a checkpoint"
        if stop
        else "the run ended by itself, without an error",
        cure="--resume auto goes on" if stop else "",
    )


def _kind(box: dict) -> str:
    message = box["ended"]["message"]
    if box["ended"].get("errno") == 28:
        return "disk full"
    if (kind := _kind_of(message)) != "error":
        return kind
    if _full_disk(box) and re.search(r"OSError|RuntimeError|writ|[Ee]rrno|AssertionError", message):
        return "disk full"
    return "error"


def _kind_of(message: str) -> str:
    return next((kind for kind, words in ERRORS if re.search(words, message)), "error")


def _killed(boxes: list[dict], vanished: list[dict]) -> Explanation:
    """Ranks that recorded no end: killed by a signal that no process can catch, or by a fault in compiled code."""
    first = min(vanished, key=lambda box: box["last_sign_of_life"])
    life = first["last_sign_of_life"]
    aborted = [box for box in vanished if any("Aborted" in line for line in box["fault"][:1])]
    for box in aborted:
        if at := next((line for line in box["fault"] if "swap_tensor" in line), None):
            return Explanation(
                "NVMe transfer",
                box["rank"],
                f"rank {box['rank']} was aborted in DeepSpeed's transfer to or from NVMe, in {_doing(box)}",
                [f"it was at {at}"],
            )
    if aborted and (behind := _behind(boxes)) is not None:
        return behind  # NCCL's watchdog aborts a rank that has waited too long for another
    for box in vanished:
        if box["fault"]:
            current = next((i for i, line in enumerate(box["fault"]) if line.startswith("Current thread")), 0)
            where = next((line for line in box["fault"][current:] if line.startswith("File ")), "")
            return Explanation(
                "fault",
                box["rank"],
                f"rank {box['rank']} crashed in compiled code in {_doing(box)}: {box['fault'][0]}",
                [f"the stack begins at {where}"] if where else [],
            )
        if evidence := _memory_kill(box):
            return Explanation(
                "host memory",
                box["rank"],
                f"rank {box['rank']} was killed in {_doing(box)} for want of host memory",
                evidence,
            )
    noticed = [
        box
        for box in boxes
        if box is not first and (box.get("ended") and abs(box["ended"]["time"] - life) < 30 or box["last"].get("stop"))
    ]
    if not noticed and (behind := _behind(boxes)) is not None:
        return behind
    if (path := _full_disk(first)) is not None:
        return Explanation(
            "disk full",
            first["rank"],
            f"rank {first['rank']} died in {_doing(first)} with no room left in {path}",
            _of_the_limits(first, "disk full"),
        )
    evidence = [f"rank {first['rank']} left no last word, as only SIGKILL or a fault in compiled code does"]
    if first["last"].get("oom_kills") is not None and first["oom_kills_at_start"] == _kills_now(first):
        evidence.append("the kernel has killed nothing for want of memory since the run began")
    for box in noticed:
        words = _words(box) if box.get("ended") and box["ended"]["error"] else f"stopped by {box['last'].get('stop')}"
        evidence.append(f"rank {box['rank']} lost it: {words}")
    return Explanation(
        "killed", first["rank"], f"rank {first['rank']} was killed from outside in {_doing(first)}", evidence
    )


def _memory_kill(box: dict) -> list[str]:
    """Evidence that the kernel killed the rank for want of memory; empty if there is none."""
    evidence, last = [], box["last"]
    now = _kills_now(box)
    killed = now is not None and box["oom_kills_at_start"] is not None and now > box["oom_kills_at_start"]
    limit, used = last.get("cgroup_limit"), box["peaks"].get("cgroup_used")
    near = limit is not None and used is not None and used > FULL * limit
    scarce = box["peaks"]["available"] < (1 - FULL) * last["total"]
    if killed:
        evidence.append(
            f"the kernel has killed {now - box['oom_kills_at_start']} process(es) for want of memory since the "
            "run began (/proc/vmstat)"
        )
    if near:
        evidence.append(f"its control group used {used / GB:.2f} of the {limit / GB:.2f} GB that it may")
    if scarce:
        evidence.append(f"only {box['peaks']['available'] / GB:.2f} of {last['total'] / GB:.2f} GB of memory were left")
    if killed and limit is not None and not near:
        evidence.append(
            f"its control group may use {limit / GB:.2f} GB; {used / GB:.2f} when last seen, up to a second before"
        )
    # A kill of another process, with memory to spare here, explains nothing.
    return evidence if near or scarce or killed and limit is not None else []


def _kills_now(box: dict) -> int | None:
    """The kernel's kills for want of memory until now; until the last sample on another or a restarted machine."""
    here = box["boot"] == boot_id() and box["host"] == os.uname().nodename
    return oom_kills() if here else box["last"].get("oom_kills")


def _behind(boxes: list[dict]) -> Explanation | None:
    """The rank that the others wait for: it stopped recording or entered fewer collectives than the others.

    On a card a collective is only launched: the call returns at once, and ranks that wait stand in their next call to
    the card. There only the counters of ranks that do not move show it.
    """
    if len(boxes) < 2:
        return None
    silent = min(boxes, key=lambda box: box["last_sign_of_life"])
    latest = max(box["last_sign_of_life"] for box in boxes)
    stopped = next((box for box in boxes if box["alive"] == psutil.STATUS_STOPPED), None)
    fewest = min(boxes, key=lambda box: box["collectives"])
    most = max(boxes, key=lambda box: box["collectives"])
    evidence, rank = [], None
    if stopped is not None:
        rank = stopped
        evidence.append(f"the process of rank {rank['rank']} (pid {rank['pid']}) is stopped: kill -CONT lets it go on")
    elif latest - silent["last_sign_of_life"] > SILENT_S:
        rank = silent
    elif (
        most["collectives"] > fewest["collectives"]
        and (most["inside"] or _on_card(most))
        and latest - max(fewest["phase_since"], fewest["collective_since"]) > SILENT_S
    ):
        rank = fewest
    if rank is None:
        return None
    quiet = latest - rank["last_sign_of_life"]
    if quiet > 1.5:
        evidence.append(f"its last sign of life is {quiet:.0f} s older than the others'")
    evidence += [
        f"rank {box['rank']} waits in {box['collective']}, its collective number {box['collectives']}"
        for box in boxes
        if box is not rank and box["inside"]
    ]
    evidence += [
        f"rank {box['rank']} has asked its card for {box['collectives']}, the last one {box['collective']}"
        for box in boxes
        if box is not rank and not box["inside"] and _on_card(box)
    ]
    evidence.append(f"rank {rank['rank']} has entered {rank['collectives']}, the last one {rank['collective']}")
    return Explanation(
        "a rank fell behind",
        rank["rank"],
        f"rank {rank['rank']} fell behind in {_doing(rank)}; the others wait for it",
        evidence,
    )


def _on_card(box: dict) -> bool:
    return "device_total" in box["last"]


def _words(box: dict) -> str:
    return box["ended"]["message"].splitlines()[0][:300]


def _doing(box: dict) -> str:
    step = box["last"].get("step")
    return f"phase {box['phase']!r}" + (
        f" of step {step + 1}"
        if step is not None and box["phase"] in ("data", "forward", "backward", "reduce", "optimizer")
        else ""
    )


def _full_disk(box: dict) -> str | None:
    return next((path for path, (free, _) in box["last"]["disks"].items() if free < DISK_LEFT), None)


def _of_the_limits(box: dict, kind: str) -> list[str]:
    last, evidence = box["last"], []
    if kind == "disk full":
        evidence += [
            f"{free / GB:.3f} of {total / GB:.3f} GB free in {path}" for path, (free, total) in last["disks"].items()
        ]
    if kind == "host memory":
        limit = last.get("address_space_limit")
        if limit is not None:
            evidence.append(
                f"its address space was {last['address_space'] / GB:.2f} of the {limit / GB:.2f} GB that "
                "ulimit -v allows"
            )
        evidence += _memory_kill(box)
    if kind == "minimum loss scale":
        evidence.append(
            f"{last.get('overflows')} steps in a row overflowed, down to a loss scale of {last.get('loss_scale')}"
        )
    if (box.get("ended") or {}).get("where"):
        evidence.append(f"raised at {box['ended']['where']}")
    return evidence
