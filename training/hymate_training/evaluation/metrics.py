"""Figures of merit with intervals.

Points come from scikit-learn. The bootstrap resamples records, not rows, so that the prediction times of one record
move together; a resample is a vector of weights, and every metric is evaluated under a whole matrix of weights at
once (weighted_metrics.py), which scikit-learn cannot do. The tests hold one to the other.

`labels` and `predictions` of each problem type:

| problem type | labels | predictions |
|---|---|---|
| binary | (n,) 0 or 1 | (n,) probability of class 1 |
| multiclass | (n,) class index in 0..K-1 | (n, K) probabilities, each row summing to 1 |
| multilabel | (n, K) 0 or 1 | (n, K) probabilities |
| regression | (n,) number | (n,) number, in the labels' unit |

Undefined metrics. Invalid arguments (nothing in them, NaN, unequal lengths, probabilities outside [0, 1]) are a
ValueError. A valid sample on which one metric has no meaning, such as AUROC where all labels are equal, gives None for
that metric alone, never NaN, and `undefined_metrics` says why.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn import metrics as sklearn_metrics
from tqdm import tqdm

from .weighted_metrics import CALIBRATION_BINS, EVALUATORS, as_indicators, calibration_bin

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
}
_RANKING = ("auroc", "auprc", "min_recall_precision")
_WEIGHTS_AT_ONCE = 1_000_000  # weights held at a time: 8 MB, near the size of a cache
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


def check_inputs(problem_type: str, labels: ArrayLike, predictions: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return (labels, predictions) as arrays of the module's shapes: int64 or float64 labels, float64 predictions.

    ValueError naming the argument if the two cannot be evaluated.
    """
    if problem_type not in METRICS:
        raise ValueError(f"problem_type must be one of {', '.join(METRICS)}, not {problem_type!r}")
    label_dims = 2 if problem_type == "multilabel" else 1
    prediction_dims = 2 if problem_type in ("multiclass", "multilabel") else 1
    y = _finite("labels", labels, label_dims, problem_type)
    p = _finite("predictions", predictions, prediction_dims, problem_type)
    if len(y) != len(p):
        raise ValueError(f"labels has {len(y)} rows and predictions {len(p)}: one row each is needed")
    if problem_type == "regression":
        return y, p
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
    bad = np.argwhere((p < -1e-6) | (p > 1 + 1e-6))
    if bad.size:
        raise ValueError(
            f"predictions must be probabilities in [0, 1]; row {bad[0][0]} holds {p[tuple(bad[0])]:g} "
            "(logits need a sigmoid or softmax first)"
        )
    p = np.clip(p, 0, 1)
    if problem_type == "multiclass":
        sums = p.sum(axis=1)
        bad = np.argwhere(np.abs(sums - 1) > 1e-3)
        if bad.size:
            raise ValueError(f"predictions must sum to 1 in each row; row {bad[0][0]} sums to {sums[bad[0][0]]:g}")
        p = p / sums[:, None]
    return y.astype(np.int64), p


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


def undefined_metrics(problem_type: str, labels: ArrayLike, predictions: ArrayLike) -> dict[str, str]:
    """Say which metrics have no value on this sample, and why: metric -> reason."""
    labels, predictions = check_inputs(problem_type, labels, predictions)
    if problem_type == "regression":
        flat = [name for name, x in (("labels", labels), ("predictions", predictions)) if np.ptp(x) == 0]
        reasons = {"spearman": f"{' and '.join(flat)} hold one value only"} if flat else {}
        if "labels" in flat:
            reasons["r2"] = "labels hold one value only"
        return reasons
    if problem_type == "binary":
        if np.ptp(labels) > 0:
            return {}
        return dict.fromkeys(_RANKING, f"labels are all {labels[0]}: both classes are needed")
    if problem_type == "multiclass":
        counts = np.bincount(labels, minlength=predictions.shape[1])
        absent = np.flatnonzero((counts == 0) | (counts == len(labels))).tolist()
        return {"auroc_macro": f"class index {absent} on one side only in labels"} if absent else {}
    absent = np.flatnonzero(np.ptp(labels, axis=0) == 0).tolist()
    reasons = dict.fromkeys(("auroc_macro", "auprc_macro"), f"column {absent} of labels holds one class only")
    if np.ptp(labels) == 0:
        reasons["auroc_micro"] = "labels hold one class only"
    return reasons if absent else {}


