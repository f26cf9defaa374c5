"""Metrics with intervals.

Points come from scikit-learn, and of times to an event from survival.py. The bootstrap resamples records, not rows, so
that the prediction times of one record move together; a resample is a vector of weights, and every metric is evaluated
under many of them without sorting again (weighted_metrics.py), which scikit-learn cannot do. The tests hold one to the
other.

A sample on which one metric has no meaning, such as AUROC where all labels are equal, gives None for that metric
alone, never NaN, and `undefined_metrics` says why.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn import metrics as sklearn_metrics

from hymate_training.evaluation.resampling import Resampler
from hymate_training.evaluation.sample import LabeledPredictions, row_names
from hymate_training.evaluation.survival import undefined_survival_metrics
from hymate_training.evaluation.weighted_metrics import CALIBRATION_BINS, EVALUATORS, calibration_bin
from hymate_training.versions import installed_versions

# the order in which metrics are reported, and the names they are printed under
METRICS: dict[str, dict[str, str]] = {
    "binary": {
        "auroc": "AUROC",
        "auprc": "AUPRC",
        "min_recall_precision": "min(recall, precision)",
        "brier": "Brier score",
        "log_loss": "log-loss",
        "expected_calibration_error": "expected calibration error",
    },
    "multiclass": {"accuracy": "accuracy", "auroc_macro": "AUROC, macro one-vs-rest", "log_loss": "log-loss"},
    "multilabel": {"auroc_macro": "AUROC, macro", "auroc_micro": "AUROC, micro", "auprc_macro": "AUPRC, macro"},
    "regression": {
        "mae": "mean absolute error",
        "rmse": "root mean squared error",
        "r2": "R²",
        "spearman": "Spearman",
    },
    "time_to_event": {
        "concordance": "concordance, time-dependent",
        "auroc_dynamic": "AUROC, time-dependent",
        "integrated_brier_score": "integrated Brier score",
    },
}
_RANKING = ("auroc", "auprc", "min_recall_precision")
SMALLEST_GROUP = 10  # records; numbers about fewer could tell about a single patient
_PACKAGES = ("hymate", "torch", "transformers", "numpy", "scikit-learn")

Interval = tuple[float, float]


def metric_titles(problem_type: str) -> dict[str, str]:
    """Metric -> the name it is printed under, the ones that only some tasks have (utility.py) included."""
    return METRICS[problem_type] | {"normalized_utility": "normalized utility"}


class CalibrationBins(NamedTuple):
    """Bins of equal mass, lowest probabilities first, each array (bins,); empty bins are left out."""

    predicted: np.ndarray  # mean predicted probability
    observed: np.ndarray  # share of positives
    rows: np.ndarray  # how many rows fell into the bin


def undefined_metrics(sample: LabeledPredictions) -> dict[str, str]:
    """Which metrics have no value on this sample, and why: metric -> reason."""
    labels, predictions = sample.labels, sample.predictions
    if sample.problem_type == "time_to_event":
        return undefined_survival_metrics(sample)
    if sample.problem_type == "regression":
        flat = [name for name, x in (("labels", labels), ("predictions", predictions)) if np.ptp(x) == 0]
        reasons = {"spearman": f"{' and '.join(flat)} hold one value only"} if flat else {}
        if "labels" in flat:
            reasons["r2"] = "labels hold one value only"
        return reasons
    if sample.problem_type == "binary":
        if np.ptp(labels) > 0:
            return {}
        return dict.fromkeys(_RANKING, f"labels are all {labels[0]}: both classes are needed")
    if sample.problem_type == "multiclass":
        counts = np.bincount(labels, minlength=predictions.shape[1])
        absent = np.flatnonzero((counts == 0) | (counts == len(labels))).tolist()
        return {"auroc_macro": f"class index {absent} on one side only in labels"} if absent else {}
    absent = np.flatnonzero(np.ptp(labels, axis=0) == 0).tolist()
    reasons = dict.fromkeys(("auroc_macro", "auprc_macro"), f"column {absent} of labels holds one class only")
    if np.ptp(labels) == 0:
        reasons["auroc_micro"] = "labels hold one class only"
    return reasons if absent else {}


def compute_metrics(sample: LabeledPredictions) -> dict[str, float | None]:
    """The metrics of the sample's problem type, named and ordered as in `METRICS`; None where one is undefined.

    binary
        auroc; auprc (average precision: the step-wise sum, no interpolation); min_recall_precision (the largest, over
        all thresholds, of the smaller of recall and precision: score 1 of the PhysioNet 2012 challenge at its best
        threshold, as STraTS reports it); brier; log_loss (natural logarithm); expected_calibration_error (see
        `expected_calibration_error`). The ranking metrics need both classes.
    multiclass
        accuracy (of the most probable class); auroc_macro (one class against the rest, unweighted mean over classes;
        needs a row of every class); log_loss.
    multilabel
        auroc_macro and auprc_macro (unweighted means over columns; every column needs both classes); auroc_micro (all
        cells pooled).
    regression
        mae, rmse (labels' unit); r2 (needs labels that differ); spearman (needs labels and predictions that differ).
    time_to_event
        concordance, auroc_dynamic, integrated_brier_score: see survival.py.
    """
    undefined, functions = undefined_metrics(sample), _POINTS[sample.problem_type]
    return {
        name: None if name in undefined else float(functions[name](sample)) for name in METRICS[sample.problem_type]
    }


def calibration_bins(sample: LabeledPredictions) -> CalibrationBins:
    """Sorts the predictions of a binary sample into `CALIBRATION_BINS` bins of equal mass.

    A row falls into the bin of its mid-rank, so equal probabilities always share a bin and the order of rows is
    without effect; with many ties bins are of unequal size.
    """
    _, inverse, mass = np.unique(sample.predictions, return_inverse=True, return_counts=True)
    bins = calibration_bin(np.cumsum(mass), mass)[inverse]
    rows = np.bincount(bins, minlength=CALIBRATION_BINS)
    kept = rows > 0
    predicted = np.bincount(bins, sample.predictions, CALIBRATION_BINS)[kept] / rows[kept]
    observed = np.bincount(bins, sample.labels, CALIBRATION_BINS)[kept] / rows[kept]
    return CalibrationBins(predicted, observed, rows[kept])


def expected_calibration_error(sample: LabeledPredictions) -> float:
    """Mean over rows of |observed - predicted| of the row's bin, with the bins of `calibration_bins`.

    It is biased upwards: a perfectly calibrated model scores above 0 by the noise of a bin's share of positives, and a
    bootstrap resample has that noise twice. Its percentile interval therefore lies high, and may miss the point.
    """
    bins = calibration_bins(sample)
    return float(np.average(np.abs(bins.observed - bins.predicted), weights=bins.rows))


def _min_recall_precision(labels: np.ndarray, probabilities: np.ndarray) -> float:
    precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, probabilities)
    return float(np.minimum(precision, recall).max())


def _of_arrays(metric: Callable[..., float], **options: Any) -> Callable[[LabeledPredictions], float]:
    return lambda sample: metric(sample.labels, sample.predictions, **options)


def _macro(metric: Callable[..., float]) -> Callable[[LabeledPredictions], float]:
    return lambda sample: float(np.mean([metric(one.labels, one.predictions) for _, one in sample.columns()]))


def _micro(metric: Callable[..., float]) -> Callable[[LabeledPredictions], float]:
    return lambda sample: metric(sample.labels.ravel(), sample.predictions.ravel())


def _accuracy(sample: LabeledPredictions) -> float:
    return float(np.mean(sample.labels == sample.predictions.argmax(axis=1)))


def _log_loss(sample: LabeledPredictions) -> float:
    classes = np.arange(2 if sample.predictions.ndim == 1 else sample.predictions.shape[1])
    return sklearn_metrics.log_loss(sample.labels, sample.predictions, labels=classes)


def _evaluated(name: str) -> Callable[[LabeledPredictions], float]:
    """A metric as the bootstrap has it, on the sample itself."""
    return lambda sample: EVALUATORS[sample.problem_type](sample)(np.ones((1, sample.num_records)))[name][0]


_POINTS: dict[str, dict[str, Callable[[LabeledPredictions], float]]] = {
    "binary": {
        "auroc": _of_arrays(sklearn_metrics.roc_auc_score),
        "auprc": _of_arrays(sklearn_metrics.average_precision_score),
        "min_recall_precision": _of_arrays(_min_recall_precision),
        "brier": _of_arrays(sklearn_metrics.brier_score_loss),
        "log_loss": _log_loss,
        "expected_calibration_error": expected_calibration_error,
    },
    "multiclass": {
        "accuracy": _accuracy,
        "auroc_macro": _macro(sklearn_metrics.roc_auc_score),
        "log_loss": _log_loss,
    },
    "multilabel": {
        "auroc_macro": _macro(sklearn_metrics.roc_auc_score),
        "auroc_micro": _micro(sklearn_metrics.roc_auc_score),
        "auprc_macro": _macro(sklearn_metrics.average_precision_score),
    },
    "regression": {
        "mae": _of_arrays(sklearn_metrics.mean_absolute_error),
        "rmse": _of_arrays(sklearn_metrics.root_mean_squared_error),
        "r2": _of_arrays(sklearn_metrics.r2_score),
        "spearman": _evaluated("spearman"),
    },
    "time_to_event": {name: _evaluated(name) for name in METRICS["time_to_event"]},
}


def bootstrap_samples(sample: LabeledPredictions, *, num_samples: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
    """The metrics on resamples of the records: metric -> (num_samples,), NaN where a resample has no value.

    As many records as there are are drawn with replacement, each with all its rows. Two samples with the same records
    see the same resamples for the same num_samples and seed, whatever the predictions, so their differences are
    paired.
    """
    evaluate = EVALUATORS[sample.problem_type](sample)
    resampler = Resampler(sample.num_records, num_samples=num_samples, seed=seed)
    chunks = [evaluate(counts) for counts in resampler.counts(sample.labels.size)]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in METRICS[sample.problem_type]}


def bootstrap_intervals(
    sample: LabeledPredictions, *, num_samples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval | None]:
    """Percentile bootstrap intervals of the metrics of `compute_metrics`, from `bootstrap_samples`.

    Resamples in which a metric is undefined (those without both classes, say) are left out of its interval; `report`
    counts them. An interval is None where the metric itself is undefined, where fewer than half of the resamples give
    a value, and where there is one record only.
    """
    estimates = _estimates(sample, num_samples=num_samples, seed=seed, level=level)
    return {name: interval and tuple(interval) for name, interval in estimates["confidence_intervals"].items()}


def paired_difference(
    first: LabeledPredictions,
    second: LabeledPredictions,
    *,
    num_samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, Any]]:
    """Difference first - second of each metric between two models on the same rows, with its paired interval.

    Returns:
        metric -> {"a", "b", "difference", "interval": [low, high]}, None where there is no value, as in
        `bootstrap_intervals`. Both models see the same resamples, so what they share cancels.

    Raises:
        ValueError: if the two samples differ in more than their predictions.
    """
    resampler = Resampler(first.num_records, num_samples=num_samples, seed=seed, level=level)
    same = first.problem_type == second.problem_type and np.array_equal(first.labels, second.labels)
    if not np.array_equal(first.times, second.times):
        raise ValueError("models of times to an event are compared where their bins of time are the same")
    if not same or not np.array_equal(first.record, second.record):
        raise ValueError("both samples must have the same problem type, labels and records, row by row")
    points = [compute_metrics(sample) for sample in (first, second)]
    samples = [bootstrap_samples(sample, num_samples=num_samples, seed=seed) for sample in (first, second)]
    differences: dict[str, dict[str, Any]] = {}
    for name in METRICS[first.problem_type]:
        a, b = points[0][name], points[1][name]
        undefined = a is None or b is None
        differences[name] = {
            "a": a,
            "b": b,
            "difference": None if a is None or b is None else a - b,
            "interval": None if undefined else resampler.interval(samples[0][name] - samples[1][name]),
        }
    return differences


def _estimates(sample: LabeledPredictions, *, num_samples: int, seed: int, level: float) -> dict[str, Any]:
    """Sizes, metrics, their intervals, and what could not be computed: the part that reports and subgroups share."""
    resampler = Resampler(sample.num_records, num_samples=num_samples, seed=seed, level=level)
    metrics, undefined = compute_metrics(sample), undefined_metrics(sample)
    samples = bootstrap_samples(sample, num_samples=num_samples, seed=seed)
    return {
        "problem_type": sample.problem_type,
        "n": len(sample),
        "num_records": sample.num_records,
        **({"positives": int(sample.positive.sum())} if sample.positive is not None else {}),
        "metrics": metrics,
        "confidence_intervals": {
            name: None if name in undefined else resampler.interval(values) for name, values in samples.items()
        },
        "undefined": undefined,
        "bootstrap": {
            "resampled": "records",
            "num_samples": num_samples,
            "seed": seed,
            "level": level,
            "undefined_resamples": {
                name: int(np.isnan(values).sum()) for name, values in samples.items() if np.isnan(values).any()
            },
        },
    }


def subgroup_report(
    sample: LabeledPredictions,
    subgroup: ArrayLike,
    *,
    num_samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, Any]]:
    """Evaluates each subgroup on its own: name -> a dict as `report` builds it of the whole; sorted.

    `subgroup` (n,) names each row's subgroup, such as an age band; a row whose subgroup is not known needs a name too.
    """
    names = row_names("subgroup", subgroup, len(sample)).astype(str)
    options: dict[str, Any] = {"num_samples": num_samples, "seed": seed, "level": level}
    return {str(name): _estimates(sample.select(names == name), **options) for name in np.unique(names)}


def report(
    sample: LabeledPredictions,
    *,
    split_fingerprint: str | None = None,
    num_samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Builds the JSON-able account of an evaluation.

    Returns:
        problem_type; n (rows); num_records; positives (of binary problems, and events of a time to one); metrics
        (metric -> value or null); confidence_intervals (metric -> [low, high] or null); undefined (metric -> reason);
        bootstrap (how the intervals were made, and for each metric how many resamples had no value and were left out);
        split_fingerprint; versions. Multiclass and multilabel reports add per_label: each class or column against
        the rest, a binary problem of its own, by its name.
    """
    options: dict[str, Any] = {"num_samples": num_samples, "seed": seed, "level": level}
    result = _estimates(sample, **options)
    if sample.label_names:
        result["per_label"] = {name: _estimates(column, **options) for name, column in sample.columns()}
    result["split_fingerprint"] = split_fingerprint
    result["versions"] = installed_versions(_PACKAGES)
    return result


def format_report(report: Mapping[str, Any]) -> str:
    """Lays out what `report`, or `subgroup_report` for one subgroup, returned as a plain table for a terminal."""
    n, num_records, positives = report["n"], report["num_records"], report.get("positives")
    size = f"{n:,} rows" if n == num_records else f"{n:,} rows of {num_records:,} records"
    if positives is not None:
        size += f", {positives:,} positive ({positives / n:.1%})"
    titles = metric_titles(report["problem_type"])
    rows = [("metric", "value", f"{100 * report['bootstrap']['level']:.4g}% interval")]
    for name, value in report["metrics"].items():
        interval = report["confidence_intervals"][name]
        shown = "not defined: " + report["undefined"][name] if value is None else "not available"
        rows.append(
            (
                titles[name],
                "-" if value is None else f"{value:.4f}",
                shown if interval is None else f"[{interval[0]:.4f}, {interval[1]:.4f}]",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{title:<{widths[0]}}  {value:>{widths[1]}}  {interval}" for title, value, interval in rows]
    return "\n".join([size, "", *lines])


def format_differences(problem_type: str, differences: Mapping[str, Mapping[str, Any]], names: tuple[str, str]) -> str:
    """Lays out what `paired_difference` returned of two models of these names as a plain table for a terminal."""
    titles = metric_titles(problem_type)
    rows = [["metric", *names, "difference", "interval"]]
    for name, found in differences.items():
        values = ("-" if found[key] is None else f"{found[key]:.4f}" for key in ("a", "b"))
        difference = "-" if found["difference"] is None else f"{found['difference']:+.4f}"
        interval = "-" if found["interval"] is None else "[{:+.4f}, {:+.4f}]".format(*found["interval"])
        rows.append([titles[name], *values, difference, interval])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"{title:<{widths[0]}}  " + "  ".join(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        for title, *cells in rows
    )
