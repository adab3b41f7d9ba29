"""Why a run ended, or stands still: from its ranks' black boxes, its metrics and its log."""

import contextlib
import json
import os
import re
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from astrobio.config import ConfigError
from launch.memory import GB, oom_kills
from launch.postmortem.blackbox import boot_id, fault_of, read_box

#: A rank is behind the others if its last sign of life is older than theirs by so many seconds; the launcher notices
#: a death, and tells the other ranks, within the second.
SILENT_S, NOTICED_S = 5.0, 5.0
#: Memory this near to its limit explains a kill; a disk with less than this is full.
FULL, DISK_LEFT = 0.93, 16 << 20
#: Words of an error, and what it then is. The first that fits counts.
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
#: Of an abort in a transfer to or from NVMe (deepspeed/ops/csrc/aio): what the C++ code asserted, where the launcher's
#: output is kept, and what that comes from.
ABORTS = (
    (
        r"is_valid_bytes_to_read|> file bytes|num_file_bytes",
        "a swap file is shorter than what is read of it: a write "
        "was cut off (a full disk; aio.block_size no multiple of 512, which astrobio check names), or something else "
        "wrote into the folder",
    ),
    (
        r"submit_ret > 0|io_submit|io_setup",
        "the kernel takes no more asynchronous requests: raise /proc/sys/fs/aio-max-nr, or lower aio.queue_depth",
    ),
    (
        r"fd != -1|result != -1|open for|fstat",
        "a swap file could not be opened or closed: the disk, its permissions, or ulimit -n",
    ),
    (r"0 == reg_ret|mlock", "memory could not be locked: ulimit -l"),
)
CURES = {
    "NVMe transfer": "the rank's last line on its error output says what was asserted; astrobio check names what this "
    "machine and the ds_config have against NVMe offload",
    "minimum loss scale": "gradients overflow fp16 at every scale: the learning rate or a layer is unsound (train.log "
    "names the module where it first overflows); bf16 needs no loss scale",
    "disk full": "free room, write elsewhere (--run, ASTROBIO_NVME), or keep fewer checkpoints (--set "
    "train.keep_last=1); then --resume auto",
    "file size limit": "raise it: ulimit -f unlimited",
    "device memory": "astrobio plan names what takes it: a smaller micro-batch or max_text_tokens, "
    "activation_checkpointing, smaller buckets, offload_param",
    "host memory": "astrobio plan names what takes it: fewer ranks, a smaller model, the optimizer or the parameters "
    "on NVMe, smaller swap buffers; or raise the limit",
    "killed": "nothing in the run asked for it: look for who sent SIGKILL (a scheduler, a time limit, a person); then "
    "--resume auto",
    "fault": "ranks/*.fault has the whole stack; a stale compiled op is often to blame: remove "
    "~/.cache/astrobio/ops and run again",
    "a rank fell behind": "look at what that rank's process does (py-spy dump --pid PID), at its disk and its card; "
    "kill the run, then --resume auto",
    "non-finite numbers": "the message names the part and the module; lower the learning rate, or look at the data",
}


@dataclass
class Explanation:
    """The most probable ``cause``, the ``rank`` it struck, what speaks for it, and what to do."""

    cause: str
    rank: int | None
    summary: str
    evidence: list[str] = field(default_factory=list)
    cure: str = ""
    ranks: list[dict[str, Any]] = field(default_factory=list)


def explain(run: Path) -> Explanation:
    """Raises ConfigError where the folder holds no run, or one that recorded nothing."""
    boxes = [box for path in sorted((run / "ranks").glob("rank_*.box")) if (box := read_box(path)) is not None]
    if not boxes:
        raise ConfigError(
            f"{run}: no rank has left anything in {run / 'ranks'}: not the folder of a run, or one that "
            "ended before it began"
        )
    for box in boxes:
        box["alive"] = _process(box)
        box["fault"] = _fault(run, box["rank"])
    found = _cause(boxes)
    if found.cause == "NVMe transfer":
        found.evidence += _asserted(run)
    found.evidence += _marks(boxes, found) + _metrics(run) + _log(run)
    found.cure = found.cure or CURES.get(found.cause, "")
    found.ranks = [_line(box) for box in boxes]
    return found


