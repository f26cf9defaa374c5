"""Events as hospitals export them: what each form of a file becomes, and that all problems are said at once."""

import gzip
from pathlib import Path

import polars as pl
import pytest

from hymate_training.cli.main import main
from hymate_training.data.exports import Layout, read_events, read_starts
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import SPLITS
from tests.support.leakage import check_leakage


def write(path: Path, text: str) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def found(*paths: Path, layout: Layout | None = None, start: Path | None = None) -> list[tuple]:
    """record_id, time, variable, value, in the order of the rows."""
    starts = None if start is None else read_starts(start, layout)
    return read_events(paths, layout, starts).events.select("record_id", "time", "variable", "value").rows()


def test_several_files_of_each_form_are_one_table(tmp_path):
    long = write(tmp_path / "labs.csv", "record_id,time,variable,value,unit\na,1,Na,140,mmol/L\na,2,K,4.1,mmol/L\n")
    wide = write(tmp_path / "vitals.csv.gz", "record_id;time;HR;Temp\na;1,5;80;\na;2,5;;37,5\n")
    codes = write(tmp_path / "codes.csv", "record_id,time,variable\na,0,I10\n")
    assert found(long, wide, codes) == [
        ("a", 1.0, "Na", 140.0),
        ("a", 2.0, "K", 4.1),
        ("a", 1.5, "HR", 80.0),
        ("a", 2.5, "Temp", 37.5),
        ("a", 0.0, "I10", None),
    ]
    assert read_events([long, wide]).events["unit"].to_list() == ["mmol/L", "mmol/L", None, None]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<0.01", [("x", 0.01), ("x <", None)]),
        (">= 90", [("x", 90.0), ("x >", None)]),
        ("≤5", [("x", 5.0), ("x <", None)]),
        ("positive", [("x: positive", None)]),
        ("Hemolyzed", [("x: hemolyzed", None)]),
        ("hémolysé, répéter", [("x: hémolysé, répéter", None)]),
        ("7.5", [("x", 7.5)]),
        ("NaN", [("x", None)]),
        ("", [("x", None)]),
    ],
)
def test_results_in_words(text, expected, tmp_path):
    """Beside a number, so that the column is one of text."""
    path = write(tmp_path / "e.csv", f'record_id,time,variable,value\na,1,x,"{text}"\na,1,y,odd\n')
    assert sorted((name, value) for _, _, name, value in found(path) if name != "y: odd") == sorted(
        expected, key=lambda pair: pair[0]
    )


def test_yes_and_no_are_numbers_where_they_are_all_there_is(tmp_path):
    path = write(
        tmp_path / "e.csv",
        "record_id,time,variable,value\na,1,vent,Y\na,2,vent,no\na,1,culture,yes\na,2,culture,pending\n",
    )
    assert found(path) == [
        ("a", 1.0, "vent", 1.0),
        ("a", 2.0, "vent", 0.0),
        ("a", 1.0, "culture: yes", None),
        ("a", 2.0, "culture: pending", None),
    ]


STARTS = "record_id,start\na,2024-01-31 08:00\nb,2024-02-01\n"


@pytest.mark.parametrize(
    "time", ["2024-01-31 10:30", "2024-01-31T10:30:00", "31.01.2024 10:30", "2024-01-31 10:30:00.000"]
)
def test_timestamps_are_hours_since_the_start(time, tmp_path):
    start = write(tmp_path / "start.csv", STARTS)
    path = write(tmp_path / "e.csv", f"record_id,time,variable,value\na,{time},x,1\nb,2024-02-01,x,2\n")
    assert found(path, start=start) == [("a", 2.5, "x", 1.0), ("b", pytest.approx(24 - 1 / 3600), "x", 2.0)]


def test_timestamps_of_parquet_and_a_column_of_starts(tmp_path):
    frame = pl.DataFrame({"record_id": [7], "time": ["2024-01-31 10:30"], "start": ["2024-01-31 09:00"], "x": [1.0]})
    frame = frame.with_columns(pl.col("time", "start").str.to_datetime("%Y-%m-%d %H:%M"))
    frame.write_parquet(tmp_path / "e.parquet")
    assert found(tmp_path / "e.parquet") == [("7", 1.5, "x", 1.0)]


