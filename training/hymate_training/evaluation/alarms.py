"""The burden of alarms where records are asked many times: how many there are, how many are true, how early they come.

An alarm is raised where the predicted probability is at least the threshold, and snoozes: for `snooze_hours` after it
no other is raised for that record. An alarm is true if the label is positive at it or before its snooze ends. The
event of a record lies `label_lead` hours after its first positive label, where the data set says how far ahead its
labels look. It is detected if an alarm of the record is true; the lead time is from the first of these to the event.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hymate_training.evaluation.decisions import check_thresholds, defined
from hymate_training.evaluation.metrics import SMALLEST_GROUP
from hymate_training.evaluation.resampling import Resampler
from hymate_training.evaluation.sample import LabeledPredictions

SNOOZE_HOURS = 6.0
ESTIMATES = ("alarms_per_100_patient_days", "share_of_alarms_true", "share_of_events_detected", "median_lead_hours")


@dataclass(frozen=True, eq=False)
class Hours:
    """The rows of a sample in order of record and time, and what of them does not depend on a threshold.

    Attributes:
        order: position in the sample of each row, `(n,)`.
        record: of each row, `(n,)`.
        time: of each row, hours, `(n,)`.
        label: of each row, `(n,)`.
        key: a number that grows from row to row and is further apart between records than within a snooze, `(n,)`.
        next_positive: time of the record's next row with a positive label, that row included; infinite where there is
            none, `(n,)`.
        first_positive: of each record, hours; infinite without one, `(records,)`.
        days: that each record is watched: from its first prediction to a step after its last, `(records,)`.
    """

    order: np.ndarray
    record: np.ndarray
    time: np.ndarray
    label: np.ndarray
    key: np.ndarray
    next_positive: np.ndarray
    first_positive: np.ndarray
    days: np.ndarray


def in_order(sample: LabeledPredictions, times: np.ndarray, snooze_hours: float) -> Hours:
    """Sorts the rows of a sample with their prediction times `(n,)`."""
    order = np.lexsort((times, sample.record))
    record, time, label = sample.record[order], times[order].astype(np.float64), sample.labels[order]
    starts = np.flatnonzero(np.diff(record, prepend=-1))
    ends = np.append(starts[1:], len(record))
    steps = np.diff(time)[np.diff(record) == 0]
    step = float(np.median(steps)) if len(steps) else 0.0
    span = np.ptp(time) + snooze_hours + 1
    positive = np.flatnonzero(label)
    following = np.searchsorted(positive, np.arange(len(label)))
    candidate = np.append(positive, len(label) - 1)[following]
    real = (following < len(positive)) & (record[candidate] == record)
    next_positive = np.where(real, time[candidate], np.inf)
    return Hours(
        order=order,
        record=record,
        time=time,
        label=label,
        key=record * span + (time - time.min()),
        next_positive=next_positive,
        first_positive=next_positive[starts],
        days=(time[ends - 1] - time[starts] + step) / 24,
    )


def raised(hours: Hours, probabilities: np.ndarray, threshold: float, snooze_hours: float) -> np.ndarray:
    """The rows, in the order of `hours`, at which an alarm is raised.

    Args:
        hours: the rows.
        probabilities: in the order of the sample, `(n,)`.
        threshold: from which on an alarm is raised, unless one is snoozing.
        snooze_hours: how long an alarm snoozes.
    """
    over = np.flatnonzero(probabilities[hours.order] >= threshold)
    found, current = [], over[np.diff(hours.record[over], prepend=-1) > 0]  # first of each record, then the next one
    while len(current):
        found.append(current)
        place = np.searchsorted(hours.key[over], hours.key[current] + snooze_hours)
        inside = place < len(over)
        following = over[place[inside]]
        current = following[hours.record[following] == hours.record[current[inside]]]
    return np.sort(np.concatenate(found)) if found else over


def check_snooze(hours: float) -> None:
    """Raises ValueError unless an alarm can snooze for so long."""
    if not 0 < hours < np.inf:
        raise ValueError(f"snooze_hours must be positive, got {hours}")


def alarm_report(
    sample: LabeledPredictions,
    times: np.ndarray,
    thresholds: Sequence[float],
    *,
    snooze_hours: float = SNOOZE_HOURS,
    label_lead: float | None = None,
    resampler: Resampler | None = None,
) -> dict[str, Any]:
    """How many alarms a model raises, how many are true, and how early they come.

    Args:
        sample: of a binary problem.
        times: prediction time of each row, hours, `(n,)`.
        thresholds: probabilities from which on an alarm is raised.
        snooze_hours: how long an alarm keeps others of its record silent.
        label_lead: hours by which a record's first positive label precedes its event; where absent, the lead time is
            counted to the first positive label.
        resampler: of the records; the defaults of `Resampler` where absent.

    Returns:
        `rule` in words, `snooze_hours`, `label_lead_hours`, `patient_days`, `num_events` (records with one), and
        `by_threshold`: a list of `threshold`, `num_alarms`, `ESTIMATES` and their `confidence_intervals`. What rests
        on fewer than `SMALLEST_GROUP` records is None.

    Raises:
        ValueError: for thresholds that are not between 0 and 1, and hours that cannot be.
    """
    check_snooze(snooze_hours)
    resampler = resampler or Resampler(sample.num_records)
    hours = in_order(sample, np.asarray(times), snooze_hours)
    return {
        "rule": f"An alarm keeps others of its record silent for {snooze_hours:g} hours. It is true if the label is "
        "positive at it or before these hours are over.",
        "snooze_hours": float(snooze_hours),
        "label_lead_hours": label_lead,
        "patient_days": float(hours.days.sum()),
        "num_events": int(np.isfinite(hours.first_positive).sum()),
        "by_threshold": [
            _burden(hours, sample.predictions, float(threshold), snooze_hours, label_lead or 0.0, resampler)
            for threshold in check_thresholds(thresholds)
        ],
    }


def _burden(
    hours: Hours, probabilities: np.ndarray, threshold: float, snooze: float, lead: float, resampler: Resampler
) -> dict[str, Any]:
    rows, records = raised(hours, probabilities, threshold, snooze), resampler.num_records
    true = rows[hours.next_positive[rows] < hours.time[rows] + snooze]
    first = true[np.diff(hours.record[true], prepend=-1) > 0]
    detected = hours.record[first]
    leads = hours.first_positive[detected] + lead - hours.time[first]
    columns = np.zeros((records, 5))
    columns[:, 0] = np.bincount(hours.record[rows], minlength=records)
    columns[:, 1] = np.bincount(hours.record[true], minlength=records)
    columns[:, 2] = np.isfinite(hours.first_positive)
    columns[detected, 3] = 1
    columns[:, 4] = hours.days

    def rates(sums: np.ndarray) -> list[np.ndarray]:
        alarms, true_alarms, events, found, days = sums.T
        with np.errstate(divide="ignore", invalid="ignore"):
            return [100 * alarms / days, true_alarms / alarms, found / events]

    points = [*map(float, rates(columns.sum(axis=0))), float(np.median(leads)) if len(leads) else np.nan]
    resampled = [*rates(resampler.sums(columns)), _medians(leads, detected, resampler)]
    alarmed, with_event = np.count_nonzero(columns[:, [0, 2]], axis=0)
    counted = np.array([records, alarmed, with_event, len(detected)])
    shown = [
        defined(point) if enough else None for point, enough in zip(points, counted >= SMALLEST_GROUP, strict=True)
    ]
    return {
        "threshold": threshold,
        "num_alarms": len(rows),
        **dict(zip(ESTIMATES, shown, strict=True)),
        "confidence_intervals": {
            name: None if value is None else resampler.interval(values)
            for name, value, values in zip(ESTIMATES, shown, resampled, strict=True)
        },
    }


def _medians(values: np.ndarray, records: np.ndarray, resampler: Resampler) -> np.ndarray:
    """The median in each resample of values `(m,)` that belong to different records `(m,)`, NaN where none is drawn.

    Of an even number of values it is the mean of the two in the middle, as elsewhere.
    """
    if not len(values):
        return np.full(resampler.num_samples, np.nan)
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    medians = []
    for counts in resampler.counts():
        drawn = np.cumsum(counts[:, records[order]], axis=1)
        total = drawn[:, -1:]
        low, high = (drawn < np.floor((total + 1) / 2)).sum(axis=1), (drawn < np.floor(total / 2) + 1).sum(axis=1)
        last = len(ranked) - 1
        middle = (ranked[np.minimum(low, last)] + ranked[np.minimum(high, last)]) / 2
        medians.append(np.where(total[:, 0] > 0, middle, np.nan))
    return np.concatenate(medians)
