"""Metrics against scikit-learn and by hand; the bootstrap against repeated rows and against theory."""

import json
import math
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn_metrics

from hymate_training.evaluation import sample
from hymate_training.evaluation.metrics import (
    METRICS,
    bootstrap_intervals,
    bootstrap_samples,
    calibration_bins,
    compute_metrics,
    expected_calibration_error,
    format_report,
    paired_difference,
    report,
    subgroup_report,
    undefined_metrics,
)
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.evaluation.weighted_metrics import EVALUATORS

SCIKIT_LEARN = [problem_type for problem_type in METRICS if problem_type != "time_to_event"]  # see test_survival.py


def make(problem_type, n=200, seed=0, decimals=2):
    """Labels and informative predictions; rounding makes ties."""
    rng = np.random.default_rng(seed)
    if problem_type == "regression":
        labels = np.round(rng.normal(size=n), 1)
        return labels, np.round(labels + rng.normal(size=n), 1)
    if problem_type == "multiclass":
        labels = rng.integers(3, size=n)
        logits = rng.normal(size=(n, 3)) + np.eye(3)[labels]
        return labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    shape = (n, 3) if problem_type == "multilabel" else (n,)
    labels = (rng.random(shape) < 0.3).astype(int)
    return labels, np.round(1 / (1 + np.exp(-rng.normal(size=shape) - 1.5 * labels + 1.5)), decimals)


def with_sklearn(problem_type, y, p, w):
    """The metrics under weights, from scikit-learn and scipy alone (where they know weights)."""
    auc, ap = sklearn_metrics.roc_auc_score, sklearn_metrics.average_precision_score
    if problem_type == "binary":
        precision, recall, _ = sklearn_metrics.precision_recall_curve(y, p, sample_weight=w)
        return {
            "auroc": auc(y, p, sample_weight=w),
            "auprc": ap(y, p, sample_weight=w),
            "min_recall_precision": np.minimum(precision, recall).max(),
            "brier": sklearn_metrics.brier_score_loss(y, p, sample_weight=w),
            "log_loss": sklearn_metrics.log_loss(y, p, sample_weight=w, labels=[0, 1]),
            "expected_calibration_error": expected_calibration_error(
                LabeledPredictions("binary", np.repeat(y, w), np.repeat(p, w))
            ),
        }
    if problem_type == "multiclass":
        return {
            "accuracy": sklearn_metrics.accuracy_score(y, p.argmax(axis=1), sample_weight=w),
            "auroc_macro": auc(np.repeat(y, w), np.repeat(p, w, axis=0), multi_class="ovr", average="macro"),
            "log_loss": sklearn_metrics.log_loss(y, p, sample_weight=w),
        }
    if problem_type == "multilabel":
        return {
            "auroc_macro": auc(y, p, average="macro", sample_weight=w),
            "auroc_micro": auc(y, p, average="micro", sample_weight=w),
            "auprc_macro": ap(y, p, average="macro", sample_weight=w),
        }
    return {
        "mae": sklearn_metrics.mean_absolute_error(y, p, sample_weight=w),
        "rmse": sklearn_metrics.root_mean_squared_error(y, p, sample_weight=w),
        "r2": sklearn_metrics.r2_score(y, p, sample_weight=w),
        "spearman": stats.spearmanr(np.repeat(y, w), np.repeat(p, w)).statistic,
    }


@pytest.mark.parametrize("problem_type", SCIKIT_LEARN)
def test_metrics_and_their_weighted_versions_agree_with_scikit_learn(problem_type):
    y, p = make(problem_type)
    ones = np.ones(len(y), dtype=int)
    assert compute_metrics(LabeledPredictions(problem_type, y, p)) == pytest.approx(
        with_sklearn(problem_type, y, p, ones)
    )

    weights = np.random.default_rng(1).poisson(1, size=(5, len(y)))
    weights[0] = 1
    fast = EVALUATORS[problem_type](LabeledPredictions(problem_type, y, p))(weights.astype(float))
    for row, w in enumerate(weights):
        expected = with_sklearn(problem_type, y, p, w)
        assert {name: values[row] for name, values in fast.items()} == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), st.integers(0, 3)),
        min_size=2,
        max_size=30,
    )
)
def test_weighted_binary_metrics_with_ties_and_weightless_rows(rows):
    y, p, w = (np.array(column) for column in zip(*rows, strict=True))
    y = y.astype(int)
    assume(len(set(y[w > 0])) == 2)
    fast = EVALUATORS["binary"](LabeledPredictions("binary", y, p))(w[None].astype(float))
    expected = with_sklearn("binary", y, p, w)
    assert {name: values[0] for name, values in fast.items()} == pytest.approx(expected, abs=1e-12)
    # the order of rows is without effect, bins of calibration included
    assert compute_metrics(LabeledPredictions("binary", y[::-1], p[::-1])) == pytest.approx(
        compute_metrics(LabeledPredictions("binary", y, p))
    )


