"""Net benefit, rates and calibration against reference libraries and by hand; gaps; and their intervals."""

import time

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix

from hymate_training.evaluation.decisions import (
    CURVE_THRESHOLDS,
    RATES,
    check_thresholds,
    net_benefit,
    threshold_table,
)
from hymate_training.evaluation.gaps import FEW_RECORDS, GAPS, subgroup_gaps
from hymate_training.evaluation.metrics import SMALLEST_GROUP
from hymate_training.evaluation.recalibration import calibration, fit_logistic, log_odds, spline_basis
from hymate_training.evaluation.resampling import Resampler
from hymate_training.evaluation.sample import LabeledPredictions


def simulated(n=2000, slope=0.7, shift=-0.4, seed=0, rows_per_record=1) -> LabeledPredictions:
    """Probabilities whose log-odds are off by a known slope and shift; some on thresholds, to the last digit."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-1.5, 1.3, n)
    labels = (rng.random(n) < 1 / (1 + np.exp(-(shift + slope * z)))).astype(int)
    probabilities = np.where(rng.random(n) < 0.3, np.round(1 / (1 + np.exp(-z)), 2), 1 / (1 + np.exp(-z)))
    return LabeledPredictions("binary", labels, probabilities, groups=np.arange(n) // rows_per_record)


def repeated(sample: LabeledPredictions, counts: np.ndarray) -> LabeledPredictions:
    """The rows of each record as often as it is drawn."""
    rows = np.repeat(np.arange(len(sample)), counts.astype(int)[sample.record])
    return LabeledPredictions("binary", sample.labels[rows], sample.predictions[rows])


# --------------------------------------------------------------------------------------------- references, to 1e-6


def test_net_benefit_agrees_with_dcurves():
    dcurves = pytest.importorskip("dcurves", reason="needs dcurves, whose dependencies want an older pandas")
    pandas = pytest.importorskip("pandas")
    sample = simulated()
    other = LabeledPredictions("binary", sample.labels, np.random.default_rng(1).random(len(sample)))
    found = net_benefit(sample, baseline=other)
    frame = pandas.DataFrame({"died": sample.labels, "model": sample.predictions, "baseline": other.predictions})
    expected = dcurves.dca(
        data=frame, outcome="died", modelnames=["model", "baseline"], thresholds=np.array(CURVE_THRESHOLDS)
    )
    for ours, theirs in (("model", "model"), ("baseline", "baseline"), ("treat_all", "all"), ("treat_none", "none")):
        reference = expected[expected["model"] == theirs].sort_values("threshold")["net_benefit"]
        np.testing.assert_allclose(found[ours], reference, atol=1e-6)


def test_rates_agree_with_scikit_learn():
    sample = simulated()
    for row in threshold_table(sample, (0.05, 0.1, 0.25, 0.4), Resampler(sample.num_records, num_samples=2)):
        called = sample.predictions >= row["threshold"]
        tn, fp, fn, tp = confusion_matrix(sample.labels, called).ravel()
        expected = [tp / (tp + fn), tn / (tn + fp), tp / (tp + fp), tn / (tn + fn), 100 * called.mean()]
        assert [row[name] for name in RATES] == pytest.approx(expected, abs=1e-12)


def test_calibration_agrees_with_statsmodels():
    api = pytest.importorskip("statsmodels.api")
    sample = simulated()
    x = log_odds(sample.predictions)
    found = calibration(sample, Resampler(sample.num_records, num_samples=2))
    family = api.families.Binomial()
    intercept = api.GLM(sample.labels, np.ones_like(x), family=family, offset=x).fit(tol=1e-12)
    slope = api.GLM(sample.labels, api.add_constant(x), family=family).fit(tol=1e-12)
    assert found["intercept"] == pytest.approx(intercept.params[0], abs=1e-6)
    assert found["slope"] == pytest.approx(slope.params[1], abs=1e-6)
    knots = np.quantile(x, (0.05, 0.275, 0.5, 0.725, 0.95))
    design = spline_basis(x, knots)
    smooth = api.GLM(sample.labels, design, family=family).fit(tol=1e-12)
    points = spline_basis(
        log_odds(np.array(found["curve"]["predicted"])), np.quantile(x, (0.05, 0.275, 0.5, 0.725, 0.95))
    )
    np.testing.assert_allclose(found["curve"]["observed"], smooth.predict(points), atol=1e-6)


def test_calibration_agrees_with_scikit_learn():
    sample = simulated()
    reference = LogisticRegression(C=np.inf, tol=1e-12, solver="newton-cholesky", max_iter=200)
    reference.fit(log_odds(sample.predictions)[:, None], sample.labels)
    found = calibration(sample, Resampler(sample.num_records, num_samples=2))
    assert found["slope"] == pytest.approx(reference.coef_[0, 0], abs=1e-6)


def test_the_spline_is_that_of_patsy():
    """Both span all functions that are cubic between the knots, twice differentiable, and linear beyond."""
    patsy = pytest.importorskip("patsy")
    x = np.random.default_rng(0).normal(size=300)
    knots = np.quantile(x, (0.05, 0.275, 0.5, 0.725, 0.95))
    inside = x[(x >= knots[0]) & (x <= knots[-1])]
    ours = spline_basis(inside, knots)
    reference = np.asarray(
        patsy.dmatrix(
            "cr(x, knots=inner, lower_bound=low, upper_bound=high) - 1",
            {"x": inside, "inner": knots[1:-1], "low": knots[0], "high": knots[-1]},
        )
    )
    residual = reference - ours @ np.linalg.lstsq(ours, reference, rcond=None)[0]
    assert np.abs(residual).max() < 1e-9
    beyond = spline_basis(np.array([knots[-1] + step for step in (1.0, 2.0, 3.0)]), knots)
    np.testing.assert_allclose(np.diff(beyond, n=2, axis=0), 0, atol=1e-9)


# ------------------------------------------------------------------------------------------------------- by hand


def test_net_benefit_by_hand():
    sample = LabeledPredictions("binary", [1, 1, 0, 0, 0], [0.9, 0.2, 0.5, 0.2, 0.1])
    found = net_benefit(sample, (0.2, 0.5))
    assert found["model"] == pytest.approx([2 / 5 - 2 / 5 * 0.25, 1 / 5 - 1 / 5 * 1])  # an alarm at the threshold
    assert found["treat_all"] == pytest.approx([2 / 5 - 3 / 5 * 0.25, 2 / 5 - 3 / 5])
    assert found["treat_none"] == [0, 0]
    assert found["model_minus_best_default"] == pytest.approx([0.3 - 0.25, 0.0])


def test_perfect_probabilities_need_no_correction_and_known_errors_are_found():
    found = calibration(simulated(200_000, slope=1.0, shift=0.0), Resampler(200_000, num_samples=2))
    assert found["intercept"] == pytest.approx(0, abs=0.02)
    assert found["slope"] == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(found["curve"]["observed"], found["curve"]["predicted"], atol=0.02)
    found = calibration(simulated(200_000, slope=0.7), Resampler(200_000, num_samples=2))
    assert found["slope"] == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize(
    ("labels", "probabilities", "undefined"),
    [
        ([0, 0, 0, 0], [0.1, 0.2, 0.3, 0.4], {"intercept", "slope"}),
        ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], {"slope"}),  # separated: an infinite slope
        ([0, 1, 0, 1], [0.2, 0.2, 0.2, 0.2], {"slope"}),
        ([0, 1, 0, 1], [0.0, 1.0, 1.0, 0.0], set()),
        ([1, 0, 1, 1], [1e-30, 0.0, 1e-9, 1e-9], {"slope"}),  # as good as 0, all of them
    ],
)
def test_what_has_no_finite_correction_is_none(labels, probabilities, undefined):
    found = calibration(LabeledPredictions("binary", labels, probabilities), Resampler(4, num_samples=20))
    assert {name for name in ("intercept", "slope") if found[name] is None} == undefined
    assert found["curve"] is None
    assert all(np.isfinite(found[name]) for name in {"intercept", "slope"} - undefined)


def test_a_regression_far_from_its_start_is_found():
    labels = np.array([1, 1, 1, 0])
    fit = fit_logistic(np.ones((4, 1)), labels, offset=np.full(4, -15.9))
    assert fit.coefficients[0] == pytest.approx(15.9 + np.log(3))


def test_predictive_values_of_few_alarms_are_not_told():
    labels = np.arange(100) % 2
    sample = LabeledPredictions("binary", labels, np.where(np.arange(100) < SMALLEST_GROUP - 1, 0.9, 0.1))
    (row,) = threshold_table(sample, [0.5])
    assert row["ppv"] is None
    assert row["confidence_intervals"]["ppv"] is None
    assert row["npv"] is not None


@pytest.mark.parametrize("thresholds", [[], [0.0], [1.0], [0.5, -0.1], [float("nan")]])
def test_impossible_thresholds_are_refused(thresholds):
    with pytest.raises(ValueError, match="thresholds must lie between 0 and 1"):
        check_thresholds(thresholds)


# ------------------------------------------------------------------------------------------------------- intervals


def test_resampled_sums_are_those_of_repeated_rows():
    sample = simulated(300, rows_per_record=3)
    resampler = Resampler(sample.num_records, num_samples=40, seed=3)
    draws = np.concatenate(list(resampler.counts()))
    copies = [repeated(sample, counts) for counts in draws]
    thresholds = (0.1, 0.3)
    single = [net_benefit(copy, thresholds, resampler=Resampler(copy.num_records, num_samples=1)) for copy in copies]
    found = net_benefit(sample, thresholds, resampler=resampler)["confidence_intervals"]
    for name in ("model", "treat_all", "model_minus_best_default"):
        values = np.array([one[name] for one in single])
        np.testing.assert_allclose(found[name], np.quantile(values, (0.025, 0.975), axis=0).T, atol=1e-12)
    rates = [threshold_table(copy, thresholds, Resampler(copy.num_records, num_samples=1)) for copy in copies]
    row = threshold_table(sample, thresholds, resampler)[1]
    sensitivity = [rows[1]["sensitivity"] for rows in rates]
    assert row["confidence_intervals"]["sensitivity"] == pytest.approx(np.quantile(sensitivity, (0.025, 0.975)))


def test_one_step_is_close_to_fitting_each_resample():
    sample = simulated(3000, rows_per_record=3)
    resampler = Resampler(sample.num_records, num_samples=60)
    x = log_odds(sample.predictions)
    design = np.column_stack([np.ones_like(x), x])
    quick = fit_logistic(design, sample.labels).resampled(sample.record, resampler)
    for counts, one in zip(np.concatenate(list(resampler.counts())), quick, strict=True):
        copy = repeated(sample, counts)
        again = log_odds(copy.predictions)
        full = fit_logistic(np.column_stack([np.ones_like(again), again]), copy.labels).coefficients
        assert one == pytest.approx(full, abs=0.02)  # the standard errors are 0.1 and 0.05
    assert quick.std(axis=0) == pytest.approx([0.068, 0.040], abs=0.02)


def test_records_are_resampled_whole():
    """Rows that repeat their record 20 times say no more than one row each."""
    alone = simulated(400)
    many = LabeledPredictions(
        "binary", np.repeat(alone.labels, 20), np.repeat(alone.predictions, 20), groups=np.repeat(np.arange(400), 20)
    )
    one, twenty = calibration(alone), calibration(many)
    assert twenty["confidence_intervals"]["slope"] == pytest.approx(one["confidence_intervals"]["slope"], abs=1e-6)
    one, twenty = net_benefit(alone), net_benefit(many)
    for name in ("model", "treat_all"):
        np.testing.assert_allclose(twenty["confidence_intervals"][name], one["confidence_intervals"][name], atol=1e-12)


def test_one_record_has_no_intervals():
    sample = LabeledPredictions("binary", [0, 1, 1], [0.1, 0.3, 0.2], groups=["a"] * 3)
    assert calibration(sample)["confidence_intervals"] == {"intercept": None, "slope": None}
    assert net_benefit(sample, [0.2])["confidence_intervals"]["model"] == [None]


# ------------------------------------------------------------------------------------------------------- subgroups


def test_gaps_by_hand_and_against_evaluating_each_group():
    sample = simulated(3000)
    sex = np.where(np.arange(3000) % 3 == 0, "male", "female")
    found = subgroup_gaps(sample, {"sex": sex}, 0.2)["sex"]
    values = {}
    for name, group in found["groups"].items():
        own = sample.select(sex == name)
        (row,) = threshold_table(own, [0.2], Resampler(own.num_records, num_samples=2))
        assert group["sensitivity"] == pytest.approx(row["sensitivity"])
        assert group["false_positive_rate"] == pytest.approx(1 - row["specificity"])
        assert group["calibration_slope"] == pytest.approx(calibration(own)["slope"])
        assert not group["too_few"]
        values[name] = group
    for gap in GAPS:
        if gap != "equalized_odds":
            both = [values[name][gap] for name in values]
            assert found["gaps"][gap]["value"] == pytest.approx(max(both) - min(both))
            assert values[found["gaps"][gap]["highest"]][gap] == max(both)
    odds = [found["gaps"][name]["value"] for name in ("sensitivity", "false_positive_rate")]
    assert found["gaps"]["equalized_odds"]["value"] == pytest.approx(max(odds))


def test_a_group_that_is_missed_is_found_and_its_interval_excludes_zero():
    sample = simulated(4000, slope=1.0, shift=0.0)
    served = np.arange(4000) % 2 == 0
    sample.predictions = np.where(served, sample.predictions, sample.predictions * 0.3)
    found = subgroup_gaps(sample, {"unit": np.where(served, "served", "missed")}, 0.25)["unit"]["gaps"]
    assert found["sensitivity"]["lowest"] == "missed"
    assert found["sensitivity"]["interval"][0] > 0.2
    assert found["calibration_intercept"]["interval"][0] > 0.5


def test_small_groups_are_marked_and_left_out():
    sample = simulated(1000)
    positive = np.flatnonzero(sample.labels)
    names = np.where(np.arange(1000) % 2, "a", "b").astype(object)
    names[positive[: FEW_RECORDS - 1]] = "few"
    found = subgroup_gaps(sample, {"unit": names}, 0.2)["unit"]
    assert [name for name, group in found["groups"].items() if group["too_few"]] == ["few"]
    assert "few" not in {found["gaps"][gap][end] for gap in GAPS for end in ("lowest", "highest")}
    alone = subgroup_gaps(sample, {"unit": np.full(1000, "all")}, 0.2)["unit"]
    assert alone["gaps"] == dict.fromkeys(GAPS)


def test_many_rows_take_seconds():
    sample = simulated(200_000, rows_per_record=40)
    started = time.perf_counter()
    net_benefit(sample)
    threshold_table(sample)
    calibration(sample)
    assert time.perf_counter() - started < 20  # about 3 on two cores
