"""Runs that train once more on training and validation split together, for as many epochs as the latter chose."""

import json

import numpy as np
import pytest

from hymate_training.data.examples import join_splits, load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.evaluation.evaluation import evaluate
from hymate_training.fitting.auxiliary import load_auxiliary
from hymate_training.fitting.finetuning import VALIDATED_FOLDER, FinetuneOptions, finetune
from hymate_training.fitting.loop import InterruptedRunError
from hymate_training.inference.checkpoints import load_checkpoint
from hymate_training.publishing.push import plan_push
from tests.support.runs import TASK, TINY_MODEL, assert_same_weights, stop_after, weights

RECIPE = {"epochs": 3, "batch_size": 16, "save_steps": 3, "ema_decay": 0.9, "model": TINY_MODEL}
OPTIONS = FinetuneOptions(**RECIPE, auxiliary_tasks="length_of_stay", refit=True)


@pytest.fixture(scope="module")
def refitted(synthetic_folder, tmp_path_factory):
    return finetune(synthetic_folder, TASK, tmp_path_factory.mktemp("refit") / "run", OPTIONS).output


def account(run):
    return json.loads((run / "training_run.json").read_text())


def test_what_is_measured_is_the_run_before(refitted, synthetic_folder, tmp_path):
    plain = finetune(
        synthetic_folder, TASK, tmp_path / "run", FinetuneOptions(**RECIPE, auxiliary_tasks="length_of_stay")
    )
    assert_same_weights(plain.output, refitted / VALIDATED_FOLDER)
    before, after = account(plain.output), account(refitted)
    assert [entry["auroc"] for entry in before["history"]] == [entry["auroc"] for entry in after["history"]]
    assert before["temperature"] == after["temperature"] == load_checkpoint(refitted).model.config.temperature
    assert json.loads((refitted / "evaluation.json").read_text()) == plain.evaluation.content
    assert sorted(path.name for path in refitted.glob("*.png")) == sorted(
        path.name for path in plain.output.glob("*.png")
    )


def test_the_weights_are_of_both_splits(refitted):
    run = account(refitted)
    best = next(entry for entry in run["history"] if entry["step"] == run["best_step"])
    assert run["refit"]["epochs"] == best["epoch"]
    assert run["refit"]["num_records"] == sum(run["num_records"].values())
    own, validated = weights(refitted), weights(refitted / VALIDATED_FOLDER)
    assert own.keys() == validated.keys()
    assert any((own[name] != validated[name]).any() for name in own)
    card = (refitted / "README.md").read_text()
    assert f"together ({run['refit']['num_records']:,} records)" in card
    assert "trained on the training split alone" in card


def test_the_validation_split_measures_nothing_any_more(refitted, synthetic_folder):
    with pytest.raises(ValueError, match=r"was trained on the validation split of .*, too \(refit\)"):
        evaluate(refitted, synthetic_folder, TASK, "validation")
    assert evaluate(refitted / VALIDATED_FOLDER, synthetic_folder, TASK, "validation").content["n"]


def test_it_is_published_without_what_came_before(refitted):
    plan = plan_push(refitted)
    assert not any(name.startswith(VALIDATED_FOLDER) for name in plan.uploaded)
    assert f"{VALIDATED_FOLDER}/model.safetensors" in plan.left


@pytest.mark.parametrize("steps", [2, 7, 16])
def test_an_interrupted_run_goes_on_exactly(refitted, synthetic_folder, tmp_path, monkeypatch, steps):
    output = tmp_path / "run"
    stop_after(monkeypatch, steps)
    with pytest.raises(InterruptedRunError):
        finetune(synthetic_folder, TASK, output, OPTIONS)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="--resume continues the run"):
        finetune(synthetic_folder, TASK, output, OPTIONS)
    finetune(synthetic_folder, TASK, output, OPTIONS, resume=True)
    assert_same_weights(refitted, output)
    assert_same_weights(refitted / VALIDATED_FOLDER, output / VALIDATED_FOLDER)
    assert not (output / "state").exists()


def test_joined_splits_are_their_examples_one_after_the_other(synthetic_folder):
    folder = PreparedFolder(synthetic_folder)
    parts = [load_task(folder, TASK, split, folder.info.variables) for split in ("train", "validation")]
    joined = join_splits(parts, folder)
    assert joined.record_ids.tolist() == [name for part in parts for name in part.record_ids]
    assert joined.labels.tolist() == [label for part in parts for label in part.labels]
    at = len(parts[0]) + 3
    own, same = joined[at], parts[1][3]
    np.testing.assert_array_equal(own.events.values, same.events.values)
    np.testing.assert_array_equal(own.events.times, same.events.times)
    assert own.prediction_times.tolist() == same.prediction_times.tolist()
    targets = load_auxiliary(folder, ["length_of_stay"], ("train", "validation"), joined).values
    assert np.isfinite(targets).all()