@pytest.mark.parametrize("problem_type", SCIKIT_LEARN)
def test_a_row_weighs_as_often_as_its_record_is_drawn(problem_type):
    y, p = make(problem_type, n=3000, decimals=3)
    records = np.random.default_rng(2).integers(400, size=len(y))  # in no order
    drawn = LabeledPredictions(problem_type, y, p, groups=records)
    counts = np.random.default_rng(3).multinomial(400, np.full(drawn.num_records, 1 / drawn.num_records), size=7)
    fast = EVALUATORS[problem_type](drawn)(counts.astype(float))
    for resample, times in enumerate(counts):
        expected = with_sklearn(problem_type, y, p, times[drawn.record])
        assert {name: values[resample] for name, values in fast.items()} == pytest.approx(expected, abs=1e-12)


def test_min_recall_precision_by_hand():
    # thresholds from the top: recall 1/2, 1/2, 1, 1 and precision 1, 1/2, 2/3, 1/2
    metrics = compute_metrics(LabeledPredictions("binary", [1, 0, 1, 0], [0.9, 0.8, 0.7, 0.1]))
    assert metrics["min_recall_precision"] == pytest.approx(2 / 3)
    assert metrics["auprc"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert metrics["auroc"] == pytest.approx(3 / 4)


def test_calibration_by_hand():
    # 20 rows without ties: two to a bin; the first bin holds 0.01 and 0.02 and one positive, the others are exact
    p = np.arange(1, 21) / 100
    y = np.zeros(20, dtype=int)
    y[0] = 1
    bins = calibration_bins(LabeledPredictions("binary", y, p))
    assert bins.rows.tolist() == [2] * 10
    assert bins.predicted[0] == pytest.approx(0.015)
    assert bins.observed.tolist() == [0.5] + [0] * 9
    expected = (2 * abs(0.5 - 0.015) + p[2:].sum()) / 20
    assert expected_calibration_error(LabeledPredictions("binary", y, p)) == pytest.approx(expected)
    # all rows tied: one bin, so the distance of the means
    assert expected_calibration_error(LabeledPredictions("binary", [1, 0, 0, 0], [0.4] * 4)) == pytest.approx(0.15)


def test_intervals_cover_the_truth_as_often_as_they_say():
    # scores N(0, 1) and N(1, 1): the AUROC is Phi(1 / sqrt 2); 150 trials at 90% have a standard error of 2.4%
    truth = stats.norm.cdf(1 / math.sqrt(2))
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [150, 50])
    trials, covered = 150, 0
    for trial in range(trials):
        p = stats.norm.cdf(rng.normal(size=200) + y)
        low, high = bootstrap_intervals(LabeledPredictions("binary", y, p), num_samples=150, seed=trial, level=0.9)[
            "auroc"
        ]
        covered += low <= truth <= high
    assert 0.81 <= covered / trials <= 0.97


def test_records_are_resampled_whole():
    rng = np.random.default_rng(0)
    record = np.repeat([f"patient {i}" for i in range(60)], 10)
    y = np.repeat(rng.random(60) < 0.4, 10).astype(int)
    p = np.clip(np.repeat(rng.random(60), 10) * 0.7 + 0.3 * y, 0, 1)  # rows of a record are copies
    naive = bootstrap_intervals(LabeledPredictions("binary", y, p))
    grouped = bootstrap_intervals(LabeledPredictions("binary", y, p, groups=record))
    alone = bootstrap_intervals(LabeledPredictions("binary", y[::10], p[::10], groups=record[::10]))
    for name in ("auroc", "auprc", "brier"):
        width = np.ptp(grouped[name])
        assert width > 2 * np.ptp(naive[name])
        assert width == pytest.approx(np.ptp(alone[name]))  # copies add no information
    # with records named, the order of rows has no effect
    shuffled = rng.permutation(len(y))
    moved = bootstrap_intervals(LabeledPredictions("binary", y[shuffled], p[shuffled], groups=record[shuffled]))
    assert moved["auroc"] == pytest.approx(grouped["auroc"])


