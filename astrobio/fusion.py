"""Fusion: modality tokens and the language model's last states attend to each other; heads read the result."""

import torch
from torch import Tensor, nn

from astrobio.blocks import Attention, Checkpointed, Mlp
from astrobio.config import FusionConfig
from astrobio.losses import masked_penalty

CLASSES = 2  # not habitable, habitable


class CrossBlock(nn.Module):
    """Two streams that read each other: pre-norm cross-attention both ways, then an MLP for each.

    A modality token's score is lowered by a learned multiple of the doubt (minus log quality) about its modality.
    """

    def __init__(self, size: int, heads: int, dropout: float, lengths: list[int]):
        super().__init__()
        self.lengths = lengths
        self.trust = nn.Parameter(torch.ones(len(lengths)))
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(4))
        self.to_modality, self.to_text = (Attention(size, heads, dropout=dropout) for _ in range(2))
        self.modality_mlp, self.text_mlp = (Mlp(size, 4 * size, size, dropout) for _ in range(2))

    def forward(self, modality: Tensor, text: Tensor, doubt: Tensor, absent: Tensor, padding: Tensor):
        """``modality`` [B, N, D], ``text`` [B, L, D]; ``doubt`` [B, M]; penalties ``absent`` [B, M] of a modality and
        ``padding`` [B, L] of a text token."""
        bias = absent - self.trust.float() * doubt
        bias = torch.cat([bias[:, i : i + 1].expand(-1, n) for i, n in enumerate(self.lengths)], dim=1)
        queries, keys = self.norms[0](modality), self.norms[1](text)
        modality = modality + self.to_modality(queries, keys, padding)
        text = text + self.to_text(keys, queries, bias)
        return (modality + self.modality_mlp(self.norms[2](modality)), text + self.text_mlp(self.norms[3](text)))


class Fusion(nn.Module):
    """Cross-attention fusion with learned, quality-aware weights, and the habitability heads.

    A modality's weight is a learned score of its content less a learned multiple of the doubt about its quality; an
    absent one gets none. The text is one more part, always there and never doubted.
    """

    def __init__(self, config: FusionConfig, token_size: int, lengths: list[int]):
        """``lengths``: how many tokens each modality has."""
        super().__init__()
        size = config.hidden_size
        self.lengths = lengths
        self.modality_inlet, self.text_inlet = (
            nn.Sequential(nn.LayerNorm(token_size), nn.Linear(token_size, size)) for _ in range(2)
        )
        self.blocks = Checkpointed(CrossBlock(size, config.heads, config.dropout, lengths) for _ in range(config.depth))
        self.norm = nn.LayerNorm(size)
        self.score = nn.Linear(size, 1)
        self.trust = nn.Parameter(torch.ones(len(lengths)))
        self.head = Mlp(size, size, CLASSES, config.dropout)
        self.single_heads = nn.ModuleList(nn.Linear(size, CLASSES) for _ in lengths)

    def forward(self, tokens: list[Tensor], states: Tensor, present: Tensor, quality: Tensor, real: Tensor):
        """Fuse.

        Args:
            tokens: one [B, n, token_size] for each modality.
            states: the language model's states at the text [B, L, token_size].
            present: [B, M] bool.
            quality: [B, M] in 0 to 1.
            real: [B, L] bool, False on padding.

        Returns:
            habitability logits [B, 2]; each modality's own logits [B, M, 2]; the fusion's weights [B, M + 1].
        """
        doubt = torch.where(present, -quality.clamp(min=1e-3).log(), torch.zeros_like(quality))
        absent = masked_penalty(present)
        inlet = self.modality_inlet(torch.cat(tokens, dim=1))
        single = torch.stack(
            [
                head(part.mean(1))
                for head, part in zip(self.single_heads, inlet.split(self.lengths, dim=1), strict=True)
            ],
            dim=1,
        )
        modality, text = self.blocks(inlet, self.text_inlet(states), constants=(doubt, absent, masked_penalty(real)))

        share = (real / real.sum(1, keepdim=True).clamp(min=1)).to(text.dtype)
        parts = [part.mean(1) for part in modality.split(self.lengths, dim=1)] + [(text * share[..., None]).sum(1)]
        parts = self.norm(torch.stack(parts, dim=1))
        penalty = nn.functional.pad(absent - self.trust.float() * doubt, (0, 1))
        weights = (self.score(parts).squeeze(-1).float() + penalty).softmax(dim=1)
        return self.head((weights[..., None].to(parts.dtype) * parts).sum(1)), single, weights
