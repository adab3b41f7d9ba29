"""The planet table's encoder."""

import torch
from torch import Tensor, nn

from astrobio.blocks import Mlp, dtype_of
from astrobio.config import PlanetConfig
from astrobio.schema import PLANET_COLUMNS

#: The columns that tell of the atmosphere, which nobody knows before a spectrum is read.
ATMOSPHERE_COLUMNS = ("surface_pressure_bar", "co2_vmr", "ch4_vmr")
_ATMOSPHERE = [i for i, column in enumerate(PLANET_COLUMNS) if column.name in ATMOSPHERE_COLUMNS]


def bulk(known: Tensor) -> Tensor:
    """``known`` [..., P] without the columns of the atmosphere: what an observer knows of star and planet."""
    known = known.clone()
    for column in _ATMOSPHERE:  # one by one: a list of them would be copied to a card, and the host would wait
        known[..., column] = False
    return known


class PlanetEncoder(nn.Module):
    """Star and planet parameters, some of them unknown, to a few tokens: residual MLPs over values and mask."""

    def __init__(self, config: PlanetConfig, out_size: int):
        super().__init__()
        size = config.hidden_size
        self.tokens = config.tokens
        self.inlet = nn.Linear(2 * len(PLANET_COLUMNS), size)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(size), Mlp(size, 4 * size, size)) for _ in range(config.depth)
        )
        self.out = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, config.tokens * out_size))

    def forward(self, values: Tensor, known: Tensor) -> Tensor:
        """Normalised ``values`` [B, P] and ``known`` [B, P] bool to tokens [B, tokens, out_size]."""
        x = torch.cat([values * known, known], dim=-1).to(dtype_of(self))
        x = self.inlet(x)
        for block in self.blocks:
            x = x + block(x)
        return self.out(x).unflatten(-1, (self.tokens, -1))
