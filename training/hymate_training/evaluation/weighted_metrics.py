"""The metrics of metrics.py under many weightings of the rows at once: the fast path of its bootstrap.

Each of `EVALUATORS` takes a sample, does once what does not depend on the
weights, such as sorting, and returns an evaluator from weights (resamples, n) to a dict of metric -> (resamples,),
NaN where a metric is undefined in a resample. Weights are counts: whole numbers, so that sums of them are exact.
"""

from collections.abc import Callable, Mapping

import numpy as np

from hymate_training.evaluation.sample import LabeledPredictions

CALIBRATION_BINS = 10
Evaluator = Callable[[np.ndarray], dict[str, np.ndarray]]


def calibration_bin(cumulated: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Bins from the masses of sorted distinct values, along the last axis; integer arithmetic, so exact."""
    total = cumulated[..., -1:]
    bins = CALIBRATION_BINS * (2 * cumulated - mass) // (2 * total)
    return np.minimum(bins, CALIBRATION_BINS - 1).astype(np.int64)  # a value without mass can lie past the last one


def _ranking(labels: np.ndarray, scores: np.ndarray) -> Evaluator:
    order = np.argsort(-scores, kind="stable")
    positive = labels[order].astype(np.float64)
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # the last of each run of equal scores

    def evaluate(weights: np.ndarray) -> dict[str, np.ndarray]:
        weights = weights[:, order]
        above = np.cumsum(weights, axis=1)[:, ends]  # mass called positive at each threshold
        true = np.cumsum(weights * positive, axis=1)[:, ends]
        false = above - true
        positives, negatives = true[:, -1:], false[:, -1:]
        step = np.diff(true, axis=1, prepend=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.where(above > 0, true / above, 0)
            area = np.sum(np.diff(false, axis=1, prepend=0) * (true - step / 2), axis=1)
            values = {
                "auroc": area / (positives * negatives)[:, 0],
                "auprc": np.sum(step * precision, axis=1) / positives[:, 0],
                "min_recall_precision": np.minimum(true / positives, precision).max(axis=1),
            }
        both = ((positives > 0) & (negatives > 0))[:, 0]
        return {name: np.where(both, value, np.nan) for name, value in values.items()}

    return evaluate


def _calibration(labels: np.ndarray, probabilities: np.ndarray) -> Evaluator:
    order = np.argsort(probabilities, kind="stable")
    excess = (labels - probabilities)[order]
    starts = np.flatnonzero(np.diff(probabilities[order], prepend=-np.inf))

    def evaluate(weights: np.ndarray) -> dict[str, np.ndarray]:
        weights = weights[:, order]
        mass = np.add.reduceat(weights, starts, axis=1)
        bins = calibration_bin(np.cumsum(mass, axis=1), mass) + CALIBRATION_BINS * np.arange(len(weights))[:, None]
        excesses = np.add.reduceat(weights * excess, starts, axis=1)
        sums = np.bincount(bins.ravel(), excesses.ravel(), CALIBRATION_BINS * len(weights))
        sums = np.abs(sums).reshape(len(weights), CALIBRATION_BINS).sum(axis=1)
        return {"expected_calibration_error": sums / weights.sum(axis=1)}

    return evaluate


def _means(columns: Mapping[str, np.ndarray]) -> Evaluator:
    """Metrics that are means over rows of a loss (n,)."""
    losses = np.stack(list(columns.values()), axis=1)

    def evaluate(weights: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(columns, ((weights @ losses) / weights.sum(axis=1, keepdims=True)).T, strict=True))

    return evaluate


def _nll(probabilities: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(probabilities, np.finfo(np.float64).eps))  # bounded as in scikit-learn


def _binary(sample: LabeledPredictions) -> Evaluator:
    labels, predictions = sample.labels, sample.predictions
    truth = np.where(labels == 1, predictions, 1 - predictions)
    parts = (
        _ranking(labels, predictions),
        _means({"brier": (labels - predictions) ** 2, "log_loss": _nll(truth)}),
        _calibration(labels, predictions),
    )
    return lambda weights: {name: value for part in parts for name, value in part(weights).items()}


def _multiclass(sample: LabeledPredictions) -> Evaluator:
    labels, predictions = sample.labels, sample.predictions
    truth = predictions[np.arange(len(labels)), labels]
    means = _means({"accuracy": (predictions.argmax(axis=1) == labels).astype(float), "log_loss": _nll(truth)})
    macro = _columns(sample.indicators, predictions)
    return lambda weights: means(weights) | {"auroc_macro": macro(weights)["auroc"]}


def _multilabel(sample: LabeledPredictions) -> Evaluator:
    labels, predictions = sample.labels, sample.predictions
    macro, micro = _columns(labels, predictions), _ranking(labels.ravel(), predictions.ravel())

    def evaluate(weights: np.ndarray) -> dict[str, np.ndarray]:
        means = macro(weights)
        pooled = micro(np.repeat(weights, labels.shape[1], axis=1))
        return {"auroc_macro": means["auroc"], "auroc_micro": pooled["auroc"], "auprc_macro": means["auprc"]}

    return evaluate


def _columns(indicators: np.ndarray, predictions: np.ndarray) -> Evaluator:
    """Means over columns of the ranking metrics."""
    parts = [_ranking(y, p) for y, p in zip(indicators.T, predictions.T, strict=True)]

    def evaluate(weights: np.ndarray) -> dict[str, np.ndarray]:
        values = [part(weights) for part in parts]
        return {name: np.mean([value[name] for value in values], axis=0) for name in values[0]}

    return evaluate


def _regression(sample: LabeledPredictions) -> Evaluator:
    labels, predictions = sample.labels, sample.predictions
    error = labels - predictions
    means = _means({"mae": np.abs(error), "mse": error**2})
    label_ranks, prediction_ranks = _centered_ranks(labels), _centered_ranks(predictions)

    def evaluate(weights: np.ndarray) -> dict[str, np.ndarray]:
        values = means(weights)
        total = weights.sum(axis=1, keepdims=True)
        ranks, other = label_ranks(weights), prediction_ranks(weights)
        variance = (weights * (labels - weights @ labels[:, None] / total) ** 2).sum(axis=1) / total[:, 0]
        spread, other_spread = (weights * ranks**2).sum(axis=1), (weights * other**2).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            r2 = 1 - values["mse"] / variance
            spearman = (weights * ranks * other).sum(axis=1) / np.sqrt(spread * other_spread)
        # ranks are exact where a variance of equal numbers may miss 0 by rounding
        r2 = np.where(spread > 0, r2, np.nan)
        return {"mae": values["mae"], "rmse": np.sqrt(values["mse"]), "r2": r2, "spearman": spearman}

    return evaluate


def _centered_ranks(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Mid-ranks minus their mean, (resamples, n), of values (n,)."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
    inverse = np.unique(values, return_inverse=True)[1]

    def evaluate(weights: np.ndarray) -> np.ndarray:
        mass = np.add.reduceat(weights[:, order], starts, axis=1)
        cumulated = np.cumsum(mass, axis=1)
        return (cumulated - mass / 2 - cumulated[:, -1:] / 2)[:, inverse]

    return evaluate


EVALUATORS = {"binary": _binary, "multiclass": _multiclass, "multilabel": _multilabel, "regression": _regression}
