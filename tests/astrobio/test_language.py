"""The language model: of several kinds, frozen, with adapters."""

import dataclasses

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from astrobio.config import ConfigError, load_preset
from astrobio.dataset import AstrobioDataset
from astrobio.language import Language, attention_implementation, language_config
from astrobio.stack import AstrobioStack

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 2048}
TRANSFORMER = {**SIZES, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
KINDS = {
    "llama": TRANSFORMER,
    "mistral": TRANSFORMER,
    "qwen3": {**TRANSFORMER, "head_dim": 16},
    "mixtral": {**TRANSFORMER, "num_local_experts": 4},
    "mamba2": {**SIZES, "num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "expand": 2},
}


def stack_of(kind: str, **changes) -> AstrobioStack:
    torch.manual_seed(0)
    return AstrobioStack(
        load_preset(
            "tiny", {"language.model_type": kind, "language.config": KINDS[kind], "modality_dropout": 0.0, **changes}
        )
    )


@pytest.fixture(scope="module")
def batch(mini_dataset):
    dataset = AstrobioDataset(mini_dataset, "train", max_text_tokens=64)
    return dataset.collate([dataset[i] for i in range(4)])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_language_model_trains_in_the_stack(kind, batch):
    stack = stack_of(kind)
    stack(batch).loss.backward()
    assert [name for name, p in stack.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert [name for name, p in stack.named_parameters() if name.startswith("language") and not p.grad.any()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_text_reads_the_prefix_and_no_padding(kind, batch):
    model = stack_of(kind).language.eval()
    prefix = torch.randn(4, 5, model.hidden_size)
    real = batch.real.clone()
    real[1:, 20:] = False
    logits = model(prefix, batch.tokens).logits
    other_prefix = model(prefix + 1, batch.tokens).logits
    assert (logits - other_prefix).abs().max() > 1e-3
    other_padding = model(prefix, torch.where(real, batch.tokens, 7)).logits
    shown = real[:, 1:]
    torch.testing.assert_close(other_padding[shown], logits[shown])
    assert not torch.allclose(other_padding[~shown], logits[~shown])


@pytest.mark.parametrize("kind", KINDS)
def test_padding_needs_no_mask(kind, batch):
    """Logits at what is real, and all gradients, are those of transformers' own model with a mask."""
    model = stack_of(kind).language
    prefix = torch.randn(4, 5, model.hidden_size, requires_grad=True)
    real = batch.real.clone()
    real[1:, 20:] = False
    shown = real[:, 1:]
    embedded = torch.cat([prefix, model.model.get_input_embeddings()(batch.tokens)], dim=1)
    mask = torch.cat([torch.ones(4, 5), real], dim=1).long()
    masked = model.model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).logits[:, 5:-1]
    found = {}
    for name, logits in (("masked", masked), ("ours", model(prefix, batch.tokens)[1])):
        (logits[shown] ** 2).sum().backward()
        found[name] = [logits[shown], prefix.grad, *(p.grad for p in model.parameters())]
        prefix.grad = None
        model.zero_grad()
    for ours, theirs in zip(found["ours"], found["masked"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_no_mask_reaches_the_attention_kernel(batch, monkeypatch):
    """So that FlashAttention can be chosen."""
    seen, attend = [], torch.nn.functional.scaled_dot_product_attention

    def looked_at(*args, attn_mask=None, is_causal=False, **kwargs):
        seen.append((attn_mask, is_causal))
        return attend(*args, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", looked_at)
    stack_of("llama").language(None, batch.tokens)
    assert seen == [(None, True)] * 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapters", [False, True])
def test_activation_checkpointing_loses_no_gradient(kind, adapters, batch):
    """Also over embeddings that are frozen and without any prefix, as in a stack of the language model alone."""
    layers = ["in_proj"] if kind == "mamba2" else "all-linear"  # peft refuses Mamba's output projection
    changes = {"language.lora": {"rank": 4, "target_modules": layers}} if adapters else {}
    stack = AstrobioStack(
        load_preset(
            "tiny",
            {
                "language.model_type": kind,
                "language.config": KINDS[kind],
                "planet": None,
                "climate": None,
                "metabolism": None,
                "spectrum": None,
                "tasks": None,
                "fusion": None,
                **changes,
            },
        )
    )
    found = {}
    for name, function in (("without", None), ("with", lambda f, *args, **_: checkpoint(f, *args, use_reentrant=True))):
        stack.set_activation_checkpointing(function)
        stack.zero_grad()
        stack(batch).loss.backward()
        found[name] = {key: p.grad for key, p in stack.named_parameters() if p.requires_grad}
    assert found["with"].keys() == found["without"].keys() and found["with"]
    for key, gradient in found["without"].items():
        assert found["with"][key] is not None, f"{key} lost its gradient"
        torch.testing.assert_close(found["with"][key], gradient, rtol=1e-3, atol=1e-6)


def test_adapters_alone_train(batch):
    stack = stack_of("llama", **{"language.lora": {"rank": 4, "target_modules": ["q_proj", "v_proj"]}})
    trained = {name for name, p in stack.language.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 2 and all("lora_" in name for name in trained)
    assert all(p.requires_grad for p in stack.fusion.parameters())
    stack(batch).loss.backward()
    assert all(stack.get_parameter(f"language.{name}").grad is not None for name in trained)


def test_a_frozen_encoder_only_reads(batch):
    stack = stack_of("llama", freeze=["climate", "language"])
    assert not stack.climate.training and stack.language.training and stack.spectrum.training
    stack(batch).loss.backward()
    untrained = {name.split(".")[0] for name, p in stack.named_parameters() if p.grad is None}
    assert untrained == {"climate", "language"}
    assert stack.absent["climate"].tokens.grad is not None
    assert not stack.eval().train().climate.training


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"freeze": ["climat"]}, ("freeze", "did you mean 'climate'")),
        (
            {"freeze": ["language", "planet", "climate", "metabolism", "spectrum", "fusion"]},
            ("nothing is left to train",),
        ),
        ({"language.model_type": "lama"}, ("model_type", "did you mean 'llama'")),
        ({"language.config.hiden_size": 3}, ("hiden_size", "did you mean 'hidden_size'")),
        ({"language.lora": {"rank": 4, "target_modules": ["q_prj"]}}, ("target_modules", "q_prj")),
        ({"language.lora": {"rank": 0}}, ("language.lora.rank", "greater than 0")),
        ({"language.lora": {"rnak": 4}}, ("rnak", "did you mean 'rank'")),
        ({"language.config": {}}, ("config", "init_from")),
    ],
)
def test_mistakes_are_named(changes, words):
    with pytest.raises(ConfigError) as error:
        AstrobioStack(load_preset("tiny", changes))
    for word in words:
        assert word in str(error.value)


def test_attention_is_torchs_unless_another_is_asked_for():
    config = load_preset("tiny").language
    assert attention_implementation(config, language_config(config)) == "sdpa"
    for asked in ("eager", "flash_attention_2"):
        other = dataclasses.replace(config, attn_implementation=asked)
        assert attention_implementation(other, language_config(other)) == asked
    assert Language(load_preset("tiny", {"language.attn_implementation": "eager"}).language).attention == "eager"


def test_a_preset_may_stand_on_another(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: tiny\nfreeze: [climate]\nlanguage: {config: {num_hidden_layers: 1}}\n")
    mine, tiny = load_preset(str(tmp_path / "mine.yaml")), load_preset("tiny")
    assert mine.name == "mine" and mine.freeze == ["climate"] and mine.climate == tiny.climate
    assert mine.language.config == {**tiny.language.config, "num_hidden_layers": 1}
    (tmp_path / "other.yaml").write_text("base: tiny\nlanguage: {model_type: gpt2, config: {n_embd: 32}}\n")
    other = load_preset(str(tmp_path / "other.yaml")).language
    assert other.config == {"n_embd": 32} and other.max_text_tokens == tiny.language.max_text_tokens
    (tmp_path / "read.yaml").write_text("base: tiny\nlanguage: {init_from: somewhere}\n")
    read = load_preset(str(tmp_path / "read.yaml")).language
    assert (read.init_from, read.model_type, read.config) == ("somewhere", None, {})
    (tmp_path / "a.yaml").write_text(f"base: {tmp_path}/b.yaml\n")
    (tmp_path / "b.yaml").write_text(f"base: {tmp_path}/a.yaml\n")
    with pytest.raises(ConfigError, match="circle"):
        load_preset(str(tmp_path / "a.yaml"))
