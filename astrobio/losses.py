"""The parts of the loss, each one number per batch in float32.

    loss = 1.0 classification + 1.0 language + 0.1 reconstruction + 0.1 kl + 0.2 energy + 0.2 mass_balance
         + 0.15 consistency + 1.0 balance + 1.0 observables + 2.0 emulation + 0.3 retrieval

(weights: `astrobio.config.LossConfig`). A sample without the modality or the label a part needs adds nothing to it; a
batch without any adds exactly 0, with a gradient of 0, so that all ranks run the same backward pass.

``reconstruction`` comes in several parts of equal weight, logged apart: ``reconstruction.metabolism``, and of climate
and spectrum ``….…_visible`` and, in training, ``….…_hidden``. Each is a mean over its own patches. He et al. (2022)
count the hidden ones only, because they want nothing but features; here the decoded fields are used, by the energy
balance and by whoever evaluates them, and fields that are right in the hidden tenth only are of no use.

``energy`` is the energy balance of the reconstructed climate, ``mass_balance`` that of the reconstructed metabolic
fluxes, in 0 to 1. ``balance`` is what a mixture of experts adds to its own loss, weighted as its configuration says.
``observables``, ``emulation`` and ``retrieval`` are those of the heads in `astrobio.heads`. ``retrieval.nll`` is the
negative log likelihood of all that is retrieved together; ``retrieval.crps`` the score of each quantity by itself,
summed: the likelihood alone makes the intervals of single quantities too narrow.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_penalty(real: Tensor) -> Tensor:
    """Attention bias: 0 where ``real`` is True, -1e4 (safe in fp16) elsewhere."""
    return (~real).float() * -1e4


def mean_present(values: Tensor, present: Tensor) -> Tensor:
    """Mean of ``values`` [B] where ``present`` [B]; 0 where none is. Values that are not counted may be non-finite."""
    counted = torch.where(present, values.float(), torch.zeros_like(values, dtype=torch.float32))
    return counted.sum() / present.sum().clamp(min=1)


def classification(logits: Tensor, probability: Tensor, known: Tensor) -> Tensor:
    """Cross-entropy of the habitability ``logits`` [B, 2] and the ``probability`` [B] of being habitable."""
    target = torch.stack([1 - probability, probability], dim=1)
    return mean_present(F.cross_entropy(logits.float(), target, reduction="none"), known)


def language(logits: Tensor, tokens: Tensor, counted: Tensor) -> Tensor:
    """Next-token cross-entropy: ``logits`` [B, L, V] predict ``tokens`` [B, L] at the same place, where ``counted``."""
    loss = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none")
    return mean_present(loss, counted.flatten())


def latitude_weights(count: int, device: torch.device) -> Tensor:
    """Shares [count] of the sphere's area of equally spaced latitude bands."""
    return torch.linspace(-math.pi / 2, math.pi / 2, count + 1, device=device).sin().diff() / 2


def area_mean(fields: Tensor) -> Tensor:
    """Area-weighted mean [...] of fields [..., Y, X]."""
    return (latitude_weights(fields.shape[-2], fields.device) * fields.mean(-1)).sum(-1)


#: Relative imbalance |absorbed - outgoing| / (absorbed + outgoing) up to which the penalty is quadratic. The emulated
#: climates are off by 0.4% on average and 1.3% at most: they pay next to nothing, a field that ignores physics pays 10.
ENERGY_TOLERANCE = 0.01


def energy_imbalance(absorbed: Tensor, outgoing: Tensor) -> Tensor:
    """Huber penalty [B] of the relative imbalance, in units of `ENERGY_TOLERANCE`, of the area-weighted global means of
    two flux fields [B, Y, X] in W m-2.

    In a steady state a planet emits what it absorbs (e.g. Pierrehumbert 2010, ch. 3).
    """
    absorbed, outgoing = area_mean(absorbed), area_mean(outgoing)
    relative = (absorbed - outgoing) / (absorbed.abs() + outgoing.abs() + 1.0) / ENERGY_TOLERANCE
    return F.huber_loss(relative, torch.zeros_like(relative), reduction="none")


#: In squared standard deviations: keeps the slope of the root finite where a field is hit exactly.
EMULATION_FLOOR = 1e-4


def emulation(levels: Tensor, surface: Tensor, true_levels: Tensor, true_surface: Tensor) -> Tensor:
    """Area-weighted root mean squared error [B] of normalised ``levels`` [B, V, Z, Y, X] and ``surface`` [B, S, Y, X]
    over all fields: what emulation is scored by. Without the root a few strange climates would lead all steps."""
    squares = [
        area_mean((field - true) ** 2).flatten(1) for field, true in ((levels, true_levels), (surface, true_surface))
    ]
    return (torch.cat(squares, dim=1).mean(1) + EMULATION_FLOOR).sqrt()


def consistency(fused: Tensor, single: Tensor, present: Tensor) -> Tensor:
    """Cross-modal consistency: what each modality alone predicts should agree with what all predict together.

    KL divergence from the fused prediction [B, 2], held fixed, to each modality's own ``single`` [B, M, 2], mean over
    the modalities ``present`` [B, M]. A divergence of predictions, not of embeddings: it works at micro-batch 1,
    where contrastive losses have no negatives, and cannot collapse, since the labels hold the fused one.
    """
    target = F.log_softmax(fused.detach().float(), dim=-1)[:, None].expand_as(single)
    divergence = F.kl_div(F.log_softmax(single.float(), dim=-1), target, reduction="none", log_target=True).sum(-1)
    return mean_present(divergence.flatten(), present.flatten())
