"""Users' tables in every form they come in, and the CSV files of large sources in pieces."""

import codecs
import gzip
import os
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from hymate_training.data import tables
from hymate_training.data.tables import UNKNOWN, numbers, read_csv_pieces, read_frame

TABLE = pl.DataFrame(
    {
        "record_id": ["007", "8", "8"],
        "time": [0.5, 1.0, 2.25],
        "variable": ["hr", "icd", "hr"],
        "value": [80.0, None, 81.5],
    }
)
TEXT = TABLE.write_csv()
SEMICOLONS = TEXT.replace(",", ";").replace(".", ",")


def parts(folder: Path) -> Path:
    (folder / "year=2020").mkdir(parents=True)
    TABLE.head(1).write_parquet(folder / "year=2020" / "part-0.parquet")
    TABLE.tail(2).write_parquet(folder / "year=2020" / "part-1.parquet")
    (folder / "_SUCCESS").touch()
    (folder / "_metadata.parquet").touch()
    return folder


FORMS = {
    "events.csv": TEXT.encode(),
    "EVENTS.CSV": TEXT.encode(),
    "events.csv.gz": gzip.compress(TEXT.encode()),
    "packed.csv": gzip.compress(TEXT.encode()),
    "windows.csv": TEXT.replace("\n", "\r\n").encode(),
    "marked.csv": codecs.BOM_UTF8 + TEXT.encode(),
    "utf16.csv": TEXT.encode("utf-16"),
    "big-endian.csv": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    "semicolons.csv": SEMICOLONS.encode(),
    "excel.csv": SEMICOLONS.replace("\n", "\r\n").encode("utf-16"),
    "semicolons.csv.gz": gzip.compress(SEMICOLONS.encode()),
    "points.csv": TEXT.replace(",", ";").encode(),
    "tabs.csv": TEXT.replace(",", "\t").encode(),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_csv_gives_the_same_table(name, tmp_path):
    (tmp_path / name).write_bytes(FORMS[name])
    assert read_frame(tmp_path / name).equals(TABLE)


def test_every_form_of_parquet_gives_the_same_table(tmp_path):
    TABLE.write_parquet(tmp_path / "events.PARQUET")
    for path in (tmp_path / "events.PARQUET", parts(tmp_path / "events"), parts(tmp_path / "more.parquet")):
        assert read_frame(path).equals(TABLE)


@pytest.mark.parametrize("name", ["events[1]", "*"] if os.name != "nt" else ["events[1]"])
@pytest.mark.parametrize("form", ["csv", "csv.gz", "parquet", "folder"])
def test_a_name_is_no_pattern(name, form, tmp_path):
    """What a browser calls a second download of `events1.csv`, which lies beside it."""
    for stem, table in ((name, TABLE), ("events1", TABLE.with_columns(record_id=pl.lit("another")))):
        path = tmp_path / (stem if form == "folder" else f"{stem}.{form}")
        if form == "folder":
            path.mkdir()
            table.write_parquet(path / "part-0.parquet")
        elif form == "parquet":
            table.write_parquet(path)
        else:
            path.write_bytes(
                gzip.compress(table.write_csv().encode()) if form == "csv.gz" else table.write_csv().encode()
            )
    assert read_frame(tmp_path / (name if form == "folder" else f"{name}.{form}")).equals(TABLE)


def test_ids_and_words_are_text_without_spaces(tmp_path):
    (tmp_path / "static.csv").write_text(
        "record_id,variable,ventilated,unit,age\n007,220045,true, MICU ,NA\n8,10,,,4\n"
    )
    frame = read_frame(tmp_path / "static.csv", UNKNOWN)
    assert frame.rows() == [("007", "220045", True, "MICU", None), ("8", "10", None, None, 4)]
    categories = pl.DataFrame({"record_id": [1, 2], "unit": ["a ", ""], "variable": [5, 6]})
    for kind in (pl.Categorical, pl.Enum(["a ", ""])):
        categories.with_columns(pl.col("unit").cast(kind)).write_parquet(tmp_path / "static.parquet")
        assert read_frame(tmp_path / "static.parquet").rows() == [("1", "a", "5"), ("2", None, "6")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ("record_id,time\n", "has no rows"),
        ("patient,time\n1,2\n", "lacks the column 'record_id'; it has patient, time"),
        ("record_id,time\n,2\n", "row 1: record_id is missing"),
        (
            "record_id,time\n1,2\n1.33E+10,2\n",
            r"row 2: record_id is a number that a spreadsheet has shortened.*1.33E\+10",
        ),
        (f"record_id,time\n{'x' * 257},2\n", "row 1: record_id has more than 256 characters"),
        ("record_id,patient_id\n1,2E5\n", "row 1: patient_id is a number that a spreadsheet has shortened"),
        ("record_id,name\n1,fi\xe8vre\n".encode("latin-1"), "cannot be read: .*save it as UTF-8"),
        ("record_id,time\n1,2\n".encode("utf-16-le"), "neither text in UTF-8 nor marked as UTF-16"),
        ("record_id,time\n1,2,3\n", "cannot be read"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_with_its_row(content, message, tmp_path):
    path = tmp_path / "events.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"events\.csv.*{message}"):
        read_frame(path)


def test_what_is_no_table_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "events.xlsx").touch()
    pl.DataFrame({"record_id": [0.5]}).write_parquet(tmp_path / "half.parquet")
    cases = {
        "none.csv": "does not exist",
        "folder": "is a folder without Parquet files",
        "events.xlsx": r"the name must end in \.csv, \.csv\.gz or \.parquet",
        "half.parquet": "record_id must be text or whole numbers, not Float64",
    }
    if hasattr(os, "mkfifo"):  # not on Windows
        os.mkfifo(tmp_path / "pipe.csv")
        cases["pipe.csv"] = "is not a regular file"
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message):
            read_frame(tmp_path / name)


def test_numbers_may_be_text_and_nothing_else(tmp_path):
    path = tmp_path / "table.csv"
    assert numbers(path, pl.Series("x", [" 1.5", None, "2e3", "nan"])).to_list() == [1.5, None, 2000.0, None]
    assert numbers(path, pl.Series("x", [None, None])).to_list() == [None, None]
    for column, message in (
        (pl.Series("x", ["1.5", "2,5"]), "row 2: x must be a number with a decimal point, not a comma, found '2,5'"),
        (pl.Series("x", ["much"]), "row 1: x must be a number, found 'much'"),
        (pl.Series("x", [1.0, float("inf")]), "row 2: x must be finite"),
        (pl.Series("x", [True]), "x must be numbers, not Boolean"),
        (pl.Series("x", [0]).cast(pl.Date), "x must be in hours since the record's start, not Date"),
    ):
        with pytest.raises(ValueError, match=message):
            numbers(path, column)


COLUMNS = {"record_id": pa.string(), "time": pa.float64(), "value": pa.float64()}


@pytest.mark.parametrize("packed", [True, False])
def test_pieces_put_together_are_the_whole(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "PIECE_BYTES", 64)
    whole = pl.concat([TABLE.with_columns(note=pl.lit("two\nlines"))] * 50)
    path = tmp_path / ("table.csv.gz" if packed else "table.csv")
    text = codecs.BOM_UTF8 + whole.write_csv().encode()
    path.write_bytes(gzip.compress(text) if packed else text)
    pieces = list(read_csv_pieces(path, COLUMNS | {"more": pa.string()}, optional=("more",)))
    assert len(pieces) > 10
    assert pl.concat(pieces).equals(whole.select(list(COLUMNS)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"record_id,time,value\n", "has no rows"),
        (b"record_id,time\n1,2\n", r"lacks the column\(s\) value; it has record_id, time"),
        (b"record_id,time,value\n1,2,much\n", "is not readable: .*much"),
        (b"record_id,time,value\nfi\xe8vre,2,1\n", "is not readable: .*UTF8"),
        ("record_id,time,value\n1,2,1\n".encode("utf-16"), "is not a table in UTF-8"),
    ],
)
def test_a_broken_csv_of_a_source_is_named(content, message, tmp_path):
    for name, text in (("lab.csv", content), ("lab.csv.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(text)
        with pytest.raises(ValueError, match=rf"{name} {message}"):
            list(read_csv_pieces(tmp_path / name, COLUMNS))


@pytest.mark.parametrize("kept", [0, 5, 30, -4])
def test_a_packed_csv_cut_short_is_named(kept, tmp_path):
    path = tmp_path / "lab.csv.gz"
    path.write_bytes(gzip.compress(TEXT.encode())[:kept])
    with pytest.raises(ValueError, match=r"lab\.csv\.gz is (damaged or incomplete|empty)"):
        list(read_csv_pieces(path, COLUMNS))