def _fault(run: Path, rank: int) -> list[str]:
    """The stack that a fault in compiled code has left, the innermost call first."""
    with contextlib.suppress(OSError):
        return [line.strip() for line in fault_of(run, rank).read_text().splitlines() if line.strip()]
    return []


def _process(box: dict) -> str | None:
    """The state of the rank's process, if it still is: running, sleeping, stopped …"""
    try:
        process = psutil.Process(box["pid"])
        if abs(process.create_time() - box["started"]) > 2 or process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process.status()
    except psutil.NoSuchProcess:
        return None


def _cause(boxes: list[dict]) -> Explanation:
    errors = [box for box in boxes if box.get("ended") and box["ended"]["error"]]
    named = [(kind, box) for box in errors if (kind := _kind(box)) != "lost another rank"]
    vanished = [box for box in boxes if not box.get("ended") and not box["alive"]]
    alive = [box for box in boxes if box["alive"] and not box.get("ended")]
    if named:  # one that says itself what was wrong
        kind, box = min(named, key=lambda pair: pair[1]["ended"]["time"])
        first = vanished and min(vanished, key=lambda other: other["last_sign_of_life"])
        if not first or first["last_sign_of_life"] > box["ended"]["time"] - 1 or kind != "error":
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
    if (box := next((box for box in boxes if box["last"].get("unsaved")), None)) is not None:
        kind = _kind_of(box["last"]["unsaved"])
        return Explanation(
            "not saved" if kind == "error" else kind,
            box["rank"],
            f"the run ended by itself, but its last step could not be saved: {box['last']['unsaved'][:300]}",
            _of_the_limits(box, kind),
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
    """Ranks that left no last word: killed by what no process can catch, or by a fault in compiled code."""
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
        if told := _memory_kill(box):
            return Explanation(
                "host memory",
                box["rank"],
                f"rank {box['rank']} was killed in {_doing(box)} for want of host memory",
                told,
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
    """What speaks for a kill by the kernel for want of memory, if anything does."""
    told, last = [], box["last"]
    now = _kills_now(box)
    killed = now is not None and box["oom_kills_at_start"] is not None and now > box["oom_kills_at_start"]
    limit, used = last.get("cgroup_limit"), box["peaks"].get("cgroup_used")
    near = limit is not None and used is not None and used > FULL * limit
    scarce = box["peaks"]["available"] < (1 - FULL) * last["total"]
    if killed:
        told.append(
            f"the kernel has killed {now - box['oom_kills_at_start']} process(es) for want of memory since the "
            "run began (/proc/vmstat)"
        )
    if near:
        told.append(f"its control group used {used / GB:.2f} of the {limit / GB:.2f} GB that it may")
    if scarce:
        told.append(f"only {box['peaks']['available'] / GB:.2f} of {last['total'] / GB:.2f} GB of memory were left")
    if killed and limit is not None and not near:
        told.append(
            f"its control group may use {limit / GB:.2f} GB; {used / GB:.2f} when last seen, up to a second before"
        )
    # A kill of something else, with memory to spare here, explains nothing.
    return told if near or scarce or killed and limit is not None else []


def _kills_now(box: dict) -> int | None:
    """Kills for want of memory up to now; up to the last sample where the machine has started anew or is another."""
    here = box["boot"] == boot_id() and box["host"] == os.uname().nodename
    return oom_kills() if here else box["last"].get("oom_kills")


def _behind(boxes: list[dict]) -> Explanation | None:
    """The rank that the others wait for: it has fallen silent, or has entered fewer collectives than they.

    On a card a collective is only asked for: it returns at once, and ranks that wait stand in whatever asks the card
    next. There the counters alone tell, of ranks that do not move.
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
    last, told = box["last"], []
    if kind == "disk full":
        told += [
            f"{free / GB:.3f} of {total / GB:.3f} GB free in {path}" for path, (free, total) in last["disks"].items()
        ]
    if kind == "host memory":
        limit = last.get("address_space_limit")
        if limit is not None:
            told.append(
                f"its address space was {last['address_space'] / GB:.2f} of the {limit / GB:.2f} GB that "
                "ulimit -v allows"
            )
        told += _memory_kill(box)
    if kind == "minimum loss scale":
        told.append(
            f"{last.get('overflows')} steps in a row overflowed, down to a loss scale of {last.get('loss_scale')}"
        )
    if (box.get("ended") or {}).get("where"):
        told.append(f"raised at {box['ended']['where']}")
    return told


def _marks(boxes: list[dict], found: Explanation) -> list[str]:
    """High-water marks of the rank in question against their limits."""
    box = next((box for box in boxes if box["rank"] == found.rank), boxes[0])
    last, peaks = box["last"], box["peaks"]
    limit, what = box["memory_limit"]
    told = [
        f"rank {box['rank']} used up to {peaks['rss'] / GB:.2f} GB of memory; {what} is {limit / GB:.2f} GB, "
        f"{peaks['available'] / GB:.2f} were free at the least"
    ]
    if "device_total" in last:
        told.append(f"its device held up to {peaks['device_bytes'] / GB:.2f} of {last['device_total'] / GB:.2f} GB")
    if found.cause != "disk full":
        told += [f"{free / GB:.1f} GB were free in {path}" for path, (free, _) in last["disks"].items()]
    return told


def _metrics(run: Path) -> list[str]:
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return []
    train = [record for line in lines[-200:] if line.startswith('{"kind": "train"') and (record := _json(line))]
    if not train:
        return []
    last = train[-1]
    told = [f"last step in metrics.jsonl: {last['step']}, loss {last['loss']:.4g}, loss scale {last['loss_scale']:g}"]
    skipped = sum(record["overflow"] for record in train[-20:])
    return told + ([f"{skipped} of the last {len(train[-20:])} steps were skipped for overflow"] if skipped else [])


def _json(line: str) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:
        return None  # a line that the end of the process cut


def _log(run: Path) -> list[str]:
    """Exit codes, where the launcher's words were kept in the run's folder, and warnings of the run itself."""
    told = []
    for name in ("launch.log", "train.log"):
        try:
            text = (run / name).read_text(errors="replace")
        except OSError:
            continue
        for code in re.findall(r"exits with return code = (-?\d+)", text)[-1:]:
            told.append(
                f"the launcher says: return code {code}"
                + (f" ({signal.Signals(-int(code)).name})" if int(code) < 0 else "")
            )
        told += [f"{name}: {line[:200]}" for line in text.splitlines() if " WARNING " in line][-2:]
    return told


def _asserted(run: Path) -> list[str]:
    """What an abort's last lines come from, where the launcher's words were kept in the run's folder."""
    with contextlib.suppress(OSError):
        lines = (run / "launch.log").read_text(errors="replace").splitlines()
        for line in reversed(lines):
            for words, meaning in ABORTS:
                if re.search(words, line) and ("Assertion" in line or "> file bytes" in line):
                    return [f"it said: {line[-300:]}", meaning]
    return []


def _line(box: dict) -> dict[str, Any]:
    ended = box.get("ended")
    return {
        "rank": box["rank"],
        "pid": box["pid"],
        "phase": box["phase"],
        "step": box["last"].get("step"),
        "collectives": box["collectives"],
        "collective": box["collective"],
        "inside": box["inside"],
        "last_sign_of_life": box["last_sign_of_life"],
        "process": box["alive"],
        "end": "none" if ended is None else ended["error"] or "clean",
        "peak_rss_bytes": box["peaks"]["rss"],
        "peak_device_bytes": box["peaks"].get("device_bytes"),
    }
