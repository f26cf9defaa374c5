"""The metrics of metrics.py on many resamples of the records at once: the fast path of its bootstrap.

Each of `EVALUATORS` takes a sample, does once what does not depend on the resample, such as sorting, and returns an
evaluator: how often each record is drawn, whole numbers `(resamples, num_records)` -> metric -> `(resamples,)`, NaN
where a metric is undefined in a resample.

A row weighs what its record does. Rows are sorted by score once; in a resample their weights are looked up and summed
up in that order, and everything else is looked at where it changes: metrics of the ranking at the positive rows,
calibration at the bounds of its bins. Counts are whole numbers, so that sums of them are exact.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from hymate_training.evaluation.resampling import record_sums
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.evaluation.survival import survival_evaluator

CALIBRATION_BINS = 10
Evaluator = Callable[[np.ndarray], dict[str, np.ndarray]]


def calibration_bin(cumulated: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Bins of distinct values in ascending order, from their masses and the sums of these up to and with each.

    Integer arithmetic, so exact.
    """
    return CALIBRATION_BINS * (2 * cumulated - mass) // (2 * cumulated[-1])


@dataclass(frozen=True, eq=False)
class _Ranked:
    """Rows in ascending order of their scores; rows of equal scores are a group.

    Attributes:
        order: position of each row among the rows as they came, `(n,)`.
        record: of each row, `(n,)`.
        first: where each row's group begins, `(n,)`.
        end: where it ends, exclusive, `(n,)`.
    """

    order: np.ndarray
    record: np.ndarray
    first: np.ndarray
    end: np.ndarray

    @classmethod
    def by(cls, scores: np.ndarray, record: np.ndarray) -> "_Ranked":
        order = np.argsort(scores, kind="stable")
        begins = np.diff(scores[order], prepend=-np.inf) != 0
        starts = np.append(np.flatnonzero(begins), len(scores))
        group = np.cumsum(begins) - 1
        return cls(order, record[order], starts[group], starts[group + 1])

    def weights(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights of the rows in order, `(resamples, n)`, and the sums before each place, `(resamples, n + 1)`."""
        weights = counts.astype(np.int64)[:, self.record]
        before = np.zeros((len(counts), len(self.record) + 1), dtype=np.int64)
        np.cumsum(weights, axis=1, out=before[:, 1:])
        return weights, before


def _binary(sample: LabeledPredictions) -> Evaluator:
    labels, predictions = sample.labels, sample.predictions
    ranked = _Ranked.by(predictions, sample.record)
    truth = np.where(labels == 1, predictions, 1 - predictions)
    means = _means(sample, {"brier": (labels - predictions) ** 2, "log_loss": _nll(truth)})
    ranking, calibration = _ranking(ranked, labels), _calibration(ranked, labels - predictions)

    def evaluate(counts: np.ndarray) -> dict[str, np.ndarray]:
        weights, before = ranked.weights(counts)
        return ranking(weights, before) | means(counts) | calibration(weights, before)

    return evaluate


def _ranking(ranked: _Ranked, labels: np.ndarray) -> Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
    """Metrics of the ranking from the weights of the rows in order and their sums.

    They change at groups with a positive row alone: only these are looked at.
    """
    positive = np.flatnonzero(labels[ranked.order] == 1)
    starts = np.flatnonzero(np.diff(ranked.first[positive], prepend=-1))  # of each group, among the positive rows
    first, end = ranked.first[positive][starts], ranked.end[positive][starts]

    def evaluate(weights: np.ndarray, before: np.ndarray) -> dict[str, np.ndarray]:
        if not len(positive):
            return dict.fromkeys(("auroc", "auprc", "min_recall_precision"), np.full(len(weights), np.nan))
        own = np.add.reduceat(weights[:, positive], starts, axis=1)  # positive mass of each group
        below = np.cumsum(own, axis=1) - own  # of the groups before it
        positives, total = below[:, -1:] + own[:, -1:], before[:, -1:]
        negatives = total - positives
        under, inside = before[:, first] - below, before[:, end] - before[:, first] - own  # negative mass
        true, called = positives - below, total - before[:, first]  # at the threshold of each group
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.where(called > 0, true / called, 0)
            values = {
                "auroc": np.sum(own * (under + inside / 2), axis=1) / (positives * negatives)[:, 0],
                "auprc": np.sum(own * precision, axis=1) / positives[:, 0],
                "min_recall_precision": np.minimum(true / positives, precision).max(axis=1),
            }
        both = ((positives > 0) & (negatives > 0))[:, 0]
        return {name: np.where(both, value, np.nan) for name, value in values.items()}

    return evaluate


def _calibration(ranked: _Ranked, excess: np.ndarray) -> Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
    """The expected calibration error from the weights of the rows in order and their sums.

    A group is in the bin of its mid-rank. That grows from group to group, so that bins are stretches of rows.
    """
    excess = excess[ranked.order]
    size, shares = len(excess), np.arange(1, CALIBRATION_BINS)

    def evaluate(weights: np.ndarray, before: np.ndarray) -> dict[str, np.ndarray]:
        errors = np.empty(len(weights))
        for at, (mass, sums) in enumerate(zip(weights, before, strict=True)):
            total = sums[-1]
            # the first row by which a share of the mass is reached: its group begins the bin, or else the next one
            row = np.searchsorted(sums[1:], -(-total * shares // CALIBRATION_BINS))
            first, end = ranked.first[row], ranked.end[row]
            reached = CALIBRATION_BINS * (sums[first] + sums[end]) >= 2 * total * shares
            starts = np.unique(np.concatenate([[0], np.where(reached, first, end)]))
            errors[at] = np.abs(np.add.reduceat(mass * excess, starts[starts < size])).sum() / total
        return {"expected_calibration_error": errors}

    return evaluate


def _means(sample: LabeledPredictions, columns: Mapping[str, np.ndarray]) -> Evaluator:
    """Metrics that are means over rows of a loss `(n,)`."""
    losses = np.stack([*columns.values(), np.ones(len(sample))], axis=1)
    per_record = record_sums(sample.record, sample.num_records, losses)

    def evaluate(counts: np.ndarray) -> dict[str, np.ndarray]:
        sums = counts @ per_record
        return dict(zip(columns, (sums[:, :-1] / sums[:, -1:]).T, strict=True))

    return evaluate


def _nll(probabilities: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(probabilities, np.finfo(np.float64).eps))  # bounded as in scikit-learn


def _multiclass(sample: LabeledPredictions) -> Evaluator:
    labels, predictions = sample.labels, sample.predictions
    truth = predictions[np.arange(len(labels)), labels]
    correct = (predictions.argmax(axis=1) == labels).astype(float)
    means, macro = _means(sample, {"accuracy": correct, "log_loss": _nll(truth)}), _columns(sample)
    return lambda counts: means(counts) | {"auroc_macro": macro(counts)["auroc"]}


def _multilabel(sample: LabeledPredictions) -> Evaluator:
    macro = _columns(sample)
    cells = _Ranked.by(sample.predictions.ravel(), np.repeat(sample.record, sample.labels.shape[1]))
    micro = _ranking(cells, sample.labels.ravel())

    def evaluate(counts: np.ndarray) -> dict[str, np.ndarray]:
        means, pooled = macro(counts), micro(*cells.weights(counts))
        return {"auroc_macro": means["auroc"], "auroc_micro": pooled["auroc"], "auprc_macro": means["auprc"]}

    return evaluate


def _columns(sample: LabeledPredictions) -> Evaluator:
    """Means over columns of the metrics of the ranking."""
    ranked = [_Ranked.by(predictions, sample.record) for predictions in sample.predictions.T]
    parts = [_ranking(rows, labels) for rows, labels in zip(ranked, sample.indicators.T, strict=True)]

    def evaluate(counts: np.ndarray) -> dict[str, np.ndarray]:
        values = [part(*rows.weights(counts)) for rows, part in zip(ranked, parts, strict=True)]
        return {name: np.mean([value[name] for value in values], axis=0) for name in values[0]}

    return evaluate


def _regression(sample: LabeledPredictions) -> Evaluator:
    labels, predictions = sample.labels, sample.predictions
    error = labels - predictions
    means = _means(sample, {"mae": np.abs(error), "mse": error**2})
    label_ranks, prediction_ranks = _centered_ranks(labels), _centered_ranks(predictions)

    def evaluate(counts: np.ndarray) -> dict[str, np.ndarray]:
        values, weights = means(counts), counts[:, sample.record]
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


EVALUATORS = {
    "binary": _binary,
    "multiclass": _multiclass,
    "multilabel": _multilabel,
    "regression": _regression,
    "time_to_event": survival_evaluator,
}
