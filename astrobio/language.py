"""The language model: any causal model of `transformers`, fed with modality tokens as a prefix before the text."""

import inspect

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from astrobio.config import ConfigError, LanguageConfig, LoraConfig, suggestion
from astrobio.pretrained import Pretrained


class Language(nn.Module):
    """A causal language model built from its configuration, with random weights.

    Weights of ``init_from`` are not read here, because no process need hold them all: `pretrained` says which
    parameter is to be filled from where.

    Attributes:
        model: the `transformers` model.
        hidden_size: its width, which the encoders' tokens must have.
        attention: the attention implementation it runs with.
        pretrained: the checkpoint's name of each parameter that is to come from ``init_from``.
    """

    def __init__(self, config: LanguageConfig):
        super().__init__()
        built = language_config(config)
        self.attention = attention_implementation(config, built)
        self.model = AutoModelForCausalLM.from_config(built, attn_implementation=self.attention)
        self.hidden_size = self.model.get_input_embeddings().embedding_dim
        self.pretrained = {p: name for name, p in self.model.named_parameters()} if config.init_from else {}
        if config.lora:
            _add_adapters(self.model, config.lora)

    def forward(self, prefix: Tensor | None, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Read the prefix, then the text.

        No mask is given: padding stands on the right of what is real, which a causal model never looks at. With a mask
        torch leaves FlashAttention for kernels with a score bias, and transformers waits for the card to look at it.

        Args:
            prefix: modality tokens [B, N, hidden_size], or None.
            tokens: token ids [B, L], padded on the right.

        Returns:
            the last hidden states [B, N + L, hidden_size], and logits [B, L - 1, vocabulary] that predict
            ``tokens[:, 1:]``. Only text positions go through the output layer: its logits are the largest activation.
        """
        embedded = self.model.get_input_embeddings()(tokens)
        if prefix is not None:
            embedded = torch.cat([prefix.to(embedded.dtype), embedded], dim=1)
        if self.training and torch.is_grad_enabled() and not embedded.requires_grad:
            # Over a bottom that needs no gradient a reentrant checkpoint would drop those of all layers above.
            embedded.requires_grad_()
        states = self.model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        states = states.to(embedded.dtype)  # a state-space model may sum its residuals in float32
        return states, self.model.get_output_embeddings()(states[:, -tokens.shape[1]:-1])


def language_config(config: LanguageConfig) -> PreTrainedConfig:
    """The `transformers` configuration object.

    Raises:
        ConfigError: an unknown model type or key, or sizes that are not those of the checkpoint in ``init_from``.
    """
    if config.init_from:
        return _of_checkpoint(config)
    model_type = config.model_type or "llama"
    try:
        known = AutoConfig.for_model(model_type)
    except ValueError:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
        raise ConfigError(f"language.model_type = {model_type!r}: transformers has no such model"
                          f"{suggestion(model_type, CONFIG_MAPPING.keys())}") from None
    _check_keys(config, known)
    return AutoConfig.for_model(model_type, **{"use_cache": False, **config.config})


def _of_checkpoint(config: LanguageConfig) -> PreTrainedConfig:
    built = Pretrained(config.init_from).config
    problems = []
    if config.model_type not in (None, built.model_type):
        problems.append(f"language.model_type = {config.model_type!r}: the checkpoint in {config.init_from} is a "
                        f"{built.model_type!r}")
    else:
        _check_keys(config, built)
        problems += [f"language.config.{key} = {value!r}: the checkpoint in {config.init_from} has "
                     f"{getattr(built, key)!r}: leave the key out, or take another checkpoint"
                     for key, value in config.config.items() if getattr(built, key) != value]
    if problems:
        raise ConfigError("\n".join(problems))
    built.use_cache = False
    return built


def reads(config: PreTrainedConfig, key: str) -> bool:
    """Whether the model reads the key, which its configuration class need not declare (Qwen3-MoE's ``head_dim``)."""
    models = AutoModelForCausalLM._model_mapping
    return hasattr(config, key) or type(config) in models and f'"{key}"' in inspect.getsource(
        inspect.getmodule(models[type(config)]))


def _check_keys(config: LanguageConfig, known: PreTrainedConfig) -> None:
    unknown = [key for key in config.config if not reads(known, key)]
    if unknown:
        raise ConfigError("\n".join(f"language.config.{key}: {type(known).__name__} has no such key"
                                    f"{suggestion(key, known.to_dict())}" for key in unknown))


def attention_implementation(config: LanguageConfig, built: PreTrainedConfig) -> str:
    """``config.attn_implementation``, where ``auto`` is torch's scaled dot-product attention, if the model supports it.

    On a card that is FlashAttention too, for there is no mask, and it computes in every precision; the package
    flash_attn, which computes in 16 bits only, must be asked for.
    """
    model = AutoModelForCausalLM._model_mapping[type(built)]
    if config.attn_implementation != "auto":
        return config.attn_implementation
    return "sdpa" if model._supports_sdpa else "eager"  # a state-space model has no attention to choose


def _add_adapters(model: nn.Module, lora: LoraConfig) -> None:
    """Put adapters beside the layers, and freeze all else."""
    from peft import LoraConfig as Settings
    from peft import inject_adapter_in_model
    settings = Settings(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout,
                        target_modules=lora.target_modules)
    try:
        inject_adapter_in_model(settings, model)
    except ValueError as error:
        raise ConfigError(f"language.lora.target_modules = {lora.target_modules!r}: {error}") from None
