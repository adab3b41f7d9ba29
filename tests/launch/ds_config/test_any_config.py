"""Every key of DeepSpeed's JSON once, and random mistakes in the shipped ds_configs: each is refused by name, or trains
two steps and saves. Their tables are printed."""

import copy
import json
import random
import re
import typing

import pytest
from changing import config_of, mutated
from launching import last_line, try_all
from project import DS_CONFIGS
from pydantic import BaseModel

from astrobio.config import load_preset, set_dotted
from launch.ds_config.check import check
from launch.ds_config.facts import model_facts
from launch.ds_config.keys import _model_of, _parts
from launch.ds_config.schema import Schema

pytestmark = pytest.mark.usefixtures("accelerator")

SMALL = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2}


def keys(model: type[BaseModel] = Schema, above: str = "") -> dict[str, typing.Any]:
    """Dotted keys that hold no keys, with a value that is not the default and of the right kind."""
    found = {}
    for name, field in model.model_fields.items():
        key, inner = f"{above}{field.alias or name}", _model_of(field.annotation)
        if inner is not None:
            found |= keys(inner, f"{key}.")
        elif (value := other_value(field)) is not None:
            found[key] = value
    return found


def other_value(field) -> typing.Any:
    for part in _parts(field.annotation):
        if typing.get_origin(part) is typing.Literal:
            return next((value for value in reversed(typing.get_args(part)) if value != field.default), None)
        if part is bool:
            return field.default is not True
        if part is int:
            return 1 if not isinstance(field.default, int) or field.default < 1 else 2 * field.default
        if part is float:
            return 0.5
        if part is str:
            return "text"
        if typing.get_origin(part) is list:
            return []
    return None


def judged(configs: dict[str, dict]) -> dict[str, str]:
    """What `check` says of each: refused, remarked, or nothing."""
    said, facts = {}, model_facts(load_preset("tiny"))
    for name, config in configs.items():
        found = check(config, world_size=1, facts=facts)
        problems = [str(finding) for finding in found if finding.problem]
        said[name] = (
            f"refused: {problems[0]}" if problems else "remarked" if len(found) > ("scheduler" not in config) else ""
        )
    return said


def tried(folder, configs: dict[str, dict], data, capsys) -> None:
    """Those that are refused are refused by launch/train.py too, by key; all others train."""
    said, ends, wrong = judged(configs), try_all(folder, configs, data), []
    with capsys.disabled():
        print()
        for number, (name, end) in enumerate(ends.items()):
            last = last_line(folder, number)
            print(f"{name[:90]:90s} {end!s:9s} {last[:60] if end not in (0, 2) else ''} {said[name][:120]}")
            named = re.search(r"error: --ds_config \S+: [\w.]+", (folder / f"{number:04d}.log").read_text())
            if end != (2 if said[name].startswith("refused") else 0) or end and not named:
                wrong.append(f"{name}: {said[name] or 'taken'}, and ends with {end}: {last}")
    assert not wrong, "\n".join(wrong)
    assert {0, 2} <= set(ends.values())


@pytest.mark.slow
def test_every_key_of_deepspeed_once(tmp_path, sample_dataset, capsys):
    configs = {key: config_of({key: value}) for key, value in keys().items()}
    assert len(configs) > 150
    tried(tmp_path / "keys", configs, sample_dataset, capsys)


@pytest.mark.slow
def test_random_mistakes_in_shipped_configs(tmp_path, sample_dataset, capsys):
    chance, configs = random.Random(0), {}
    while len(configs) < 200:
        path = chance.choice(list(DS_CONFIGS.values()))
        config = json.loads(path.read_text())
        for key, value in SMALL.items():
            set_dotted(config, key, value)
        changed = mutated(copy.deepcopy(config), chance, changes=1)
        configs[f"{len(configs):3d} {path.stem}: {difference(config, changed)}"] = changed
    tried(tmp_path / "mistakes", configs, sample_dataset, capsys)


def difference(before: dict, after: dict, above: str = "") -> str:
    told = []
    for key in [*before, *(key for key in after if key not in before)]:
        old, new = before.get(key, "(none)"), after.get(key, "(none)")
        if isinstance(old, dict) and isinstance(new, dict):
            told.append(difference(old, new, f"{above}{key}."))
        elif old != new or type(old) is not type(new):
            told.append(f"{above}{key} {json.dumps(old)[:20]} -> {json.dumps(new)[:30]}")
    return "; ".join(filter(None, told))
