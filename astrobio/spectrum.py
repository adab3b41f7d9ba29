"""The transmission spectrum's encoder."""

import torch
from torch import Tensor, nn

from astrobio.blocks import Block, Checkpointed, Queries, dtype_of, sample_mask, sinusoids
from astrobio.config import SpectrumConfig
from astrobio.schema import SPECTRUM_POINTS


class SpectrumEncoder(nn.Module):
    """Patches of spectral points to tokens, with a masked reconstruction of the depths (He et al. 2022).

    A patch carries its depths and their σ, both in units of the spectrum's own spread; its place is the logarithm of
    its mean wavelength, so that another instrument's grid means the same.
    """

    def __init__(self, config: SpectrumConfig, out_size: int):
        super().__init__()
        if SPECTRUM_POINTS % config.patch:
            raise ValueError(f"spectrum.patch = {config.patch} must divide the {SPECTRUM_POINTS} spectral points")
        size = config.hidden_size
        self.patch, self.mask_share = config.patch, config.mask_share
        self.embed = nn.Linear(2 * config.patch, size)
        self.mask_token = nn.Parameter(torch.empty(size).normal_(std=0.02))
        self.blocks = Checkpointed(Block(size, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(size)
        self.reconstruct = nn.Linear(size, config.patch)
        self.queries = Queries(config.tokens, size, config.heads, out_size)

    def forward(self, spectrum: Tensor) -> tuple[Tensor, Tensor]:
        """``spectrum`` [B, W, 3]: wavelength in µm, normalised depth, σ of the depth in the same units.

        Returns:
            tokens [B, tokens, out_size] and the reconstruction error of each sample [B], in float32: the squared
            error of the hidden patches' depths (of all patches where nothing is hidden), in noise-aware units.
        """
        wavelength, depth, sigma = (x.unflatten(1, (-1, self.patch)) for x in spectrum.unbind(-1))
        x = self.embed(torch.cat([depth, sigma], dim=-1).to(dtype_of(self)))
        place = sinusoids(100 * wavelength.clamp(min=1e-3).mean(-1).log(), x.shape[-1]).to(x.dtype)
        hidden = sample_mask(x.shape[0], x.shape[1], self.mask_share if self.training else 0.0, x.device)
        x = torch.where(hidden[..., None], self.mask_token.to(x.dtype), x) + place
        x = self.norm(self.blocks(x))
        error = (self.reconstruct(x).float() - depth) ** 2 / (1 + sigma**2)  # noise cannot be reconstructed
        counted = hidden if self.training and self.mask_share else torch.ones_like(hidden)
        return self.queries(x), (error.mean(-1) * counted).sum(1) / counted.sum(1).clamp(min=1)