def compute_metrics(problem_type: str, labels: ArrayLike, predictions: ArrayLike) -> dict[str, float | None]:
    """Compute the metrics of a problem type, named and ordered as in `METRICS`; None where one is undefined.

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
    """
    undefined = undefined_metrics(problem_type, labels, predictions)
    labels, predictions = check_inputs(problem_type, labels, predictions)
    functions = _POINTS[problem_type]
    return {
        name: None if name in undefined else float(functions[name](labels, predictions))
        for name in METRICS[problem_type]
    }


def calibration_bins(labels: ArrayLike, probabilities: ArrayLike) -> CalibrationBins:
    """Sort binary predictions, `labels` and `probabilities` (n,), into `CALIBRATION_BINS` bins of equal mass.

    A row falls into the bin of its mid-rank, so equal probabilities always share a bin and the order of rows is
    without effect; with many ties bins are of unequal size.
    """
    labels, probabilities = check_inputs("binary", labels, probabilities)
    _, inverse, mass = np.unique(probabilities, return_inverse=True, return_counts=True)
    bins = calibration_bin(np.cumsum(mass), mass)[inverse]
    rows = np.bincount(bins, minlength=CALIBRATION_BINS)
    kept = rows > 0
    predicted = np.bincount(bins, probabilities, CALIBRATION_BINS)[kept] / rows[kept]
    observed = np.bincount(bins, labels, CALIBRATION_BINS)[kept] / rows[kept]
    return CalibrationBins(predicted, observed, rows[kept])


def expected_calibration_error(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean over rows of |observed - predicted| of the row's bin, with the bins of `calibration_bins`.

    It is biased upwards: a perfectly calibrated model scores above 0 by the noise of a bin's share of positives, and a
    bootstrap resample has that noise twice. Its percentile interval therefore lies high, and may miss the point.
    """
    bins = calibration_bins(labels, probabilities)
    return float(np.average(np.abs(bins.observed - bins.predicted), weights=bins.rows))


def _min_recall_precision(labels: np.ndarray, probabilities: np.ndarray) -> float:
    precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, probabilities)
    return float(np.minimum(precision, recall).max())


def _macro(metric: Callable) -> Callable:
    def mean_over_columns(labels: np.ndarray, probabilities: np.ndarray) -> float:
        indicators = as_indicators(labels, probabilities)
        return float(np.mean([metric(y, p) for y, p in zip(indicators.T, probabilities.T, strict=True)]))

    return mean_over_columns


def _spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    return float(EVALUATORS["regression"](labels, predictions)(np.ones((1, len(labels))))["spearman"][0])


_POINTS: dict[str, dict[str, Callable]] = {
    "binary": {
        "auroc": sklearn_metrics.roc_auc_score,
        "auprc": sklearn_metrics.average_precision_score,
        "min_recall_precision": _min_recall_precision,
        "brier": sklearn_metrics.brier_score_loss,
        "log_loss": lambda y, p: sklearn_metrics.log_loss(y, p, labels=[0, 1]),
        "expected_calibration_error": expected_calibration_error,
    },
    "multiclass": {
        "accuracy": lambda y, p: sklearn_metrics.accuracy_score(y, p.argmax(axis=1)),
        "auroc_macro": _macro(sklearn_metrics.roc_auc_score),
        "log_loss": lambda y, p: sklearn_metrics.log_loss(y, p, labels=np.arange(p.shape[1])),
    },
    "multilabel": {
        "auroc_macro": _macro(sklearn_metrics.roc_auc_score),
        "auroc_micro": lambda y, p: sklearn_metrics.roc_auc_score(y.ravel(), p.ravel()),
        "auprc_macro": _macro(sklearn_metrics.average_precision_score),
    },
    "regression": {
        "mae": sklearn_metrics.mean_absolute_error,
        "rmse": sklearn_metrics.root_mean_squared_error,
        "r2": sklearn_metrics.r2_score,
        "spearman": _spearman,
    },
}


def bootstrap_samples(
    problem_type: str,
    labels: ArrayLike,
    predictions: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    num_samples: int = 1000,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Evaluate the metrics on resamples of the records: metric -> (num_samples,), NaN where a resample has no value.

    `groups` (n,) names each row's record; without it every row is a record of its own. As many records as there are
    are drawn with replacement, each with all its rows. Two calls with the same groups, num_samples and seed see the
    same resamples, whatever the predictions, so their differences are paired.
    """
    labels, predictions = check_inputs(problem_type, labels, predictions)
    record, num_records = number_records(groups, len(labels))
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, not {num_samples}")
    evaluate = EVALUATORS[problem_type](labels, predictions)
    generator = np.random.default_rng(seed)
    at_once = max(1, _WEIGHTS_AT_ONCE // max(labels.size, num_records))
    chunks = []
    for start in tqdm(range(0, num_samples, at_once), desc="bootstrap", unit="chunk", delay=3, leave=False):
        size = min(at_once, num_samples - start)
        drawn = generator.integers(num_records, size=(size, num_records))
        drawn += num_records * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * num_records).reshape(size, num_records)
        chunks.append(evaluate(counts.astype(np.float64)[:, record]))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in METRICS[problem_type]}


