"""Predictions of new records, and of a data set."""

import gzip

import numpy as np
import polars as pl
import pytest

from hymate_training.cli.main import main
from hymate_training.data.collators import TaskCollator
from hymate_training.data.examples import load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.inference.checkpoints import load_checkpoint
from hymate_training.inference.prediction import NO_EVENTS, predict, predict_examples
from hymate_training.inference.records import IGNORED
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


def test_unknown_variables_are_dropped_when_asked_to_and_no_record_with_them(
    synthetic_folder, finetuned, tmp_path, capsys
):
    events, _ = event_frame(synthetic_folder)
    foreign = events.head(2).with_columns(record_id=pl.lit("foreign"), variable=pl.lit("gamma_gt"))
    pl.concat([events, foreign]).write_csv(tmp_path / "events.csv")
    arguments = ["predict", "--checkpoint", str(finetuned), "--events", str(tmp_path / "events.csv")]
    arguments += ["--output", str(tmp_path / "predictions.csv")]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert f"row {events.height + 1}: variable 'gamma_gt' is not one of" in message
    assert "--ignore-unknown-variables" in message
    assert main([*arguments, "--ignore-unknown-variables"]) == 0
    printed = capsys.readouterr().out
    assert "6 records" in printed
    assert "dropped 2 events of unknown variables: gamma_gt" in printed
    assert f"{NO_EVENTS}: 1 of 6 predictions" in printed
    assert "taken as missing: age" in printed
    last = pl.read_csv(tmp_path / "predictions.csv").row(-1, named=True)
    assert last["record_id"] == "foreign"
    assert last["died"] > 0
    assert IGNORED in last["remarks"]
    assert NO_EVENTS in last["remarks"]
    foreign.write_csv(tmp_path / "events.csv")
    assert main([*arguments, "--ignore-unknown-variables", "--overwrite"]) == 2
    assert "none of its variables is known" in capsys.readouterr().err


def test_what_is_unknown_is_taken_as_missing_and_said_per_record(synthetic_folder, finetuned):
    """One rule for a row, a column, a value and a category; and nobody else's prediction changes."""
    events, static = event_frame(synthetic_folder)
    static = static.with_columns(age=pl.col("age").fill_null(50), sex=pl.lit("male"), height=pl.lit(170.0))
    ids = static["record_id"].to_list()
    usual = predict(finetuned, events, static).frame
    sex = pl.when(record_id=ids[0]).then(pl.lit("unheard of")).otherwise("sex")
    changed = static.with_columns(sex=sex).filter(pl.col("record_id") != ids[1]).drop("height")
    quiet = changed.tail(1).with_columns(record_id=pl.lit("quiet"))
    found = predict(finetuned, events, pl.concat([changed, quiet]))
    remarks = dict(zip(found.frame["record_id"], found.frame["remarks"], strict=True))
    assert list(remarks) == [*usual["record_id"], "quiet"]
    assert "sex 'unheard of' was not in the training data, so taken as missing" in remarks[ids[0]]
    assert "age is missing" in remarks[ids[1]]
    assert NO_EVENTS in remarks["quiet"]
    assert all("height is missing" in text for text in remarks.values())
    assert "height is missing: 6 of 6 predictions" in found.remarks
    assert found.unknown_columns == ["height"]
    expected = static.with_columns(
        height=None,
        sex=pl.when(pl.col("record_id").is_in(ids[:2])).then(None).otherwise("sex"),
        **{name: pl.when(record_id=ids[1]).then(None).otherwise(name) for name in ("age", "unit_type")},
    )
    assert found.frame["died"].head(len(ids)).to_list() == pytest.approx(
        predict(finetuned, events, expected).frame["died"].to_list(), abs=1e-6
    )
    with pytest.raises(ValueError, match="row 1: age must be a number, found 'old'"):
        predict(finetuned, events, static.with_columns(age=pl.lit("old")))
    with pytest.raises(ValueError, match="row 1: record_id appears more than once"):
        predict(finetuned, events, pl.concat([static, static]))


def test_static_columns_may_stand_beside_the_events(synthetic_folder, finetuned):
    events, static = event_frame(synthetic_folder)
    together = predict(finetuned, events.join(static, on="record_id")).frame
    assert together.equals(predict(finetuned, events, static).frame)


def test_no_file_is_overwritten_unasked(synthetic_folder, finetuned, tmp_path):
    events, _ = event_frame(synthetic_folder)
    events.write_parquet(tmp_path / "events.parquet")
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(ValueError, match=r"is there already: .*\(overwrite, --overwrite\)"):
        predict(finetuned, tmp_path / "events.parquet", output=tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "mine"
    with pytest.raises(ValueError, match=r"events.parquet is read from"):
        predict(finetuned, tmp_path / "events.parquet", output=tmp_path / "events.parquet", overwrite=True)
    predict(finetuned, tmp_path / "events.parquet", output=tmp_path / "out.csv", overwrite=True)
    assert pl.read_csv(tmp_path / "out.csv").height == 5


def test_other_units_and_longer_stays_are_pointed_out(synthetic_folder, finetuned, tmp_path, capsys):
    events, static = event_frame(synthetic_folder)
    arguments = ["predict", "--checkpoint", str(finetuned), "--output", str(tmp_path / "predictions.csv")]
    for name, frame in (("events", events), ("static", static)):
        frame.write_csv(tmp_path / f"{name}.csv")
        arguments += [f"--{name}", str(tmp_path / f"{name}.csv")]
    assert main(arguments) == 0
    assert "are its units the same" not in capsys.readouterr().out
    arguments.append("--overwrite")
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


def test_tables_are_read_as_prepare_reads_them(synthetic_folder, finetuned, tmp_path):
    """Packed, or with semicolons and decimal commas in UTF-16; an id that a spreadsheet ruined is refused."""
    events, static = event_frame(synthetic_folder)
    events.write_csv(tmp_path / "events.csv")
    text = (tmp_path / "events.csv").read_text()
    (tmp_path / "packed.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "excel.csv").write_bytes(text.replace(",", ";").replace(".", ",").encode("utf-16"))
    expected = predict(finetuned, tmp_path / "events.csv", static).frame
    for name in ("packed.csv.gz", "excel.csv"):
        assert predict(finetuned, tmp_path / name, static).frame.equals(expected)
    ruined = events.with_columns(record_id=pl.lit("1.33E+10"))
    ruined.write_csv(tmp_path / "ruined.csv")
    for table in (ruined, ruined.to_pandas(), tmp_path / "ruined.csv"):
        with pytest.raises(ValueError, match="row 1: record_id is a number that a spreadsheet has shortened"):
            predict(finetuned, table, static)


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


def test_a_model_that_predicts_no_number_says_so_and_writes_nothing(finetuned, synthetic_folder, tmp_path):
    """Its weights are finite, and what they come to is not."""
    checkpoint, (events, static) = load_checkpoint(finetuned), event_frame(synthetic_folder)
    for layer in checkpoint.model.hymate.mamba_layers:
        layer.mixer.A_log.data.fill_(200.0)
    with pytest.raises(ValueError, match=r"record '.*': the model predicts no finite number; its weights are damaged"):
        predict(checkpoint, events, static, tmp_path / "out.csv")
    assert not list(tmp_path.iterdir())
