"""The transmission spectrum's encoder."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from astrobio.blocks import Block, Checkpointed, Queries, dtype_of, sample_mask, sinusoids
from astrobio.config import SpectrumConfig
from astrobio.schema import SPECTRUM_POINTS

#: Points in a bin, where the patch allows: 3% of the wavelength, less than a molecular band.
BIN = 10


class SpectrumOutput(NamedTuple):
    """``tokens`` [B, tokens, out_size]; the error [B] of the reconstruction over ``hidden`` patches (0 where none is)
    and over ``visible`` ones, in float32: see `SpectrumEncoder`."""

    tokens: Tensor
    hidden: Tensor
    visible: Tensor


class SpectrumEncoder(nn.Module):
    """Patches of spectral points to tokens, with a masked reconstruction of the depths (He et al. 2022).

    At the usual signal-to-noise a single point says little. Each is therefore drawn to the mean of its bin, as much as
    its noise asks for (and the bin to the mean of the spectrum), as a Wiener filter does: where noise is small, the
    points stay as they are. The place of a patch is the logarithm of its mean wavelength, so that another instrument's
    grid means the same. One more token tells the unit of the depths, from which follow scale height and temperature.

    The reconstruction is of the bins' means. Their squared error is divided by the variance of signal and noise: 1 is
    no better than the spectrum's mean, and no σ, however small, gives a bin more weight than 1.
    """

    def __init__(self, config: SpectrumConfig, out_size: int):
        super().__init__()
        if SPECTRUM_POINTS % config.patch:
            raise ValueError(f"spectrum.patch = {config.patch} must divide the {SPECTRUM_POINTS} spectral points")
        size = config.hidden_size
        self.patch, self.bin, self.mask_share = config.patch, math.gcd(config.patch, BIN), config.mask_share
        self.embed = nn.Linear(2 * config.patch, size)
        self.mask_token = nn.Parameter(torch.empty(size).normal_(std=0.02))
        self.blocks = Checkpointed(Block(size, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(size)
        self.reconstruct = nn.Linear(size, config.patch)
        self.queries = Queries(config.tokens, size, config.heads, out_size)

    @property
    def hides(self) -> bool:
        """Whether a forward pass hides patches."""
        return self.training and self.mask_share > 0

    def forward(self, spectrum: Tensor, spread: Tensor) -> SpectrumOutput:
        """``spectrum`` [B, W, 3] and ``spread`` [B]: see `astrobio.normalisation.normalised_spectrum`."""
        wavelength, depth, weight = (x.unflatten(1, (-1, self.patch)) for x in spectrum.unbind(-1))
        binned, trust = binned_depth(depth, weight, self.bin)
        mean, trusted = (x.repeat_interleave(self.bin, dim=-1) for x in (binned, trust))
        shrunk = trusted * mean + weight * (depth - mean)
        x = self.embed(torch.cat([shrunk, trusted * (weight > 0)], dim=-1).to(dtype_of(self)))
        place = sinusoids(100 * wavelength.clamp(min=1e-3).mean(-1).log(), x.shape[-1]).to(x.dtype)
        hidden = sample_mask(x.shape[0], x.shape[1], self.mask_share if self.hides else 0.0, x.device)
        x = torch.where(hidden[..., None], self.mask_token.to(x.dtype), x) + place
        x = torch.cat([x, sinusoids(100 * spread, x.shape[-1]).to(x.dtype)[:, None]], dim=1)
        x = self.norm(self.blocks(x))
        decoded = self.reconstruct(x[:, :-1]).float().unflatten(-1, (-1, self.bin)).mean(-1)
        error, seen = trust * (decoded - binned) ** 2, trust > 0

        def mean_error(patches: Tensor) -> Tensor:
            counted = seen & patches[..., None]
            return (error * counted).flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)

        return SpectrumOutput(self.queries(x), mean_error(hidden), mean_error(~hidden))


def binned_depth(depth: Tensor, weight: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Means of each ``points`` of the ``depth`` [..., W], weighted with 1 / σ², and their own weight: both
    [..., W / points]. A ``weight`` [..., W] is s² / (s² + σ²), as in `astrobio.normalisation.normalised_spectrum`."""
    precision = (weight / (1 - weight)).unflatten(-1, (-1, points))
    total = precision.sum(-1)
    mean = (precision * depth.unflatten(-1, (-1, points))).sum(-1) / total.clamp(min=1e-12)
    return mean, total / (1 + total)