def number_records(groups: ArrayLike | None, n: int) -> tuple[np.ndarray, int]:
    """Number the records of `groups` (n,): the index of each row's record (n,), and how many there are."""
    if groups is None:
        return np.arange(n), n
    names, index = np.unique(_names("groups", groups, n), return_inverse=True)
    return index, len(names)


def _names(argument: str, values: ArrayLike, n: int) -> np.ndarray:
    array = np.asarray(values)
    if array.shape != (n,):
        raise ValueError(f"{argument} must have shape ({n},), a name for each row of labels, not {array.shape}")
    missing = [
        row for row, value in enumerate(array) if value is None or (isinstance(value, float) and np.isnan(value))
    ]
    if missing:
        raise ValueError(f"{argument} must name every row; row {missing[0]} is missing")
    return array.astype(str) if array.dtype == object else array


def bootstrap_intervals(
    problem_type: str,
    labels: ArrayLike,
    predictions: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    num_samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval | None]:
    """Percentile bootstrap intervals of the metrics of `compute_metrics`, from `bootstrap_samples`.

    Resamples in which a metric is undefined (those without both classes, say) are left out of its interval; `report`
    counts them. An interval is None where the metric itself is undefined, where fewer than half of the resamples give
    a value, and where there is one record only.
    """
    estimates = _estimates(
        problem_type, labels, predictions, groups=groups, num_samples=num_samples, seed=seed, level=level
    )
    return {name: interval and tuple(interval) for name, interval in estimates["confidence_intervals"].items()}


def paired_difference(
    problem_type: str,
    labels: ArrayLike,
    predictions_a: ArrayLike,
    predictions_b: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    num_samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, Any]]:
    """Difference a - b of each metric between two models on the same rows, with its paired bootstrap interval.

    Returns metric -> {"a", "b", "difference", "interval": [low, high]}, None where there is no value, as in
    `bootstrap_intervals`. Both models see the same resamples, so what they share cancels.
    """
    _check_level(level)
    points, samples = [], []
    for name, predictions in (("predictions_a", predictions_a), ("predictions_b", predictions_b)):
        try:
            points.append(compute_metrics(problem_type, labels, predictions))
        except ValueError as error:
            raise ValueError(f"{error} (predictions is {name})") from error
        samples.append(
            bootstrap_samples(problem_type, labels, predictions, groups=groups, num_samples=num_samples, seed=seed)
        )
    alone = number_records(groups, len(np.asarray(labels)))[1] < 2
    differences: dict[str, dict[str, Any]] = {}
    for name in METRICS[problem_type]:
        a, b = points[0][name], points[1][name]
        undefined = a is None or b is None
        differences[name] = {
            "a": a,
            "b": b,
            "difference": None if a is None or b is None else a - b,
            "interval": None
            if undefined or alone
            else percentile_interval(samples[0][name] - samples[1][name], level),
        }
    return differences


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")


