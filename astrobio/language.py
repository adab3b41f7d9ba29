"""The language model: any causal model of `transformers`, fed with modality tokens as a prefix before the text."""

import inspect
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from astrobio.config import ConfigError, LanguageConfig, LoraConfig, suggestion, told
from astrobio.pretrained import Pretrained

#: `transformers` counts these among the causal models, though each position sees those after it.
BIDIRECTIONAL = {"xlm", "xlnet"}
#: These read token ids only, but the modalities are embeddings.
WITHOUT_EMBEDDINGS = {"cpmant", "deepseek_v4"}
#: Layers, or experts in one: more than any model has.
MOST_MODULES = 10_000
#: These are causal, though their configurations say ``is_decoder = False``.
CAUSAL = {"gpt_neox", "gpt_neox_japanese"}


class Read(NamedTuple):
    """The model's output for a prefix and a text: its last hidden ``states`` [B, N + L, hidden_size], before the output
    layer; ``logits`` [B, L - 1, vocabulary] that predict ``tokens[:, 1:]``; ``balance``, a mixture of experts' own
    auxiliary loss, weighted, or None."""

    states: Tensor
    logits: Tensor
    balance: Tensor | None


class Language(nn.Module):
    """A causal language model built from its configuration, with random weights.

    Weights of ``init_from`` are not read here, because no single process needs them all: `pretrained` maps each
    parameter to its name in the checkpoint.

    Attributes:
        model: the `transformers` model.
        hidden_size: its width, which the encoders' tokens must have.
        attention: the attention implementation it runs with.
        pretrained: parameter → its name in the checkpoint ``init_from``.
        unmatched: names in ``lora.target_modules`` that match no module.
    """

    def __init__(self, config: LanguageConfig):
        super().__init__()
        built = language_config(config)
        self.attention = attention_implementation(config, built)
        try:
            self.model = AutoModelForCausalLM.from_config(built, attn_implementation=self.attention)
        except Exception as error:  # each model's code raises its own errors
            raise ConfigError(
                f"language.config: transformers cannot build a {built.model_type!r} of these sizes: {told(error)}"
            ) from error
        _check_kind(self.model)
        self._body = _body(self.model)
        self._keeps = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        self.hidden_size = self.model.get_input_embeddings().embedding_dim
        self.pretrained = {p: name for name, p in self.model.named_parameters()} if config.init_from else {}
        self.unmatched = _add_adapters(self.model, config.lora) if config.lora else []

    def forward(self, prefix: Tensor | None, tokens: Tensor) -> Read:
        """Read the prefix, then the text, through the model's own forward pass: its head may scale, cap or transform.

        There is no mask: padding is on the right, where a causal model does not look. With a mask torch would replace
        FlashAttention by kernels with a score bias, and transformers would wait for the GPU to inspect the mask.

        Args:
            prefix: modality tokens [B, N, hidden_size], or None.
            tokens: token ids [B, L], padded on the right. If the model can, it computes logits, the largest
                activation, at their positions only.
        """
        embedded = self.model.get_input_embeddings()(tokens)
        if prefix is not None:
            embedded = torch.cat([prefix.to(embedded.dtype), embedded], dim=1)
        if self.training and torch.is_grad_enabled() and not embedded.requires_grad:
            # A reentrant checkpoint whose inputs need no gradient drops the gradients of all layers above.
            embedded.requires_grad_()
        text = slice(-tokens.shape[1], -1)
        kept = {"logits_to_keep": text} if self._keeps else {}
        read = []
        hook = self.model.get_submodule(self._body).register_forward_hook(lambda body, inputs, out: read.append(out))
        try:
            output = self.model(inputs_embeds=embedded, use_cache=False, **kept)
        finally:
            hook.remove()
        states = read[-1].last_hidden_state.to(embedded.dtype)  # a state-space model may sum in float32
        balance = output.get("aux_loss")
        if balance is not None:
            config = self.model.config
            balance = balance * getattr(config, "router_aux_loss_coef", getattr(config, "aux_loss_coef", 0.0))
        return Read(states, output.logits if self._keeps else output.logits[:, text], balance)


def language_config(config: LanguageConfig) -> PreTrainedConfig:
    """The `transformers` configuration object.

    Raises:
        ConfigError: an unknown model type or key, or sizes that are not those of the checkpoint in ``init_from``.
    """
    if config.init_from:
        return _of_checkpoint(config, config.init_from)
    model_type = config.model_type or "llama"
    if model_type not in CONFIG_MAPPING:
        raise ConfigError(
            f"language.model_type = {model_type!r}: transformers has no such model"
            f"{suggestion(model_type, CONFIG_MAPPING.keys())}"
        )
    try:
        known = AutoConfig.for_model(model_type)
    except Exception as error:
        raise ConfigError(
            f"language.model_type = {model_type!r}: transformers has no sizes for it: {told(error)}"
        ) from error
    if why := no_causal_model(known):
        raise ConfigError(f"language.model_type = {model_type!r}: {why}")
    _check_keys(config, known)
    try:
        built = AutoConfig.for_model(model_type, **{"use_cache": False, **config.config})
    except Exception as error:  # each model's own checks raise errors of their own kinds
        raise ConfigError(f"language.config: transformers refuses it for a {model_type!r}: {told(error)}") from error
    for key, count in vars(built).items():
        if ("layer" in key or "expert" in key) and type(count) is int and count > MOST_MODULES:
            raise ConfigError(
                f"language.config.{key} = {count}: is more than {MOST_MODULES}, and more than any model "
                "has: building it would not end"
            )
    heads, shared = (getattr(built, key, None) for key in ("num_attention_heads", "num_key_value_heads"))
    if isinstance(heads, int) and isinstance(shared, int) and (shared < 1 or heads % shared):
        raise ConfigError(f"language.config.num_key_value_heads = {shared}: must divide num_attention_heads {heads}")
    return built


