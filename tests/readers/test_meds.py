"""MEDS: a small data set with known answers, shard by shard, every way it can be broken, and the real demo."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import SPLITS
from hymate_training.readers import meds, meds_shards
from tests.support.leakage import check_leakage

START = datetime(2000, 1, 1)
NUM_SUBJECTS = 24
SCHEMA = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}


def subject_rows(subject: int) -> list[tuple]:
    """Born 50 years before; a heart rate every other hour, a diagnosis at hour 5 and a code of one's own."""
    start = START + timedelta(days=subject)
    rows = [
        (subject, None, f"GENDER//{'FM'[subject % 2]}", None),
        (subject, None, "HEIGHT", 150.0 + subject),
        (subject, None, "ALLERGY//nuts", None),
        (subject, None, "ALLERGY//cats", None),
        (subject, start - timedelta(days=50 * 365.25), "MEDS_BIRTH", None),
    ]
    rows += [(subject, start + timedelta(hours=hour), "HR", 60.0 + hour) for hour in range(0, 12, 2)]
    rows += [(subject, start + timedelta(hours=5), "ICD//I10", None)]
    return [*rows, (subject, start + timedelta(hours=6), f"ONCE//{subject}", 1.0)]


def make(raw: Path, splits: bool = True, num_shards: int = 6) -> Path:
    for shard in range(num_shards):
        rows = [row for subject in range(shard, NUM_SUBJECTS, num_shards) for row in subject_rows(subject)]
        path = raw / "data" / "any" / f"{shard}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pl.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet(path)
    (raw / "metadata").mkdir(exist_ok=True)
    if splits:
        names = ["train"] * 16 + ["tuning"] * 4 + ["held_out"] * 3 + ["sealed"]
        frame = pl.DataFrame({"subject_id": range(NUM_SUBJECTS), "split": names})
        frame.write_parquet(raw / "metadata" / "subject_splits.parquet")
    (raw / "metadata" / "dataset.json").write_text(json.dumps({"dataset_name": "tiny", "meds_version": "0.4.0"}))
    return raw


def make_labels(folder: Path, column: str, value: Callable[[int], object], hours: tuple[float, ...] = (5.0,)) -> Path:
    folder.mkdir(parents=True)
    for part in range(2):
        rows = [
            (subject, START + timedelta(days=subject, hours=hour), value(subject))
            for subject in range(part, NUM_SUBJECTS, 2)
            for hour in hours
        ]
        pl.DataFrame(rows, schema=["subject_id", "prediction_time", column], orient="row").write_parquet(
            folder / f"{part}.parquet"
        )
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("meds"))


def record(folder: Path, split: str, record_id: str) -> dict:
    return next(row for row in PreparedFolder(folder).records(split).to_pylist() if row["record_id"] == record_id)


def same(one: Path, other: Path) -> bool:
    return PreparedFolder(one).info == PreparedFolder(other).info and all(
        PreparedFolder(one).records(split).equals(PreparedFolder(other).records(split)) for split in SPLITS
    )


def test_records_hold_events_codes_and_static_columns(raw, tmp_path):
    info = meds.prepare(raw, tmp_path / "out", min_subjects=2)
    assert info.variables[0] == "HR"  # the most frequent first
    assert set(info.variables) == {"HR", "ICD//I10", "ALLERGY//nuts", "ALLERGY//cats"}
    assert [(c.name, c.kind, c.categories) for c in info.static_columns] == [
        ("age", "numeric", ()),
        ("HEIGHT", "numeric", ()),
        ("GENDER", "categorical", ("F", "M")),
    ]
    first = record(tmp_path / "out", "train", "3")
    assert first["age"] == pytest.approx(50)
    assert (first["HEIGHT"], first["GENDER"]) == (153, "M")
    events = [
        (time, info.variables[variable], value)
        for time, variable, value in zip(first["time"], first["variable"], first["value"], strict=True)
    ]
    assert {(0.0, "ALLERGY//nuts", None), (5.0, "ICD//I10", None), (10.0, "HR", 70.0)} < set(events)
    assert len(events) == 9  # no birth, no code of one subject
    assert info.dropped == {
        "subjects without a split": 1,
        "events of codes that fewer than 2 training subjects have": NUM_SUBJECTS - 1,
    }
    assert len(PreparedFolder(tmp_path / "out").records("validation")) == 4
    assert info.tasks == ()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_names_of_folders_are_no_patterns(raw, tmp_path):
    folder = tmp_path / "data [1]"
    labels = make_labels(folder / "labels", "boolean_value", lambda subject: subject % 2 == 0)
    meds.prepare(make(folder / "raw"), folder / "out", labels=[labels], min_subjects=2)
    meds.prepare(raw, tmp_path / "out", labels=[labels], min_subjects=2)
    assert PreparedFolder(folder / "out").records("train").equals(PreparedFolder(tmp_path / "out").records("train"))


