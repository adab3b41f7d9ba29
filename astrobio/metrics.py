"""Figures of merit of the habitability prediction, and the baselines beside which it is shown."""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import binary_cross_entropy
from torchmetrics.functional.classification import binary_accuracy, binary_auroc, binary_calibration_error

from astrobio.dataset import AstrobioDataset

CALIBRATION_BINS = 15


def habitability_metrics(probability: Tensor, label: Tensor) -> dict[str, float | None]:
    """Accuracy at 0.5, area under the ROC curve (None with one class only), expected calibration error (Guo et al.
    2017) of the probabilities [N] of being habitable against the labels [N]. All None without records."""
    if not len(label):
        return {"accuracy": None, "roc_auc": None, "ece": None}
    both = 0 < int(label.sum()) < len(label)
    return {
        "accuracy": float(binary_accuracy(probability, label)),
        "roc_auc": float(binary_auroc(probability, label)) if both else None,
        "ece": float(binary_calibration_error(probability, label, n_bins=CALIBRATION_BINS)),
    }


def loss_error(probability: Tensor, label: Tensor) -> float:
    """Standard error of the mean cross-entropy of the probabilities [N]; 0 where there are no two records."""
    losses = binary_cross_entropy(probability, label.float(), reduction="none")
    return float(losses.std() / len(losses) ** 0.5) if len(losses) > 1 else 0.0


def baselines(train: AstrobioDataset, test: AstrobioDataset) -> dict[str, float]:
    """Test accuracy of the larger class of the train split, and of a logistic regression on the planet table."""
    (x, y), (x_test, y_test) = _table(train), _table(test)
    majority = int(y.mean() >= 0.5)
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, y)
    return {
        "majority_class": float((y_test == majority).mean()),
        "logistic_regression_on_planet_table": float(regression.score(x_test, y_test)),
    }


def _table(dataset: AstrobioDataset) -> tuple[np.ndarray, np.ndarray]:
    """Planet values and masks, and the labels, of the labelled records."""
    columns = ["planet", "planet_mask", "label", "label_present"]
    rows = dataset.records.select_columns(columns)[:]
    known = np.asarray(rows["planet_mask"], bool)
    values = np.stack([dataset.planet(*row) for row in zip(np.asarray(rows["planet"]), known, strict=True)])
    labelled = np.asarray(rows["label_present"], bool)
    return np.concatenate([values, known], axis=1)[labelled], np.asarray(rows["label"])[labelled]


def probability(logits: Tensor) -> Tensor:
    """Of being habitable [B], from logits [B, 2]."""
    return torch.softmax(logits.float(), dim=-1)[:, 1]