def _of_checkpoint(config: LanguageConfig, folder: str) -> PreTrainedConfig:
    built = Pretrained(folder).config
    if why := no_causal_model(built):
        raise ConfigError(f"language.init_from = {folder!r}: a {built.model_type!r} {why}")
    problems = []
    if config.model_type not in (None, built.model_type):
        problems.append(
            f"language.model_type = {config.model_type!r}: the checkpoint in {folder} is a {built.model_type!r}"
        )
    else:
        _check_keys(config, built)
        problems += [
            f"language.config.{key} = {value!r}: the checkpoint in {folder} has "
            f"{getattr(built, key)!r}: leave the key out, or take another checkpoint"
            for key, value in config.config.items()
            if getattr(built, key) != value
        ]
    if problems:
        raise ConfigError("\n".join(problems))
    built.use_cache = False
    return built


def _body(model: PreTrainedModel) -> str:
    """The name of the submodule whose output goes into the output layer."""
    candidates = [model.get_decoder(), model.base_model, *model.children()]
    body = next(part for part in candidates if isinstance(part, PreTrainedModel) and part is not model)
    return next(name for name, module in model.named_modules() if module is body)


def _check_kind(model: PreTrainedModel) -> None:
    """Refuse a bidirectional model, which would read the answer and the padding, and one that reads token ids only."""
    kind, is_decoder = model.config.model_type, getattr(model.config, "is_decoder", None)
    if kind in WITHOUT_EMBEDDINGS:
        raise ConfigError(
            f"language.model_type = {kind!r}: reads token ids alone, and the modalities come as "
            "embeddings: take another one"
        )
    if kind in BIDIRECTIONAL:
        raise ConfigError(
            f"language.model_type = {kind!r}: is no causal model: each position sees those after it; take another one"
        )
    if is_decoder is False and kind not in CAUSAL:
        raise ConfigError(
            f"language.model_type = {kind!r}: is an encoder, in which each position sees those after it: "
            "set language.config.is_decoder = true, or take another one"
        )


def no_causal_model(config: PreTrainedConfig) -> str:
    """Why a configuration is not of a causal model, and what to take instead; empty if it is."""
    models, text = AutoModelForCausalLM._model_mapping, config.get_text_config(decoder=True)
    if text.model_type != config.model_type:
        alone = (
            f": take its language model alone, a {text.model_type!r}, with the sizes of its own part of the "
            "configuration"
            if type(text) in models
            else ", none of which is a causal language model by itself"
        )
        return f"is made of several models{alone}"
    return "" if type(config) in models else "is no causal language model"


def reads(config: PreTrainedConfig, key: str) -> bool:
    """Whether the model reads the key; its configuration class may not declare it (Qwen3-MoE's ``head_dim``)."""
    models = AutoModelForCausalLM._model_mapping
    try:
        declared = hasattr(config, key)
    except Exception:  # a value per layer, which the configuration as a whole refuses to give
        declared = True
    return (
        declared
        or type(config) in models
        and f'"{key}"' in inspect.getsource(sys.modules[models[type(config)].__module__])
    )


def _check_keys(config: LanguageConfig, known: PreTrainedConfig) -> None:
    unknown = [key for key in config.config if not reads(known, key)]
    if unknown:
        raise ConfigError(
            "\n".join(
                f"language.config.{key}: {type(known).__name__} has no such key{suggestion(key, known.to_dict())}"
                for key in unknown
            )
        )


def attention_implementation(config: LanguageConfig, built: PreTrainedConfig) -> str:
    """``config.attn_implementation``, where ``auto`` is torch's scaled dot-product attention if the model supports it.

    On a GPU, and without a mask, that is FlashAttention too, in every precision; the package flash_attn, which computes
    in 16 bits only, is used on request.
    """
    model: Any = AutoModelForCausalLM._model_mapping[type(built)]  # a class, though annotated as a pair of them
    if config.attn_implementation != "auto":
        return config.attn_implementation
    return "sdpa" if model._supports_sdpa else "eager"  # a state-space model has no attention to choose


def _add_adapters(model: nn.Module, lora: LoraConfig) -> list[str]:
    """Add adapters to the layers and freeze all else; returns the targets that match no layer."""
    from peft import LoraConfig as Settings  # slow to import, and only adapters need it
    from peft import inject_adapter_in_model

    targets = lora.target_modules if isinstance(lora.target_modules, list) else []
    names = [name for name, _ in model.named_modules()]
    unmatched = [
        target for target in targets if not any(name == target or name.endswith(f".{target}") for name in names)
    ]
    settings = Settings(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # annotated as int, but only divided by the rank
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
    )
    try:
        inject_adapter_in_model(settings, model)
    except ValueError as error:
        raise ConfigError(f"language.lora.target_modules = {lora.target_modules!r}: {error}") from None
    return unmatched