def test_labels_of_every_kind(raw, tmp_path):
    folders = [
        make_labels(tmp_path / "labels" / "death", "boolean_value", lambda subject: subject % 2 == 0, (3.0, 5.0)),
        make_labels(tmp_path / "labels" / "unit", "categorical_value", lambda subject: "abc"[subject % 3]),
        make_labels(tmp_path / "labels" / "days", "float_value", float),
        make_labels(tmp_path / "labels" / "visits", "integer_value", int, (-1.0, 5.0)),
    ]
    info = meds.prepare(raw, tmp_path / "out", labels=folders, min_subjects=2)
    assert [task.problem_type for task in info.tasks] == ["binary", "multiclass", "regression", "regression"]
    assert info.task("unit").label_names == ("a", "b", "c")
    assert info.dropped["labels of death of subjects without a record"] == 2
    assert info.dropped["labels of visits before the first event of a known code"] == NUM_SUBJECTS - 1
    rows = PreparedFolder(tmp_path / "out").task("death", "test").to_pylist()
    assert {(row["record_id"], row["prediction_time"], row["boolean_value"]) for row in rows} == {
        (str(subject), hour, subject % 2 == 0) for subject in (20, 21, 22) for hour in (3.0, 5.0)
    }
    for task in info.tasks:
        assert check_leakage(tmp_path / "out", task.name) > 0


def test_an_event_just_after_a_prediction_decades_in_stays_unseen(tmp_path):
    """After 40 years single precision cannot tell a minute; the record's events must stay on their side."""
    raw = make(tmp_path / "raw")
    predicted = START + timedelta(days=40 * 365, minutes=1)
    shard = raw / "data" / "any" / "0.parquet"
    late = [(0, predicted, "HR", 1.0), (0, predicted + timedelta(seconds=1), "HR", 2.0)]
    pl.concat([pl.read_parquet(shard), pl.DataFrame(late, schema=SCHEMA, orient="row")]).write_parquet(shard)
    folder = tmp_path / "labels" / "late"
    folder.mkdir(parents=True)
    label = {
        "subject_id": [0, 1],
        "prediction_time": [predicted, START + timedelta(days=2)],
        "boolean_value": [True, False],
    }
    pl.DataFrame(label).write_parquet(folder / "0.parquet")
    meds.prepare(raw, tmp_path / "out", labels=[folder], min_subjects=2)
    found = record(tmp_path / "out", "train", "0")
    [limit] = [
        r["prediction_time"]
        for r in PreparedFolder(tmp_path / "out").task("late", "train").to_pylist()
        if r["record_id"] == "0"
    ]
    seen = [value for time, value in zip(found["time"], found["value"], strict=True) if time <= limit]
    assert np.float32(limit) == np.float32(40 * 365 * 24 + (1 + 1 / 60) / 60)  # the plain cast would show it
    assert 1.0 in seen
    assert 2.0 not in seen


def test_parts_put_together_are_the_whole(raw, tmp_path):
    meds.prepare(raw, tmp_path / "whole", min_subjects=2)
    for part in ("2/3", "1/3", "3/3"):
        assert meds.prepare(raw, tmp_path / "parts", min_subjects=2, shard=part) is None
        assert not (tmp_path / "parts").exists()
    meds.prepare(raw, tmp_path / "parts", min_subjects=2, workers=3)
    assert same(tmp_path / "whole", tmp_path / "parts")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]