def test_time_zones(tmp_path):
    """Across the change to summer time an hour is an hour; offsets and local times meet where the zone is stated."""
    start = write(tmp_path / "start.csv", "record_id,start\na,2024-03-31 00:30\n")
    path = write(tmp_path / "e.csv", "record_id,time,variable,value\na,2024-03-31 04:30,x,1\n")
    assert found(path, start=start)[0][1] == 4.0
    berlin = Layout(time_zone="Europe/Berlin")
    assert found(path, start=start, layout=berlin)[0][1] == 3.0
    path = write(
        tmp_path / "z.csv",
        "record_id,time,variable,value\na,2024-03-31T02:30:00Z,x,1\na,2024-03-31T04:30:00+02:00,x,1\n",
    )
    assert [row[1] for row in found(path, start=start, layout=berlin)] == [3.0, 3.0]
    with pytest.raises(ValueError, match="state --time-zone"):
        found(path, start=start)
    skipped = write(tmp_path / "s.csv", "record_id,time,variable,value\na,2024-03-31 02:30,x,1\n")
    with pytest.raises(ValueError, match="row 1: time does not exist in Europe/Berlin, where clocks went forward"):
        found(skipped, start=start, layout=berlin)
    with pytest.raises(ValueError, match="'Moon' is not a time zone"):
        Layout(time_zone="Moon")


def test_events_before_the_start_are_dropped_and_counted(tmp_path):
    start = write(tmp_path / "start.csv", STARTS)
    path = write(tmp_path / "e.csv", "record_id,time,variable,value\na,2024-01-31 07:00,x,1\na,2024-01-31 09:00,x,2\n")
    export = read_events([path], None, read_starts(start))
    assert export.dropped == {"events before the record's start": 1}
    assert export.events["value"].to_list() == [2.0]


def test_a_layout_names_columns_and_leaves_others_out(tmp_path):
    labs = write(tmp_path / "labs.csv", "PAT,TS,ITEM,RESULT,UNIT,NURSE\n0012,1,Na,140,mmol/L,Ann\n")
    vitals = write(tmp_path / "vitals.csv", "PAT,CHARTED,ITEM,RESULT,UNIT\n0012,2,HR,80,\n")
    (tmp_path / "layout.yaml").write_text(
        "columns: {record_id: PAT, time: TS, variable: ITEM, value: RESULT, unit: UNIT}\n"
        "files: {vitals.csv: {time: CHARTED}}\n"
    )
    layout = Layout.read(tmp_path / "layout.yaml")
    assert found(labs, vitals, layout=layout) == [("0012", 1.0, "Na", 140.0), ("0012", 2.0, "HR", 80.0)]
    assert Layout(**layout.to_dict()) == layout
    with pytest.raises(ValueError, match="unexpected column 'NURSE'"):
        found(write(tmp_path / "e.csv", "record_id,time,variable,value,NURSE\na,1,x,1,Ann\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("columns: {patient: PAT}", "'patient' is not one of record_id"),
        ("columns: [record_id]", "columns must map roles to columns"),
        ("zone: Berlin", "must hold columns, files and time_zone"),
        ("columns: {", "must hold columns, files and time_zone"),
        ("time_zone: Moon", "'Moon' is not a time zone"),
    ],
)
def test_a_broken_layout_is_named(text, message, tmp_path):
    path = write(tmp_path / "layout.yaml", text)
    with pytest.raises(ValueError, match=message) as raised:
        Layout.read(path)
    assert "layout.yaml" in str(raised.value)


