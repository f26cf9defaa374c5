"""Conformal sets and intervals: the same as MAPIE's, covering what they should, by part and by record."""

import json

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin

from hymate_training.evaluation.coverage import calibrate_sets, coverage_report
from hymate_training.evaluation.evaluation import evaluate
from hymate_training.evaluation.resampling import Resampler
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.inference.conformal import (
    conformal_threshold,
    label_sets,
    number_intervals,
    rounded_up,
    thresholds_at,
)
from tests.support.runs import TASK

LABELS = ("survived", "died")


class Known(ClassifierMixin, BaseEstimator):
    """Predicts the probabilities that it is given as features."""

    def fit(self, x, y):
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, x):
        return x

    def predict(self, x):
        return x.argmax(axis=1)


class Same(RegressorMixin, BaseEstimator):
    """Predicts the number that it is given as a feature."""

    def fit(self, x, y):
        self.fitted_ = True
        return self

    def predict(self, x):
        return x[:, 0]


def binary(n, seed=0, prevalence=0.15):
    rng = np.random.default_rng(seed)
    z = rng.normal(np.log(prevalence / (1 - prevalence)), 1.5, n)
    return (rng.random(n) < 1 / (1 + np.exp(-z))).astype(int), 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
def test_sets_are_those_of_mapie(level):
    classification = pytest.importorskip("mapie.classification")
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), 300)
    labels = np.array([rng.choice(3, p=row) for row in probabilities])
    reference = classification.SplitConformalClassifier(
        Known().fit(probabilities, labels), confidence_level=level, conformity_score="lac", prefit=True
    ).conformalize(probabilities[:200], labels[:200])
    _, expected = reference.predict_set(probabilities[200:])
    threshold = conformal_threshold(1 - probabilities[np.arange(200), labels[:200]], np.arange(200), level)
    found = label_sets(probabilities[200:], {"all": threshold}, "all", [], ("a", "b", "c"))
    np.testing.assert_array_equal(found, expected[:, :, 0])


def test_intervals_are_those_of_mapie():
    regression = pytest.importorskip("mapie.regression")
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=150)
    truth = predicted + rng.normal(size=150)
    reference = regression.SplitConformalRegressor(
        Same().fit(predicted[:, None], truth), confidence_level=0.9, prefit=True
    ).conformalize(predicted[:100, None], truth[:100])
    _, expected = reference.predict_interval(predicted[100:, None])
    threshold = conformal_threshold(np.abs(truth - predicted)[:100], np.arange(100), 0.9)
    found = number_intervals(predicted[100:], {"all": threshold}, "all", [])
    np.testing.assert_allclose(found, expected[:, :, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("count", "level", "rank"), [(9, 0.9, 9), (19, 0.95, 19), (20, 0.95, 20), (99, 0.9, 90), (8, 0.9, None)]
)
def test_the_rank_of_a_threshold(count, level, rank):
    scores = np.random.default_rng(0).permutation(np.arange(1, count + 1) / 100)
    found = conformal_threshold(scores, np.arange(count), level)
    assert found == (np.inf if rank is None else rank / 100)


def test_records_have_the_same_mass_however_many_rows_they_have():
    """One record of a thousand hours that are all wrong moves the threshold as one record of one hour does."""
    scores, record = np.arange(40) / 40, np.arange(40)
    alone = conformal_threshold(np.append(scores, 1.0), np.append(record, 40), 0.8)
    many = conformal_threshold(np.append(scores, np.ones(1000)), np.append(record, np.full(1000, 40)), 0.8)
    assert many == alone


@pytest.mark.parametrize("taxonomy", ["all", "label", "sex"])
def test_the_mean_coverage_of_each_part_is_the_level(taxonomy):
    """Over repeated draws, as the theorem says: between the level and 1 / (records + 1) more."""
    covered: dict[str, list[float]] = {}
    for seed in range(60):
        labels, probabilities = binary(700, seed)
        sex = np.where(np.arange(700) % 2, "f", "m")
        probabilities = np.where(sex == "f", probabilities, probabilities**2)  # for one of them badly calibrated
        fit, test = np.arange(700) < 400, np.arange(700) >= 400
        sample = LabeledPredictions("binary", labels, probabilities)
        conformal = calibrate_sets(sample.select(fit), {"sex": sex[fit]}, LABELS, [0.9])
        found = coverage_report(
            sample.select(test), {"sex": sex[test]}, LABELS, conformal, Resampler(300, num_samples=2)
        )
        for part, (row,) in found[taxonomy].items():
            covered.setdefault(part, []).append(row["coverage"])
    assert len(covered) == (1 if taxonomy == "all" else 2)
    for part, values in covered.items():
        standard_error = np.std(values) / np.sqrt(60)
        assert 0.9 - 3 * standard_error < np.mean(values) < 0.93 + 3 * standard_error, part


def test_split_sets_miss_the_rare_label_and_sets_by_label_do_not():
    labels, probabilities = binary(20_000)
    sample = LabeledPredictions("binary", labels, probabilities)
    conformal = calibrate_sets(sample, {}, LABELS, [0.9])
    split = label_sets(
        np.stack([1 - probabilities, probabilities], 1), thresholds_at(conformal, 0.9, "all"), "all", [], LABELS
    )
    by_label = label_sets(
        np.stack([1 - probabilities, probabilities], 1), thresholds_at(conformal, 0.9, "label"), "label", [], LABELS
    )
    assert split[labels == 1, 1].mean() < 0.8
    assert by_label[labels == 1, 1].mean() == pytest.approx(0.9, abs=0.01)
    assert by_label[labels == 0, 0].mean() == pytest.approx(0.9, abs=0.01)


def test_what_is_kept_is_rounded_up_and_tells_no_score():
    assert rounded_up(0.123456) == 0.1235
    assert rounded_up(12345.6) == 12350
    assert rounded_up(0.0) < 1e-11
    assert rounded_up(np.inf) is None
    labels, probabilities = binary(60)
    groups = {"sex": np.where(np.arange(60) < 5, "unknown", "f")}
    conformal = calibrate_sets(LabeledPredictions("binary", labels, probabilities), groups, LABELS)
    assert set(conformal["thresholds"]["sex"]) == {"f"}
    assert json.loads(json.dumps(conformal)) == conformal
    sets = label_sets(np.array([[0.99, 0.01]]), thresholds_at(conformal, 0.8, "sex"), "sex", ["unknown"], LABELS)
    assert sets.all()  # nothing is known of them


def test_levels_and_taxonomies_that_are_not_kept_are_refused():
    conformal = calibrate_sets(LabeledPredictions("binary", *binary(100)), {}, LABELS)
    with pytest.raises(ValueError, match=r"conformal must be one of 0.8, 0.9, 0.95, got 0.99"):
        thresholds_at(conformal, 0.99, "all")
    with pytest.raises(ValueError, match="conformal_by must be one of all, label, got 'sex'"):
        thresholds_at(conformal, 0.9, "sex")


def test_an_evaluation_keeps_thresholds_on_validation_and_checks_them_on_test(synthetic_folder, finetuned):
    own = json.loads((finetuned / "evaluation.json").read_text())
    assert own["conformal"]["calibrated_on"] == "validation"
    assert "coverage" not in own
    found = evaluate(finetuned, synthetic_folder, TASK, "test").content
    assert "conformal" not in found
    for row in found["coverage"]["all"]["all"]:
        assert row["num_records"] == found["num_records"]
        low, high = row["interval"]
        assert low <= row["coverage"] <= high
        assert 0 <= row["share_single"] <= 1
