"""How differently a model serves subgroups: who is missed, who is alarmed for nothing, whose probabilities are off.

Equalized odds (Hardt et al., 2016) hold where groups have the same sensitivity and the same false positive rate at the
threshold. A gap is the largest value of a group minus the smallest; being a range it is never negative, and with few
patients it is above 0 by chance alone, so read it with its interval. Groups in which fewer than `FEW_RECORDS` records
have, or fewer than that lack, a positive label are marked and have no part in the gaps.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hymate_training.evaluation.decisions import alarm_counts, class_counts, defined
from hymate_training.evaluation.recalibration import INTERCEPT, SLOPE, regressions
from hymate_training.evaluation.resampling import Resampler
from hymate_training.evaluation.sample import LabeledPredictions, row_names

FEW_RECORDS = 20
ODDS = ("sensitivity", "false_positive_rate")
CALIBRATION = (f"calibration_{INTERCEPT}", f"calibration_{SLOPE}")
GAPS = (*ODDS, "equalized_odds", *CALIBRATION)


def subgroup_gaps(
    sample: LabeledPredictions,
    columns: Mapping[str, np.ndarray],
    threshold: float,
    resampler: Resampler | None = None,
) -> dict[str, Any]:
    """Rates and calibration of each subgroup, and how far they are apart.

    Args:
        sample: of a binary problem.
        columns: name -> subgroup of each row, `(n,)`.
        threshold: from which on an alarm is raised.
        resampler: of the records; the defaults of `Resampler` where absent.

    Returns:
        Name of the column -> `threshold`, `groups` and `gaps`. A group holds `n`, `num_records`, `positives`,
        `too_few`, its `sensitivity`, `false_positive_rate`, `calibration_intercept` and `calibration_slope`, None
        where there is none, and `confidence_intervals`. `gaps` holds for each of these four, and for `equalized_odds`
        (the larger of the first two), `value`, `interval`, `lowest` and `highest` group; None where fewer than two
        groups are large enough.
    """
    resampler = resampler or Resampler(sample.num_records)
    return {
        name: {"threshold": threshold, **_column(sample, row_names(name, groups, len(sample)), threshold, resampler)}
        for name, groups in columns.items()
    }


def _column(sample: LabeledPredictions, names: np.ndarray, threshold: float, resampler: Resampler) -> dict[str, Any]:
    groups, compared = {}, {}
    for name in np.unique(names):
        group, points, resampled = _group(sample, names == name, threshold, resampler)
        groups[str(name)] = group
        if not group["too_few"]:
            compared[str(name)] = points, resampled
    return {"groups": groups, "gaps": {gap: _gap(gap, compared, resampler) for gap in GAPS}}


def _group(
    sample: LabeledPredictions, inside: np.ndarray, threshold: float, resampler: Resampler
) -> tuple[dict[str, Any], dict[str, float], dict[str, np.ndarray]]:
    """What is told of a group; its four numbers; and these in each resample of all records."""
    own = sample.select(inside)
    record = np.unique(sample.record[inside])  # of the sample, in the order of the group's own
    counts = np.concatenate([alarm_counts(own, np.array([threshold]))[..., 0], class_counts(own)], axis=1)
    spread = np.zeros((sample.num_records, 4))
    spread[record] = counts

    def odds(sums: np.ndarray) -> dict[str, np.ndarray]:
        with np.errstate(divide="ignore", invalid="ignore"):
            return dict(zip(ODDS, (sums[..., :2] / sums[..., 2:]).T, strict=True))

    points: dict[str, Any] = odds(counts.sum(axis=0))
    resampled = odds(resampler.sums(spread))
    for name, fit in zip(CALIBRATION, regressions(own).values(), strict=True):
        points[name] = np.nan if fit is None else fit.coefficients[-1]
        resampled[name] = (
            np.full(resampler.num_samples, np.nan)
            if fit is None
            else fit.resampled(sample.record[inside], resampler)[:, -1]
        )
    told = {
        "n": len(own),
        "num_records": own.num_records,
        "positives": int(own.labels.sum()),
        "too_few": bool(np.minimum.reduce((counts[:, 2:] > 0).sum(axis=0)) < FEW_RECORDS),
        **{name: defined(value) for name, value in points.items()},
        "confidence_intervals": {
            name: None if np.isnan(points[name]) else resampler.interval(values) for name, values in resampled.items()
        },
    }
    return told, points, resampled


def _gap(
    name: str, compared: Mapping[str, tuple[dict[str, float], dict[str, np.ndarray]]], resampler: Resampler
) -> dict[str, Any] | None:
    if len(compared) < 2:
        return None
    if name == "equalized_odds":
        wider = max(ODDS, key=lambda part: np.ptp([points[part] for points, _ in compared.values()]))
        ranges = [np.ptp([resampled[part] for _, resampled in compared.values()], axis=0) for part in ODDS]
        found = _gap(wider, compared, resampler)
        return found and found | {"interval": resampler.interval(np.maximum(*ranges))}
    values = {group: points[name] for group, (points, _) in compared.items() if not np.isnan(points[name])}
    if len(values) < 2:
        return None
    lowest, highest = min(values, key=lambda group: values[group]), max(values, key=lambda group: values[group])
    ranges = np.ptp([compared[group][1][name] for group in values], axis=0)
    return {
        "value": float(values[highest] - values[lowest]),
        "interval": resampler.interval(ranges),
        "lowest": lowest,
        "highest": highest,
    }