def test_an_interrupted_run_goes_on_with_the_shards_left(raw, tmp_path, monkeypatch):
    read = meds_shards.read_shard
    done: list[str] = []

    def interrupted(source, *args, **kwargs):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(source.name)
        read(source, *args, **kwargs)

    monkeypatch.setattr(meds_shards, "read_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        meds.prepare(raw, tmp_path / "out", min_subjects=2)
    assert not (tmp_path / "out").exists()
    again: list[str] = []
    monkeypatch.setattr(
        meds_shards, "read_shard", lambda source, *a, **k: (again.append(source.name), read(source, *a, **k))
    )
    meds.prepare(raw, tmp_path / "out", min_subjects=2)
    assert len(again) == 3
    assert not set(again) & set(done)
    meds.prepare(raw, tmp_path / "straight", min_subjects=2)
    assert same(tmp_path / "out", tmp_path / "straight")


def test_subjects_without_a_split_file_are_divided_by_a_hash(tmp_path, caplog):
    raw = make(tmp_path / "raw", splits=False)
    info = meds.prepare(raw, tmp_path / "out", min_subjects=2, seed=1)
    assert "subject_splits.parquet is missing" in caplog.text
    ids = [set(PreparedFolder(tmp_path / "out").records(split)["record_id"].to_pylist()) for split in SPLITS]
    assert sum(map(len, ids)) == len(set.union(*ids)) == NUM_SUBJECTS
    assert len(ids[0]) > NUM_SUBJECTS / 2
    assert info.seed == 1


def spoil(**columns: pl.Expr) -> Callable[[Path], None]:
    def apply(raw: Path):
        path = raw / "data" / "any" / "2.parquet"
        pl.read_parquet(path).with_columns(**columns).write_parquet(path)

    return apply


def drop_code(raw: Path):
    path = raw / "data" / "any" / "2.parquet"
    pl.read_parquet(path).drop("code").write_parquet(path)


def cut(raw: Path):
    path = raw / "data" / "any" / "2.parquet"
    path.write_bytes(path.read_bytes()[:-30])


def repeat_shard(raw: Path):
    (raw / "data" / "any" / "7.parquet").write_bytes((raw / "data" / "any" / "2.parquet").read_bytes())


def empty_all(raw: Path):
    for path in (raw / "data").rglob("*.parquet"):
        pl.read_parquet(path).clear().write_parquet(path)


def empty_splits(raw: Path):
    path = raw / "metadata" / "subject_splits.parquet"
    pl.read_parquet(path).clear().write_parquet(path)


def repeat_split(raw: Path):
    path = raw / "metadata" / "subject_splits.parquet"
    frame = pl.read_parquet(path)
    pl.concat([frame, frame.head(1)]).write_parquet(path)


def rename_splits(raw: Path):
    path = raw / "metadata" / "subject_splits.parquet"
    pl.read_parquet(path).with_columns(split=pl.lit("Train")).write_parquet(path)


def other_value_column(raw: Path):
    path = raw / "data" / "any" / "2.parquet"
    pl.read_parquet(path).rename({"numeric_value": "value"}).write_parquet(path)


BROKEN = {
    "truncated": (cut, "2.parquet"),
    "empty file": (lambda raw: (raw / "data" / "any" / "2.parquet").write_bytes(b""), "2.parquet is damaged"),
    "empty tables": (empty_all, "raw/data holds no events"),
    "empty splits": (empty_splits, "subject_splits.parquet has no rows"),
    "missing column": (drop_code, r"2.parquet .*code"),
    "wrong type": (spoil(time=pl.lit("yesterday")), "2.parquet"),
    "times as dates": (spoil(time=pl.col("time").dt.date()), "2.parquet .*time must be timestamps, not Date"),
    "times as numbers": (spoil(time=pl.col("time").dt.epoch("s")), "2.parquet .*time must be timestamps, not Int64"),
    "words as numbers": (spoil(numeric_value=pl.lit("1.5")), "2.parquet .*numeric_value must be numbers, not String"),
    "codes as numbers": (spoil(code=pl.lit(7)), "2.parquet .*code must be text, not Int32"),
    "nobody in train": (rename_splits, "no subject with a timed event is in the split train"),
    "half subjects": (spoil(subject_id=pl.col("subject_id") + 0.5), "2.parquet .*subject_id must be whole numbers"),
    "float subjects": (spoil(subject_id=pl.col("subject_id").cast(pl.Float64)), "2.parquet .*must be whole numbers"),
    "empty code": (spoil(code=pl.lit(" ")), "2.parquet: code is empty in"),
    "other value": (other_value_column, "2.parquet .*lacks numeric_value, but value holds numbers"),
    "zone in one shard": (
        spoil(time=pl.col("time").dt.replace_time_zone("UTC")),
        "time of .*2.parquet has a time zone and time of .*0.parquet has none",
    ),
    "placeholder date": (
        spoil(time=pl.when(pl.col("code") == "ICD//I10").then(datetime(1880, 1, 1)).otherwise("time")),
        "lasts for more than 110 years; .*placeholder date",
    ),
    "null code": (spoil(code=pl.lit(None, pl.String)), "2.parquet: code is null"),
    "infinite value": (spoil(numeric_value=pl.lit(np.inf, pl.Float32)), "2.parquet: subject 2 has an infinite"),
    "subject in two shards": (repeat_shard, "2.parquet and .*7.parquet"),
    "subject in two splits": (repeat_split, "subject_splits.parquet: subject 0"),
    "latin-1": (lambda raw: (raw / "metadata" / "dataset.json").write_bytes(b'{"license": "\xe9"}'), "dataset.json"),
    "no JSON": (lambda raw: (raw / "metadata" / "dataset.json").write_text("{"), "dataset.json"),
    "no data": (lambda raw: (raw / "data").rename(raw / "events"), "not a MEDS data set"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_data_set_is_named_and_leaves_nothing(tmp_path, broken):
    damage, message = BROKEN[broken]
    raw = make(tmp_path / "raw")
    damage(raw)
    with pytest.raises(ValueError, match=message):
        meds.prepare(raw, tmp_path / "out", min_subjects=2)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_bad_options_are_named(raw, tmp_path):
    for options, message in (
        ({"shard": "0/3"}, "2/8"),
        ({"shard": "half"}, "2/8"),
        ({"min_subjects": 0}, "--min-subjects"),
        ({"min_subjects": 99}, "lower --min-subjects"),
        ({"workers": 0}, "--workers"),
        ({"labels": [tmp_path]}, "no Parquet file"),
    ):
        with pytest.raises(ValueError, match=message):
            meds.prepare(raw, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_labels_must_be_one_column_without_gaps(raw, tmp_path):
    folder = make_labels(tmp_path / "two", "boolean_value", lambda subject: True)
    frame = pl.read_parquet(folder / "1.parquet")
    for spoiled, message in (
        (frame.with_columns(float_value=pl.lit(1.0)), "exactly one of"),
        (frame.with_columns(boolean_value=pl.lit(None, pl.Boolean)), "boolean_value is null"),
        (pl.concat([frame, frame.head(1)]), "predicted twice"),
    ):
        spoiled.write_parquet(folder / "1.parquet")
        with pytest.raises(ValueError, match=message):
            meds.prepare(raw, tmp_path / "out", labels=[folder])
    (folder / "1.parquet").write_bytes((folder / "0.parquet").read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"two/1\.parquet is damaged"):
        meds.prepare(raw, tmp_path / "out", labels=[folder])
    assert [path.name for path in tmp_path.iterdir()] == ["two"]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("boolean_value", [0, 2], "boolean_value must be true or false, not Int64"),
        ("boolean_value", [0.0, 0.3], "boolean_value must be true or false, not Float64"),
        ("integer_value", [1.0, 2.7], "integer_value must be whole numbers, not Float64"),
        ("float_value", ["1", "2"], "float_value must be numbers, not String"),
        ("categorical_value", [1, 2], "categorical_value must be text, not Int64"),
        ("categorical_value", ["a", "a"], "categorical_value is 'a' in all rows; a task needs two classes"),
    ],
)
def test_labels_of_another_type_are_refused(column, values, message, raw, tmp_path):
    folder = make_labels(tmp_path / "labels", column, lambda subject: values[subject % 2])
    with pytest.raises(ValueError, match=message):
        meds.prepare(raw, tmp_path / "out", labels=[folder], min_subjects=2)
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_labels_and_events_agree_on_having_a_time_zone(zone, tmp_path):
    raw = make(tmp_path / "raw")
    folder = make_labels(tmp_path / "labels" / "death", "boolean_value", lambda subject: subject % 2 == 0)
    meds.prepare(raw, tmp_path / "naive", labels=[folder], min_subjects=2)
    for part in (raw / "data").rglob("*.parquet"):
        pl.read_parquet(part).with_columns(pl.col("time").dt.replace_time_zone(zone)).write_parquet(part)
    with pytest.raises(
        ValueError, match=r"time of .* has a time zone and prediction_time of .*death/0.parquet has none"
    ):
        meds.prepare(raw, tmp_path / "out", labels=[folder], min_subjects=2)
    for part in folder.glob("*.parquet"):
        frame = pl.read_parquet(part)
        frame.with_columns(pl.col("prediction_time").dt.replace_time_zone(zone)).write_parquet(part)
    meds.prepare(raw, tmp_path / "aware", labels=[folder], min_subjects=2)
    assert same(tmp_path / "naive", tmp_path / "aware")
    for split in SPLITS:
        one, other = (PreparedFolder(tmp_path / name).task("death", split) for name in ("naive", "aware"))
        assert one.equals(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pl.col("subject_id") + 1000, "no label of death is left: none is of a subject with a record"),
        (pl.col("prediction_time") - timedelta(days=900), "no label of death is left: all are before the first event"),
    ],
)
def test_labels_of_which_none_is_left_are_refused(change, message, raw, tmp_path):
    folder = make_labels(tmp_path / "death", "boolean_value", lambda subject: subject % 2 == 0)
    for part in folder.glob("*.parquet"):
        pl.read_parquet(part).with_columns(change).write_parquet(part)
    with pytest.raises(ValueError, match=message):
        meds.prepare(raw, tmp_path / "out", labels=[folder], min_subjects=2)
    assert [path.name for path in tmp_path.iterdir()] == ["death"]


