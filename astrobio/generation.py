"""Text from a record's modalities alone: what the language model says after the prefix."""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from astrobio.batch import Batch
from astrobio.stack import AstrobioStack


@torch.no_grad()
def describe(
    stack: AstrobioStack, batch: Batch, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None = None, **options
) -> list[str]:
    """A description of each record of ``batch``, whose own text is not read.

    Args:
        max_tokens: the most that are generated for each; None takes as many as the stack was trained to read.
        options: of transformers' ``generate``, such as ``do_sample`` and ``temperature``; by default it is greedy.

    Returns:
        one text a record, without what frames it. `astrobio.phrases.numbers_in` reads the numbers of the planet table
        in it.
    """
    training = stack.training
    stack.eval()
    try:
        begin = torch.full_like(batch.tokens[:, :1], tokenizer.bos_token_id)
        prefix = stack.prefix(batch)
        model = stack.language.model
        embedded: Tensor = model.get_input_embeddings()(begin)
        if prefix is not None:
            embedded = torch.cat([prefix.to(embedded.dtype), embedded], dim=1)
        tokens = model.generate(
            inputs_embeds=embedded,
            attention_mask=torch.ones(embedded.shape[:2], dtype=torch.long, device=embedded.device),
            max_new_tokens=max_tokens or stack.config.language.max_text_tokens - 1,
            **{
                "do_sample": False,
                "use_cache": True,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
                **options,
            },
        )
    finally:
        stack.train(training)
    return tokenizer.batch_decode(tokens, skip_special_tokens=True)
