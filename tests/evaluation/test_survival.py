"""Metrics of times to an event: those of scikit-survival and torchsurv, by their definitions, and on resamples."""

import numpy as np
import pytest

from hymate_training.evaluation.metrics import (
    METRICS,
    bootstrap_samples,
    compute_metrics,
    report,
    undefined_metrics,
)
from hymate_training.evaluation.resampling import Resampler
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.evaluation.survival import Followed, horizon_table, survival_evaluator

TIMES = np.array([6.0, 12, 24, 48, 96])
NAMES = tuple(METRICS["time_to_event"])


def sample(n=250, seed=0, censoring=80.0, step=1.0, groups=None) -> LabeledPredictions:
    """Exponential times that a covariate drives and predictions follow; with `step` many times and risks are tied."""
    rng = np.random.default_rng(seed)
    driver = rng.normal(size=n)
    happens = np.ceil(rng.exponential(60 * np.exp(-driver)) / step) * step
    lost = np.ceil(rng.exponential(censoring, n) / step) * step
    rate = np.exp(driver + 0.3 * rng.normal(size=n))[:, None] * (1 + rng.random((n, len(TIMES))))
    risk = np.maximum.accumulate(np.round(1 - np.exp(-TIMES / 90 * rate), 2), axis=1)
    labels = np.stack([np.minimum(happens, lost), happens <= lost], axis=1)
    return LabeledPredictions("time_to_event", labels, risk, times=TIMES, groups=groups)


def outcomes(data: LabeledPredictions):
    util = pytest.importorskip("sksurv.util", reason="needs scikit-survival")
    return util.Surv.from_arrays(data.labels[:, 1] == 1, data.labels[:, 0])


@pytest.mark.parametrize(
    "options", [{}, {"seed": 1, "step": 8.0}, {"seed": 2, "censoring": 20.0}, {"seed": 3, "censoring": 1e9}]
)
def test_auroc_and_brier_score_are_those_of_scikit_survival(options):
    metrics = pytest.importorskip("sksurv.metrics", reason="needs scikit-survival")
    data = sample(**options)
    known, at, span = outcomes(data), Followed(data).grid, Followed(data).span
    assert len(at) > 2
    found = compute_metrics(data)
    _, mean = metrics.cumulative_dynamic_auc(known, known, data.predictions[:, at], TIMES[at])
    assert found["auroc_dynamic"] == pytest.approx(mean, abs=1e-6)
    expected = metrics.integrated_brier_score(known, known, 1 - data.predictions[:, span], TIMES[span])
    assert found["integrated_brier_score"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("options", [{}, {"seed": 1, "step": 8.0}, {"seed": 2, "censoring": 20.0}])
def test_concordance_is_that_of_torchsurv(options):
    cindex = pytest.importorskip("torchsurv.metrics.cindex", reason="needs torchsurv")
    torch = pytest.importorskip("torch")
    data = sample(150, **options)
    hours, observed = data.labels.T
    observed = observed * (hours <= TIMES[-1])  # later events are compared with none
    followed = Followed(data)
    order = np.lexsort((data.labels[:, 1] != 1, hours))
    by_time = followed.risk_at(np.minimum(hours[order], TIMES[-1]))  # (n, n): of each row by the time of each
    risk = torch.from_numpy(by_time)
    reference = cindex.ConcordanceIndex()
    expected = reference(risk, torch.from_numpy(observed[order] == 1), torch.from_numpy(hours[order]))
    assert compute_metrics(data)["concordance"] == pytest.approx(expected.item(), abs=1e-6)


def test_concordance_of_risks_that_do_not_cross_is_harrells():
    metrics = pytest.importorskip("sksurv.metrics", reason="needs scikit-survival")
    data = sample(200, step=4.0)
    rate = np.round(data.predictions[:, 0] + 0.01, 2)  # many are equal
    steady = LabeledPredictions("time_to_event", data.labels, 1 - np.exp(-TIMES / 40 * rate[:, None]), times=TIMES)
    event = (data.labels[:, 1] == 1) & (data.labels[:, 0] <= TIMES[-1])
    expected, *_ = metrics.concordance_index_censored(event, data.labels[:, 0], rate)
    assert compute_metrics(steady)["concordance"] == pytest.approx(expected, abs=1e-6)


def test_concordance_by_its_definition():
    data = sample(60, step=8.0)
    hours, observed = data.labels.T
    risk = np.stack([plain_risk(row, hours) for row in data.predictions])
    right = pairs = 0.0
    for i in np.flatnonzero((observed == 1) & (hours <= TIMES[-1])):
        for j in range(len(data)):
            if hours[j] > hours[i] or (hours[j] == hours[i] and not observed[j]):
                pairs += 1
                right += np.heaviside(np.round(risk[i, i] - risk[j, i], 8), 0.5)
    assert compute_metrics(data)["concordance"] == pytest.approx(right / pairs, abs=1e-9)


def plain_risk(row: np.ndarray, hours: np.ndarray) -> np.ndarray:
    """Risk by some hours: survival is interpolated on a logarithmic scale."""
    survival = np.log(np.append(1, 1 - np.minimum(row, 1 - 1e-12)))
    return 1 - np.exp(np.interp(hours, np.append(0, TIMES), survival))


def test_a_record_that_is_drawn_twice_counts_as_two():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, 120)
    groups[:40] = np.arange(40)
    data = sample(120, groups=groups, step=4.0)
    counts = rng.integers(0, 4, (5, 40)).astype(float)
    found = survival_evaluator(data)(counts)
    for at, times in enumerate(counts):
        rows = np.repeat(np.arange(120), times[data.record].astype(int))
        drawn = LabeledPredictions("time_to_event", data.labels[rows], data.predictions[rows], times=TIMES)
        assert len(Followed(drawn).grid) == len(Followed(data).grid)
        for name, value in compute_metrics(drawn).items():
            assert found[name][at] == pytest.approx(value, abs=1e-9), name


