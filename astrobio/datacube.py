"""The climate datacube's encoder: 3-D convolution stem, vision transformer, masked reconstruction."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astrobio.blocks import Block, Checkpointed, Mlp, Queries, dtype_of, sample_mask, sinusoids
from astrobio.config import DatacubeConfig
from astrobio.losses import area_mean
from astrobio.schema import (
    CLIMATE_LATITUDES,
    CLIMATE_LEVEL_VARIABLES,
    CLIMATE_LEVELS,
    CLIMATE_LONGITUDES,
    CLIMATE_SURFACE_VARIABLES,
)

GRID = (CLIMATE_LEVELS, CLIMATE_LATITUDES, CLIMATE_LONGITUDES)
CHANNELS = len(CLIMATE_LEVEL_VARIABLES) + len(CLIMATE_SURFACE_VARIABLES)


class GlobeConv3d(nn.Conv3d):
    """3 × 3 × 3 convolution over (level, latitude, longitude) that knows that longitude goes round."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, kernel_size=3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[..., -1:], x, x[..., :1]], dim=-1)
        return super().forward(F.pad(x, (0, 0, 1, 1, 1, 1)))


class PatchEmbedding(nn.Linear):
    """One linear map of each patch, patches laid side by side: what a convolution with stride = kernel computes.

    Not written as one: torch 2.13.0's bf16 `Conv3d` of 8 or 16 channels is wrong on CPUs with AMX where kernel and
    stride are 8 wide (relative error 1.1, fp16 and fp32 right), and cuDNN's bf16 3-D convolutions are slow.
    """

    def __init__(self, channels: int, patch: tuple[int, int, int], size: int):
        super().__init__(channels * math.prod(patch), size)
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [B, C, Z, Y, X] to [B, patches, size]."""
        for axis, patch in zip((2, 4, 6), self.patch, strict=True):
            x = x.unflatten(axis, (-1, patch))  # B C z pz y py x px
        return super().forward(x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3))


class ResidualConv(nn.Module):
    """Two convolutions with group norm around a skip connection."""

    def __init__(self, channels: int):
        super().__init__()
        groups = min(8, channels)
        self.body = nn.Sequential(
            nn.GroupNorm(groups, channels),
            nn.GELU(),
            GlobeConv3d(channels, channels),
            nn.GroupNorm(groups, channels),
            nn.GELU(),
            GlobeConv3d(channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class CubeOutput(NamedTuple):
    """``tokens`` [B, tokens, out_size]; the mean squared error [B] of the reconstruction over ``hidden`` patches (0
    where none is) and over ``visible`` ones, for the surface over the columns with such a patch; the reconstructed
    ``surface`` [B, S, T, Y, X], normalised. In float32."""

    tokens: Tensor
    hidden: Tensor
    visible: Tensor
    surface: Tensor


class DatacubeEncoder(nn.Module):
    """Climate cubes to tokens, with a masked reconstruction of the fields (He et al. 2022).

    Surface fields stand on every level as further channels, so that one stem sees both. Patches are hidden *before*
    the stem, on the input, because a convolution would let a hidden patch shine through its neighbours. One more token
    carries the area-weighted mean and spread of each field over the globe: a climate's first-order description, which
    patches would have to find by averaging over all of them. The stem sees how each field departs from that mean: the
    same number in every cell would only pile up in its gradient, which then drowns those of all other parts.
    """

    def __init__(self, config: DatacubeConfig, out_size: int):
        super().__init__()
        for axis, points, patch in zip(("levels", "latitudes", "longitudes"), GRID, config.patch, strict=True):
            if points % patch:
                raise ValueError(f"climate.patch = {list(config.patch)}: {patch} must divide the {points} {axis}")
        size = config.hidden_size
        self.patch, self.mask_share = config.patch, config.mask_share
        self.patches = [points // patch for points, patch in zip(GRID, config.patch, strict=True)]
        self.inlet = GlobeConv3d(CHANNELS + 1, config.stem_channels)  # the last channel says what is hidden
        self.stem = Checkpointed([ResidualConv(config.stem_channels)])
        self.embed = PatchEmbedding(config.stem_channels, config.patch, size)
        length = self.patches[0] * self.patches[1] * self.patches[2]
        self.position = nn.Parameter(torch.empty(length, size).normal_(std=0.02))
        fields = len(CLIMATE_LEVEL_VARIABLES) * CLIMATE_LEVELS + len(CLIMATE_SURFACE_VARIABLES)
        self.globe = Mlp(2 * fields, 2 * size, size)
        self.blocks = Checkpointed(Block(size, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(size)
        depth, height, width = config.patch
        self.reconstruct_levels = nn.Linear(size, len(CLIMATE_LEVEL_VARIABLES) * depth * height * width)
        self.reconstruct_surface = nn.Linear(size, len(CLIMATE_SURFACE_VARIABLES) * height * width)
        self.queries = Queries(config.tokens, size, config.heads, out_size)

    @property
    def hides(self) -> bool:
        """Whether a forward pass hides patches."""
        return self.training and self.mask_share > 0

    def forward(self, levels: Tensor, surface: Tensor) -> CubeOutput:
        """Normalised ``levels`` [B, V, T, Z, Y, X] and ``surface`` [B, S, T, Y, X]."""
        batch, times = levels.shape[0], levels.shape[2]
        levels, surface = levels.transpose(1, 2).flatten(0, 1), surface.transpose(1, 2).flatten(0, 1)  # [B T, V, …]
        hidden = sample_mask(len(levels), len(self.position), self.mask_share if self.hides else 0.0, levels.device)
        cells = self._to_grid(hidden)
        fields = torch.cat([levels, surface[:, :, None].expand(-1, -1, levels.shape[2], -1, -1)], dim=1)
        pattern = fields - area_mean(fields)[..., None, None]
        inputs = torch.cat([pattern.masked_fill(cells, 0.0), cells.to(fields.dtype)], dim=1)

        x = self.stem(self.inlet(inputs.to(dtype_of(self))))
        x = self.embed(x) + self.position
        if times > 1:  # a steady state has no time to tell
            time = sinusoids(torch.arange(times, device=x.device), x.shape[-1]).to(x.dtype)
            x = x + time.repeat(batch, 1)[:, None]
        globe = self.globe(_globe_moments(levels, surface).to(x.dtype))
        x = torch.cat([x, globe[:, None]], dim=1).unflatten(0, (batch, times)).flatten(1, 2)
        x = self.norm(self.blocks(x))

        per_time = x.unflatten(1, (times, -1)).flatten(0, 1)[:, :-1]
        level_fields = self._unpatch(self.reconstruct_levels(per_time).float(), len(CLIMATE_LEVEL_VARIABLES))
        surface_fields = self._unpatch_surface(self.reconstruct_surface(per_time).float())
        errors = (level_fields - levels) ** 2, (surface_fields - surface) ** 2
        hidden, visible = (
            ((_mean_over(errors[0], kept) + _mean_over(errors[1], kept.any(dim=2))) / 2)
            .unflatten(0, (batch, times))
            .mean(1)
            for kept in (cells, ~cells)
        )
        return CubeOutput(self.queries(x), hidden, visible, surface_fields.unflatten(0, (batch, times)).transpose(1, 2))

    def _to_grid(self, hidden: Tensor) -> Tensor:
        """Hidden patches [B, N] as hidden cells [B, 1, Z, Y, X]."""
        cells = hidden.unflatten(1, self.patches)
        for axis, patch in enumerate(self.patch, start=1):
            cells = cells.repeat_interleave(patch, dim=axis)
        return cells[:, None]

    def _unpatch(self, x: Tensor, variables: int) -> Tensor:
        """[B, N, V · patch cells] to [B, V, Z, Y, X]."""
        x = x.unflatten(-1, (variables, *self.patch)).unflatten(1, self.patches)  # B z y x V pz py px
        return x.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(len(x), variables, *GRID)

    def _unpatch_surface(self, x: Tensor) -> Tensor:
        """[B, N, S · patch columns] to [B, S, Y, X]: the mean over the patches of a column."""
        x = x.unflatten(-1, (len(CLIMATE_SURFACE_VARIABLES), *self.patch[1:])).unflatten(1, self.patches).mean(1)
        return x.permute(0, 3, 1, 4, 2, 5).reshape(len(x), len(CLIMATE_SURFACE_VARIABLES), *GRID[1:])


def _globe_moments(levels: Tensor, surface: Tensor) -> Tensor:
    """Area-weighted mean and standard deviation of each field: [B, V, Z, Y, X] and [B, S, Y, X] to [B, 2 (V Z + S)]."""
    fields = torch.cat([levels.flatten(1, 2), surface], dim=1)
    mean = area_mean(fields)
    variance = area_mean((fields - mean[..., None, None]) ** 2)
    return torch.cat([mean, variance.sqrt()], dim=1)


def _mean_over(values: Tensor, counted: Tensor) -> Tensor:
    """Mean over all but the batch axis of ``values`` where ``counted`` (one channel) is True."""
    counted = counted.expand_as(values)
    return (values * counted).flatten(1).sum(1) / counted.flatten(1).sum(1).clamp(min=1)