def percentile_interval(values: np.ndarray, level: float) -> list[float] | None:
    """The middle `level` of the resamples' values; None where fewer than half of them are defined (not NaN)."""
    defined = values[~np.isnan(values)]
    if len(defined) < len(values) / 2:
        return None
    return np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]).tolist()


def _estimates(
    problem_type: str,
    labels: ArrayLike,
    predictions: ArrayLike,
    *,
    groups: ArrayLike | None,
    num_samples: int,
    seed: int,
    level: float,
) -> dict[str, Any]:
    """Sizes, metrics, their intervals, and what could not be computed: the part that reports and subgroups share."""
    _check_level(level)
    labels, predictions = check_inputs(problem_type, labels, predictions)
    undefined = undefined_metrics(problem_type, labels, predictions)
    samples = bootstrap_samples(problem_type, labels, predictions, groups=groups, num_samples=num_samples, seed=seed)
    num_records = number_records(groups, len(labels))[1]
    return {
        "problem_type": problem_type,
        "n": len(labels),
        "num_records": num_records,
        **({"positives": int(labels.sum())} if problem_type == "binary" else {}),
        "metrics": compute_metrics(problem_type, labels, predictions),
        "confidence_intervals": {
            name: None if name in undefined or num_records < 2 else percentile_interval(values, level)
            for name, values in samples.items()
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
    problem_type: str,
    labels: ArrayLike,
    predictions: ArrayLike,
    subgroup: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    num_samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, Any]]:
    """Evaluate each subgroup on its own: name -> a dict as `report` builds it, less what regards the whole; sorted.

    `subgroup` (n,) names each row's subgroup, such as an age band; a row whose subgroup is not known needs a name too.
    """
    labels, predictions = check_inputs(problem_type, labels, predictions)
    names = _names("subgroup", subgroup, len(labels)).astype(str)
    records = None if groups is None else _names("groups", groups, len(labels))
    return {
        str(name): _estimates(
            problem_type,
            labels[names == name],
            predictions[names == name],
            groups=None if records is None else records[names == name],
            num_samples=num_samples,
            seed=seed,
            level=level,
        )
        for name in np.unique(names)
    }


def report(
    problem_type: str,
    labels: ArrayLike,
    predictions: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    label_names: Sequence[str] | None = None,
    split_fingerprint: str | None = None,
    num_samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Build the JSON-able account of an evaluation.

    Keys: problem_type; n (rows); num_records; positives (binary only); metrics (metric -> value or null);
    confidence_intervals (metric -> [low, high] or null); undefined (metric -> reason); bootstrap (how the intervals
    were made, and for each metric how many resamples had no value and were left out); split_fingerprint; versions.
    Multiclass and multilabel reports add per_label: each class or column against the rest, a binary problem of its
    own, under its name in `label_names` (its index by default).
    """
    labels, predictions = check_inputs(problem_type, labels, predictions)
    options: dict[str, Any] = {"groups": groups, "num_samples": num_samples, "seed": seed, "level": level}
    result = _estimates(problem_type, labels, predictions, **options)
    if predictions.ndim == 2:
        names = named_columns(label_names, predictions.shape[1])
        indicators = as_indicators(labels, predictions)
        result["per_label"] = {
            name: _estimates("binary", indicators[:, column], predictions[:, column], **options)
            for column, name in enumerate(names)
        }
    result["split_fingerprint"] = split_fingerprint
    result["versions"] = {package: _version(package) for package in _PACKAGES}
    return result


def named_columns(label_names: Sequence[str] | None, columns: int) -> list[str]:
    """Names of the prediction columns: `label_names`, or their indices where it is None."""
    names = [str(column) for column in range(columns)] if label_names is None else list(label_names)
    if len(names) != columns or len(set(names)) != columns:
        raise ValueError(f"label_names must be {columns} different names, one a column of predictions, not {names}")
    return names


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # hymate itself, where it runs from a clone that was not installed
        return None


def format_report(report: Mapping[str, Any]) -> str:
    """Lay out what `report`, or `subgroup_report` for one subgroup, returned as a plain table for a terminal."""
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