@pytest.mark.parametrize("problem_type", SCIKIT_LEARN)
def test_resamples_are_the_metrics_of_resampled_rows(problem_type):
    y, p = make(problem_type, n=40)
    samples = bootstrap_samples(LabeledPredictions(problem_type, y, p), num_samples=3, seed=5)
    rows = np.random.default_rng(5).integers(40, size=(3, 40))
    for draw in range(3):
        expected = compute_metrics(LabeledPredictions(problem_type, y[rows[draw]], p[rows[draw]]))
        assert {name: values[draw] for name, values in samples.items()} == pytest.approx(expected)


def test_bootstrap_is_set_by_its_seed():
    y, p = make("binary")
    first = bootstrap_intervals(LabeledPredictions("binary", y, p), num_samples=50, seed=3)
    assert first == bootstrap_intervals(LabeledPredictions("binary", y, p), num_samples=50, seed=3)
    assert first != bootstrap_intervals(LabeledPredictions("binary", y, p), num_samples=50, seed=4)
    wide = bootstrap_intervals(LabeledPredictions("binary", y, p), num_samples=50, seed=3, level=0.99)
    assert all(wide[name][0] <= low and high <= wide[name][1] for name, (low, high) in first.items())


def test_a_thousand_resamples_of_four_thousand_rows_take_seconds():
    y, p = make("binary", n=4000, decimals=8)
    start = time.process_time()
    bootstrap_intervals(LabeledPredictions("binary", y, p))
    assert time.process_time() - start < 10  # about one second on an idle core


def test_paired_difference():
    y, p = make("binary", n=400, decimals=6)
    same = paired_difference(LabeledPredictions("binary", y, p), LabeledPredictions("binary", y, p), num_samples=50)
    assert same["auroc"]["difference"] == 0
    assert same["auroc"]["interval"] == [0, 0]
    noise = np.random.default_rng(2)
    worse = np.clip(p + noise.normal(scale=0.2, size=len(p)), 0, 1)
    difference = paired_difference(LabeledPredictions("binary", y, p), LabeledPredictions("binary", y, worse))["auroc"]
    assert difference["difference"] == pytest.approx(difference["a"] - difference["b"])
    low, high = difference["interval"]
    assert 0 < low < difference["difference"] < high
    swapped = paired_difference(LabeledPredictions("binary", y, worse), LabeledPredictions("binary", y, p))["auroc"]
    assert swapped["interval"] == pytest.approx([-high, -low])
    # what two models share cancels: the interval is far narrower than that of either
    similar = paired_difference(
        LabeledPredictions("binary", y, p),
        LabeledPredictions("binary", y, np.clip(p + noise.normal(scale=0.01, size=len(p)), 0, 1)),
    )["auroc"]
    assert np.ptp(similar["interval"]) < 0.5 * np.ptp(bootstrap_intervals(LabeledPredictions("binary", y, p))["auroc"])
    with pytest.raises(ValueError, match="same problem type, labels and records"):
        paired_difference(LabeledPredictions("binary", y, p), LabeledPredictions("binary", 1 - y, worse))


