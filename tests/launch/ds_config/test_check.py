"""Mistakes in ds_configs, planted one by one, are each named; what passes the check DeepSpeed takes."""

import logging

import pytest
from deepspeed.runtime.config import DeepSpeedConfig
from mistakes import MISTAKES, MODEL, Z, changed
from project import ROOT

from astrobio.config import ConfigError, set_dotted
from launch.ds_config.auto import resolve
from launch.ds_config.check import check
from launch.ds_config.keys import _model_of
from launch.ds_config.read import read_ds_config
from launch.ds_config.schema import Schema

pytestmark = pytest.mark.usefixtures("accelerator")


@pytest.mark.parametrize(
    ("changes", "key", "words"), MISTAKES, ids=[f"{i}-{key}" for i, (_, key, _) in enumerate(MISTAKES)]
)
def test_a_planted_mistake_is_named(changes, key, words):
    found = check(changed(changes), world_size=2, facts=MODEL, machine=False)
    told = [str(finding) for finding in found if finding.problem and finding.key == key]
    assert told and words in told[0], [str(finding) for finding in found]


def test_all_mistakes_of_a_file_are_named_at_once():
    found = check(
        changed(
            {
                "gradient_cliping": 1,
                "fp16.enabld": True,
                f"{Z}.stage": "3",
                "train_batch_size": 7,
                "optimizer.type": "AdamWW",
            }
        ),
        world_size=2,
        machine=False,
    )
    assert {finding.key for finding in found if finding.problem} >= {
        "gradient_cliping",
        "fp16.enabld",
        f"{Z}.stage",
        "train_batch_size",
        "optimizer.type",
    }


def test_a_key_that_is_there_twice(tmp_path):
    path = tmp_path / "twice.json"
    path.write_text('{"fp16": {"enabled": true, "enabled": false}}')
    with pytest.raises(ConfigError, match="'enabled' is there twice"):
        read_ds_config(path)


def every_key(model, above=""):
    """Dotted keys of all blocks that have names of their own."""
    for key, field in model.model_fields.items():
        dotted = f"{above}.{field.alias or key}" if above else key
        yield dotted
        inner = _model_of(field.annotation)
        if inner is not None:
            yield from every_key(inner, dotted)


@pytest.mark.parametrize("value", [None, [], {}, "x", "auto", 1.5, True, -1, 0, 10**30], ids=repr)
def test_what_passes_the_check_deepspeed_takes(value, monkeypatch):
    """Each key in turn with an odd value: the check never breaks off, and what passes it DeepSpeed's parser takes."""
    logging.getLogger("DeepSpeed").setLevel(logging.CRITICAL)
    missed = []
    for key in every_key(Schema):
        config = changed({})
        set_dotted(config, key, value)
        if [finding for finding in check(config, world_size=1, facts=MODEL, machine=False) if finding.problem]:
            continue
        resolved = resolve(
            config, world_size=1, nvme_folder=ROOT, total_steps=100, largest_parameter=10**6, hidden_size=64
        )
        try:
            DeepSpeedConfig(resolved.raw)
        except Exception as error:
            missed.append(f"{key}: {type(error).__name__}: {str(error)[:150]}")
    assert not missed, "\n".join(missed)
