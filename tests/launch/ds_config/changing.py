"""Settings with some of their keys changed, by intent or by chance."""

import copy
import random

from astrobio.config import set_dotted

Z = "zero_optimization"
#: A ds_config that trains.
PLAIN = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 2,
    "bf16.enabled": True,
    f"{Z}.stage": 3,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
}
#: What a mistake may put in a value's place.
VALUES = [0, -1, 3, 7, 10**9, 0.5, float("nan"), "4", "auto", "", None, True, [], [1, 2], {}, {"a": 1}, "no such"]


def config_of(changes) -> dict:
    """`PLAIN` with these dotted keys; a key on top that is None is left out."""
    config = {}
    for key, value in copy.deepcopy({**PLAIN, **changes}).items():
        if "." not in key and value is None:
            config.pop(key, None)
        else:
            set_dotted(config, key, value)
    return config


def mutated(content: dict, chance: random.Random, changes: int = 3) -> dict:
    """One to so many keys, at any depth, are dropped, misspelt or given another value."""
    content = copy.deepcopy(content)
    for _ in range(chance.randint(1, changes)):
        block = content
        while nested := [value for value in block.values() if isinstance(value, dict) and value]:
            if chance.random() < 0.5:
                break
            block = chance.choice(nested)
        if not block:
            continue
        key = chance.choice(list(block))
        kind = chance.choice(["drop", "misspell", "value", "value", "value"])
        if kind == "value":
            block[key] = chance.choice(VALUES)
        else:
            value = block.pop(key)
            if kind == "misspell":
                block[key[:-1] + "_" + key[-1]] = value
    return content