@pytest.mark.parametrize(
    ("problem_type", "labels", "predictions", "undefined"),
    [
        ("binary", [1, 1, 1], [0.2, 0.5, 0.9], {"auroc", "auprc", "min_recall_precision"}),
        ("binary", [0], [0.5], {"auroc", "auprc", "min_recall_precision"}),
        ("multiclass", [0, 1, 1], [[0.5, 0.3, 0.2]] * 3, {"auroc_macro"}),
        ("multilabel", [[0, 1], [1, 1]], [[0.1, 0.2], [0.3, 0.4]], {"auroc_macro", "auprc_macro"}),
        ("multilabel", [[0, 0], [0, 0]], [[0.1, 0.2], [0.3, 0.4]], {"auroc_macro", "auprc_macro", "auroc_micro"}),
        ("regression", [2.0, 2.0], [1.0, 3.0], {"r2", "spearman"}),
        ("regression", [1.0, 2.0], [0.1, 0.1], {"spearman"}),
    ],
)
def test_undefined_metrics_are_none_with_a_reason(problem_type, labels, predictions, undefined):
    metrics = compute_metrics(LabeledPredictions(problem_type, labels, predictions))
    assert {name for name, value in metrics.items() if value is None} == undefined
    assert all(value is None or math.isfinite(value) for value in metrics.values())
    assert set(undefined_metrics(LabeledPredictions(problem_type, labels, predictions))) == undefined
    result = report(LabeledPredictions(problem_type, labels, predictions), num_samples=20)
    assert {name for name, interval in result["confidence_intervals"].items() if interval is None} >= undefined
    text = format_report(result)
    assert text.count("not defined") == len(undefined)
    json.dumps(result, allow_nan=False)


