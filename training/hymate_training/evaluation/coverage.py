"""Choosing the thresholds of conformal prediction on one split, and checking on another what they cover."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hymate_training.evaluation.metrics import SMALLEST_GROUP
from hymate_training.evaluation.resampling import Resampler, record_sums
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.inference.conformal import (
    ALL,
    BY_LABEL,
    LEVELS,
    conformal_threshold,
    label_sets,
    number_intervals,
    rounded_up,
    thresholds_at,
)

PROBLEM_TYPES = ("binary", "multiclass", "regression")  # several labels at once have no set of their own


def calibrate_sets(
    sample: LabeledPredictions,
    groups: Mapping[str, np.ndarray],
    labels: Sequence[str],
    levels: Sequence[float] = LEVELS,
) -> dict[str, Any]:
    """Thresholds that cover each level of a sample: of all, by label and by each subgroup column.

    Args:
        sample: of a binary, multiclass or regression problem.
        groups: column -> subgroup of each row, `(n,)`.
        labels: names of the labels.
        levels: shares to cover.

    Returns:
        `levels`, and `thresholds`: taxonomy -> part -> one per level, None where the part has too few records for it.
        Parts of fewer than `SMALLEST_GROUP` records are left out.
    """
    truth = _truth_scores(sample)
    taxonomies = _taxonomies(sample, groups, labels)
    thresholds = {
        taxonomy: {
            str(part): [
                rounded_up(conformal_threshold(truth[inside], sample.record[inside], level)) for level in levels
            ]
            for part in np.unique(parts)
            if len(np.unique(sample.record[inside := parts == part])) >= SMALLEST_GROUP
        }
        for taxonomy, parts in taxonomies.items()
    }
    return {"levels": list(levels), "thresholds": thresholds}


def coverage_report(
    sample: LabeledPredictions,
    groups: Mapping[str, np.ndarray],
    labels: Sequence[str],
    conformal: Mapping[str, Any],
    resampler: Resampler | None = None,
) -> dict[str, Any]:
    """How often sets or intervals hold the truth on a sample that had no part in choosing them.

    Args:
        sample: of a binary, multiclass or regression problem.
        groups: column -> subgroup of each row, `(n,)`.
        labels: names of the labels.
        conformal: as `calibrate_sets` returned it.
        resampler: of the records; the defaults of `Resampler` where absent.

    Returns:
        Taxonomy -> part -> list, one per level: `level`, `num_records`, `coverage` (mean over records of the covered
        share of their rows), its `interval`, `mean_size` (labels per set, or width of the interval; None where it is
        infinite) and, of labels, `share_single`: of sets that hold one label. Parts of fewer than `SMALLEST_GROUP`
        records are left out.
    """
    resampler = resampler or Resampler(sample.num_records)
    taxonomies = _taxonomies(sample, groups, labels)
    found: dict[str, Any] = {}
    for taxonomy in conformal["thresholds"]:
        if taxonomy not in taxonomies:
            continue
        parts, found[taxonomy] = taxonomies[taxonomy], {}
        levels = [_covered(sample, conformal, level, taxonomy, parts, labels) for level in conformal["levels"]]
        for part in np.unique(parts):
            inside = parts == part
            if len(np.unique(sample.record[inside])) >= SMALLEST_GROUP:
                found[taxonomy][str(part)] = [
                    {"level": level, **_share(sample.record[inside], covered[inside], sizes[inside], resampler)}
                    for level, (covered, sizes) in zip(conformal["levels"], levels, strict=True)
                ]
    if sample.problem_type == "regression":
        for row in (row for parts in found.values() for rows in parts.values() for row in rows):
            row.pop("share_single")
    return found


def _covered(
    sample: LabeledPredictions,
    conformal: Mapping[str, Any],
    level: float,
    taxonomy: str,
    parts: np.ndarray,
    labels: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:
    thresholds = thresholds_at(conformal, level, taxonomy)
    if sample.problem_type == "regression":
        low, high = number_intervals(sample.predictions, thresholds, taxonomy, parts.tolist()).T
        return (low <= sample.labels) & (sample.labels <= high), high - low
    sets = label_sets(_probabilities(sample), thresholds, taxonomy, parts.tolist(), labels)
    return sets[np.arange(len(sample)), sample.labels], sets.sum(axis=1)


def _share(record: np.ndarray, covered: np.ndarray, sizes: np.ndarray, resampler: Resampler) -> dict[str, Any]:
    rows = np.bincount(record, minlength=resampler.num_records)
    sums = record_sums(record, resampler.num_records, np.stack([covered, sizes == 1], axis=1).astype(float))
    means = np.divide(sums, rows[:, None], out=np.zeros_like(sums), where=rows[:, None] > 0)
    held, drawn = (rows > 0).astype(float), resampler.sums(np.column_stack([means[:, 0], rows > 0]))
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = drawn[:, 0] / drawn[:, 1]
    finite = bool(np.isfinite(sizes).all())
    return {
        "num_records": int(held.sum()),
        "coverage": float(means[:, 0].sum() / held.sum()),
        "interval": resampler.interval(shares),
        "mean_size": float(np.average(sizes, weights=1 / rows[record])) if finite else None,
        "share_single": float(means[:, 1].sum() / held.sum()),
    }


def _probabilities(sample: LabeledPredictions) -> np.ndarray:
    if sample.problem_type == "binary":
        return np.stack([1 - sample.predictions, sample.predictions], axis=1)
    return sample.predictions


def _truth_scores(sample: LabeledPredictions) -> np.ndarray:
    if sample.problem_type == "regression":
        return np.abs(sample.labels - sample.predictions)
    return 1 - _probabilities(sample)[np.arange(len(sample)), sample.labels]


def _taxonomies(
    sample: LabeledPredictions, groups: Mapping[str, np.ndarray], labels: Sequence[str]
) -> dict[str, np.ndarray]:
    taxonomies = {ALL: np.full(len(sample), ALL)}
    if sample.problem_type != "regression":
        taxonomies[BY_LABEL] = np.asarray(labels)[sample.labels]
    return taxonomies | {name: parts.astype(str) for name, parts in groups.items() if name not in taxonomies}
