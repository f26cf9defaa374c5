"""Tables of the user's own: every kind of label, splits by patient, and each column that may be wrong."""

import argparse
import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from huggingface_hub import DatasetCard
from hypothesis import given, settings
from hypothesis import strategies as st

from hymate_training.cli import prepare as command
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import SPLITS
from hymate_training.readers import frame
from tests.support.leakage import check_leakage
from tests.support.prepared import records

NUM_RECORDS = 40


def make_events() -> pl.DataFrame:
    """Records 1 to 40: a heart rate every hour until hour 5 + n % 7, a diagnosis without a number at hour 2.5."""
    generator = np.random.default_rng(0)
    rows = []
    for record in range(1, NUM_RECORDS + 1):
        rows += [(record, float(hour), "hr", generator.normal(80, 10)) for hour in range(6 + record % 7)]
        rows.append((record, 2.5, "ICD:I10", None))
    return pl.DataFrame(rows, schema=["record_id", "time", "variable", "value"], orient="row")


def make_static() -> pl.DataFrame:
    ids = range(1, NUM_RECORDS + 1)
    return pl.DataFrame(
        {
            "record_id": ids,
            "patient_id": [f"p{record // 2}" for record in ids],
            "age": [None if record % 5 == 0 else 40 + record for record in ids],
            "sex": [("female", "male", None)[record % 3] for record in ids],
            "smoker": [record % 2 == 0 for record in ids],
        }
    )


def make_labels(**columns) -> pl.DataFrame:
    return pl.DataFrame({"record_id": range(1, NUM_RECORDS + 1), "prediction_time": 4.0, **columns})