def test_resamples_of_one_class_are_left_out_and_counted():
    y = np.array([1, 1, 0, 0, 0, 0])
    result = report(LabeledPredictions("binary", y, np.linspace(0.9, 0.1, 6)))
    left_out = result["bootstrap"]["undefined_resamples"]
    expected = 1000 * ((4 / 6) ** 6 + (2 / 6) ** 6)  # no positive, or no negative
    assert left_out["auroc"] == pytest.approx(expected, abs=40)
    assert "brier" not in left_out
    assert result["confidence_intervals"]["auroc"] == [1, 1]
    # where most resamples have no value there is no interval
    rare = np.eye(20, 3, dtype=int)  # one positive a column: all three are drawn in about a quarter of resamples
    sparse = report(LabeledPredictions("multilabel", rare, np.full((20, 3), 0.5)), num_samples=200)
    assert sparse["metrics"]["auroc_macro"] == 0.5
    assert sparse["bootstrap"]["undefined_resamples"]["auroc_macro"] > 100
    assert sparse["confidence_intervals"]["auroc_macro"] is None
    assert sparse["confidence_intervals"]["auroc_micro"] == [0.5, 0.5]
    # one record cannot be resampled
    assert (
        bootstrap_intervals(LabeledPredictions("binary", y, np.linspace(0.9, 0.1, 6), groups=["a"] * 6))["brier"]
        is None
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ordinal", [0, 1], [0.1, 0.2]), "problem_type must be one of binary"),
        (("binary", [], []), "labels is empty"),
        (("binary", [0, 1], [0.1]), "labels has 2 rows and predictions 1"),
        (("binary", [0, 2], [0.1, 0.2]), "labels must each be 0 or 1; row 1 holds 2"),
        (("binary", [0, np.nan], [0.1, 0.2]), "labels must be finite; row 1 holds nan"),
        (("binary", [0, 1], [0.1, np.nan]), "predictions must be finite; row 1"),
        (("binary", [0, 1], [0.1, 1.5]), r"probabilities in \[0, 1\]; row 1 holds 1.5"),
        (("binary", [0, 1], [-3.0, 0.5]), "sigmoid"),
        (("binary", [0, 1], [[0.1, 0.9], [0.5, 0.5]]), r"predictions of a binary problem must have shape \(rows,\)"),
        (("binary", ["no", "yes"], [0.1, 0.2]), "labels must be numbers"),
        (("multiclass", [0, 3], [[0.2, 0.3, 0.5]] * 2), "class index from 0 to 2; row 1 holds 3"),
        (("multiclass", [0, 1], [[0.2, 0.2], [0.5, 0.5]]), "sum to 1 in each row; row 0 sums to 0.4"),
        (("multiclass", [0, 0], [[1.0], [1.0]]), "at least 2"),
        (("multilabel", [[0, 1]], [[0.1, 0.2, 0.3]]), "labels has 2 columns and predictions 3"),
        (("regression", [0.0, np.inf], [0.0, 1.0]), "labels must be finite"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        compute_metrics(LabeledPredictions(*arguments))


def test_bad_options_are_named():
    y, p = make("binary", n=4)
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        bootstrap_intervals(LabeledPredictions("binary", y, p), level=95)
    with pytest.raises(ValueError, match="num_samples"):
        bootstrap_intervals(LabeledPredictions("binary", y, p), num_samples=0)
    with pytest.raises(ValueError, match=r"groups must have shape \(4,\)"):
        bootstrap_intervals(LabeledPredictions("binary", y, p, groups=["a"]))
    with pytest.raises(ValueError, match="subgroup must name every row; row 1"):
        subgroup_report(LabeledPredictions("binary", y, p), ["f", None, "m", "m"])
    with pytest.raises(ValueError, match="label_names must be 3 different names"):
        report(LabeledPredictions("multilabel", *make("multilabel"), label_names=["a", "b"]), num_samples=5)


def test_report_is_json_and_says_where_it_comes_from():
    y, p = make("binary")
    record = np.arange(200) // 2
    result = report(LabeledPredictions("binary", y, p, groups=record), split_fingerprint="abc", num_samples=100)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert (result["n"], result["num_records"], result["positives"]) == (200, 100, y.sum())
    assert result["metrics"] == compute_metrics(LabeledPredictions("binary", y, p))
    assert result["split_fingerprint"] == "abc"
    assert set(result["versions"]) == {"hymate", "torch", "transformers", "numpy", "scikit-learn"}
    assert result["versions"]["numpy"] == np.__version__
    for name, (low, high) in result["confidence_intervals"].items():
        if name != "expected_calibration_error":  # biased, as documented
            assert low < result["metrics"][name] < high

    lines = format_report(result).splitlines()
    assert lines[0] == f"200 rows of 100 records, {y.sum()} positive ({y.mean():.1%})"
    assert lines[2].split() == ["metric", "value", "95%", "interval"]
    low, high = result["confidence_intervals"]["auroc"]
    assert lines[3].split() == ["AUROC", f"{result['metrics']['auroc']:.4f}", f"[{low:.4f},", f"{high:.4f}]"]
    assert len({line.index("[") for line in lines[3:]}) == 1


@pytest.mark.parametrize("problem_type", ["multiclass", "multilabel"])
def test_report_of_each_label(problem_type):
    y, p = make(problem_type)
    result = report(LabeledPredictions(problem_type, y, p, label_names=["home", "ward", "died"]), num_samples=20)
    assert list(result["per_label"]) == ["home", "ward", "died"]
    died = (y == 2) if problem_type == "multiclass" else y[:, 2]
    assert result["per_label"]["died"]["metrics"] == pytest.approx(
        compute_metrics(LabeledPredictions("binary", died, p[:, 2]))
    )
    mean = np.mean([label["metrics"]["auroc"] for label in result["per_label"].values()])
    assert result["metrics"]["auroc_macro"] == pytest.approx(mean)


def test_a_report_checks_its_input_once(monkeypatch):
    calls = []
    check = sample._checked
    monkeypatch.setattr(sample, "_checked", lambda *arguments: calls.append(1) or check(*arguments))
    labels, predictions = make("multiclass")
    checked = LabeledPredictions("multiclass", labels, predictions)
    report(checked, num_samples=5)
    subgroup_report(checked, np.arange(len(labels)) % 2, num_samples=5)
    assert len(calls) == 1


def test_subgroups_are_evaluated_on_their_own():
    y, p = make("binary", n=300)
    band = np.array(["65-79", "18-64", "80+"])[np.arange(300) % 3]
    y[band == "80+"] = 0
    result = subgroup_report(LabeledPredictions("binary", y, p, groups=np.arange(300)), band, num_samples=50)
    assert list(result) == ["18-64", "65-79", "80+"]
    assert sum(group["n"] for group in result.values()) == 300
    assert sum(group["positives"] for group in result.values()) == y.sum()
    young = band == "18-64"
    assert result["18-64"]["metrics"] == compute_metrics(LabeledPredictions("binary", y[young], p[young]))
    assert result["80+"]["metrics"]["auroc"] is None
    assert result["80+"]["confidence_intervals"]["auroc"] is None
    assert result["80+"]["metrics"]["brier"] is not None
    assert "100 rows, 0 positive" in format_report(result["80+"])
    json.dumps(result, allow_nan=False)
