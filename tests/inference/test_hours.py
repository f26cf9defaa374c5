"""Records asked at many hours: each answer is that of the record cut there, and none is lost in silence."""

import copy
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from hymate_training.cli.main import main
from hymate_training.inference import prediction
from hymate_training.inference.checkpoints import Checkpoint, load_checkpoint
from hymate_training.inference.hours import UNTRAINED, regular_hours
from hymate_training.inference.prediction import NO_EVENTS, predict
from modeling_hymate import Events
from tests.support.runs import event_frame

LAST_HOUR = 1000.0


@pytest.fixture(scope="module")
def checkpoint(finetuned) -> Checkpoint:
    """The classifier as if it had been trained at every hour."""
    opened = load_checkpoint(finetuned)
    extractor = copy.copy(opened.extractor)
    extractor.trained_hours = [0.0, LAST_HOUR]
    return replace(opened, extractor=extractor)


@pytest.fixture(scope="module")
def tables(synthetic_folder) -> tuple[pl.DataFrame, pl.DataFrame]:
    return event_frame(synthetic_folder)


def died_when_cut(checkpoint, events, static, record_id, hour, max_events=None) -> float:
    """The answer by the plainest route: the record's events until then, asked then, alone."""
    seen = events.filter(pl.col("record_id") == record_id, pl.col("time").cast(pl.Float32) <= np.float32(hour))
    single = [{name: seen[name].to_list() for name in ("time", "variable", "value")} | {"record_id": record_id}]
    own = static.filter(record_id=record_id)
    inputs = checkpoint.extractor.parse(single, own, allow_empty=True)
    inputs = checkpoint.extractor.encode(
        checkpoint.extractor.shorten(inputs, max_events), prediction_times=[float(hour)]
    )
    return checkpoint.model.predictions(checkpoint.model(**inputs).logits)[0, 0, 1].item()


@pytest.mark.parametrize(("bounds", "max_events"), [((1 << 24, 1 << 20), None), ((40, 300), None), ((40, 300), 12)])
def test_every_hour_is_that_of_the_record_cut_there(bounds, max_events, checkpoint, tables, monkeypatch):
    """Whatever is held at a time: all, or a few hours and events."""
    events, static = tables
    monkeypatch.setattr(prediction, "CHANNELS_AT_ONCE", bounds[0])
    monkeypatch.setattr(prediction, "EVENTS_AT_ONCE", bounds[1])
    found = predict(checkpoint, events, static, every=5, max_events=max_events).frame
    assert found.columns == ["record_id", "prediction_time", "survived", "died", "prediction", "remarks"]
    last = dict(events.group_by("record_id").agg(pl.col("time").max()).iter_rows())
    for (record_id,), own in found.group_by("record_id", maintain_order=True):
        hours = own["prediction_time"].to_list()
        assert hours == [5.0 * number for number in range(1, len(hours) + 1)]
        assert hours[-1] - 5 < last[record_id] <= hours[-1]
    for row in found.sample(12, seed=0).iter_rows(named=True):
        expected = died_when_cut(checkpoint, events, static, row["record_id"], row["prediction_time"], max_events)
        assert row["died"] == pytest.approx(expected, abs=1e-5)


