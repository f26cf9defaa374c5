"""Two models on the same records: what their difference is, and which runs cannot be compared."""

import json
import shutil

import polars as pl
import pytest

import hymate
from hymate_training.cli.main import main
from hymate_training.data.collators import TaskCollator
from hymate_training.data.examples import load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.evaluation.evaluation import evaluate, labeled
from hymate_training.evaluation.metrics import METRICS, paired_difference
from hymate_training.fitting.finetuning import FinetuneOptions, finetune
from hymate_training.inference.checkpoints import load_checkpoint
from hymate_training.inference.prediction import predict_examples
from tests.support.runs import TASK, TINY_MODEL


@pytest.fixture(scope="module")
def other(synthetic_folder, tmp_path_factory):
    """The same task from scratch, with another seed."""
    run = tmp_path_factory.mktemp("other") / "scratch"
    finetune(synthetic_folder, TASK, run, FinetuneOptions(epochs=1, seed=5, batch_size=64, model=TINY_MODEL))
    return run


def predictions(run, data, split="test"):
    checkpoint, folder = load_checkpoint(run), PreparedFolder(data)
    dataset = load_task(folder, TASK, split, checkpoint.extractor.variables)
    return dataset, predict_examples(checkpoint.model, dataset, TaskCollator(checkpoint.extractor)).values


def test_the_difference_is_that_of_paired_resamples(synthetic_folder, finetuned, other, tmp_path, capsys):
    output = tmp_path / "comparison.json"
    arguments = ["--data", str(synthetic_folder), "--task", TASK, "--split", "test", "--num-samples", "200"]
    assert main(["compare", str(finetuned), str(other), *arguments, "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    info = PreparedFolder(synthetic_folder).info.task(TASK)
    samples = [labeled(*predictions(run, synthetic_folder), info) for run in (finetuned, other)]
    expected = paired_difference(*samples, num_samples=200)
    assert found["differences"] == expected
    assert list(found["differences"]) == list(METRICS["binary"])
    assert found["differences"]["auroc"]["difference"] != 0
    assert found["runs"] == [finetuned.name, "scratch"]
    assert found["split_fingerprint"] == PreparedFolder(synthetic_folder).split_fingerprint(TASK, "test")
    shown = capsys.readouterr().out
    assert f"{found['differences']['auprc']['difference']:+.4f}" in shown
    ids = set(PreparedFolder(synthetic_folder).record_ids["test"])
    assert not set(output.read_text().split('"')) & ids


def test_a_model_and_its_predictions_in_a_file_do_not_differ(synthetic_folder, finetuned, tmp_path):
    dataset, values = predictions(finetuned, synthetic_folder)
    frame = pl.DataFrame({"record_id": list(dataset.record_ids), "prediction": values[:, 1].astype(float)})
    frame.write_parquet(tmp_path / "mine.parquet")
    found = hymate.compare(
        finetuned, tmp_path / "mine.parquet", synthetic_folder, TASK, "test", num_samples=50
    ).content
    assert {one["difference"] for one in found["differences"].values()} == {0}
    assert found["differences"]["auroc"]["interval"] == [0, 0]
    assert (
        found["differences"]["auroc"]["a"]
        == evaluate(finetuned, synthetic_folder, TASK, "test").content["metrics"]["auroc"]
    )
    frame.tail(-3).write_parquet(tmp_path / "fewer.parquet")
    with pytest.raises(
        ValueError, match=rf"fewer.parquet lacks 3 of the .* the first of record {frame['record_id'][0]!r}"
    ):
        hymate.compare(finetuned, tmp_path / "fewer.parquet", synthetic_folder, TASK, "test")


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("task", {"name": "readmission"}, "was fine-tuned for 'in_hospital_mortality' and .* for 'readmission'"),
        ("split_fingerprints", {"validation": "0123456789abcdef"}, "chosen on different validation splits"),
    ],
)
def test_runs_that_differ_in_more_than_the_model_are_refused(
    synthetic_folder, finetuned, tmp_path, key, value, problem
):
    twin = tmp_path / "twin"
    shutil.copytree(finetuned, twin)
    account = json.loads((twin / "training_run.json").read_text())
    (twin / "training_run.json").write_text(json.dumps(account | {key: account[key] | value}))
    with pytest.raises(ValueError, match=problem):
        hymate.compare(finetuned, twin, synthetic_folder, TASK)
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        hymate.compare(finetuned, tmp_path / "nowhere", synthetic_folder, TASK)
    with pytest.raises(ValueError, match="are the same run: name two"):
        hymate.compare(finetuned, finetuned, synthetic_folder, TASK)
