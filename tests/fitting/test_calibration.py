"""Calibration: a slope and an intercept, as logistic regression has them, and finite ones whatever the labels."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from hymate_training.fitting import calibration
from hymate_training.fitting.calibration import calibrate
from modeling_hymate.losses import label_predictions
from tests.support.helpers import tiny_config

NUM_EXAMPLES = 20_000


def calibrated(monkeypatch, logits, labels, **config):
    """The configuration of a model that says these logits, after calibration on the labels; probabilities by it."""
    config = tiny_config(**config)
    values = label_predictions(torch.from_numpy(logits), config, None).numpy()
    monkeypatch.setattr(calibration, "predict_examples", lambda *_: SimpleNamespace(values=values))
    calibrate(SimpleNamespace(config=config), SimpleNamespace(labels=labels), None, 1)
    return config, label_predictions(torch.from_numpy(logits), config, None).numpy()


def test_rare_classes_get_the_slope_and_the_intercept_of_logistic_regression(monkeypatch):
    rng = np.random.default_rng(0)
    truth = rng.normal(-4, 1.5, NUM_EXAMPLES)
    labels = (rng.random(NUM_EXAMPLES) < 1 / (1 + np.exp(-truth))).astype(np.int64)
    said = (truth - 1) / 1.6  # too timid, and of another level
    config, found = calibrated(
        monkeypatch, np.stack([0 * said, said], 1), labels, num_labels=2, problem_type="single_label_classification"
    )
    expected = LogisticRegression(C=np.inf).fit(said[:, None], labels)
    assert 1 / config.temperature == pytest.approx(expected.coef_[0, 0], rel=1e-2)
    np.testing.assert_allclose(found[:, 1], expected.predict_proba(said[:, None])[:, 1], rtol=0.05)
    assert found[:, 1].mean() == pytest.approx(labels.mean(), rel=1e-2)


def test_each_label_of_several_gets_its_own_level(monkeypatch):
    rng = np.random.default_rng(1)
    truth = rng.normal([-3, 1, 0], 1, (NUM_EXAMPLES, 3))
    labels = (rng.random(truth.shape) < 1 / (1 + np.exp(-truth))).astype(np.float32)
    _, found = calibrated(
        monkeypatch, truth + np.array([1, -1, 0.5]), labels, num_labels=3, problem_type="multi_label_classification"
    )
    np.testing.assert_allclose(found.mean(0), labels.mean(0), rtol=1e-2)


def test_classes_keep_their_shares(monkeypatch):
    rng = np.random.default_rng(2)
    truth = rng.normal([-3, 1, 0], 1, (NUM_EXAMPLES, 3))
    labels = (truth + rng.gumbel(size=truth.shape)).argmax(1)
    config, found = calibrated(
        monkeypatch,
        2 * truth + np.array([1, -1, 0.5]),
        labels,
        num_labels=3,
        problem_type="single_label_classification",
    )
    np.testing.assert_allclose(found.mean(0), np.bincount(labels) / NUM_EXAMPLES, rtol=1e-2)
    assert config.temperature == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]])
def test_it_stays_finite_where_labels_leave_it_open(monkeypatch, labels):
    logits = np.array([[0.0, -2], [0, -1], [0, 1], [0, 3]])
    config, found = calibrated(
        monkeypatch, logits, np.array(labels), num_labels=2, problem_type="single_label_classification"
    )
    assert 0.05 < config.temperature < 20
    assert np.abs(config.logit_shift).max() < 5
    assert np.isfinite(found).all()