def test_a_table_of_times_is_answered_row_by_row(checkpoint, tables, tmp_path):
    events, static = tables
    ids = static["record_id"].to_list()
    asked = pl.DataFrame(
        {"record_id": [ids[2], ids[0], ids[2], ids[1]], "prediction_time": [30.5, 0.0, 7.25, 48.0], "label": True}
    )
    asked.write_csv(tmp_path / "times.csv")
    found = predict(checkpoint, events, static, at=tmp_path / "times.csv")
    assert found.frame.select("record_id", "prediction_time").equals(asked.select("record_id", "prediction_time"))
    for row in found.frame.iter_rows(named=True):
        expected = died_when_cut(checkpoint, events, static, row["record_id"], row["prediction_time"])
        assert row["died"] == pytest.approx(expected, abs=1e-5)
    assert "2 records have no prediction time in the table, and so no prediction" in found.remarks
    first_event = events.filter(record_id=ids[0])["time"].min()
    assert (NO_EVENTS in (found.frame["remarks"][1] or "")) == (first_event > 0)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ({"record_id": ["nobody"], "prediction_time": [1.0]}, "row 1: record_id is in neither .* 'nobody'"),
        ({"record_id": ["{0}", "{1}"], "prediction_time": [1.0, -2.0]}, "row 2: .*not negative, found -2.0"),
        ({"record_id": ["{0}"], "prediction_time": [float("inf")]}, "row 1: prediction_time must be finite"),
        ({"record_id": ["{0}"], "prediction_time": [None]}, "row 1: prediction_time is missing"),
        ({"record_id": ["{0}"], "prediction_time": [float("nan")]}, "row 1: prediction_time is missing"),
        ({"record_id": ["{0}", None], "prediction_time": [1.0, 2.0]}, "row 2: record_id is missing"),
        ({"record_id": ["{0}"], "prediction_time": ["noon"]}, "row 1: prediction_time must be a number, found 'noon'"),
        ({"record_id": ["{0}"] * 2, "prediction_time": [3, 3]}, "row 2: the record is asked at this prediction_time"),
        ({"record_id": ["{0}"]}, "at lacks the column 'prediction_time'"),
        ({"subject_id": [1], "prediction_time": [1.0]}, "give record_id, and prediction_time in hours"),
    ],
)
def test_bad_times_are_refused_by_row(times, message, checkpoint, tables):
    events, static = tables
    ids = static["record_id"].to_list()
    if "record_id" in times:
        times = times | {"record_id": [name and name.format(*ids) for name in times["record_id"]]}
    with pytest.raises(ValueError, match=message):
        predict(checkpoint, events, static, at=pl.DataFrame(times))


@pytest.mark.parametrize("every", [0.0, -1.0, float("nan"), float("inf"), 1e-60])
def test_a_step_is_a_positive_number(every, checkpoint, tables):
    with pytest.raises(ValueError, match="every must be a positive number of hours"):
        predict(checkpoint, *tables, every=every)


def test_steps_meet_the_last_event_and_no_more():
    last = np.array([0.0, 0.3, 0.7, 1.1, 2.0, 2.04])
    events = Events(np.arange(len(last) + 1), last, np.zeros(len(last), int), last, record_ids=list("abcdef"))
    rows, hours = regular_hours(events, 0.1)
    assert np.bincount(rows).tolist() == [1, 3, 7, 11, 20, 21]
    assert hours[-1] == 2.1
    with pytest.raises(ValueError, match=r"asks record 'f', .* choose a longer step"):
        regular_hours(events, 1e-6)


def test_hours_at_which_the_model_was_not_trained(checkpoint, finetuned, tables, tmp_path, capsys):
    """They are refused with what would be right, or allowed and marked row by row."""
    events, static = tables
    extractor = copy.copy(checkpoint.extractor)
    extractor.trained_hours = [4.0, 24.0]
    partly = replace(checkpoint, extractor=extractor)
    with pytest.raises(ValueError, match=r"was trained at hours 4 to 24, but .* is asked at hour 30, .* ask at those"):
        predict(partly, events, static, every=6)
    found = predict(partly, events, static, every=2, untrained_hours=True).frame
    marked = found["remarks"].fill_null("").str.contains(UNTRAINED, literal=True)
    hours = found["prediction_time"]
    assert marked.to_list() == ((hours < 4) | (hours > 24)).to_list()
    assert UNTRAINED in predict(partly, events, static).frame["remarks"][0]  # asked at its end, near hour 48
    everywhere = predict(checkpoint, events, static, every=2).frame
    assert found["died"].equals(everywhere["died"])
    for name, frame in (("events", events), ("static", static)):
        frame.write_parquet(tmp_path / f"{name}.parquet")
    arguments = ["predict", "--checkpoint", str(finetuned), "--events", str(tmp_path / "events.parquet")]
    arguments += ["--static", str(tmp_path / "static.parquet"), "--output", str(tmp_path / "out.csv")]
    assert main([*arguments, "--every", "12"]) == 2
    message = capsys.readouterr().err
    assert "was trained at the end of each record alone" in message
    assert "hymate finetune --prediction-times" in message
    assert "--untrained-hours" in message
    assert main([*arguments, "--every", "12", "--untrained-hours"]) == 0
    assert pl.read_csv(tmp_path / "out.csv")["remarks"].str.contains(UNTRAINED, literal=True).all()
    with pytest.raises(ValueError, match="not both"):
        predict(finetuned, events, static, every=12, at=static)
