"""Auxiliary targets and calibration: what fine-tuning learns besides the task's own labels."""

import json

import numpy as np
import pytest
import torch

from hymate_training.cli.main import main
from hymate_training.data.collators import TaskCollator, fit_feature_extractor
from hymate_training.data.examples import load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.fitting.auxiliary import AuxiliaryModel, load_auxiliary
from hymate_training.fitting.calibration import calibrate
from hymate_training.inference.prediction import load_checkpoint, predict_examples
from modeling_hymate import HyMaTEForSequenceClassification
from tests.support.helpers import close, make_model, random_batch

TASK = "in_hospital_mortality"


def test_targets_are_matched_by_record_and_follow_a_normal_distribution(synthetic_folder):
    extractor = fit_feature_extractor(PreparedFolder(synthetic_folder))
    dataset = load_task(PreparedFolder(synthetic_folder), TASK, "train", extractor.variables)
    targets = load_auxiliary(PreparedFolder(synthetic_folder), ["length_of_stay", TASK], ["train"], dataset)
    assert targets.binary.tolist() == [False, True]
    np.testing.assert_array_equal(targets.values[:, 1], dataset.labels)
    days = load_task(PreparedFolder(synthetic_folder), "length_of_stay", "train", extractor.variables)
    own = dict(zip(days.record_ids, days.labels, strict=True))
    known = np.array([own.get(record_id, np.nan) for record_id in dataset.record_ids])
    assert (np.isnan(known) == np.isnan(targets.values[:, 0])).all()
    kept = ~np.isnan(known)
    order = np.argsort(known[kept], kind="stable")
    assert (np.diff(targets.values[kept, 0][order]) >= 0).all()
    assert abs(targets.values[kept, 0].mean()) < 0.1
    assert 0.9 < targets.values[kept, 0].std() < 1.1


def test_unknown_targets_cost_nothing():
    model = make_model(HyMaTEForSequenceClassification, num_labels=2)
    auxiliary = AuxiliaryModel(model, np.array([False, True]), 0.5)
    inputs = random_batch(model.config) | {"labels": torch.tensor([0, 1, 1])}
    plain = model(**inputs).loss
    unknown = torch.full((3, 2), torch.nan)
    close(auxiliary(unknown, **inputs).loss, plain)
    some = unknown.clone()
    some[1, 0] = 2.0
    predicted = auxiliary.heads(model(**inputs).pooler_output)
    loss = auxiliary(some, **inputs).loss
    close(loss, plain + 0.5 * (predicted[1, 0] - 2) ** 2)
    loss.backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in auxiliary.parameters())


def test_a_run_with_auxiliary_tasks_leaves_a_plain_calibrated_classifier(synthetic_folder, tmp_path, capsys):
    output = tmp_path / "run"
    arguments = ["finetune", "--data", str(synthetic_folder), "--task", TASK, "--output", str(output)]
    arguments += ["--epochs", "1", "--model", "hidden_size=16", "num_attention_heads=2", "num_statistic_bins=2"]
    assert main([*arguments, "--auxiliary-tasks", "length_of_stay", "--ema-decay", "0.9"]) == 0
    checkpoint = load_checkpoint(output)
    model, extractor = checkpoint.model, checkpoint.extractor
    assert model.config.temperature != 1.0
    assert "custom_pipelines" in json.loads((output / "config.json").read_text())
    dataset = load_task(PreparedFolder(synthetic_folder), TASK, "validation", extractor.variables)

    def log_loss(temperature: float, shift: float) -> float:
        model.config.temperature, model.config.logit_shift = temperature, [best_shift[0], best_shift[1] + shift]
        predicted = predict_examples(model, dataset, TaskCollator(extractor))
        truth = dataset.labels
        return -float(np.log(predicted.values[np.arange(len(truth)), truth]).mean())

    best, best_shift = model.config.temperature, model.config.logit_shift
    calibrate(model, dataset, TaskCollator(extractor), 64)
    assert model.config.temperature == pytest.approx(best, rel=1e-6)
    assert model.config.logit_shift == pytest.approx(best_shift, rel=1e-5)
    least = log_loss(best, 0)
    assert all(least < log_loss(*other) for other in [(0.5 * best, 0), (2 * best, 0), (best, 0.5), (best, -0.5)])


@pytest.mark.parametrize(
    ("tasks", "message"), [("weather", "unknown task 'weather'"), ("phenotypes", "only binary and regression")]
)
def test_tasks_that_cannot_be_auxiliary_are_named(tasks, message, synthetic_folder, tmp_path, capsys):
    output = tmp_path / "run"
    arguments = ["finetune", "--data", str(synthetic_folder), "--task", TASK, "--output", str(output)]
    assert main([*arguments, "--auxiliary-tasks", tasks]) == 2
    assert message in capsys.readouterr().err