def test_pairs_that_do_not_fit_are_compared_anew(monkeypatch):
    usual = bootstrap_samples(sample(), num_samples=5)
    monkeypatch.setattr("hymate_training.evaluation.survival.PAIRS_HELD", 0)
    for name, values in bootstrap_samples(sample(), num_samples=5).items():
        np.testing.assert_allclose(values, usual[name])


def test_horizons_are_those_of_scikit_survival():
    metrics = pytest.importorskip("sksurv.metrics", reason="needs scikit-survival")
    nonparametric = pytest.importorskip("sksurv.nonparametric", reason="needs scikit-survival")
    data, hours = sample(), [12.0, 30.0]
    known = outcomes(data)
    rows = horizon_table(data, hours, Resampler(len(data), num_samples=50))
    risk = np.stack([plain_risk(row, np.array(hours)) for row in data.predictions])
    times, alive = nonparametric.kaplan_meier_estimator(known["event"], known["time"])
    for at, row in enumerate(rows):
        area, _ = metrics.cumulative_dynamic_auc(known, known, risk[:, at], [hours[at]])
        _, score = metrics.brier_score(known, known, 1 - risk[:, [at]], [hours[at]])
        expected = {
            "auroc": area[0],
            "brier": score[0],
            "observed_risk": 1 - alive[times <= hours[at]][-1],
            "mean_risk": risk[:, at].mean(),
        }
        for name, value in expected.items():
            assert row[name] == pytest.approx(value, abs=1e-6), name
            low, high = row["confidence_intervals"][name]
            assert low <= row[name] <= high, name


def test_a_horizon_that_nobody_was_followed_to_has_no_numbers_but_the_models():
    data = sample()
    short = LabeledPredictions(
        "time_to_event", np.minimum(data.labels, [20.0, 1.0]) * [1, 1], data.predictions, times=TIMES
    )
    row = horizon_table(short, [48.0], Resampler(len(short), num_samples=5))[0]
    assert row["mean_risk"] > 0
    assert all(row[name] is None for name in ("auroc", "brier", "observed_risk"))


@pytest.mark.parametrize(
    ("change", "undefined"),
    [
        (lambda labels: labels * [1, 0], {"concordance", "auroc_dynamic"}),  # all are censored
        (lambda labels: labels * [0, 0], set(NAMES)),  # at once
        (lambda labels: np.stack([np.full(len(labels), 24.0), np.ones(len(labels))], 1), set(NAMES)),
        (lambda labels: labels, set()),
    ],
)
def test_what_is_undefined_has_a_reason_and_no_value(change, undefined):
    data = sample()
    changed = LabeledPredictions("time_to_event", change(data.labels), data.predictions, times=TIMES)
    assert set(undefined_metrics(changed)) == undefined
    assert {name for name, value in compute_metrics(changed).items() if value is None} == undefined
    built = report(changed, num_samples=5)
    assert built["positives"] == changed.labels[:, 1].sum()
    assert {name for name, value in built["confidence_intervals"].items() if value is None} == undefined


@pytest.mark.parametrize(
    ("labels", "predictions", "times", "message"),
    [
        ([[3, 2]], [[0.1, 0.2]], [1, 2], "row 0 holds 3 and 2"),
        ([[-3, 0]], [[0.1, 0.2]], [1, 2], "hours from 0 on"),
        ([[0, 1]], [[0.1, 0.2]], [1, 2], "which comes after hour 0"),
        ([[3, 1]], [[0.1, 1.2]], [1, 2], "must be probabilities"),
        ([[3, 1, 1]], [[0.1, 0.2]], [1, 2], r"must have shape \(rows, 2\)"),
        ([[3, 1]], [[0.1, 0.2]], [2, 1], "times must be 2 ascending hours above 0"),
        ([[3, 1]], [[0.1, 0.2]], None, "times must be 2 ascending hours above 0"),
    ],
)
def test_samples_that_cannot_be_are_refused(labels, predictions, times, message):
    with pytest.raises(ValueError, match=message):
        LabeledPredictions("time_to_event", labels, predictions, times=times)