def admission(subject: int, begins: float, ends: float | None, way: str = "HOME") -> list[tuple]:
    """A stay in the hospital from one hour to another, with a diagnosis coded at its end."""
    start = START + timedelta(days=subject)
    rows = [(subject, start + timedelta(hours=begins), "HOSPITAL_ADMISSION//URGENT", None)]
    if ends is not None:
        rows += [
            (subject, start + timedelta(hours=ends), code, None) for code in (f"HOSPITAL_DISCHARGE//{way}", "ICD//I50")
        ]
    return rows


def test_labels_from_the_events_of_a_data_set(tmp_path):
    """What examples/meds_labels.py asks and answers, by hand, and that the answers are valid MEDS and leak nothing."""
    script = pytest.importorskip("meds_labels", reason="needs the package meds")
    raw = make(tmp_path / "raw", num_shards=2)
    for shard in range(2):
        path = raw / "data" / "any" / f"{shard}.parquet"
        rows = []
        for subject in range(shard, NUM_SUBJECTS, 2):
            rows += admission(subject, 0, 20)  # over before the question
            rows += admission(subject, 200, 200 + 24 * (5 + subject % 4))  # five to eight days
            rows += admission(subject, 600, 600 + 24 * 9, "DIED" if subject == 3 else "HOME")
            rows += admission(subject, 610, None)  # moved within the stay
            rows += admission(subject, 2000, None)  # not over when the data end
        pl.concat([pl.read_parquet(path), pl.DataFrame(rows, schema=SCHEMA, orient="row")]).write_parquet(path)
    script.main(["--raw", str(raw), "--output", str(tmp_path / "labels" / "long_stay")])
    info = meds.prepare(raw, tmp_path / "out", labels=[tmp_path / "labels" / "long_stay"], min_subjects=2)
    assert info.task("long_stay").problem_type == "binary"
    found = {
        (row["record_id"], row["prediction_time"]): row["boolean_value"]
        for split in SPLITS
        for row in PreparedFolder(tmp_path / "out").task("long_stay", split).to_pylist()
    }
    subjects = range(NUM_SUBJECTS - 1)  # the last is in no split
    expected = {(str(subject), 224.0): subject % 4 == 3 for subject in subjects}  # a week to the minute is not longer
    assert found == expected | {(str(subject), 624.0): True for subject in subjects}
    assert check_leakage(tmp_path / "out", "long_stay") > 50


