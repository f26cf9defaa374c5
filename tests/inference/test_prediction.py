"""Predictions of new records, and of a data set."""

import numpy as np
import polars as pl
import pytest

from hymate_training.cli.main import main
from hymate_training.data.collators import TaskCollator
from hymate_training.data.examples import load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.inference.checkpoints import load_checkpoint
from hymate_training.inference.prediction import predict, predict_examples
from tests.support.runs import TASK, event_frame


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_predict_gives_what_evaluation_sees(synthetic_folder, finetuned, tmp_path, suffix):
    events, static = event_frame(synthetic_folder)
    events = events.sample(fraction=1.0, shuffle=True, seed=0)
    for name, frame in (("events", events), ("static", static)):
        path = tmp_path / f"{name}.{suffix}"
        frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)
    output = tmp_path / f"predictions.{suffix}"
    arguments = ["--events", tmp_path / f"events.{suffix}", "--static", tmp_path / f"static.{suffix}"]
    assert main(["predict", "--checkpoint", str(finetuned), *map(str, arguments), "--output", str(output)]) == 0
    found = pl.read_csv(output) if suffix == "csv" else pl.read_parquet(output)
    assert set(found["record_id"].cast(pl.String)) == set(static["record_id"])

    checkpoint = load_checkpoint(finetuned)
    dataset = load_task(PreparedFolder(synthetic_folder), TASK, "test", checkpoint.extractor.variables)
    predicted = predict_examples(checkpoint.model, dataset, TaskCollator(checkpoint.extractor))
    expected = dict(zip(dataset.record_ids, predicted.values[:, 1], strict=True))
    for record_id, died in zip(found["record_id"].cast(pl.String), found["died"], strict=True):
        assert died == pytest.approx(expected[record_id], abs=1e-5)


def test_records_of_unknown_variables_alone_are_left_out_and_named(synthetic_folder, finetuned, tmp_path, capsys):
    events, _ = event_frame(synthetic_folder)
    foreign = events.head(2).with_columns(record_id=pl.lit("foreign"), variable=pl.lit("gamma_gt"))
    pl.concat([events, foreign]).write_csv(tmp_path / "events.csv")
    arguments = ["predict", "--checkpoint", str(finetuned), "--events", str(tmp_path / "events.csv")]
    arguments += ["--output", str(tmp_path / "predictions.csv")]
    assert main(arguments) == 2
    assert "'gamma_gt' is not one of" in capsys.readouterr().err
    assert main([*arguments, "--ignore-unknown-variables"]) == 0
    printed = capsys.readouterr().out
    assert "5 records" in printed
    assert "left out 1 records without any other event, 'foreign' first" in printed
    assert "taken as missing: age" in printed
    assert "foreign" not in set(pl.read_csv(tmp_path / "predictions.csv")["record_id"].cast(pl.String))
    foreign.write_csv(tmp_path / "events.csv")
    assert main([*arguments, "--ignore-unknown-variables"]) == 2
    assert "none of its variables is known" in capsys.readouterr().err


def test_other_units_and_longer_stays_are_pointed_out(synthetic_folder, finetuned, tmp_path, capsys):
    events, static = event_frame(synthetic_folder)
    arguments = ["predict", "--checkpoint", str(finetuned), "--output", str(tmp_path / "predictions.csv")]
    for name, frame in (("events", events), ("static", static)):
        frame.write_csv(tmp_path / f"{name}.csv")
        arguments += [f"--{name}", str(tmp_path / f"{name}.csv")]
    assert main(arguments) == 0
    assert len(capsys.readouterr().out.strip().splitlines()) == 1  # nothing to remark
    in_meters = static.with_columns(pl.col("height") / 100)
    in_meters.write_csv(tmp_path / "static.csv")
    in_minutes = events.with_columns(pl.col("time") * 60)
    in_minutes.write_csv(tmp_path / "events.csv")
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "100% of the values of height lie outside the range of the training records" in printed
    assert "hours; hardly any of the training records' come after" in printed


def test_predict_asks_for_record_ids_in_the_static_table(synthetic_folder, finetuned, tmp_path, capsys):
    events, static = event_frame(synthetic_folder)
    events.write_parquet(tmp_path / "events.parquet")
    static.rename({"record_id": "patient"}).write_parquet(tmp_path / "static.parquet")
    files = ["--events", tmp_path / "events.parquet", "--static", tmp_path / "static.parquet"]
    output = tmp_path / "predictions.csv"
    assert main(["predict", "--checkpoint", str(finetuned), *map(str, files), "--output", str(output)]) == 2
    assert "static.parquet lacks the column 'record_id'" in capsys.readouterr().err
    assert not output.exists()


def test_predictions_come_in_the_order_of_the_data_set(synthetic_folder, finetuned):
    checkpoint, folder = load_checkpoint(finetuned), PreparedFolder(synthetic_folder)
    collator = TaskCollator(checkpoint.extractor)
    dataset = load_task(folder, TASK, "test", checkpoint.extractor.variables)
    assert (np.diff(dataset.lengths) < 0).any()
    whole = predict_examples(checkpoint.model, dataset, collator, batch_size=5)
    for row in range(len(dataset)):
        features = collator(dataset.__getitems__([row]))
        features.pop("labels")
        alone = checkpoint.model.predictions(checkpoint.model(**features).logits)
        np.testing.assert_allclose(whole.values[row], alone[0].detach().numpy(), atol=1e-5)
    assert whole.variable_shares.sum() == pytest.approx(len(dataset), abs=1e-3)


def test_frames_are_predicted_as_files_are(synthetic_folder, finetuned, tmp_path):
    events, static = event_frame(synthetic_folder)
    checkpoint = load_checkpoint(finetuned)
    found = predict(checkpoint, events, static)
    assert found.output is None
    events.write_parquet(tmp_path / "events.parquet")
    written = predict(finetuned, tmp_path / "events.parquet", static.to_pandas(), tmp_path / "out.csv")
    assert written.frame.equals(found.frame)
    assert pl.read_csv(tmp_path / "out.csv").height == found.frame.height == 5
    assert sorted(predict(checkpoint, events).unknown_columns) == sorted(static.columns[1:])
    with pytest.raises(ValueError, match="events must be a file or a polars or pandas frame, not a dict"):
        predict(checkpoint, events.to_dict())


def test_ignoring_unknown_variables_leaves_an_open_checkpoint_as_it_is(synthetic_folder, finetuned):
    events, static = event_frame(synthetic_folder)
    checkpoint = load_checkpoint(finetuned)
    strange = pl.concat([events, events.head(3).with_columns(variable=pl.lit("gamma_gt"))])
    assert predict(checkpoint, strange, static, ignore_unknown_variables=True).num_ignored_events == 3
    with pytest.raises(ValueError, match="'gamma_gt' is not one of"):
        predict(checkpoint, strange, static)
