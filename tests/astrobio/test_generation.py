"""Descriptions from the prefix alone, and the numbers in them."""

import dataclasses

import numpy as np
import pytest
import torch

from astrobio import schema
from astrobio.config import load_preset
from astrobio.dataset import AstrobioDataset
from astrobio.generation import describe
from astrobio.phrases import ATMOSPHERE, PLANET, SENTENCES, STAR, fact, numbers_in
from astrobio.stack import AstrobioStack

NOUNS = STAR | PLANET | ATMOSPHERE
COLUMNS = [column.name for column in schema.PLANET_COLUMNS]


def test_every_column_has_words():
    assert set(NOUNS) == set(COLUMNS)


@pytest.mark.parametrize("sentence", SENTENCES)
def test_numbers_are_read_as_they_were_written(sentence):
    rng = np.random.default_rng(0)
    values = {column: float(10 ** rng.uniform(-7, 4)) for column in NOUNS}
    text = " ".join(
        ["This is a planet.", *(fact(sentence, *NOUNS[c], values[c]) for c in rng.permutation(list(NOUNS)))]
    )
    found = numbers_in(text)
    assert found == {column: pytest.approx(value, rel=1e-3) for column, value in values.items()}


@pytest.mark.parametrize(
    "text",
    [
        "The radius of the planet is large.",
        "The radius of the planet is 1.2 solar radii.",
        "The radius of the planet is 1.2",
        "The radius of the star is 1.2 Earth radii.",
        "The age of the star is 4.5 billion years.",
        "",
    ],
)
def test_what_is_no_fact_of_the_table_is_no_number(text):
    assert numbers_in(text) == {}


def test_the_first_of_two_numbers_counts():
    first, second = (fact(SENTENCES[i], *NOUNS["co2_vmr"], value) for i, value in ((3, 0.1), (0, 0.2)))
    assert numbers_in(f"{first} {second}") == {"co2_vmr": 0.1}


def test_the_texts_of_a_dataset_tell_the_table(mini_dataset):
    """The phrases are those that the dataset was written with."""
    data = AstrobioDataset(mini_dataset, "train", max_text_tokens=64)
    for record in data.records:
        found, known = numbers_in(record["text"]), dict(zip(COLUMNS, record["planet_mask"], strict=True))
        values = dict(zip(COLUMNS, record["planet"], strict=True))
        assert {"surface_pressure_bar", "co2_vmr", "ch4_vmr"} <= set(found)
        for column, number in found.items():
            assert known[column] and number == pytest.approx(float(values[column]), rel=1e-3), column


@pytest.fixture(scope="module")
def written(mini_dataset):
    """A stack without a text to read, its data, and four records."""
    torch.manual_seed(0)
    data = AstrobioDataset(mini_dataset, "train", max_text_tokens=64)
    stack = AstrobioStack(load_preset("tiny", {"climate": None, "metabolism": None, "tasks": None}))
    return stack, data, data.collate([data[i] for i in range(4)])


def test_a_description_depends_on_the_modalities_and_not_on_the_text(written):
    stack, data, batch = written
    torch.nn.init.normal_(stack.language.model.lm_head.weight)  # else all say the same
    options = {"max_tokens": 12, "eos_token_id": None}
    stack.train()
    texts = describe(stack, batch, data.tokenizer, **options)
    assert stack.training and len(texts) == 4 and len(set(texts)) > 1
    other = dataclasses.replace(batch, tokens=batch.tokens.flip(0), real=batch.real.flip(0))
    assert describe(stack, other, data.tokenizer, **options) == texts
    assert describe(stack, batch.without("planet").without("spectrum"), data.tokenizer, **options) != texts


def test_a_generated_token_is_the_likeliest_by_the_stacks_own_forward_pass(written):
    """Position by position: the prefix stands where it stands in training."""
    stack, data, batch = written
    stack.eval()
    options = {"eos_token_id": None, "max_tokens": 5}
    generated = describe(stack, batch, data.tokenizer, **options)
    tokens = torch.full((4, 1), data.tokenizer.bos_token_id)
    with torch.no_grad():
        for _ in range(5):
            padded = torch.cat([tokens, tokens[:, :1]], dim=1)  # logits are of all places but the last
            logits = stack.language(stack.prefix(batch), padded).logits
            tokens = torch.cat([tokens, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert data.tokenizer.batch_decode(tokens[:, 1:], skip_special_tokens=True) == generated
