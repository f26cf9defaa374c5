"""Conformal prediction: sets of labels, or intervals of numbers, that hold the truth as often as asked.

A set holds every label whose score, 1 minus its probability, is at most a threshold; an interval reaches a threshold
to both sides of the predicted number. `hymate finetune` chooses the thresholds on the validation split, where they
cover what they should of a record drawn like those (split conformal prediction; Vovk et al., 2005; Sadinle et al.,
2019). A taxonomy divides what is predicted, each part with thresholds of its own, so that each part is covered: by
`label` (the true one), or by a static column. Only thresholds are kept, and nothing about a record. `hymate predict`
makes sets and intervals of new records from them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hymate_training.data.examples import ExampleDataset
from hymate_training.data.subgroups import subgroup_names
from hymate_training.inference.checkpoints import Checkpoint

LEVELS = (0.8, 0.9, 0.95)
ALL, BY_LABEL = "all", "label"
SHARPEST = 4  # significant digits of a threshold, rounded up: it is the score of a single record
SET_COLUMN = "conformal_set"
SEPARATOR = "; "  # of the labels of a set


def conformal_threshold(scores: np.ndarray, record: np.ndarray, level: float) -> float:
    """The smallest threshold that covers `level` of the records' mass and of one record more, which is not covered.

    Each record has the same mass, shared by its rows (Lee, Barber and Willett, 2023), so that a random row of a new
    record is covered. Where each has one row, this is the usual quantile of split conformal prediction.

    Args:
        scores: of the true labels, `(n,)`.
        record: index of each row's record, `(n,)`.
        level: share to cover.

    Returns:
        The threshold; infinity where there are too few records for the level.
    """
    _, record, rows = np.unique(record, return_inverse=True, return_counts=True)
    order = np.argsort(scores, kind="stable")
    covered = np.cumsum(1 / rows[record[order]])
    enough = np.flatnonzero(covered >= level * (len(rows) + 1) - 1e-9)
    return float(scores[order[enough[0]]]) if len(enough) else np.inf


def rounded_up(threshold: float) -> float | None:
    """A threshold as it is kept, so that a record's own score cannot be read off; None for infinity."""
    if not np.isfinite(threshold):
        return None
    unit = 10.0 ** (np.floor(np.log10(max(threshold, 1e-12))) - SHARPEST + 1)
    return float(np.round(np.ceil(threshold / unit) * unit, 15))


def thresholds_at(conformal: Mapping[str, Any], level: float, taxonomy: str) -> dict[str, float]:
    """The thresholds of a checkpoint's `conformal` at a level: part -> threshold, infinity where there is none.

    Raises:
        ValueError: for a level or a taxonomy that was not calibrated.
    """
    if level not in conformal["levels"]:
        raise ValueError(f"conformal must be one of {', '.join(map(str, conformal['levels']))}, got {level}")
    parts = conformal["thresholds"].get(taxonomy)
    if parts is None:
        raise ValueError(f"conformal_by must be one of {', '.join(conformal['thresholds'])}, got {taxonomy!r}")
    at = conformal["levels"].index(level)
    return {name: np.inf if values[at] is None else values[at] for name, values in parts.items()}


def kept_thresholds(checkpoint: Checkpoint, level: float, taxonomy: str) -> dict[str, float]:
    """The thresholds that a checkpoint keeps for predictions of new records, as `thresholds_at` returns them.

    Raises:
        ValueError: if it keeps none, none of that level, or none by that taxonomy; or if the taxonomy is a static
            column that the model does not read.
    """
    conformal = (checkpoint.evaluation or {}).get("conformal")
    if conformal is None:
        raise ValueError(
            f"{checkpoint.path} keeps no thresholds of conformal prediction; `hymate finetune` writes them for models "
            "of one label or one number per prediction"
        )
    thresholds = thresholds_at(conformal, level, taxonomy)
    known = [column["name"] for column in checkpoint.extractor.static_columns]
    if taxonomy not in (ALL, BY_LABEL, *known):
        raise ValueError(f"conformal_by is {taxonomy!r}, a column of the training data that the model does not read")
    return thresholds


def conformal_columns(
    checkpoint: Checkpoint, dataset: ExampleDataset, values: np.ndarray, thresholds: Mapping[str, float], taxonomy: str
) -> dict[str, list[Any]]:
    """What a table of predictions says of sets or intervals: column -> one entry per example.

    Args:
        checkpoint: the model.
        dataset: the examples, whose static columns tell their subgroups.
        values: what the model says of them, `(examples, num_labels)`.
        thresholds: as `kept_thresholds` returns them.
        taxonomy: what divides the predictions.

    Returns:
        Of classes `conformal_set`, the names of the labels in the set, empty where no label fits; of a number NAME
        `NAME_lower` and `NAME_upper`, infinite where the thresholds are.
    """
    labels, parts = checkpoint.label_names, [ALL] * len(values)
    if taxonomy not in (ALL, BY_LABEL):
        column = dataset.events.static[taxonomy][dataset.rows]
        is_number = any(known["name"] == taxonomy and "mean" in known for known in checkpoint.extractor.static_columns)
        parts = subgroup_names(column.astype(float) if is_number else column).tolist()
    if checkpoint.model.config.problem_type == "regression":
        low, high = number_intervals(values[:, 0], thresholds, taxonomy, parts).T.tolist()
        return {f"{labels[0]}_lower": low, f"{labels[0]}_upper": high}
    sets = label_sets(values, thresholds, taxonomy, parts, labels)
    return {SET_COLUMN: [SEPARATOR.join(np.array(labels)[held]) for held in sets]}


def label_sets(
    values: np.ndarray, thresholds: Mapping[str, float], taxonomy: str, parts: Sequence[str], labels: Sequence[str]
) -> np.ndarray:
    """Which labels each prediction's set holds, boolean `(n, labels)`.

    Args:
        values: probabilities, `(n, labels)`.
        thresholds: as `thresholds_at` returns them.
        taxonomy: what divides the predictions.
        parts: the part of each prediction, `(n,)`; not looked at where labels or nothing divides them. A part without
            a threshold gets every label.
        labels: names of the labels.
    """
    limits = _limits(len(values), thresholds, taxonomy, parts)
    if taxonomy == BY_LABEL:
        limits = np.broadcast_to([thresholds.get(label, np.inf) for label in labels], values.shape)
    else:
        limits = limits[:, None]
    return 1 - values <= limits


def number_intervals(
    values: np.ndarray, thresholds: Mapping[str, float], taxonomy: str, parts: Sequence[str]
) -> np.ndarray:
    """Lower and upper end of each prediction's interval, `(n, 2)`, from numbers `(n,)`; see `label_sets`."""
    limits = _limits(len(values), thresholds, taxonomy, parts)
    return np.stack([values - limits, values + limits], axis=1)


def _limits(count: int, thresholds: Mapping[str, float], taxonomy: str, parts: Sequence[str]) -> np.ndarray:
    if taxonomy in (ALL, BY_LABEL):
        return np.full(count, thresholds.get(ALL, np.inf))
    return np.array([thresholds.get(part, np.inf) for part in parts], dtype=np.float64)
