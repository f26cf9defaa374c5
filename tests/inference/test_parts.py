"""A table of events that is read in parts gives what it gives in the whole."""

import polars as pl
import pytest

from hymate_training.inference import prediction
from hymate_training.inference.parts import add_static, is_plain, split_records
from hymate_training.inference.prediction import predict
from tests.support.runs import event_frame


@pytest.fixture
def tables(synthetic_folder):
    """Events and static columns of test records, one of them without events and one of an unknown variable alone."""
    events, static = event_frame(synthetic_folder, 40)
    foreign = events.head(2).with_columns(record_id=pl.lit("foreign"), variable=pl.lit("gamma_gt"))
    empty = static.head(1).with_columns(record_id=pl.lit("empty"))
    return pl.concat([events, foreign]), pl.concat([static.tail(-1), empty])


def arranged(events, how):
    """The events in an order in which records lie together, or do not."""
    if how == "together":
        return events
    return events.sort("time") if how == "by time" else events.sample(fraction=1.0, shuffle=True, seed=0)


@pytest.mark.parametrize("how", ["together", "by time", "shuffled"])
def test_parts_are_whole_records(tables, tmp_path, how):
    events, static = tables
    arranged(events, how).write_parquet(tmp_path / "events.parquet", row_group_size=700)
    assert is_plain(tmp_path / "events.parquet")
    (tmp_path / "parts").mkdir()
    parts = add_static(split_records(tmp_path / "events.parquet", tmp_path / "parts", 2000), static, tmp_path)
    frames = [pl.read_parquet(part.events) for part in parts]
    assert len(frames) > 2
    names = [set(frame["record_id"]) for frame in frames]
    assert sum(map(len, names)) == len(set.union(*names)) == events["record_id"].n_unique()
    assert pl.concat(frames).sort(pl.all()).equals(events.sort(pl.all()))
    if how == "together":
        assert pl.concat(frames).equals(events)
    for part, own in zip(parts, names, strict=True):
        assert set(pl.read_parquet(part.static)["record_id"]) - {"empty"} <= own
    assert sum(pl.scan_parquet(part.static).select(pl.len()).collect().item() for part in parts) == static.height


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("how", ["together", "shuffled"])
@pytest.mark.parametrize("as_export", [True, False])
def test_prediction_in_parts_is_that_of_the_whole(tables, finetuned, tmp_path, monkeypatch, how, suffix, as_export):
    events, static = tables
    arranged(events, how).write_parquet(tmp_path / "events.parquet", row_group_size=700)
    source = [tmp_path / "events.parquet"] if as_export else tmp_path / "events.parquet"
    static.write_parquet(tmp_path / "static.parquet")
    given = {"static": tmp_path / "static.parquet", "ignore_unknown_variables": True}
    whole = predict(finetuned, source, **given)
    monkeypatch.setattr(prediction, "EVENTS_PER_PART", 2000)
    found = predict(finetuned, source, output=tmp_path / f"out.{suffix}", **given)
    assert not found.parts  # nothing is held
    one, other = whole.frame, found.frame
    if how == "together":
        assert other["record_id"].to_list() == one["record_id"].to_list()
    one, other = one.sort("record_id"), other.sort("record_id")
    assert other["remarks"].to_list() == one["remarks"].to_list()
    for name, column in zip(one.columns, one.iter_columns(), strict=True):
        if column.dtype.is_numeric():
            assert other[name].to_list() == pytest.approx(column.to_list(), abs=1e-6)
    assert sorted(found.remarks) == sorted(whole.remarks)
    assert found.num_ignored_events == whole.num_ignored_events == 2
    assert {path.name for path in tmp_path.iterdir()} == {"events.parquet", "static.parquet", f"out.{suffix}"}


def test_what_is_wrong_with_a_part_names_the_table(tables, finetuned, tmp_path, monkeypatch):
    events, _ = tables
    events.write_parquet(tmp_path / "events.parquet")
    monkeypatch.setattr(prediction, "EVENTS_PER_PART", 2000)
    with pytest.raises(ValueError, match=r"events\.parquet, part part-0000\d: row \d+: variable 'gamma_gt'"):
        predict(finetuned, tmp_path / "events.parquet", output=tmp_path / "out.csv")
    events.with_columns(variable=pl.lit("gamma_gt")).write_parquet(tmp_path / "events.parquet")
    with pytest.raises(ValueError, match="none of its variables is known"):
        predict(finetuned, tmp_path / "events.parquet", output=tmp_path / "out.csv", ignore_unknown_variables=True)
    assert [path.name for path in tmp_path.iterdir()] == ["events.parquet"]


def test_a_table_whose_cells_say_what_they_are_together_is_read_whole(tables, tmp_path):
    events, _ = tables
    for name, frame in {
        "words": events.with_columns(value=pl.lit("yes")),
        "timestamps": events.with_columns(time=pl.lit("2024-01-31 08:05")),
        "units": events.with_columns(unit=pl.lit("mg")),
        "wide": events.drop("variable", "value"),
    }.items():
        frame.write_parquet(tmp_path / f"{name}.parquet")
        assert not is_plain(tmp_path / f"{name}.parquet")
    events.write_csv(tmp_path / "events.csv")
    assert not is_plain(tmp_path / "events.csv")
