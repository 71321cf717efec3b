"""GLUE's metrics and accuracy as `evaluate` modules that need no hub (their own scripts live there)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

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

    What is undefined, such as a correlation with a constant, is None.
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


def _levelled(scores: np.ndarray) -> np.ndarray:
    """The scores, as one number where they differ by less than some 16 to 32 units in the last place of single precision."""
    found: np.ndarray = scores.astype(np.float64)
    rounding = 16 * np.finfo(np.float32).eps * np.abs(found).max(initial=0.0)
    return np.zeros_like(found) if np.ptp(found) <= rounding < np.inf else found


_FUNCTIONS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {  # of references and predictions
    "accuracy": accuracy_score,
    "f1": f1_score,
    "f1_macro": partial(f1_score, average="macro"),
    "precision_macro": partial(precision_score, average="macro", zero_division=0),
    "recall_macro": partial(recall_score, average="macro", zero_division=0),
    "balanced_accuracy": balanced_accuracy_score,
    "cohen_kappa": cohen_kappa_score,
    "matthews_correlation": matthews_corrcoef,
    "pearson": lambda references, predictions: pearsonr(references.astype(np.float64), _levelled(predictions))[0],
    "spearmanr": lambda references, predictions: spearmanr(references.astype(np.float64), _levelled(predictions))[0],
    "r2": r2_score,
    "neg_mean_squared_error": lambda references, predictions: -np.mean((references - predictions) ** 2),
}
OF_SCORES = ("pearson", "spearmanr", "r2", "neg_mean_squared_error")  # the others are of classes; of all of them more is better
OF_CLASSES = tuple(name for name in _FUNCTIONS if name not in OF_SCORES)
OF_TWO = ("matthews_correlation", "cohen_kappa", "recall_macro", "pearson", "spearmanr", "r2")  # values among the references


def compute(name: str, predictions: np.ndarray, references: np.ndarray) -> dict[str, float | None]:
    """The metrics of one GLUE subset (or "accuracy") for predictions [N] and references [N]: what GlueMetric gives, without the
    Arrow table and the temporary folder of each of its calls."""
    return named(METRICS[name], predictions, references)


def named(names: Sequence[str], predictions: np.ndarray, references: np.ndarray) -> dict[str, float | None]:
    """Metrics by their own names, of OF_CLASSES for class indices [N], of OF_SCORES for scores [N]. None where one is
    undefined: a correlation of scores with a constant, or an agreement on one class alone. Scores that are equal up to the
    rounding of single precision, as a network's that has collapsed, are a constant: their order depends on the batches. The
    other metrics of classes are sklearn's, which gives 0 for Matthews of constant predictions and for f1 without a positive
    one; references on which they are undefined whatever is predicted (`undefined`) are refused when data are read."""
    references, predictions = np.asarray(references), np.asarray(predictions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is undefined, which None says
        found = {name: float(_FUNCTIONS[name](references, predictions)) for name in names}
    return {name: value if np.isfinite(value) else None for name, value in found.items()}


def undefined(names: Sequence[str], references: Sequence[float]) -> list[str]:
    """Those of the metrics that no predictions have on these references: class indices, or scores."""
    there = set(references)
    return [name for name in names if (name in OF_TWO and len(there) < 2) or (name == "f1" and 1 not in there)]
