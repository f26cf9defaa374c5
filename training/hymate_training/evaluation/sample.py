"""Labels and the predictions for them, checked once and handed on.

| problem type | labels | predictions |
|---|---|---|
| binary | (n,) 0 or 1 | (n,) probability of class 1 |
| multiclass | (n,) class index in 0..K-1 | (n, K) probabilities, each row summing to 1 |
| multilabel | (n, K) 0 or 1 | (n, K) probabilities |
| regression | (n,) number | (n,) number, in the labels' unit |
| time_to_event | (n, 2) hours, and 1 for an event or 0 for a last sight | (n, T) risk by each of T times |
"""

import copy
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike

PROBLEM_TYPES = ("binary", "multiclass", "multilabel", "regression", "time_to_event")


class LabeledPredictions:
    """Labels and predictions that can be evaluated together: every metric and every plot takes one of these.

    Args:
        problem_type: one of `PROBLEM_TYPES`.
        labels: in the shape of the module's table.
        predictions: likewise.
        groups: (n,) the record of each row; without it, every row is a record of its own.
        label_names: names of the columns of predictions (n, K); their indices where absent.
        times: (T,) hours of the columns of predictions of a time to event, ascending.

    Attributes:
        labels: int64, or float64 of a regression or a time to event.
        predictions: float64.
        record: (n,) index of each row's record.
        num_records: how many records there are.
        label_names: names of the columns of predictions; empty where they have none.
        times: as given; empty elsewhere.

    Raises:
        ValueError: naming the argument, if the two cannot be evaluated: nothing in them, NaN, unequal lengths,
            probabilities outside [0, 1].
    """

    def __init__(
        self,
        problem_type: str,
        labels: ArrayLike,
        predictions: ArrayLike,
        *,
        groups: ArrayLike | None = None,
        label_names: Sequence[str] | None = None,
        times: ArrayLike | None = None,
    ) -> None:
        self.problem_type = problem_type
        self.labels, self.predictions = _checked(problem_type, labels, predictions)
        self.record, self.num_records = number_records(groups, len(self))
        self.label_names: list[str] = []
        self.times = np.zeros(0)
        if problem_type == "time_to_event":
            self.times = _checked_times(times, self.predictions.shape[1])
        elif self.predictions.ndim == 2:
            self.label_names = _column_names(label_names, self.predictions.shape[1])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def indicators(self) -> np.ndarray:
        """Labels as 0/1 columns (n, K), one per column of predictions."""
        if self.labels.ndim == 2:
            return self.labels
        return (self.labels[:, None] == np.arange(self.predictions.shape[1])).astype(np.int64)

    @property
    def positive(self) -> np.ndarray | None:
        """Which rows have the outcome, or of a time to event were seen to have it (n,); None where that is no yes or
        no."""
        if self.problem_type == "binary":
            return self.labels == 1
        return self.labels[:, 1] == 1 if self.problem_type == "time_to_event" else None

    def select(self, keep: np.ndarray) -> "LabeledPredictions":
        """The rows at which the boolean array `keep` (n,) is true; at least one."""
        chosen = copy.copy(self)
        chosen.labels, chosen.predictions = self.labels[keep], self.predictions[keep]
        records, chosen.record = np.unique(self.record[keep], return_inverse=True)
        chosen.num_records = len(records)
        return chosen

    def columns(self) -> Iterator[tuple[str, "LabeledPredictions"]]:
        """Each column of predictions against the rest, a binary problem of its own, by its name."""
        for name, labels, predictions in zip(self.label_names, self.indicators.T, self.predictions.T, strict=True):
            column = copy.copy(self)
            column.problem_type, column.label_names = "binary", []
            column.labels, column.predictions = labels, predictions
            yield name, column


def number_records(groups: ArrayLike | None, n: int) -> tuple[np.ndarray, int]:
    """Number the records of `groups` (n,): the index of each row's record (n,), and how many there are."""
    if groups is None:
        return np.arange(n), n
    names, index = np.unique(row_names("groups", groups, n), return_inverse=True)
    return index, len(names)


def row_names(argument: str, values: ArrayLike, n: int) -> np.ndarray:
    """A name for each of n rows; ValueError naming the argument where one is missing."""
    array = np.asarray(values)
    if array.shape != (n,):
        raise ValueError(f"{argument} must have shape ({n},), a name for each row of labels, not {array.shape}")
    missing = [
        row for row, value in enumerate(array) if value is None or (isinstance(value, float) and np.isnan(value))
    ]
    if missing:
        raise ValueError(f"{argument} must name every row; row {missing[0]} is missing")
    return array.astype(str) if array.dtype == object else array