def test_our_small_data_set_is_valid_meds(raw):
    standard = pytest.importorskip("meds", reason="needs the package meds")
    for path in (raw / "data").rglob("*.parquet"):
        standard.DataSchema.validate(standard.DataSchema.align(pq.read_table(path)))
    standard.SubjectSplitSchema.validate(
        standard.SubjectSplitSchema.align(pq.read_table(raw / standard.subject_splits_filepath))
    )
    assert standard.birth_code == meds_shards.BIRTH


def test_data_of_meds_testing_helpers(tmp_path):
    helpers = pytest.importorskip("meds_testing_helpers", reason="needs the package meds-testing-helpers")
    dataset = pytest.importorskip("meds_testing_helpers.dataset").MEDSDataset
    sample = Path(helpers.__file__).parent / "static_sample_data" / "simple_static_sharded_by_split_with_tasks.yaml"
    if not sample.is_file():
        pytest.skip(f"this version of meds-testing-helpers has no {sample.name}")
    written = dataset.from_yaml(sample).write(tmp_path / "raw")
    labels = [written.task_root_dir / name for name in written.task_names]
    info = meds.prepare(tmp_path / "raw", tmp_path / "out", labels=labels, min_subjects=1)
    rows = [row for shard in written.data_shards.values() for row in shard.to_pylist()]
    timed = [row for row in rows if row["time"] is not None and row["code"] in info.variables]
    events = [PreparedFolder(tmp_path / "out").events(split, info.variables) for split in SPLITS]
    assert sum(len(part.times) for part in events) == len(timed)
    assert {record_id for part in events for record_id in part.record_ids} == {str(row["subject_id"]) for row in timed}
    assert {"age", "HEIGHT", "EYE_COLOR"} == {column.name for column in info.static_columns}
    asked = sum(
        len(PreparedFolder(tmp_path / "out").task(task.name, split)) for task in info.tasks for split in SPLITS
    )
    left_out = sum(count for reason, count in info.dropped.items() if reason.startswith("labels of"))
    shards = [shard for task in written.task_labels.values() for shard in task.values()]
    assert asked + left_out == sum(shard.num_rows for shard in shards) > 0


def test_the_real_demo(shared_data, tmp_path):
    raw = shared_data("mimic-iv-demo-meds")
    info = meds.prepare(raw, tmp_path / "out", min_subjects=1, workers=2)
    counts = {split: len(PreparedFolder(tmp_path / "out").records(split)) for split in SPLITS}
    assert counts == {"train": 80, "validation": 10, "test": 10}
    train = pl.read_parquet(raw / "data" / "train" / "0.parquet")
    timed = train.filter(pl.col("time").is_not_null() & (pl.col("code") != "MEDS_BIRTH"))
    events = PreparedFolder(tmp_path / "out").events("train", info.variables)
    assert len(events.times) == timed.height
    assert set(info.variables) == set(timed["code"])
    lengths = dict(timed.group_by("subject_id").len().iter_rows())
    assert dict(zip(map(int, events.record_ids), events.lengths, strict=True)) == lengths
    assert np.isnan(events.values).sum() == timed["numeric_value"].is_null().sum()
    assert [column.name for column in info.static_columns] == ["age", "GENDER"]
