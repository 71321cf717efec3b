"""GLUE's metrics and accuracy as `evaluate` modules that need no hub (their own scripts live there)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    f1_score,
    matthews_corrcoef,
    precision_score,
    r2_score,
    recall_score,
)

DESCRIPTION = "Metrics of the GLUE benchmark (Wang et al. 2019), as fractions."
METRICS = {
    "cola": ("matthews_correlation",),
    "mrpc": ("accuracy", "f1"),
    "stsb": ("pearson", "spearmanr"),
    "sst2": ("accuracy",),
    "qnli": ("accuracy",),
    "rte": ("accuracy",),
    "accuracy": ("accuracy",),
}


class GlueMetric(evaluate.Metric):
    """`config_name` is a GLUE subset, or "accuracy". Predictions are class indices, or scores for stsb.

    A correlation with a constant is undefined: its value is None.
    """

    def _info(self):
        kind = datasets.Value("float64" if self.config_name == "stsb" else "int64")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            features=datasets.Features({"predictions": kind, "references": kind}),
            module_name="glue",
        )

    def _compute(self, predictions, references):
        return compute(self.config_name, predictions, references)


def _correlation(function):
    def compute(references, predictions):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = float(function(references.astype(np.float64), predictions.astype(np.float64))[0])
        return value if np.isfinite(value) else None

    return compute


_FUNCTIONS = {
    "accuracy": lambda references, predictions: float(accuracy_score(references, predictions)),
    "f1": lambda references, predictions: float(f1_score(references, predictions)),
    "f1_macro": lambda references, predictions: float(f1_score(references, predictions, average="macro")),
    "precision_macro": lambda r, p: float(precision_score(r, p, average="macro", zero_division=0)),
    "recall_macro": lambda r, p: float(recall_score(r, p, average="macro", zero_division=0)),
    "balanced_accuracy": lambda references, predictions: float(balanced_accuracy_score(references, predictions)),
    "cohen_kappa": lambda references, predictions: float(cohen_kappa_score(references, predictions)),
    "matthews_correlation": lambda references, predictions: float(matthews_corrcoef(references, predictions)),
    "pearson": _correlation(pearsonr),
    "spearmanr": _correlation(spearmanr),
    "r2": lambda references, predictions: float(r2_score(references, predictions)),
    "neg_mean_squared_error": lambda references, predictions: -float(np.mean((references - predictions) ** 2)),
}
OF_SCORES = ("pearson", "spearmanr", "r2", "neg_mean_squared_error")  # the others are of classes; of all of them more is better
OF_CLASSES = tuple(name for name in _FUNCTIONS if name not in OF_SCORES)


def compute(name: str, predictions: np.ndarray, references: np.ndarray) -> dict[str, float | None]:
    """The metrics of one GLUE subset (or "accuracy") for predictions [N] and references [N]: what GlueMetric gives, without the
    Arrow table and the temporary folder of each of its calls."""
    return named(METRICS[name], predictions, references)


def named(names: Sequence[str], predictions: np.ndarray, references: np.ndarray) -> dict[str, float | None]:
    """Metrics by their own names, of OF_CLASSES for class indices [N], of OF_SCORES for scores [N]."""
    return {metric: _FUNCTIONS[metric](np.asarray(references), np.asarray(predictions)) for metric in names}