def _column_names(label_names: Sequence[str] | None, columns: int) -> list[str]:
    names = [str(column) for column in range(columns)] if label_names is None else list(label_names)
    if len(names) != columns or len(set(names)) != columns:
        raise ValueError(f"label_names must be {columns} different names, one per column of predictions, not {names}")
    return names


def _checked_times(times: ArrayLike | None, columns: int) -> np.ndarray:
    hours = np.zeros(0) if times is None else np.asarray(times, dtype=np.float64)
    if hours.shape != (columns,) or not (np.diff(hours, prepend=0) > 0).all():
        raise ValueError(
            f"times must be {columns} ascending hours above 0, one per column of predictions, not {times!r}"
        )
    return hours


def _checked(problem_type: str, labels: ArrayLike, predictions: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, not {problem_type!r}")
    label_dims = 2 if problem_type in ("multilabel", "time_to_event") else 1
    prediction_dims = 2 if problem_type in ("multiclass", "multilabel", "time_to_event") else 1
    y = _finite("labels", labels, label_dims, problem_type)
    p = _finite("predictions", predictions, prediction_dims, problem_type)
    if len(y) != len(p):
        raise ValueError(f"labels has {len(y)} rows and predictions {len(p)}: one row each is needed")
    if problem_type == "regression":
        return y, p
    if problem_type == "time_to_event":
        return _checked_outcomes(y), _checked_probabilities(p)
    if label_dims == 2 and y.shape != p.shape:
        raise ValueError(f"labels has {y.shape[1]} columns and predictions {p.shape[1]}")

    classes = 2
    if problem_type == "multiclass":
        classes = p.shape[1]
        if classes < 2:
            raise ValueError("predictions of a multiclass problem must have a column for each class, at least 2")
    bad = np.argwhere((y != np.floor(y)) | (y < 0) | (y >= classes))
    if bad.size:
        allowed = "0 or 1" if classes == 2 else f"a class index from 0 to {classes - 1}"
        raise ValueError(f"labels must each be {allowed}; row {bad[0][0]} holds {y[tuple(bad[0])]:g}")
    p = _checked_probabilities(p)
    if problem_type == "multiclass":
        sums = p.sum(axis=1)
        bad = np.argwhere(np.abs(sums - 1) > 1e-3)
        if bad.size:
            raise ValueError(f"predictions must sum to 1 in each row; row {bad[0][0]} sums to {sums[bad[0][0]]:g}")
        p = p / sums[:, None]
    return y.astype(np.int64), p


def _checked_outcomes(labels: np.ndarray) -> np.ndarray:
    """Labels of a time to event."""
    if labels.shape[1] != 2:
        raise ValueError(f"labels of a time_to_event problem must have shape (rows, 2), not {labels.shape}")
    hours, observed = labels.T
    bad = (hours < 0) | ((observed != 0) & ((observed != 1) | (hours == 0)))
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            "labels must hold hours from 0 on, and 1 for an event, which comes after hour 0, or 0 for none; row "
            f"{row} holds {hours[row]:g} and {observed[row]:g}"
        )
    return labels


def _checked_probabilities(predictions: np.ndarray) -> np.ndarray:
    bad = np.argwhere((predictions < -1e-6) | (predictions > 1 + 1e-6))
    if bad.size:
        raise ValueError(
            f"predictions must be probabilities in [0, 1]; row {bad[0][0]} holds {predictions[tuple(bad[0])]:g} "
            "(logits need a sigmoid or softmax first)"
        )
    return np.clip(predictions, 0, 1)


def _finite(name: str, values: ArrayLike, dims: int, problem_type: str) -> np.ndarray:
    try:
        array = np.asarray(values).astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers: {error}") from error
    if array.ndim != dims:
        shape = "(rows, columns)" if dims == 2 else "(rows,)"
        raise ValueError(f"{name} of a {problem_type} problem must have shape {shape}, not {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} is empty: at least one row is needed")
    bad = np.argwhere(~np.isfinite(array))
    if bad.size:
        raise ValueError(f"{name} must be finite; row {bad[0][0]} holds {array[tuple(bad[0])]}")
    return array
