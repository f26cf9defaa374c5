"""Predictions of a prepared folder's split: asked as the task asks, they are those that are evaluated."""

import numpy as np
import polars as pl
import pytest

import hymate
from hymate_training.cli.main import main
from hymate_training.data.collators import TaskCollator
from hymate_training.data.examples import load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.fitting.finetuning import FinetuneOptions, finetune
from hymate_training.inference.checkpoints import load_checkpoint
from hymate_training.inference.prediction import predict_examples
from hymate_training.readers import physionet2019
from tests.support.runs import TASK, TINY_MODEL
from tests.support.sepsis_files import make_hospital, write_hospital


def evaluated(run, data, task, split):
    """What an evaluation sees: (record, time) -> probability of yes."""
    checkpoint = load_checkpoint(run)
    dataset = load_task(PreparedFolder(data), task, split, checkpoint.extractor.variables)
    values = predict_examples(checkpoint.model, dataset, TaskCollator(checkpoint.extractor)).values[:, 1]
    return dict(zip(zip(dataset.record_ids, dataset.prediction_times.tolist(), strict=True), values, strict=True))


def test_a_task_that_asks_once(synthetic_folder, finetuned, tmp_path, capsys):
    output = tmp_path / "split.parquet"
    arguments = ["--checkpoint", str(finetuned), "--data", str(synthetic_folder), "--split", "test"]
    assert main(["predict", *arguments, "--task", TASK, "--output", str(output)]) == 0
    found, expected = pl.read_parquet(output), evaluated(finetuned, synthetic_folder, TASK, "test")
    assert "prediction_time" not in found.columns
    assert sorted(found["record_id"]) == sorted(record for record, _ in expected)
    by_record = {record: value for (record, _), value in expected.items()}
    np.testing.assert_allclose(found["died"], [by_record[record] for record in found["record_id"]], atol=1e-5)
    assert f"{len(expected)} records -> {output}" in capsys.readouterr().out


def test_a_task_that_asks_at_every_hour(tmp_path):
    raw, prepared, run = tmp_path / "raw", tmp_path / "prepared", tmp_path / "run"
    physionet2019.prepare(write_hospital(raw, "A", make_hospital("A", 200)), prepared, split="random")
    finetune(prepared, "sepsis_onset", run, FinetuneOptions(epochs=1, batch_size=64, model=TINY_MODEL))
    found = hymate.predict_split(run, prepared, "test", task="sepsis_onset").frame
    expected = evaluated(run, prepared, "sepsis_onset", "test")
    assert len(found) == len(expected)
    names = load_checkpoint(run).label_names
    for row in found.iter_rows(named=True):
        key = row["record_id"], float(np.float32(row["prediction_time"]))
        assert row[names[1]] == pytest.approx(expected[key], abs=1e-5)
    every = hymate.predict_split(run, prepared, "test", every=5, untrained_hours=True).frame
    assert set(every["record_id"]) == set(PreparedFolder(prepared).record_ids["test"])
    assert (every["prediction_time"] % 5 == 0).all()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], "--data needs --split"),
        (["--split", "testing"], "has no split 'testing'; it has: train, validation, test"),
        (["--split", "test", "--task", "readmission"], "readmission"),
        (["--split", "test", "--task", TASK, "--every", "6"], "give task or every"),
        (["--split", "test", "--start", "starts.csv"], "--start is for --events"),
        (["--split", "test", "--labels", "labels"], "give one of --events, --data and --labels"),
    ],
)
def test_what_cannot_be_asked_is_said(synthetic_folder, finetuned, tmp_path, capsys, options, problem):
    arguments = ["--checkpoint", str(finetuned), "--data", str(synthetic_folder), "--output", str(tmp_path / "x.csv")]
    assert main(["predict", *arguments, *options]) == 2
    assert problem in capsys.readouterr().err
