"""The parts of the loss, each one number per batch in float32.

    loss = 1.0 classification + 1.0 language + 0.1 reconstruction + 0.1 kl + 0.2 physics + 0.15 consistency
         + 1.0 balance

(weights: `astrobio.config.LossConfig`). A sample without the modality or the label a part needs adds nothing to it; a
batch without any adds exactly 0, with a gradient of 0, so that all ranks run the same backward pass. ``balance`` is
what a mixture of experts adds to its own loss, weighted as its configuration says.
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


def classification(logits: Tensor, label: Tensor, present: Tensor) -> Tensor:
    """Cross-entropy of the habitability ``logits`` [B, 2]."""
    return mean_present(F.cross_entropy(logits.float(), label, reduction="none"), present)


def language(logits: Tensor, tokens: Tensor, counted: Tensor) -> Tensor:
    """Next-token cross-entropy: ``logits`` [B, L, V] predict ``tokens`` [B, L] at the same place, where ``counted``."""
    loss = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none")
    return mean_present(loss, counted.flatten())


def latitude_weights(count: int, device: torch.device) -> Tensor:
    """Shares [count] of the sphere's area of equally spaced latitude bands."""
    return torch.linspace(-math.pi / 2, math.pi / 2, count + 1, device=device).sin().diff() / 2


def energy_imbalance(absorbed: Tensor, outgoing: Tensor) -> Tensor:
    """Squared relative imbalance [B] of the area-weighted global means of two flux fields [B, Y, X] in W m-2.

    In a steady state a planet emits what it absorbs (e.g. Pierrehumbert 2010, ch. 3).
    """
    weight = latitude_weights(absorbed.shape[-2], absorbed.device)[:, None]
    absorbed, outgoing = ((weight * field).sum(-2).mean(-1) for field in (absorbed, outgoing))
    return ((absorbed - outgoing) / (absorbed.abs() + outgoing.abs() + 1.0)) ** 2


def consistency(fused: Tensor, single: Tensor, present: Tensor) -> Tensor:
    """Cross-modal consistency: what each modality alone predicts should agree with what all predict together.

    KL divergence from the fused prediction [B, 2], held fixed, to each modality's own ``single`` [B, M, 2], mean over
    the modalities ``present`` [B, M]. A divergence of predictions, not of embeddings: it works at micro-batch 1,
    where contrastive losses have no negatives, and cannot collapse, since the labels hold the fused one.
    """
    target = F.log_softmax(fused.detach().float(), dim=-1)[:, None].expand_as(single)
    divergence = F.kl_div(F.log_softmax(single.float(), dim=-1), target, reduction="none", log_target=True).sum(-1)
    return mean_present(divergence.flatten(), present.flatten())
