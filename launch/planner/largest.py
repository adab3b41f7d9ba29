"""The largest micro-batch and the longest text that fit the cards, found by ghost runs."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from astrobio.config import ConfigError
from launch.ds_config.read import read_ds_config
from launch.ds_config.strategy import batch_sizes
from launch.planner.hardware.profile import Hardware, load_hardware
from launch.planner.model import load_model
from launch.planner.plan import assemble, make_job
from launch.planner.simulation import run as ghost

#: Text lengths are tried in steps of so many tokens, micro-batches one by one.
TOKENS = 256
_MOST = 1 << 12  # micro-batches and steps of tokens beyond which nobody looks


def largest_of(model: str, ds_config: Path, hardware: str | Hardware) -> dict[str, int]:
    """The largest ``micro_batch`` of text as long as the model reads, and the longest ``seq_length`` in tokens of a
    micro-batch of one, each 0 where not even the smallest fits the cards. A sequence does not become longer than the
    language model has positions for, beside the modalities' tokens.

    Raises:
        ConfigError: a machine without cards.
    """
    machine = load_hardware(hardware) if isinstance(hardware, str) else hardware
    if machine.is_cpu:
        raise ConfigError(f"--largest: {machine.name} has no card whose memory could be the limit")
    raw = read_ds_config(ds_config)
    _, accumulation = batch_sizes(raw, machine.gpus)
    stack = load_model(model)
    positions = stack.language.config.get("max_position_embeddings", TOKENS * _MOST) - stack.prefix_tokens
    at = {"gradient_accumulation_steps": accumulation}
    return {"micro_batch": _most_that_fits(lambda n: make_job(model, ds_config, machine, micro_batch=n, changes=at),
                                           machine, _MOST),
            "seq_length": TOKENS * _most_that_fits(
                lambda n: make_job(model, ds_config, machine, seq_length=n * TOKENS, micro_batch=1, changes=at),
                machine, positions // TOKENS)}


def _most_that_fits(job_of: Callable[[int], ghost.Job], machine: Hardware, most: int) -> int:
    """The largest ``n`` up to ``most`` whose job fits. Memory is close to a straight line in it, so that two runs tell
    about where to look; the answer itself was run, and so was the next, which does not fit."""
    sizes: dict[int, int] = {}
    fitting: dict[int, bool] = {}

    def look(*numbers: int) -> None:
        numbers = [n for n in numbers if n not in sizes]
        # What a validation holds does not depend on the micro-batch, nor what a checkpoint does.
        jobs = {str(n): dataclasses.replace(job_of(n), whole=False) for n in numbers}
        for name, result in ghost.run_all(jobs).items():
            card = assemble(result, jobs[name], machine)["gpu"]
            sizes[int(name)], fitting[int(name)] = card["peak_bytes"], card["fits"]

    def fits(n: int) -> bool:
        if n not in sizes:
            look(n)
        return fitting[n]

    look(1, 2)
    if not fits(1):
        return 0
    low, high = 1, most + 1  # low fits, high does not
    while high - low > 1:
        guess = _where_it_ends(sizes, machine.gpu_memory_bytes) if len(sizes) > 1 else 2
        guess = min(max(guess, low + 1), high - 1)
        if guess + 1 < high:
            look(guess, guess + 1)
        for n in (guess, guess + 1):
            if n < high and fits(n):
                low = max(low, n)
            else:
                high = min(high, n)
    return low


def _where_it_ends(sizes: dict[int, int], limit: int) -> int:
    """By the line through the two sizes that were run nearest to the limit."""
    (first, a), (second, b) = sorted(sizes.items(), key=lambda item: abs(item[1] - limit))[:2]
    slope = (b - a) / (second - first)
    return int(first + (limit - a) / slope) if slope > 0 else 2 * max(sizes)
