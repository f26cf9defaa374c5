"""A table of events that is read in parts gives what it gives in the whole."""

import gzip

import polars as pl
import pytest

from hymate_training.inference import parts, prediction
from hymate_training.inference.parts import add_tables, plain_events, split_records
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
    files = plain_events([tmp_path / "events.parquet"], tmp_path)
    assert files == [tmp_path / "events.parquet"]
    (tmp_path / "parts").mkdir()
    found = add_tables(split_records(files, tmp_path / "parts", 2000), static, None, tmp_path)
    frames = [pl.read_parquet(part.events) for part in found]
    assert len(frames) > 2
    names = [set(frame["record_id"]) for frame in frames]
    assert sum(map(len, names)) == len(set.union(*names)) == events["record_id"].n_unique()
    assert pl.concat(frames).sort(pl.all()).equals(events.sort(pl.all()))
    if how == "together":
        assert pl.concat(frames).equals(events)
    for part, own in zip(found, names, strict=True):
        assert set(pl.read_parquet(part.static)["record_id"]) - {"empty"} <= own
    assert sum(pl.scan_parquet(part.static).select(pl.len()).collect().item() for part in found) == static.height


@pytest.mark.parametrize("how", ["together", "shuffled"])
@pytest.mark.parametrize("form", ["parquet", "csv", "csv.gz", "two files"])
@pytest.mark.parametrize("asked", ["at the end", "every 12 hours", "at times"])
def test_prediction_in_parts_is_that_of_the_whole(tables, finetuned, tmp_path, monkeypatch, how, form, asked):
    events, static = tables
    given = arranged(events, how)
    halves = [given] if form != "two files" else [given.head(given.height // 2), given.tail(-(given.height // 2))]
    suffix = form if form != "two files" else "parquet"
    files = [tmp_path / f"events[{number}].{suffix}" for number in range(len(halves))]
    for half, file in zip(halves, files, strict=True):
        if suffix == "parquet":
            half.write_parquet(file, row_group_size=700)
        else:
            text = half.write_csv().encode()
            file.write_bytes(gzip.compress(text) if suffix == "csv.gz" else text)
    static.write_parquet(tmp_path / "static.parquet")
    times = (
        static.head(20).select("record_id", pl.lit([5.0, 30.0]).alias("prediction_time")).explode("prediction_time")
    )
    times = times.with_columns(comment=pl.lit("round"))
    times.write_csv(tmp_path / "times.csv")
    options = {"at the end": {}, "every 12 hours": {"every": 12.0}, "at times": {"at": tmp_path / "times.csv"}}[asked]
    options |= {"static": tmp_path / "static.parquet", "ignore_unknown_variables": True, "untrained_hours": True}
    source = files[0] if form == "csv" else files  # one as a path, the others as a hospital's files
    whole = predict(finetuned, source, **options)
    monkeypatch.setattr(prediction, "EVENTS_PER_PART", 2000)
    monkeypatch.setattr(parts, "PACKED", 1000)
    output = tmp_path / ("out.csv" if form == "csv" else "out.parquet")
    found = predict(finetuned, source, output=output, **options)
    assert not found.parts  # nothing is held
    one, other = whole.frame, found.frame
    if how == "together" and asked != "at times":
        assert other["record_id"].to_list() == one["record_id"].to_list()
    order = ["record_id", "prediction_time"] if asked != "at the end" else ["record_id"]
    one, other = one.sort(order), other.sort(order)
    assert other["remarks"].to_list() == one["remarks"].to_list()
    for name, column in zip(one.columns, one.iter_columns(), strict=True):
        if column.dtype.is_numeric():
            assert other[name].to_list() == pytest.approx(column.to_list(), abs=1e-6)
    assert sorted(found.remarks) == sorted(whole.remarks)
    assert found.num_ignored_events == whole.num_ignored_events == 2
    assert {path.name for path in tmp_path.iterdir()} == {
        *(file.name for file in files),
        "static.parquet",
        "times.csv",
        output.name,
    }


def test_what_is_wrong_with_a_part_names_the_table(tables, finetuned, tmp_path, monkeypatch):
    events, static = tables
    events.write_parquet(tmp_path / "events.parquet")
    monkeypatch.setattr(prediction, "EVENTS_PER_PART", 2000)
    with pytest.raises(ValueError, match=r"events\.parquet, part part-0000\d: row \d+: variable 'gamma_gt'"):
        predict(finetuned, tmp_path / "events.parquet", output=tmp_path / "out.csv")
    for hour, record_id, problem in ((-1.0, "empty", "not negative"), (3.0, "nobody", "in neither the events nor")):
        times = pl.DataFrame({"record_id": ["empty", record_id], "prediction_time": [1.0, hour]})
        times.write_parquet(tmp_path / "times.parquet")
        with pytest.raises(ValueError, match=rf"times\.parquet.*row 2: .*{problem}"):
            predict(
                finetuned,
                tmp_path / "events.parquet",
                static,
                tmp_path / "out.csv",
                at=tmp_path / "times.parquet",
                ignore_unknown_variables=True,
                untrained_hours=True,
            )
    (tmp_path / "times.parquet").unlink()
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
        assert plain_events([tmp_path / f"{name}.parquet"], tmp_path) is None, name
    words = events.with_columns(value=pl.when(pl.int_range(pl.len()) == 1).then(pl.lit("yes")).otherwise("value"))
    for name, text in {
        "word": words.write_csv(),
        "semicolons": events.write_csv(separator=";"),
        "another column": events.with_columns(age=pl.lit(3)).write_csv(),
        "a column less": events.drop("value").write_csv(),
    }.items():
        (tmp_path / "events.csv").write_text(text)
        assert plain_events([tmp_path / "events.csv"], tmp_path) is None, name
    (tmp_path / "events.csv").write_bytes(events.write_csv().encode("utf-16"))
    assert plain_events([tmp_path / "events.csv"], tmp_path) is None
    (tmp_path / "events.csv").write_text(events.write_csv())
    assert plain_events([tmp_path / "events.csv", tmp_path / "events.csv"], tmp_path) is not None
    events.write_parquet(tmp_path / "events.parquet")  # times and values in single precision
    assert plain_events([tmp_path / "events.csv", tmp_path / "events.parquet"], tmp_path) is None
