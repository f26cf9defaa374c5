"""What decisions are worth: the utility of an alarm, hour by hour, and the threshold that makes the most of it.

A prediction becomes a decision by a threshold, which is chosen on the validation split and on no other. What a
decision is worth depends on when it falls: `UTILITIES` holds, for each data set that defines it, the function from
the rows of a task to the gain of an alarm over silence in each row. A prepared folder names the utility of its tasks
in `DatasetInfo.extra["utility"]` (task -> name). Everything else follows from the gains:

    normalized utility = (U(decisions) - U(silence)) / (U(best decisions) - U(silence))
                       = sum of the gains where an alarm is raised / sum of the positive gains

It is 1 for the best decisions, 0 for never raising an alarm, and negative for decisions worse than that.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from hymate_training.evaluation.resampling import Resampler, record_sums
from hymate_training.evaluation.sample import LabeledPredictions, number_records

LABEL_LEAD = 6.0  # hours by which the published SepsisLabel of the challenge precedes the onset
EARLIEST, OPTIMAL, LATEST = -12.0, -6.0, 3.0  # hours from the onset of sepsis
BEST_ALARM, WORST_SILENCE, FALSE_ALARM = 1.0, -2.0, -0.05


def sepsis_utilities(hours_from_onset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Utility of an alarm and of silence at each hour, as Reyna et al. (2020) define them.

    `hours_from_onset` is the hour minus the hour of onset, -inf for a patient without sepsis. An alarm earns nothing
    12 hours before onset, rising to 1 at 6 hours before and falling back to 0 at 3 hours after; earlier, or without
    sepsis, it costs 0.05. Silence costs nothing up to 6 hours before onset, rising to 2 at 3 hours after. Later than
    that neither counts.
    """
    early = np.maximum((hours_from_onset - EARLIEST) / (OPTIMAL - EARLIEST) * BEST_ALARM, FALSE_ALARM)
    lateness = (hours_from_onset - OPTIMAL) / (LATEST - OPTIMAL)  # 0 at the best time, 1 at the last that counts
    before, over = hours_from_onset <= OPTIMAL, hours_from_onset > LATEST
    alarm = np.where(before, early, np.where(over, 0.0, (1 - lateness) * BEST_ALARM))
    silence = np.where(before | over, 0.0, lateness * WORST_SILENCE)
    return alarm, silence


def physionet2019_gains(records: np.ndarray, times: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Gain of an alarm over silence in each row, from the published labels: a record's onset is six hours after its
    first positive row. All arrays (rows,)."""
    record, num_records = number_records(records, len(labels))
    onset = np.full(num_records, np.inf)
    positive = np.asarray(labels).astype(bool)
    np.minimum.at(onset, record[positive], np.asarray(times, dtype=np.float64)[positive] + LABEL_LEAD)
    alarm, silence = sepsis_utilities(times - onset[record])
    return alarm - silence


UTILITIES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "physionet2019": physionet2019_gains
}


def normalized_utility(gains: np.ndarray, alarms: np.ndarray) -> float | None:
    """Share of the possible gain that the alarms (rows,), earn; None where nothing can be gained."""
    possible = gains[gains > 0].sum()
    return float(gains[alarms].sum() / possible) if possible > 0 else None


def best_threshold(gains: np.ndarray, probabilities: np.ndarray) -> float:
    """The threshold from which on raising an alarm earns the most; above every probability where no alarm pays."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    ends = np.flatnonzero(np.diff(ranked, append=-np.inf))  # the last of each run of equal probabilities
    earned = np.cumsum(gains[order])[ends]
    best = int(np.argmax(earned))
    if earned[best] <= 0:
        return float(np.nextafter(ranked[0], np.inf))
    following = ranked[ends[best] + 1] if best + 1 < len(ends) else 0.0
    return float((ranked[ends[best]] + following) / 2)  # half-way, so that rounding changes no decision


def utility_samples(
    gains: np.ndarray, alarms: np.ndarray, sample: LabeledPredictions, resampler: Resampler
) -> np.ndarray:
    """The normalized utility of each resample of the records, each with all its rows; NaN where nothing can be
    gained."""
    columns = np.stack([gains * alarms, np.maximum(gains, 0)], axis=1)
    earned, possible = resampler.sums(record_sums(sample.record, sample.num_records, columns)).T
    return np.divide(earned, possible, out=np.full_like(earned, np.nan), where=possible > 0)


def add_utility(
    evaluation: dict[str, Any], gains: np.ndarray, sample: LabeledPredictions, threshold: dict[str, Any]
) -> None:
    """Enters the normalized utility, its interval and the threshold into what `metrics.report` returned."""
    alarms = sample.predictions >= threshold["value"]
    bootstrap = {name: evaluation["bootstrap"][name] for name in ("num_samples", "seed", "level")}
    value = normalized_utility(gains, alarms)
    resampler = Resampler(sample.num_records, **bootstrap)
    interval = None if value is None else resampler.interval(utility_samples(gains, alarms, sample, resampler))
    evaluation["metrics"]["normalized_utility"] = value
    evaluation["confidence_intervals"]["normalized_utility"] = interval
    if value is None:
        evaluation["undefined"]["normalized_utility"] = "no alarm could gain anything: no row is near an onset"
    evaluation["threshold"] = threshold | {"share_of_rows_with_alarm": float(alarms.mean())}
