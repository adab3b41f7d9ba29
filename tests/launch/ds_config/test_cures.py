"""What a finding advises cures it."""

import copy
import json
import re

import pytest
from mistakes import MISTAKES, MODEL, Z, changed

from astrobio.config import set_dotted
from launch.ds_config.check import check

pytestmark = pytest.mark.usefixtures("accelerator")

VALUE = r"\[.*\]|\{.*\}|\"[^\"]*\"|-?\d[\d.e+-]*|true|false|mean"


def cured(config: dict, finding) -> dict | None:
    """The config with the cure applied, where that is a value; None where it is advice."""
    config, cure = copy.deepcopy(config), finding.cure
    *above, last = finding.key.split(".")
    block = config
    for part in above:
        block = block.get(part)
        if not isinstance(block, dict):
            return None
    if cure.startswith("leave it out"):
        block.pop(last, None)
    elif found := re.match(r"leave (?P<key>[\w.]+) out", cure):
        *parents, name = found["key"].split(".")
        for part in parents:
            config[part].pop(name, None)
        config.pop(found["key"], None)
    elif found := re.match(r"did you mean '(?P<word>\w+)'", cure):
        if "unknown key" in finding.limit or "no such parameter" in finding.limit:
            block[found["word"]] = block.pop(last)
        else:
            block[last] = found["word"]
    elif found := re.match(r"set (?P<key>it|[\w.]+) to (?P<value>true|false|\d+|cpu)", cure):
        name = {"it": finding.key, "stage": f"{Z}.stage", "device": f"{Z}.offload_optimizer.device"}.get(
            found["key"], found["key"]
        )
        set_dotted(config, name, "cpu" if found["value"] == "cpu" else json.loads(found["value"]))
    elif (found := re.match(rf"(?:write|give at least) (?P<value>{VALUE})", cure)) and "true or false" not in cure:
        block[last] = "mean" if found["value"] == "mean" else json.loads(found["value"])
    elif found := re.match(rf"(?P<value>{VALUE}) is (?:usual|the default)", cure):
        block[last] = json.loads(found["value"])
    else:
        return None
    return config


def uncured(config: dict) -> list[str]:
    """The problems whose cures lead back to a problem that was there before, or on and on."""
    left = []
    for finding in check(config, world_size=2, facts=MODEL, machine=False):
        better, seen = config, []
        while finding is not None and finding.problem and (better := cured(better, finding)) is not None:
            seen.append((finding.limit, finding.cure))
            finding = next(
                (
                    other
                    for other in check(better, world_size=2, facts=MODEL, machine=False)
                    if other.problem and other.key == finding.key
                ),
                None,
            )
            if finding is not None and ((finding.limit, finding.cure) in seen or len(seen) > 3):
                left.append(f"{seen} -> {finding}")
                break
    return left


def test_cures_that_are_values_cure():
    applied = [
        finding
        for changes, _, _ in MISTAKES
        for finding in check(changed(changes), world_size=2, facts=MODEL, machine=False)
        if finding.problem and cured(changed(changes), finding) is not None
    ]
    assert len(applied) > 60
    assert not [line for changes, _, _ in MISTAKES for line in uncured(changed(changes))]


@pytest.mark.parametrize("value", [0.5, 1.5, 0, -1, 1e9 + 0.5, "3", "0.5", "many", True, None, [], {}])
def test_cures_of_any_value_in_any_place_cure(value):
    """A value of that kind in place of every number and switch of a shipped config."""
    for name in ("zero3_offload", "zero3_nvme"):
        for key in leaves(changed({}, name)):
            assert not uncured(changed({key: value}, name)), key


def leaves(block: dict, above: str = "") -> list[str]:
    return [
        leaf
        for key, value in block.items()
        for leaf in (leaves(value, f"{above}{key}.") if isinstance(value, dict) else [f"{above}{key}"])
    ]
