"""What follows from raising an alarm at a probability: rates, and net benefit (Vickers and Elkin, 2006).

An alarm is raised where the predicted probability is at least the threshold t. Net benefit counts true alarms per
prediction and takes off the false ones, each at the odds of the threshold, at which one would just be willing to act:

    net benefit = (true alarms - false alarms * t / (1 - t)) / predictions

To treat nobody has net benefit 0; to treat all is to raise an alarm at every prediction.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hymate_training.evaluation.metrics import SMALLEST_GROUP
from hymate_training.evaluation.resampling import Resampler, record_sums
from hymate_training.evaluation.sample import LabeledPredictions

CURVE_THRESHOLDS = tuple(round(0.01 * step, 2) for step in range(1, 51))  # up to a false alarm as bad as a miss
THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
RATES = ("sensitivity", "specificity", "ppv", "npv", "alarms_per_100_predictions")


def check_thresholds(thresholds: Sequence[float]) -> np.ndarray:
    """The thresholds in ascending order, each once; ValueError for one that is not between 0 and 1."""
    chosen = np.unique(np.asarray(thresholds, dtype=np.float64))
    if not len(chosen) or not ((chosen > 0) & (chosen < 1)).all():
        raise ValueError(f"thresholds must lie between 0 and 1, got {', '.join(map(str, thresholds)) or 'none'}")
    return chosen


def alarm_counts(sample: LabeledPredictions, thresholds: np.ndarray) -> np.ndarray:
    """True and false alarms of each record at ascending thresholds `(t,)`, `(records, 2, t)`."""
    passed = np.searchsorted(thresholds, sample.predictions, "right")  # how many thresholds each row reaches
    bins = len(thresholds) + 1
    place = (2 * sample.record + (sample.labels == 0)) * bins + passed
    counts = np.bincount(place, minlength=2 * sample.num_records * bins).reshape(-1, 2, bins)
    return counts[..., :0:-1].cumsum(axis=-1)[..., ::-1].astype(np.float64)


def class_counts(sample: LabeledPredictions) -> np.ndarray:
    """Positive and negative rows of each record, `(records, 2)`."""
    return record_sums(sample.record, sample.num_records, np.stack([sample.labels, 1 - sample.labels], axis=1))


def alarm_rates(alarms: np.ndarray, classes: np.ndarray) -> dict[str, np.ndarray]:
    """`RATES` at each threshold, NaN where one has nothing to count.

    Args:
        alarms: true and false ones, `(..., 2, t)`.
        classes: positive and negative rows, `(..., 2)`.

    Returns:
        Each rate `(..., t)`.
    """
    true, false = alarms[..., 0, :], alarms[..., 1, :]
    positives, negatives = classes[..., :1], classes[..., 1:]
    silent = positives + negatives - true - false
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "sensitivity": true / positives,
            "specificity": 1 - false / negatives,
            "ppv": true / (true + false),
            "npv": (negatives - false) / silent,
            "alarms_per_100_predictions": 100 * (true + false) / (positives + negatives),
        }


def threshold_table(
    sample: LabeledPredictions, thresholds: Sequence[float] = THRESHOLDS, resampler: Resampler | None = None
) -> list[dict[str, Any]]:
    """The rates of alarms at each threshold.

    Args:
        sample: of a binary problem.
        thresholds: probabilities from which on an alarm is raised.
        resampler: of the records; the defaults of `Resampler` where absent.

    Returns:
        One row per threshold: `threshold`, `RATES` and `confidence_intervals` of them. Where fewer than
        `SMALLEST_GROUP` records have an alarm, or fewer have none, the predictive value of it is None.
    """
    resampler = resampler or Resampler(sample.num_records)
    chosen = check_thresholds(thresholds)
    alarms, classes = alarm_counts(sample, chosen), class_counts(sample)
    points = alarm_rates(alarms.sum(axis=0), classes.sum(axis=0))
    resampled = alarm_rates(resampler.sums(alarms), resampler.sums(classes))
    raised = alarms.sum(axis=1)
    enough = {
        "ppv": (raised > 0).sum(axis=0) >= SMALLEST_GROUP,
        "npv": (raised < classes.sum(axis=1, keepdims=True)).sum(axis=0) >= SMALLEST_GROUP,
    }
    rows = []
    for at, threshold in enumerate(chosen):
        shown = {name: enough[name][at] if name in enough else True for name in RATES}
        values = {name: defined(points[name][at]) if shown[name] else None for name in RATES}
        intervals = {
            name: None if value is None else resampler.interval(resampled[name][:, at])
            for name, value in values.items()
        }
        rows.append({"threshold": float(threshold), **values, "confidence_intervals": intervals})
    return rows


def defined(value: float) -> float | None:
    """A number as JSON holds it: None for NaN."""
    return None if np.isnan(value) else float(value)


def benefit(alarms: np.ndarray, classes: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Net benefit `(..., t)` of true and false alarms `(..., 2, t)` among positive and negative rows `(..., 2)`."""
    odds = thresholds / (1 - thresholds)
    return (alarms[..., 0, :] - alarms[..., 1, :] * odds) / classes.sum(axis=-1, keepdims=True)


def net_benefit(
    sample: LabeledPredictions,
    thresholds: Sequence[float] = CURVE_THRESHOLDS,
    baseline: LabeledPredictions | None = None,
    resampler: Resampler | None = None,
) -> dict[str, Any]:
    """Decision curves of a model, of treating all and none, and of a baseline, on the same rows.

    Args:
        sample: of a binary problem.
        thresholds: probabilities at which one would act.
        baseline: the same rows with other predictions.
        resampler: of the records; the defaults of `Resampler` where absent.

    Returns:
        `thresholds`; net benefits at each of them: `model`, `treat_all`, `treat_none` and, where there is one,
        `baseline`; the model's net benefit minus that of the better of treating all and none,
        `model_minus_best_default`, and minus the baseline's, `model_minus_baseline`; `confidence_intervals` of all of
        them, from the same resamples.
    """
    resampler = resampler or Resampler(sample.num_records)
    chosen = check_thresholds(thresholds)

    def worth(sums: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
        rows = sums(classes)
        found = {name: benefit(sums(counts), rows, chosen) for name, counts in alarms.items()}
        treat_all = benefit(np.repeat(rows[..., None], len(chosen), axis=-1), rows, chosen)
        curves = {"model": found["model"], "treat_all": treat_all, "treat_none": np.zeros_like(treat_all)}
        curves["model_minus_best_default"] = found["model"] - np.maximum(treat_all, 0)
        if baseline is not None:
            curves |= {
                "baseline": found["baseline"],
                "model_minus_baseline": found["model"] - found["baseline"],
            }
        return curves

    classes = class_counts(sample)
    alarms = {"model": alarm_counts(sample, chosen)}
    if baseline is not None:
        alarms["baseline"] = alarm_counts(baseline, chosen)
    points, resampled = worth(lambda per_record: per_record.sum(axis=0)), worth(resampler.sums)
    return {
        "thresholds": chosen.tolist(),
        **{name: values.tolist() for name, values in points.items()},
        "confidence_intervals": {name: resampler.intervals(values) for name, values in resampled.items()},
    }