def test_all_problems_of_all_files_are_said_at_once(tmp_path):
    start = write(tmp_path / "start.csv", STARTS)
    labs = write(
        tmp_path / "labs.csv",
        "record_id,time,variable,value\n"
        "a,2024-01-31 09:00,Na,140\n"
        "a,soon,Na,140\n"
        "a,,Na,140\n"
        'a,2024-01-31 09:00,Na,"1,5"\n'
        "a,2024-01-31 09:00,,1\n"
        "c,2024-01-31 09:00,K,4 mmol\n"
        "a,later,Na,inf\n",
    )
    vitals = write(tmp_path / "vitals.csv", "record_id,time,variable,value\na,-1,HR,80\na,-2,HR,80\n")
    with pytest.raises(ValueError, match="labs") as raised:
        found(labs, vitals, start=start)
    assert [part.rpartition("/")[2] for part in str(raised.value).split("; ")] == [
        "labs.csv: row 3: time is missing",
        "labs.csv: row 2: time must be a number of hours, or a timestamp such as 2024-01-31 08:05 or 31.01.2024 "
        "08:05, found 'soon' (2 rows: 2, 7)",
        "labs.csv: row 6: record_id has no start, found 'c'",
        "labs.csv: row 5: variable is missing",
        "labs.csv: row 7: value must be finite, found 'inf'",
        "labs.csv: row 4: value must be a number with a decimal point, not a comma, found '1,5'",
        "labs.csv: row 6: value must be a number, a bound such as <0.01, or words, found '4 mmol'",
        "vitals.csv: row 1: time must be hours since the record's start, 0 or more, found -1.0 (2 rows: 1, 2)",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("record_id,variable,value\na,x,1\n", "lacks the column 'time'"),
        ("record_id,time,value\na,1,1\n", "lacks the column 'variable'"),
        ("record_id,time\na,1\n", "has no column of a variable"),
        ("record_id,time,variable,value\na,2024-01-31 09:00,x,1\n", "which need the record's start"),
        ("record_id,time,x\n" + "".join(f"a,1,{a}{b} remark\n" for a in "abcdefgh" for b in "abcdefgh"), "free text"),
    ],
)
def test_tables_that_cannot_be_meant(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        found(write(tmp_path / "e.csv", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("record_id,begin\na,2024-01-31\n", "lacks the column 'start'"),
        ("record_id,start\na,2024-01-31\na,2024-02-01\n", "row 1: record_id has two starts, found 'a'"),
        ("record_id,start\na,\nb,2024-01-31\n", "row 1: start is missing"),
        ("record_id,start\na,noon\n", "start must be a number of hours, or a timestamp"),
    ],
)
def test_wrong_starts_are_named(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_starts(write(tmp_path / "start.csv", text))


def test_an_export_from_its_files_to_a_folder(tmp_path):
    """Two files, their own column names, timestamps, bounds and words, labels at a timestamp; and nothing leaks."""
    people = [f"P{number:02d}" for number in range(40)]
    labs = "PAT;TS;ITEM;RESULT\n" + "".join(
        f"{name};{day:02d}.01.2024 {hour:02d}:15;Lactate;{value}\n"
        for name in people
        for day, hour, value in ((1, 9, "1,5"), (1, 20, "<0,3"), (2, 9, "hemolyzed"))
    )
    vitals = "PAT;TS;HR\n" + "".join(f"{name};01.01.2024 10:00;80\n{name};03.01.2024 10:00;95\n" for name in people)
    admissions = "PAT;ADMITTED\n" + "".join(f"{name};01.01.2024 08:15\n" for name in people)
    outcomes = "PAT;ASKED;died\n" + "".join(f"{name};02.01.2024 08:15;{at % 2}\n" for at, name in enumerate(people))
    files = {"labs": labs, "vitals": vitals, "admissions": admissions, "outcomes": outcomes}
    paths = {name: str(write(tmp_path / f"{name}.csv", text)) for name, text in files.items()}
    run = ["prepare", "frame", "--events", paths["labs"], "--events", paths["vitals"], "--start", paths["admissions"]]
    run += ["--labels", paths["outcomes"], "--output", str(tmp_path / "out"), "--columns", "record_id=PAT", "time=TS"]
    run += ["variable=ITEM", "value=RESULT", "start=ADMITTED", "prediction_time=ASKED"]
    assert main(run) == 0
    folder = PreparedFolder(tmp_path / "out")
    rows = {row["record_id"]: row for split in SPLITS for row in folder.records(split).to_pylist()}
    names = [folder.info.variables[index] for index in rows["P07"]["variable"]]
    assert list(zip(rows["P07"]["time"], names, rows["P07"]["value"], strict=True)) == [
        (1.0, "Lactate", 1.5),
        (1.75, "HR", 80.0),
        (12.0, "Lactate", pytest.approx(0.3)),
        (12.0, "Lactate <", None),
        (25.0, "Lactate: hemolyzed", None),
        (49.75, "HR", 95.0),
    ]
    asked = {row["prediction_time"] for split in SPLITS for row in folder.task("outcomes", split).to_pylist()}
    assert asked == {24.0}
    assert folder.info.extra["layout"]["columns"]["record_id"] == "PAT"
    assert check_leakage(tmp_path / "out", "outcomes") > 0
