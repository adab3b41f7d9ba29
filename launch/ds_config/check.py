"""All problems of a ds_config that can be found before a run: one list for `astrobio check` and the preflight."""

from pathlib import Path

from astrobio.config import set_dotted
from launch.ds_config.auto import auto_findings, auto_values
from launch.ds_config.config import settle_precision, without
from launch.ds_config.contradictions import contradictions
from launch.ds_config.facts import ModelFacts
from launch.ds_config.finding import Finding
from launch.ds_config.keys import key_findings
from launch.ds_config.machine import machine_findings, usual_ranks

#: Checked together, with the values that the file gives.
BATCHES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def check(
    config: dict,
    *,
    world_size: int,
    facts: ModelFacts | None = None,
    nvme_folder: Path | None = None,
    machine: bool = True,
    has_bf16: bool | None = None,
) -> list[Finding]:
    """Every problem and remark about a ds_config as it was read, problems first. Each ``"auto"`` is checked as what it
    becomes.

    Args:
        world_size: ranks, all of them on this machine unless the launcher says otherwise.
        facts: of the model, where it is known.
        nvme_folder: what an ``nvme_path`` of "auto" will be.
        machine: also look at this machine.
        has_bf16: whether the cards compute it; None: those of this machine.
    """
    config = settle_precision(config, has_bf16)
    found = key_findings(config)
    found += auto_findings(without(config, {finding.key for finding in found if finding.problem}))
    broken = {finding.key for finding in found if finding.problem}
    sound = without(config, broken)
    if "zero_optimization.stage" in broken:
        sound["zero_optimization"]["stage"] = 3  # where everything else has a meaning
    for key, value in auto_values(
        sound,
        world_size=world_size,
        nvme_folder=nvme_folder,
        largest_parameter=None if facts is None else facts.largest,
        hidden_size=None if facts is None else facts.hidden_size,
    ).items():
        if value is not None and key not in BATCHES:
            set_dotted(sound, key, value)
    more = contradictions(sound, world_size, facts)
    if machine:
        more += machine_findings(sound, world_size, facts)
    found += [finding for finding in more if finding.key not in broken]
    unique = {(finding.key, finding.limit): finding for finding in found}
    return sorted(unique.values(), key=lambda finding: not finding.problem)


def likely_ranks(config: dict) -> int:
    """The number of ranks that the batch sizes imply; without them, `usual_ranks`."""
    sizes = [size for size in map(config.get, BATCHES) if isinstance(size, int) and size > 0]
    if len(sizes) == len(BATCHES):
        train, micro, accumulation = sizes
        if train % (micro * accumulation) == 0:
            return train // (micro * accumulation)
    return usual_ranks()