ALL_LABELS = {
    "died": {"died": [record % 3 == 0 for record in range(NUM_RECORDS)]},
    "shock": {"boolean_value": [record % 2 for record in range(NUM_RECORDS)]},
    "ward": {"destination": ["home" if record % 4 else "ward" for record in range(NUM_RECORDS)]},
    "days": {"float_value": [record / 2 for record in range(NUM_RECORDS)]},
    "visits": {"visits": list(range(NUM_RECORDS))},
    "phenotypes": {"sepsis": [record % 2 == 0 for record in range(NUM_RECORDS)], "ards": [1, 0] * (NUM_RECORDS // 2)},
}


def write(folder: Path, name: str, table: pl.DataFrame, form: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.{form}"
    if form == "parquet":
        table.write_parquet(path)
    elif form == "csv":
        table.write_csv(path)
    else:
        path.write_bytes(gzip.compress(table.write_csv().encode()))
    return path


def write_all(folder: Path, form: str, order: np.random.Generator | None = None) -> dict:
    """Arguments of `prepare`, the files written in the given form, their rows in some order."""

    def shuffled(table: pl.DataFrame) -> pl.DataFrame:
        return table if order is None else table[order.permutation(table.height)]

    return {
        "events": write(folder, "events", shuffled(make_events()), form),
        "static": write(folder, "static", shuffled(make_static()), form),
        "labels": [
            str(write(folder, name, shuffled(make_labels(**columns)), form)) for name, columns in ALL_LABELS.items()
        ],
    }


def labels(folder: Path, task: str) -> dict[str, dict]:
    return {row["record_id"]: row for split in SPLITS for row in PreparedFolder(folder).task(task, split).to_pylist()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("frame")
    frame.prepare(output=folder / "out", **write_all(folder, "parquet"))
    return folder / "out"


def test_the_license_is_what_the_card_says(tmp_path):
    events = write(tmp_path, "events", make_events(), "csv")
    assert frame.prepare(events, tmp_path / "other").license == "other"
    assert frame.prepare(events, tmp_path / "open", license="cc-by-4.0").license == "cc-by-4.0"
    assert DatasetCard.load(tmp_path / "open" / "README.md").data.license == "cc-by-4.0"
    with pytest.raises(ValueError, match=r"--license must be an identifier of the Hub.*'CC BY 4.0'"):
        frame.prepare(events, tmp_path / "wrong", license="CC BY 4.0")


def test_events_and_static_columns(prepared):
    info = PreparedFolder(prepared).info
    assert info.variables == ("ICD:I10", "hr")
    rows = records(prepared)
    row = rows["9"]
    expected = make_events().filter(pl.col("record_id") == 9).sort("time")
    assert row["time"] == expected["time"].to_list()
    assert [info.variables[index] for index in row["variable"]] == expected["variable"].to_list()
    assert row["value"][3] is None
    assert row["value"][4] == np.float32(expected["value"][4])
    assert [(row["age"], row["sex"], row["smoker"]) for row in (row, rows["10"], rows["11"])] == [
        (49, "female", "false"),
        (None, "male", "true"),
        (51, None, "false"),
    ]
    kinds = {column.name: (column.kind, column.categories) for column in info.static_columns}
    assert kinds == {
        "age": ("numeric", ()),
        "sex": ("categorical", ("female", "male")),
        "smoker": ("categorical", ("false", "true")),
    }


def test_the_kind_of_problem_follows_from_the_label(prepared):
    info = PreparedFolder(prepared).info
    found = {task.name: (task.problem_type, task.label_columns, task.label_names) for task in info.tasks}
    assert found == {
        "died": ("binary", ("boolean_value",), ("no died", "died")),
        "shock": ("binary", ("boolean_value",), ("no shock", "shock")),
        "ward": ("multiclass", ("categorical_value",), ("home", "ward")),
        "days": ("regression", ("float_value",), ("days",)),
        "visits": ("regression", ("integer_value",), ("visits",)),
        "phenotypes": ("multilabel", ("sepsis", "ards"), ("sepsis", "ards")),
    }
    for task in info.tasks:
        rows = labels(prepared, task.name)
        assert len(rows) == NUM_RECORDS
        for column, expected in zip(task.label_columns, ALL_LABELS[task.name].values(), strict=True):
            assert [rows[str(at + 1)][column] for at in range(NUM_RECORDS)] == expected
        assert {row["prediction_time"] for row in rows.values()} == {4.0}


@pytest.mark.parametrize("unknown", ["NA", "nan", "NULL"])
def test_what_r_numpy_and_sql_write_is_understood(unknown, tmp_path):
    events = make_events().with_columns(
        variable=pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.lit(" hr ")).otherwise("variable")
    )
    size = make_static().height
    static = pl.DataFrame({"record_id": range(1, size + 1), "age": [unknown, *["61"] * (size - 1)]})
    died = make_labels(died=[unknown, *(["1", "0"] * size)[: size - 1]])
    paths = [
        write(tmp_path, name, table, "csv") for name, table in (("events", events), ("static", static), ("died", died))
    ]
    info = frame.prepare(paths[0], tmp_path / "out", static=paths[1], labels=[str(paths[2])])
    assert info.variables == ("ICD:I10", "hr")
    assert [(column.name, column.kind) for column in info.static_columns] == [("age", "numeric")]
    assert info.tasks[0].problem_type == "binary"
    assert info.dropped["predictions of died without a label"] == 1
    spoiled = write(
        tmp_path,
        "spoiled",
        static.with_columns(age=pl.Series([f"{40 + at}" for at in range(size - 1)] + ["90+"])),
        "csv",
    )
    with pytest.raises(ValueError, match=r"'age' holds numbers, but also '90\+'"):
        frame.prepare(paths[0], tmp_path / "other", static=spoiled)


def test_records_of_a_patient_share_a_split(prepared):
    patient = dict(make_static().select(pl.col("record_id").cast(pl.String), "patient_id").iter_rows())
    members = [{patient[record_id] for record_id in records(prepared, split)} for split in SPLITS]
    assert not members[0] & members[1] | members[0] & members[2] | members[1] & members[2]
    assert sum(map(len, members)) == len(set(patient.values()))
    assert [len(found) for found in members] == [17, 2, 2]
    assert "By patient" in PreparedFolder(prepared).info.split_description


@pytest.mark.parametrize("form", ["csv", "csv.gz"])
def test_every_format_gives_the_same_records(form, prepared, tmp_path):
    frame.prepare(output=tmp_path / "out", **write_all(tmp_path, form))
    assert records(tmp_path / "out") == records(prepared)
    for task in ALL_LABELS:
        assert labels(tmp_path / "out", task) == labels(prepared, task)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=5, deadline=None)
def test_the_order_of_rows_changes_nothing(prepared: Path, tmp_path_factory: pytest.TempPathFactory, seed: int):
    folder = tmp_path_factory.mktemp("shuffled")
    frame.prepare(output=folder / "out", **write_all(folder, "parquet", np.random.default_rng(seed)))
    for split in SPLITS:
        assert PreparedFolder(folder / "out").records(split).equals(PreparedFolder(prepared).records(split))


def test_a_given_split_and_a_label_at_the_end_of_the_record(tmp_path):
    static = make_static().with_columns(
        pl.when(pl.col("record_id") <= 20).then(pl.lit("test")).otherwise(pl.lit("train")).alias("split")
    )
    static = static.with_columns(patient_id=pl.col("record_id"))
    given = write(tmp_path, "static", static, "csv")
    died = write(tmp_path, "outcome", make_labels(died=ALL_LABELS["died"]["died"]).drop("prediction_time"), "csv")
    events = write(tmp_path, "events", make_events(), "csv")
    info = frame.prepare(events, tmp_path / "out", static=given, labels=[f"mortality={died}"])
    assert set(records(tmp_path / "out", "test")) == {str(record) for record in range(1, 21)}
    assert not list((tmp_path / "out" / "records").glob("validation-*"))
    ends = {record_id: row["time"][-1] for record_id, row in records(tmp_path / "out", "train", "test").items()}
    rows = [
        row
        for split in ("train", "test")
        for row in PreparedFolder(tmp_path / "out").task("mortality", split).to_pylist()
    ]
    assert {row["record_id"]: row["prediction_time"] for row in rows} == ends
    assert info.split_description == "As given by the column split."


def test_what_cannot_be_asked_is_dropped_and_counted(tmp_path):
    died = make_labels(died=[None, *ALL_LABELS["died"]["died"][1:]])
    died = died.with_columns(prediction_time=pl.when(pl.col("record_id") == 2).then(-1.0).otherwise(4.0))
    died = pl.concat([died, pl.DataFrame({"record_id": [99], "prediction_time": [4.0], "died": [True]})])
    events = write(tmp_path, "events", make_events(), "parquet")
    path = write(tmp_path, "died", died, "parquet")
    info = frame.prepare(events, tmp_path / "out", labels=[str(path)])
    assert info.dropped == {
        "predictions of died without a label": 1,
        "predictions of died of a record without events": 1,
        "predictions of died before the record's first event": 1,
    }
    assert len(labels(tmp_path / "out", "died")) == NUM_RECORDS - 2


NUMBER_TYPES = (pl.Int8, pl.UInt8, pl.Int64, pl.UInt64, pl.Float32, pl.Float64, pl.Decimal(10, 2))


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("kind", NUMBER_TYPES, ids=str)
def test_labels_of_every_type_of_number(kind, form, tmp_path):
    """One and zero are a yes or a no and other numbers a regression, beside null and, as pandas writes it, NaN."""
    missing = [float("nan") if kind.is_float() else None]
    died = pl.Series(ALL_LABELS["died"]["died"][1:]).cast(pl.Int8).to_list()
    days = [number % 9 + (0.5 if kind.is_float() or kind.is_decimal() else 0) for number in range(NUM_RECORDS - 1)]
    tables = {"died": died, "days": days}
    paths = [
        write(tmp_path, name, make_labels(label=pl.Series(missing + values, strict=False).cast(kind)), form)
        for name, values in tables.items()
    ]
    events = write(tmp_path, "events", make_events(), form)
    info = frame.prepare(events, tmp_path / "out", labels=[str(path) for path in paths])
    assert [task.problem_type for task in info.tasks] == ["binary", "regression"]
    for name, values in tables.items():
        found = labels(tmp_path / "out", name)
        column = info.task(name).label_columns[0]
        assert {int(record): row[column] for record, row in found.items()} == dict(enumerate(values, start=2))
        assert info.dropped[f"predictions of {name} without a label"] == 1


def test_tables_of_a_spreadsheet_are_the_same_tables(prepared, tmp_path):
    """Semicolons, decimal commas and UTF-16, as spreadsheets write them in much of the world."""
    files = write_all(tmp_path, "csv")
    for path in (files["events"], files["static"], *map(Path, files["labels"])):
        path.write_bytes(path.read_text().replace(",", ";").replace(".", ",").encode("utf-16"))
    frame.prepare(output=tmp_path / "out", **files)
    assert records(tmp_path / "out") == records(prepared)
    for task in ALL_LABELS:
        assert labels(tmp_path / "out", task) == labels(prepared, task)


@pytest.mark.parametrize("task", ALL_LABELS)
def test_nothing_after_the_prediction_is_seen(task, prepared):
    assert check_leakage(prepared, task) > 50


BAD_EVENTS = [
    (lambda f: f.drop("variable"), r"lacks the column 'variable'"),
    (lambda f: f.drop("record_id"), r"lacks the column 'record_id'"),
    (lambda f: f.with_columns(ward=pl.lit("bpm")), r"unexpected column 'ward'"),
    (lambda f: f.with_columns(time=pl.col("time") - 1), r"row 1: time must be hours .* 0 or more, found -1"),
    (lambda f: f.with_columns(time=pl.when(pl.col("time") < 3).then("time")), r"row 4: time is missing"),
    (
        lambda f: f.with_columns(time=pl.lit("noon")),
        r"row 1: time must be a number of hours, or a timestamp .*, found 'noon' \(400 rows: 1, 2, 3, \.\.\.\)",
    ),
    (
        lambda f: f.with_columns(time=pl.datetime(2026, 1, 1)),
        r"time must be",
    ),
    (lambda f: f.with_columns(value=pl.lit("5 mmol")), r"row 1: value must be a number, .* or words, found '5 mmol'"),
    (lambda f: f.with_columns(value=pl.lit(float("inf"))), r"row 1: value must be finite"),
    (lambda f: f.with_columns(variable=pl.lit(None, pl.String)), r"row 1: variable is missing"),
    (lambda f: f.with_columns(record_id=pl.lit(None, pl.Int64)), r"row 1: record_id is missing"),
    (lambda f: f.head(0), r"events\.\w+ has no rows"),
]
BAD_EVENTS += [
    (
        lambda f: f.with_columns(time=pl.col("time") + 4e5),
        r"the earliest event of all comes at hour 400,\d\d\d\. Subtract",
    ),
    (
        lambda f: f.with_columns(time=pl.col("time") + 5.6e9),
        r"row 1: time must be hours .* not a date or seconds; 110 years",
    ),
]
BAD_STATIC = [
    (lambda f: pl.concat([f, f[[3]]]), r"row 4: record_id occurs twice, found '4'"),
    (lambda f: f.head(10), r"has no row for 30 record\(s\) with events, '\d+' first"),
    (
        lambda f: f.with_columns(split=pl.lit("dev")),
        r"row 1: split must be one of train, validation, test, found 'dev'",
    ),
    (
        lambda f: f.with_columns(
            split=pl.when(pl.col("record_id") > 20).then(pl.lit("train")).otherwise(pl.lit("test"))
        ),
        r"patient 'p10' has records in several splits",
    ),
    (lambda f: f.with_columns(patient_id=pl.lit(None, pl.String)), r"row 1: patient_id is missing"),
    (lambda f: f.with_columns(patient_id=pl.lit("one")), r"1 patient\(s\) are too few"),
    (lambda f: f.with_columns(time=pl.lit(1.0)), r"'time' cannot be the name of a static column"),
]
SPELLINGS = {
    "two cases": (["Male", "male", "Female"], "'Male' and 'male'"),
    "abbreviation": (["Male", "M", "Female"], "'M' and 'Male'"),
    "yes and y": (["Yes", "y", "no"], "'Yes' and 'y'"),
    "spaces": (
        ["medical ICU", "medical  icu", "other"],
        "'medical  icu' and 'medical ICU'|'medical ICU' and 'medical  icu'",
    ),
    "decimal comma": (["40,5", "38,25", "41,0"], "holds '38,25': write numbers with a decimal point"),
    "ISO dates": (["2020-01-31", "2019-12-01", "unknown"], "holds dates, '2019-12-01' first"),
    "German dates": (["31.01.2020", "1.2.1950", "03.04.2001"], "holds dates"),
    "numbers and a text": (["1", "2", "3", "4", "many"], "holds numbers, but also 'many'"),
}
BAD_STATIC += [
    (
        lambda f, words=words: f.with_columns(odd=pl.Series([words[at % len(words)] for at in range(f.height)])),
        rf"'odd' .*({message})",
    )
    for words, message in SPELLINGS.values()
]
BAD_LABELS = [
    (lambda f: f.drop("died"), r"has no label column"),
    (lambda f: pl.concat([f, f[[3]]]), r"row 4: this record and prediction_time occur twice, found '4'"),
    (lambda f: f.with_columns(prediction_time=pl.lit(None, pl.Float64)), r"row 1: prediction_time is missing"),
    (lambda f: f.with_columns(record_id=pl.col("record_id") + 1000), r"no prediction is left"),
    (lambda f: f.rename({"died": "boolean_value"}).with_columns(more=True), r"boolean_value must be the only label"),
    (
        lambda f: f.with_columns(boolean_value=pl.lit(2)).drop("died"),
        r"row 1: boolean_value must be true/false or 1/0",
    ),
    (lambda f: f.with_columns(integer_value=pl.lit(0.5)).drop("died"), r"row 1: integer_value must be whole numbers"),
    (lambda f: f.with_columns(died=pl.lit("yes")), r"died has 1 classes"),
    (lambda f: f.with_columns(float_value=pl.lit("much")).drop("died"), r"row 1: float_value must be a number"),
]
BAD_LABELS += [
    (
        lambda f, words=words: f.with_columns(died=pl.Series([words[at % len(words)] for at in range(f.height)])),
        rf"'died' .*({message})",
    )
    for words, message in SPELLINGS.values()
]
BAD_LABELS += [
    (lambda f: f.with_columns(died=pl.col("died").cast(pl.Int64) + 1), "died holds two numbers, 1 and 2: write 1/0"),
    (lambda f: f.with_columns(died=pl.col("died").cast(pl.Int64) * 2 - 1), "died holds two numbers, -1 and 1"),
    (lambda f: f.rename({"died": "Smoker"}), "'smoker' is also a static column, which would tell"),
    (lambda f: f.with_columns(prediction_time=5.6e9), r"row 1: prediction_time must be hours .* 110 years"),
]
CASES = [
    *(("events", *case) for case in BAD_EVENTS),
    *(("static", *case) for case in BAD_STATIC),
    *(("died", *case) for case in BAD_LABELS),
]


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize(("table", "change", "message"), CASES)
def test_a_bad_column_is_named_and_nothing_left(table, change, message, form, tmp_path):
    tables = {"events": make_events(), "static": make_static(), "died": make_labels(**ALL_LABELS["died"])}
    tables[table] = change(tables[table])
    paths = {name: write(tmp_path / "raw", name, content, form) for name, content in tables.items()}
    arguments = (paths["events"], tmp_path / "out"), {"static": paths["static"], "labels": [str(paths["died"])]}
    with pytest.raises(ValueError, match=message) as raised:
        frame.prepare(*arguments[0], **arguments[1])
    assert f"{table}.{form}" in str(raised.value) or "too few" in message
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_names_are_no_numbers_and_categories_are_few(tmp_path):
    """What a CSV cannot tell: fractions as record ids; and a text for every record."""
    events = make_events().with_columns(pl.col("record_id") / 2)
    with pytest.raises(ValueError, match=r"events\.parquet: record_id must be text or whole numbers, not Float64"):
        frame.prepare(write(tmp_path, "events", events, "parquet"), tmp_path / "out")
    events = pl.DataFrame({"record_id": range(150), "time": 0.0, "variable": "hr", "value": 1.0})
    static = pl.DataFrame({"record_id": range(150), "note": [f"note {record}" for record in range(150)]})
    paths = [write(tmp_path, name, table, "csv") for name, table in (("many", events), ("notes", static))]
    with pytest.raises(ValueError, match=r"notes\.csv: 'note' has 150 categories, more than 100"):
        frame.prepare(paths[0], tmp_path / "out", static=paths[1])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("events.csv", b""),
        ("events.csv", "record_id,time,variable,value\n1,0,fi\xe8vre,1\n".encode("latin-1")),
        ("events.csv", b"record_id,time,variable,value\n1,0,hr,1,7\n"),
        ("events.csv.gz", gzip.compress(make_events().write_csv().encode())[:-200]),
        ("events.parquet", b"PAR1 and nothing else"),
    ],
)
def test_a_damaged_file_is_named(name, content, tmp_path):
    (tmp_path / "raw").mkdir()
    path = tmp_path / "raw" / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}"):
        frame.prepare(path, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


TIMES = {"event_time": [10.0 + record for record in range(NUM_RECORDS)]}
OBSERVED = {"event_observed": [record % 2 == 0 for record in range(NUM_RECORDS)]}


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_time_and_whether_it_is_the_events_are_a_time_to_event(form, tmp_path):
    events = write(tmp_path, "events", make_events(), form)
    numbers = {"event_observed": [int(seen) for seen in OBSERVED["event_observed"]]}
    path = write(tmp_path, "relapse", make_labels(**numbers, **TIMES), form)
    frame.prepare(events, tmp_path / "out", labels=[str(path)])
    folder = PreparedFolder(tmp_path / "out")
    task = folder.info.tasks[0]
    assert (task.name, task.problem_type, task.label_names) == ("relapse", "time_to_event", ("relapse",))
    rows = [row for split in SPLITS for row in folder.task("relapse", split).to_pylist()]
    assert {int(row["record_id"]): (row["event_time"], row["event_observed"]) for row in rows} == {
        record + 1: (10.0 + record, record % 2 == 0) for record in range(NUM_RECORDS)
    }


def test_a_date_puts_no_outcome_before_the_events_of_its_day(tmp_path):
    events = write(tmp_path, "events", make_events(), "csv")
    record_id = range(1, NUM_RECORDS + 1)
    start = write(
        tmp_path, "starts", pl.DataFrame({"record_id": record_id, "start": ["2020-01-01 06:00"] * NUM_RECORDS}), "csv"
    )
    stamps = {"event_time": ["2020-01-01"] * NUM_RECORDS, "prediction_time": ["2020-01-01 12:00"] * NUM_RECORDS}
    labels = write(tmp_path, "relapse", pl.DataFrame({"record_id": record_id, **OBSERVED, **stamps}), "csv")
    asked = pl.DataFrame(
        {"record_id": record_id, "prediction_time": ["2020-01-02"] * NUM_RECORDS, "x": [0, 1] * (NUM_RECORDS // 2)}
    )
    later = write(tmp_path, "later", asked, "csv")
    frame.prepare(events, tmp_path / "out", labels=[str(labels), str(later)], start=start)
    folder = PreparedFolder(tmp_path / "out")
    assert all(17.999 < hours < 18 for hours in folder.task("relapse", "train")["event_time"].to_pylist())
    assert set(folder.task("later", "train")["prediction_time"].to_pylist()) == {18.0}  # and sees nothing of its day


def test_times_of_events_may_be_timestamps(tmp_path):
    events = write(tmp_path, "events", make_events(), "csv")
    starts = {"record_id": range(1, NUM_RECORDS + 1), "start": ["2020-01-01 06:00"] * NUM_RECORDS}
    stamps = {"event_time": ["2020-01-02 06:30"] * NUM_RECORDS, "prediction_time": ["2020-01-01 12:00"] * NUM_RECORDS}
    labels = write(tmp_path, "relapse", pl.DataFrame({"record_id": starts["record_id"], **OBSERVED, **stamps}), "csv")
    start = write(tmp_path, "starts", pl.DataFrame(starts), "csv")
    frame.prepare(events, tmp_path / "out", labels=[str(labels)], start=start)
    table = PreparedFolder(tmp_path / "out").task("relapse", "train")
    assert set(table["event_time"].to_pylist()) == {24.5}
    assert set(table["prediction_time"].to_pylist()) == {6.0}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (TIMES, "has the columns event_time and event_observed and no others; found event_time"),
        (
            TIMES | OBSERVED | {"died": OBSERVED["event_observed"]},
            "and no others; found event_time, event_observed, died",
        ),
        (OBSERVED | {"event_time": [3.0] * NUM_RECORDS}, "row 1: event_time lies before prediction_time"),
        (OBSERVED | {"event_time": [4.0] * NUM_RECORDS}, "row 1: the event happens at prediction_time, not after it"),
        (TIMES | {"event_observed": [2] * NUM_RECORDS}, "event_observed must be true/false or 1/0"),
        (OBSERVED | {"event_time": [None, *TIMES["event_time"][1:]]}, "event_time is missing"),
    ],
)
def test_times_of_events_that_cannot_be_are_refused(columns, message, tmp_path):
    events = write(tmp_path, "events", make_events(), "csv")
    labels = write(tmp_path, "relapse", make_labels(**columns), "csv")
    with pytest.raises(ValueError, match=message):
        frame.prepare(events, tmp_path / "out", labels=[str(labels)])


def test_who_is_censored_at_the_prediction_is_kept(tmp_path):
    events = write(tmp_path, "events", make_events(), "csv")
    lost = {"event_time": [4.0] * NUM_RECORDS, "event_observed": [False] * NUM_RECORDS}
    labels = write(tmp_path, "relapse", make_labels(**lost), "csv")
    frame.prepare(events, tmp_path / "out", labels=[str(labels)])
    assert PreparedFolder(tmp_path / "out").task("relapse", "train").num_rows > 20


def test_wrong_arguments_are_named(tmp_path):
    events = write(tmp_path, "events", make_events(), "csv")
    died = write(tmp_path, "died", make_labels(**ALL_LABELS["died"]), "csv")
    for options, message in (
        ({"fractions": (0.5, 0.1, 0.1)}, "--fractions must be three numbers"),
        ({"labels": [str(died), str(died)]}, "two tasks are called 'died'"),
        ({"labels": [str(tmp_path / "none.csv")]}, r"none\.csv does not exist"),
        ({"labels": [f"records={died}"]}, "task name 'records'"),
    ):
        with pytest.raises(ValueError, match=message):
            frame.prepare(events, tmp_path / "out", **options)
    with pytest.raises(ValueError, match=r"must end in \.csv"):
        frame.prepare(
            write(tmp_path, "events", make_events(), "csv").rename(tmp_path / "events.txt"), tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_the_command_tells_what_it_made(tmp_path):
    files = write_all(tmp_path, "csv")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    words = ["frame", "--events", str(files["events"]), "--static", str(files["static"]), "--labels", *files["labels"]]
    printed = command.run(
        parser.parse_args([*words, "--output", str(tmp_path / "out"), "--fractions", "0.5", "0.5", "0"])
    )
    for part in ("phenotypes", "2 variables, 3 static columns", "By patient, seed 0: 50% train"):
        assert part in printed
