"""Why a run ended or hangs: from its ranks' black boxes, its metrics and its log."""

import contextlib
import json
import re
import signal
from pathlib import Path
from typing import Any

import psutil

from astrobio.config import ConfigError
from launch.memory import GB
from launch.postmortem.blackbox import fault_of, read_box
from launch.postmortem.causes import Explanation, cause_of

#: What the C++ code (deepspeed/ops/csrc/aio) asserts when it aborts a transfer to or from NVMe, and the reason.
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
    "host memory": "astrobio plan names what takes it: fewer ranks, a smaller model, an optimizer with 8-bit moments "
    "(compressed_optimizer), the optimizer or the parameters on NVMe, smaller swap buffers; or raise the limit",
    "killed": "nothing in the run asked for it: look for who sent SIGKILL (a scheduler, a time limit, a person); then "
    "--resume auto",
    "fault": "ranks/*.fault has the whole stack; a stale compiled op is often to blame: remove "
    "~/.cache/astrobio/ops and run again",
    "a rank fell behind": "look at what that rank's process does (py-spy dump --pid PID), at its disk and its card; "
    "kill the run, then --resume auto",
    "non-finite numbers": "the message names the part and the module; lower the learning rate, or look at the data",
}


def explain(run: Path) -> Explanation:
    """Why ``run`` ended or hangs.

    Raises:
        ConfigError: the folder holds no run, or one that recorded nothing.
    """
    boxes = [box for path in sorted((run / "ranks").glob("rank_*.box")) if (box := read_box(path)) is not None]
    if not boxes:
        raise ConfigError(
            f"{run}: no rank has left anything in {run / 'ranks'}: not the folder of a run, or one that "
            "ended before it began"
        )
    for box in boxes:
        box["alive"] = _process(box)
        box["fault"] = _fault(run, box["rank"])
    found = cause_of(boxes)
    if found.cause == "NVMe transfer":
        found.evidence += _asserted(run)
    found.evidence += _marks(boxes, found) + _metrics(run) + _log(run)
    found.cure = found.cure or CURES.get(found.cause, "")
    found.ranks = [_line(box) for box in boxes]
    return found


def _fault(run: Path, rank: int) -> list[str]:
    """The stack that Python printed at a fault in compiled code, the innermost call first."""
    with contextlib.suppress(OSError):
        return [line.strip() for line in fault_of(run, rank).read_text().splitlines() if line.strip()]
    return []


def _process(box: dict) -> str | None:
    """The state of the rank's process (running, sleeping, stopped …); None if it has ended."""
    try:
        process = psutil.Process(box["pid"])
        if abs(process.create_time() - box["started"]) > 2 or process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process.status()
    except psutil.NoSuchProcess:
        return None


def _marks(boxes: list[dict], found: Explanation) -> list[str]:
    """The peaks of the rank in question, beside their limits."""
    box = next((box for box in boxes if box["rank"] == found.rank), boxes[0])
    last, peaks = box["last"], box["peaks"]
    limit, what = box["memory_limit"]
    evidence = [
        f"rank {box['rank']} used up to {peaks['rss'] / GB:.2f} GB of memory; {what} is {limit / GB:.2f} GB, "
        f"{peaks['available'] / GB:.2f} were free at the least"
    ]
    if "device_total" in last:
        evidence.append(f"its device held up to {peaks['device_bytes'] / GB:.2f} of {last['device_total'] / GB:.2f} GB")
    if found.cause != "disk full":
        evidence += [f"{free / GB:.1f} GB were free in {path}" for path, (free, _) in last["disks"].items()]
    return evidence


def _metrics(run: Path) -> list[str]:
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except OSError:
        return []
    train = [record for line in lines[-200:] if line.startswith('{"kind": "train"') and (record := _json(line))]
    if not train:
        return []
    last = train[-1]
    evidence = [
        f"last step in metrics.jsonl: {last['step']}, loss {last['loss']:.4g}, loss scale {last['loss_scale']:g}"
    ]
    skipped = sum(record["overflow"] for record in train[-20:])
    return evidence + ([f"{skipped} of the last {len(train[-20:])} steps were skipped for overflow"] if skipped else [])


def _json(line: str) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:
        return None  # a line that the end of the process cut


def _log(run: Path) -> list[str]:
    """Exit codes, where the run's folder has the launcher's output, and warnings of the run."""
    evidence = []
    for name in ("launch.log", "train.log"):
        try:
            text = (run / name).read_text(errors="replace")
        except OSError:
            continue
        for code in re.findall(r"exits with return code = (-?\d+)", text)[-1:]:
            evidence.append(
                f"the launcher says: return code {code}"
                + (f" ({signal.Signals(-int(code)).name})" if int(code) < 0 else "")
            )
        evidence += [f"{name}: {line[:200]}" for line in text.splitlines() if " WARNING " in line][-2:]
    return evidence


def _asserted(run: Path) -> list[str]:
    """The failed assertion of an abort, and its reason, where the run's folder has the launcher's output."""
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
