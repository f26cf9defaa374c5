"""Distillation: what the trees may see, and what a taught classifier loses by."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import close, make_model, random_batch
from sklearn.metrics import roc_auc_score

from hymate_training import teacher
from hymate_training.cli import main
from hymate_training.collation import fit_feature_extractor, load_task
from hymate_training.predict import load_checkpoint
from hymate_training.records import read_info
from hymate_training.summary_features import STATISTICS, summary_features
from modeling_hymate import HyMaTEForSequenceClassification

TASK = "in_hospital_mortality"


@pytest.fixture(scope="module")
def extractor(synthetic_folder):
    return fit_feature_extractor(synthetic_folder)


@pytest.fixture(scope="module")
def dataset(synthetic_folder, extractor):
    return load_task(synthetic_folder, TASK, "train", extractor.variables)


def test_summary_features_are_those_of_a_loop(dataset, extractor):
    dataset = replace_times(dataset, 24.0)
    features = summary_features(dataset, extractor)
    for row in range(5):
        record = dataset.events.take(dataset.rows[[row]])
        seen = record.times <= 24
        assert not seen.all()
        for variable in range(extractor.num_variables):
            found = dict(zip(STATISTICS, features[row, 8 * variable : 8 * variable + 8], strict=True))
            chosen = seen & (record.variable_ids == variable)
            values = record.values[chosen]
            assert found.pop("count") == len(values)
            if not len(values):
                assert np.isnan(list(found.values())).all()
                continue
            early = values[record.times[chosen] <= 12]
            expected = [values[0], values[-1], values.min(), values.max(), values.mean(), values.std()]
            expected.append(early.mean() if len(early) else np.nan)
            np.testing.assert_allclose(list(found.values()), expected, rtol=1e-4, atol=1e-3)


def replace_times(dataset, hours):
    return type(dataset)(dataset.events, dataset.rows, np.full(len(dataset), hours), dataset.labels)


def test_events_without_numbers_are_counted_alone(dataset, extractor):
    values = dataset.events.values.copy()
    values[dataset.events.variable_ids == 0] = np.nan
    blind = type(dataset)(
        replace(dataset.events, values=values), dataset.rows, dataset.prediction_times, dataset.labels
    )
    features, before = summary_features(blind, extractor), summary_features(dataset, extractor)
    assert np.isnan(features[:, :7]).all()
    np.testing.assert_array_equal(features[:, 7:], before[:, 7:])


def test_the_trees_learn_and_yet_never_judge_what_they_have_seen(dataset, extractor, synthetic_folder):
    task = read_info(synthetic_folder).task(TASK)
    probabilities = teacher.cross_fitted_trees(dataset, extractor, task, 0)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert roc_auc_score(dataset.labels, probabilities[:, 1]) > 0.6
    np.testing.assert_array_equal(probabilities, teacher.cross_fitted_trees(dataset, extractor, task, 0))
    # each record asked about twice, and labels that only its twin gives away
    noise = np.random.default_rng(0).integers(2, size=len(dataset))
    twins = type(dataset)(
        dataset.events, np.tile(dataset.rows, 2), np.tile(dataset.prediction_times, 2), np.tile(noise, 2)
    )
    probabilities = teacher.cross_fitted_trees(twins, extractor, task, 0)
    assert roc_auc_score(twins.labels, probabilities[:, 1]) < 0.6


def test_a_taught_model_learns_from_labels_and_teacher_in_the_given_shares():
    model = make_model(HyMaTEForSequenceClassification, num_labels=2)
    inputs = random_batch(model.config) | {"labels": torch.tensor([0, 1, 1])}
    probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    outputs = model(**inputs)
    taught = F.cross_entropy(outputs.logits, probabilities)
    close(teacher.TaughtModel(model, 0.7)(probabilities, **inputs).loss, 0.3 * outputs.loss + 0.7 * taught)


def test_a_taught_run_leaves_a_plain_classifier(synthetic_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "REPEATS", 1)
    output = tmp_path / "run"
    arguments = ["finetune", "--data", str(synthetic_folder), "--task", TASK, "--output", str(output)]
    arguments += ["--epochs", "1", "--model", "hidden_size=16", "num_attention_heads=2"]
    assert main([*arguments, "--teacher-weight", "0.5", "--auxiliary-tasks", "length_of_stay"]) == 0
    model, _ = load_checkpoint(output)
    assert isinstance(model, HyMaTEForSequenceClassification)
    assert "gradient-boosted trees counted 50%" in (output / "README.md").read_text()


@pytest.mark.parametrize(
    ("task", "weight", "message"),
    [
        ("length_of_stay", "0.5", "binary and multiclass tasks, but 'length_of_stay' is regression"),
        ("phenotypes", "0.5", "'phenotypes' is multilabel"),
        (TASK, "1.5", "teacher_weight must lie in [0, 1], got 1.5"),
    ],
)
def test_what_cannot_be_taught_is_named(task, weight, message, synthetic_folder, tmp_path, capsys):
    arguments = ["finetune", "--data", str(synthetic_folder), "--task", task, "--output", str(tmp_path / "run")]
    assert main([*arguments, "--teacher-weight", weight]) == 2
    assert message in capsys.readouterr().err


def test_a_class_of_too_few_records_is_named(dataset, extractor, synthetic_folder):
    labels = np.zeros_like(dataset.labels)
    labels[:3] = 1
    rare = type(dataset)(dataset.events, dataset.rows, dataset.prediction_times, labels)
    with pytest.raises(ValueError, match="has 3: leave it at 0"):
        teacher.cross_fitted_trees(rare, extractor, read_info(synthetic_folder).task(TASK), 0)
