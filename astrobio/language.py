"""The language model: any causal model of `transformers`, fed with modality tokens as a prefix before the text."""

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from astrobio.config import ConfigError, LanguageConfig, suggestion


class Language(nn.Module):
    """A causal language model built from its configuration, with random weights.

    Attributes:
        model: the `transformers` model.
        hidden_size: its width, which the encoders' tokens must have.
    """

    def __init__(self, config: LanguageConfig):
        super().__init__()
        self.model = AutoModelForCausalLM.from_config(language_config(config),
                                                      attn_implementation=config.attn_implementation)
        self.hidden_size = self.model.get_input_embeddings().embedding_dim

    def forward(self, prefix: Tensor | None, tokens: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Read the prefix, then the text.

        Args:
            prefix: modality tokens [B, N, hidden_size], or None.
            tokens: token ids [B, L], padded on the right.
            real: [B, L] bool, False on padding.

        Returns:
            the last hidden states [B, N + L, hidden_size], and logits [B, L - 1, vocabulary] that predict
            ``tokens[:, 1:]``. Only text positions go through the output layer: its logits are the largest activation.
        """
        embedded = self.model.get_input_embeddings()(tokens)
        attended = real
        if prefix is not None:
            embedded = torch.cat([prefix.to(embedded.dtype), embedded], dim=1)
            attended = torch.cat([real.new_ones(prefix.shape[:2]), real], dim=1)
        states = self.model.base_model(inputs_embeds=embedded, attention_mask=attended.long(),
                                       use_cache=False).last_hidden_state
        return states, self.model.get_output_embeddings()(states[:, -tokens.shape[1]:-1])


def language_config(config: LanguageConfig):
    """The `transformers` configuration object; `ConfigError` for an unknown model type or key."""
    try:
        known = AutoConfig.for_model(config.model_type)
    except ValueError:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
        raise ConfigError(f"language.model_type = {config.model_type!r}: transformers has no such model"
                          f"{suggestion(config.model_type, CONFIG_MAPPING.keys())}") from None
    for key in config.config:
        if not hasattr(known, key):
            raise ConfigError(f"language.config.{key}: {type(known).__name__} has no such key"
                              f"{suggestion(key, known.to_dict())}")
    return AutoConfig.for_model(config.model_type, **{"use_cache": False, **config.config})
