"""Figures of merit of what the stack predicts."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy
from torchmetrics.functional.classification import binary_accuracy, binary_auroc, binary_calibration_error

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


def probability(logits: Tensor) -> Tensor:
    """Of being habitable [B], from logits [B, 2]."""
    return torch.softmax(logits.float(), dim=-1)[:, 1]
