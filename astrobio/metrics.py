"""Figures of merit of what the stack predicts."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy
from torchmetrics.functional.classification import binary_accuracy, binary_auroc, binary_calibration_error

from astrobio.losses import area_mean

CALIBRATION_BINS = 15


def habitability_metrics(probability: Tensor, label: Tensor) -> dict[str, float | None]:
    """Of the probabilities [N] of being habitable against the labels [N]: accuracy at 0.5, area under the ROC curve
    (None with one class only), expected calibration error (Guo et al. 2017), Brier score, negative log likelihood in
    nats. All None without records."""
    if not len(label):
        return dict.fromkeys(("accuracy", "roc_auc", "ece", "brier", "nll"))
    both = 0 < int(label.sum()) < len(label)
    return {
        "accuracy": float(binary_accuracy(probability, label)),
        "roc_auc": float(binary_auroc(probability, label)) if both else None,
        "ece": float(binary_calibration_error(probability, label, n_bins=CALIBRATION_BINS)),
        "brier": float(((probability - label) ** 2).mean()),
        "nll": float(binary_cross_entropy(probability, label.float())),
    }


def loss_error(probability: Tensor, target: Tensor) -> float:
    """Standard error of the mean cross-entropy of the probabilities [N] and those to be learned, or labels, [N]; 0
    where there are no two records."""
    losses = binary_cross_entropy(probability, target.float(), reduction="none")
    return float(losses.std() / len(losses) ** 0.5) if len(losses) > 1 else 0.0


def area_rmse(predicted: Tensor, true: Tensor) -> Tensor:
    """Area-weighted root mean square error [...] of fields [B, ..., Y, X] over the sphere and all records, in the
    fields' units: one number for each variable and level."""
    return area_mean((predicted - true) ** 2).mean(0).sqrt()


def anomaly_correlation(predicted: Tensor, true: Tensor, mean: Tensor) -> Tensor:
    """Area-weighted anomaly correlation coefficient [B, ...] of fields [B, ..., Y, X]: the correlation over the sphere
    of their departures from the ``mean`` fields [..., Y, X] of the training records (Wilks 2011, eq. 8.68, uncentred).
    0 where a field departs nowhere."""
    predicted, true = predicted - mean, true - mean
    norm = (area_mean(predicted**2) * area_mean(true**2)).sqrt()
    return area_mean(predicted * true) / norm.clamp(min=torch.finfo(norm.dtype).tiny)


def crps_of_samples(samples: Tensor, values: Tensor) -> Tensor:
    """Continuous ranked probability score [...] of equally likely ``samples`` [M, ...] at ``values`` [...], in their
    units: E|X - y| - E|X - X'| / 2, unbiased for any M of two and more (Ferro 2014). In closed form for a mixture of
    Gaussians: `astrobio.mixture.Mixture.crps`."""
    count = len(samples)
    ordered = samples.sort(dim=0).values
    # The sum of all |x_i - x_j| is that of the ordered samples, each as often as it is the larger less the smaller.
    times = torch.arange(1 - count, count, 2, device=samples.device, dtype=samples.dtype)
    between = (times.view(-1, *[1] * values.dim()) * ordered).sum(0) / (count * (count - 1))
    return (samples - values).abs().mean(0) - between


def interval_coverage(low: Tensor, high: Tensor, values: Tensor, known: Tensor) -> Tensor:
    """Share [R] of the ``known`` [B, R] of the ``values`` [B, R] that lie within ``low`` to ``high`` [B, R]; NaN where
    none is known."""
    within = (low <= values) & (values <= high) & known
    return within.sum(0) / known.sum(0)


def probability(logits: Tensor) -> Tensor:
    """Of being habitable [B], from logits [B, 2]."""
    return torch.softmax(logits.float(), dim=-1)[:, 1]
