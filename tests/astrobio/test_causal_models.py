"""Any causal model of transformers: its logits and its balance loss are the model's own, or it is refused by name."""

import contextlib

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from astrobio.config import ConfigError, LanguageConfig, load_preset
from astrobio.language import Language, reads
from astrobio.stack import AstrobioStack

#: What configurations call their sizes; each takes those that it knows.
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "encoder_layers")
SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim"), 64),
    **dict.fromkeys(LAYERS, 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim"), 96),
    "vocab_size": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = dict.fromkeys(
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads"), 4
)
EXPERTS = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
#: From the smallest to what needs its own proportions.
ATTEMPTS = (
    {**SIZES, **HEADS, **EXPERTS, "num_key_value_heads": 2, "head_dim": 16},
    {**SIZES, **HEADS, **EXPERTS, "num_key_value_heads": 4},
    {**SIZES, **HEADS},
    SIZES,
    {**dict.fromkeys(LAYERS, 2), "vocab_size": 256},
    {},
)
TINY = 30e6  # parameters
TEXT = 12


def sizes_of(kind: str) -> list[dict]:
    known = AutoConfig.for_model(kind)
    return [{key: value for key, value in sizes.items() if reads(known, key)} for sizes in ATTEMPTS]


def config_of(kind: str, sizes: dict) -> LanguageConfig:
    return LanguageConfig(
        model_type=kind,
        config=sizes,
        max_text_tokens=TEXT,
        attn_implementation="eager" if kind == "gpt_oss" else "auto",
    )


def differences(kind: str, sizes: dict) -> tuple[float, float]:
    """Of its logits from the model's own, relative to the largest: without and with a prefix of 3 tokens."""
    torch.manual_seed(0)
    language = Language(config_of(kind, sizes)).eval()
    tokens = torch.randint(3, 200, (2, TEXT))
    prefix = 0.1 * torch.randn(2, 3, language.hidden_size)
    with torch.no_grad():
        found = []
        embedded = language.model.get_input_embeddings()(tokens)
        for before, own in (
            (None, language.model(input_ids=tokens).logits[:, :-1]),
            (prefix, language.model(inputs_embeds=torch.cat([prefix, embedded], 1)).logits[:, 3:-1]),
        ):
            read = language(before, tokens)
            assert read.states.shape == (2, TEXT + (0 if before is None else 3), language.hidden_size)
            assert read.logits.shape == own.shape
            found.append(float((read.logits - own).abs().max() / own.abs().max()))
        later = tokens.clone()
        later[:, -1] = 7
        seen = language(prefix, later).states[:, :-1] - language(prefix, tokens).states[:, :-1]
        assert seen.abs().max() < 1e-3, f"{kind}: a position sees the one after it"
    return tuple(found)


@pytest.mark.parametrize(
    "kind",
    ["llama", "gpt2", "opt", "granite", "cohere2", "gemma2", "modernbert-decoder", "xlstm", "trocr", "qwen3_moe"],
)
def test_logits_are_the_models_own(kind):
    """granite divides them, cohere multiplies, gemma caps; modernbert has a head of two layers, opt a body in a body,
    and xlstm computes all of them."""
    extra = {"granite": {"logits_scaling": 8.0}, "gemma2": {"final_logit_softcapping": 1.0}}
    sizes = {**sizes_of(kind)[0], **extra.get(kind, {})}
    assert max(differences(kind, sizes)) < 1e-6


def test_a_mixtures_balance_is_what_its_own_loss_has_of_it():
    torch.manual_seed(0)
    sizes = {**sizes_of("mixtral")[0], "output_router_logits": True, "router_aux_loss_coef": 0.5}
    language = Language(config_of("mixtral", sizes))
    tokens = torch.randint(3, 200, (2, TEXT))
    read = language(None, tokens)
    predicted = torch.nn.functional.cross_entropy(read.logits.flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(predicted + read.balance, language.model(input_ids=tokens, labels=tokens).loss)
    read.balance.backward()
    assert all(p.grad.any() for name, p in language.named_parameters() if "gate." in name)
    assert Language(config_of("mixtral", sizes_of("mixtral")[0]))(None, tokens).balance is None


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlnet", "xlm"])
def test_a_model_that_reads_both_ways_is_refused(kind):
    with pytest.raises(ConfigError, match=f"language.model_type = '{kind}': is .* sees? those after it"):
        Language(config_of(kind, sizes_of(kind)[0]))


def test_an_encoder_can_be_made_a_decoder():
    assert max(differences("bert", {**sizes_of("bert")[0], "is_decoder": True})) < 1e-6


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 6},
        {"num_attention_heads": "4"},
        {"hidden_size": "a"},
        {"num_key_value_heads": 3},
        {"hidden_size": -64},
        {"hidden_act": "no such"},
        {"num_hidden_layers": 10**9},
    ],
)
def test_sizes_that_do_not_go_together_are_named(changes):
    with pytest.raises(ConfigError, match=r"language\.config"):
        AstrobioStack(load_preset("tiny", {f"language.config.{key}": value for key, value in changes.items()}))


def test_text_and_prefix_beyond_the_models_positions_are_refused():
    changes = {
        "language.model_type": "gpt2",
        "language.max_text_tokens": 64,
        "language.config": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 2048, "n_positions": 64},
    }
    with pytest.raises(ConfigError, match=r"max_text_tokens = 64: with \d+ tokens .* has 64: at most 5\d fit"):
        AstrobioStack(load_preset("tiny", changes))
    AstrobioStack(
        load_preset("tiny", {**changes, "language.config": {**changes["language.config"], "n_positions": 128}})
    )


@pytest.mark.slow
def test_every_causal_model_type_of_transformers(capsys):
    """All that can be built tiny from what their configurations call their sizes. The table shows each result."""
    table, wrong = [], []
    for kind in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        said = _try(kind)
        table.append(f"{kind:28s} {said}")
        if said.startswith("WRONG"):
            wrong.append(table[-1])
    with capsys.disabled():
        print("\n" + "\n".join(table))
    assert not wrong, "\n".join(wrong)
    assert sum("the model's own" in line for line in table) > 120


def _try(kind: str) -> str:
    failed = ""
    try:
        attempts = sizes_of(kind)
    except Exception as error:
        return f"not built: {type(error).__name__}: {' '.join(str(error).split())[:80]}"
    for sizes in attempts:
        try:
            with torch.device("meta"):
                built = AutoConfig.for_model(kind, **sizes)
                if type(built) not in AutoModelForCausalLM._model_mapping:
                    return "not built: a configuration of several models, whose text part is a type of its own"
                count = sum(p.numel() for p in AutoModelForCausalLM.from_config(built).parameters())
            if count > TINY:
                failed = failed or f"not built: {count / 1e6:.0f} M parameters at the smallest"
                continue
            torch.manual_seed(0)
            with contextlib.suppress(ConfigError), torch.no_grad():
                own = AutoModelForCausalLM.from_config(built).eval()
                own(input_ids=torch.randint(3, 200, (2, TEXT)), use_cache=False)  # sizes that it cannot compute with
        except Exception as error:
            failed = failed or f"not built: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
            continue
        try:
            apart = max(differences(kind, sizes))
        except ConfigError as error:
            return f"refused: {error}"
        except Exception as error:
            return f"WRONG: {type(error).__name__}: {str(error)[:200]}"
        return f"{'the model' if apart < 1e-5 else 'WRONG: not the model'}'s own, to {apart:.0e}"
    return failed
