"""Tasks beside the label: what can be told from observables alone, the climate, and what a spectrum reveals."""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import lpmv
from torch import Tensor, nn

from astrobio.blocks import Mlp
from astrobio.config import EmulationConfig, ObservablesConfig, RetrievalConfig, TasksConfig
from astrobio.fusion import CLASSES
from astrobio.schema import (
    CLIMATE_LATITUDES,
    CLIMATE_LEVEL_VARIABLES,
    CLIMATE_LEVELS,
    CLIMATE_LONGITUDES,
    CLIMATE_SURFACE_VARIABLES,
    RETRIEVAL_COLUMNS,
)

LEVEL_FIELDS = len(CLIMATE_LEVEL_VARIABLES) * CLIMATE_LEVELS
FIELDS = LEVEL_FIELDS + len(CLIMATE_SURFACE_VARIABLES)


class Climate(NamedTuple):
    """Normalised fields of a steady state: ``levels`` [B, V, Z, Y, X] and ``surface`` [B, S, Y, X], in float32."""

    levels: Tensor
    surface: Tensor


class TaskOutput(NamedTuple):
    """``observables``: habitability logits [B, 2]; ``emulation``: the climate; ``retrieval``: [B, K, 1 + 2 R], see
    `astrobio.mixture.mixture`. None where the stack has no such head."""

    observables: Tensor | None = None
    emulation: Climate | None = None
    retrieval: Tensor | None = None


class Tasks(nn.Module):
    """The heads of `TasksConfig`; each reads tokens of the planet table and the spectrum, never the language model."""

    def __init__(self, config: TasksConfig, token_size: int, planet_tokens: int, spectrum_tokens: int):
        super().__init__()
        observed = (planet_tokens + spectrum_tokens) * token_size
        self.observables = self.emulation = self.retrieval = None
        if config.observables is not None:
            self.observables = Observables(config.observables, observed)
        if config.emulation is not None:
            self.emulation = Emulation(config.emulation, planet_tokens * token_size)
        if config.retrieval is not None:
            self.retrieval = Retrieval(config.retrieval, observed)

    def forward(self, planet: Tensor, bulk: Tensor, spectrum: Tensor | None) -> TaskOutput:
        """Tokens [B, n, token_size]: of the whole ``planet`` table, of it without the atmosphere's columns (``bulk``,
        which an observer knows), and of the ``spectrum``."""
        observed = bulk if spectrum is None else torch.cat([bulk, spectrum], dim=1)
        return TaskOutput(
            None if self.observables is None else self.observables(observed),
            None if self.emulation is None else self.emulation(planet),
            None if self.retrieval is None else self.retrieval(observed),
        )


class Observables(nn.Module):
    """Habitability from what can be observed from afar: star and bulk parameters, and the spectrum."""

    def __init__(self, config: ObservablesConfig, size: int):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.mlp = Mlp(size, config.hidden_size, CLASSES, config.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, n, token_size] to logits [B, 2]."""
        return self.mlp(self.norm(tokens.flatten(1)))


class QuickLinear(nn.Linear):
    """A linear layer whose output a step of Adam moves ``gain`` times as far; it starts where `torch.nn.Linear` does.

    Adam moves every weight by about the learning rate, whatever the weight is for.
    """

    def __init__(self, in_features: int, out_features: int, gain: float):
        self.gain = gain
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        bound = 1 / (self.gain * math.sqrt(self.in_features))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * super().forward(x)


#: Coefficients of a climate's patterns are large, and a thousand steps are few: without it the error is twice as large.
COEFFICIENT_GAIN = 40.0


class Emulation(nn.Module):
    """The climate from planet and atmosphere: a network gives each field's coefficients of patterns on the sphere.

    The patterns begin as spherical harmonics, red as climates are, and are learned. ``rank`` numbers determine all
    coefficients, as principal components would: a thousand climates cannot teach more.
    """

    def __init__(self, config: EmulationConfig, size: int):
        super().__init__()
        patterns = spherical_harmonics(config.degree)
        self.norm = nn.LayerNorm(size)
        self.components = Mlp(size, config.hidden_size, config.rank)
        self.coefficients = QuickLinear(config.rank, FIELDS * len(patterns), COEFFICIENT_GAIN)
        self.patterns = nn.Parameter(torch.tensor(patterns, dtype=torch.float32))

    def forward(self, tokens: Tensor) -> Climate:
        """Tokens [B, n, token_size] to the climate."""
        coefficients = self.coefficients(self.components(self.norm(tokens.flatten(1))))
        fields = (coefficients.unflatten(1, (FIELDS, -1)) @ self.patterns).float()
        fields = fields.unflatten(-1, (CLIMATE_LATITUDES, CLIMATE_LONGITUDES))
        return Climate(fields[:, :LEVEL_FIELDS].unflatten(1, (-1, CLIMATE_LEVELS)), fields[:, LEVEL_FIELDS:])


class Retrieval(nn.Module):
    """The posterior of the atmosphere given star, bulk parameters and spectrum, as a mixture of Gaussians."""

    def __init__(self, config: RetrievalConfig, size: int):
        super().__init__()
        self.components = config.components
        self.norm = nn.LayerNorm(size)
        self.mlp = Mlp(size, config.hidden_size, config.components * (1 + 2 * len(RETRIEVAL_COLUMNS)), config.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, n, token_size] to [B, K, 1 + 2 R]: see `astrobio.mixture.mixture`."""
        return self.mlp(self.norm(tokens.flatten(1))).unflatten(1, (self.components, -1))


def spherical_harmonics(degree: int) -> np.ndarray:
    """Real spherical harmonics up to ``degree`` on the climate's grid, [(degree + 1)², Y X]: those of degree l have the
    mean square 1 / (1 + l)² over the sphere."""
    step = math.pi / CLIMATE_LATITUDES
    sine = np.sin(np.arange(CLIMATE_LATITUDES) * step + step / 2 - math.pi / 2)
    longitude = np.arange(CLIMATE_LONGITUDES) * 2 * math.pi / CLIMATE_LONGITUDES
    patterns = []
    for n in range(degree + 1):
        for m in range(n + 1):
            norm = math.sqrt((2 * n + 1) * math.factorial(n - m) / math.factorial(n + m) * (2 if m else 1))
            meridional = norm * lpmv(m, n, sine) / (1 + n)
            for zonal in (np.cos(m * longitude), np.sin(m * longitude))[: 2 if m else 1]:
                patterns.append(np.outer(meridional, zonal).ravel())
    return np.stack(patterns)
