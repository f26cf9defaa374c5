"""Tables in: users' CSV and Parquet files, read whole, and the CSV files of large sources, read in pieces."""

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
from pyarrow import csv
from tqdm import tqdm

from hymate_training.files import regular
from modeling_hymate.events import MAX_ID_LENGTH, SHORTENED_ID

# cells of a CSV, of static columns and labels, that stand for no value
UNKNOWN = ("NA", "N/A", "#N/A", "<NA>", "NaN", "nan", "NULL", "null")
TEXT_COLUMNS = ("record_id", "patient_id", "variable", "split")  # text in a CSV, whatever its cells look like
SUFFIXES = (".csv", ".csv.gz", ".parquet")
PIECE_BYTES = 1 << 20  # of text that `read_csv_pieces` holds at a time; Arrow takes some thirty times as much memory
HEAD_BYTES = 1 << 16  # of text that is looked at to tell how a CSV is written
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


# ----------------------------------------------------------------------------------------------------- users' tables


def read_frame(
    path: str | Path, unknown: Sequence[str] = (), columns: Mapping[str, str] | None = None
) -> pl.DataFrame:
    """A user's table of records, events or labels, from a CSV, a Parquet file or a folder of Parquet files.

    `record_id` and `patient_id` come as text, all other text without spaces around it and null where it is empty. A
    CSV may be packed (.csv.gz), in UTF-8 or in UTF-16, and its cells may be separated by commas, by semicolons (then
    numbers may have a decimal comma) or by tabs.

    Args:
        path: the file, or the folder of Parquet files.
        unknown: cells of a CSV that are unknown, beside those that are empty.
        columns: name -> what the file calls it, where that is something else.

    Raises:
        ValueError: naming the file, and where it can the row, that cannot be read, has no rows or no usable record_id.
    """
    path, columns = Path(path), columns or {}
    text_columns = [columns.get(name, name) for name in TEXT_COLUMNS]
    try:
        parquet = _is_parquet(path)
        frame = pl.read_parquet(parquet_files(path), glob=False) if parquet else _read_csv(path, unknown, text_columns)
    except (pl.exceptions.PolarsError, OSError, EOFError, zlib.error, UnicodeError) as error:
        hint = "; save it as UTF-8" if "utf-8" in str(error).lower() else ""
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}{hint}") from error
    return tidy_frame(_renamed(path, frame, columns), path)


def tidy_frame(frame: pl.DataFrame, path: str | Path) -> pl.DataFrame:
    """What `read_frame` makes of a table once it is read.

    Args:
        frame: the table.
        path: its file, or another name for it, for messages.

    Raises:
        ValueError: if it has no rows or no usable record_id, or lists for variables.
    """
    if "record_id" not in frame.columns:
        raise ValueError(f"{path} lacks the column 'record_id'; it has {', '.join(frame.columns) or 'none'}")
    if not frame.height:
        raise ValueError(f"{path} has no rows")
    if (kind := frame.schema.get("variable", pl.String)).is_nested():
        raise ValueError(f"{path}: variable must be text, one name per row, not {kind}")
    text = (pl.String, pl.Categorical, pl.Enum)
    words = [name for name, kind in frame.schema.items() if kind in text or name == "variable"]
    frame = frame.with_columns(pl.col(words).cast(pl.String))
    for name in ("record_id", "patient_id"):
        if name in frame.columns:
            frame = frame.with_columns(_names(path, frame[name]))
    others = [name for name in words if name not in ("record_id", "patient_id")]
    frame = frame.with_columns(pl.col(others).str.strip_chars().replace("", None))
    refuse(path, frame["record_id"].fill_null("") == "", "record_id is missing")
    return frame


def _renamed(path: Path, frame: pl.DataFrame, columns: Mapping[str, str]) -> pl.DataFrame:
    own = {column: name for name, column in columns.items() if column in frame.columns}
    if taken := sorted(name for column, name in own.items() if name in frame.columns and name != column):
        raise ValueError(f"{path} has a column {taken[0]!r} beside {columns[taken[0]]!r}, which stands for it")
    record_id = columns.get("record_id", "record_id")
    if not {record_id, "record_id"} & set(frame.columns):
        raise ValueError(f"{path} lacks the column {record_id!r}; it has {', '.join(frame.columns) or 'none'}")
    return frame.rename(own)


def refuse(path: str | Path, wrong: pl.Series, problem: str, shown: pl.Series | None = None) -> None:
    """Raise ValueError for the first row at which `wrong` is true; rows count from 1, without the header."""
    if wrong.any():
        at = int(wrong.arg_max() or 0)
        found = "" if shown is None else f", found {shown[at]!r}"
        raise ValueError(f"{path}: row {at + 1}: {problem}{found}")


def numbers(path: str | Path, column: pl.Series) -> pl.Series:
    """A column as numbers, NaN as null.

    Raises:
        ValueError: naming the first row that holds something else.
    """
    name = column.name
    if column.dtype == pl.Null:
        return column.cast(pl.Float64)
    if column.dtype == pl.String:
        found = column.str.strip_chars().cast(pl.Float64, strict=False)
        wrong = found.is_null() & column.is_not_null()
        if column.filter(wrong).str.contains(r"^\s*-?[0-9]+,[0-9]+\s*$").any():
            refuse(path, wrong, f"{name} must be a number with a decimal point, not a comma", column)
        refuse(path, wrong, f"{name} must be a number", column)
        column = found
    if column.dtype.is_temporal():
        raise ValueError(f"{path}: {name} must be in hours since the record's start, not {column.dtype}")
    if not column.dtype.is_numeric():
        raise ValueError(f"{path}: {name} must be numbers, not {column.dtype}")
    found = column.cast(pl.Float64).fill_nan(None)
    refuse(path, found.is_infinite().fill_null(False), f"{name} must be finite", column)
    return found


def _names(path: str | Path, column: pl.Series) -> pl.Series:
    """Names of records or patients as text."""
    kind = column.dtype
    if not (kind.is_integer() or kind == pl.String):
        raise ValueError(f"{path}: {column.name} must be text or whole numbers, not {kind}")
    names = column.cast(pl.String)
    if kind == pl.String:
        begun = names.filter(names.ne_missing(names.shift(1)))  # a name that goes on is looked at once
        shortened, too_long = f"^{SHORTENED_ID.pattern}$", MAX_ID_LENGTH
        if begun.str.contains(shortened).any():
            problem = (
                f"{column.name} is a number that a spreadsheet has shortened, so that several may have become one"
            )
            refuse(path, names.str.contains(shortened).fill_null(False), problem, names)
        if (begun.str.len_chars() > too_long).any():
            problem = f"{column.name} has more than {too_long} characters"
            refuse(path, (names.str.len_chars() > too_long).fill_null(False), problem)
    return names


def _is_parquet(path: Path) -> bool:
    """Whether a path is to be read as Parquet, not as CSV; ValueError if it is neither."""
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    if path.is_dir():
        return True
    if not path.name.lower().endswith(SUFFIXES):
        raise ValueError(f"{path}: the name must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    return regular(path).name.lower().endswith(".parquet")


def parquet_files(path: Path) -> list[Path]:
    """A Parquet file itself, or the files of a folder by name."""
    if path.is_file():
        return [path]
    files = [regular(file) for file in sorted(path.rglob("*.parquet")) if not file.name.startswith((".", "_"))]
    if not files:
        raise ValueError(f"{path} is a folder without Parquet files; name a file that ends in {', '.join(SUFFIXES)}")
    return files


def _read_csv(path: Path, unknown: Sequence[str], text_columns: Sequence[str]) -> pl.DataFrame:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    source: Path | bytes = path
    with gzip.open(path) if packed else path.open("rb") as text:
        head = text.read(HEAD_BYTES)
        if head.startswith(UTF16_MARKS):
            source = (head + text.read()).decode("utf-16").encode()
            head = source[:HEAD_BYTES]
        elif b"\0" in head:
            raise ValueError(f"{path} is neither text in UTF-8 nor marked as UTF-16; save it as UTF-8")
    first = head.split(b"\n", 1)[0].decode("utf-8-sig", "replace")
    separator = next((mark for mark in (",", ";", "\t") if mark in first), ",")
    names = _header(first, separator)
    if twice := [name for at, name in enumerate(names) if name in names[:at]]:
        raise ValueError(f"{path} has two columns called {twice[0]!r}")
    decimal_comma = separator != "," and _has_decimal_comma(head, separator)
    frame = pl.read_csv(
        source,
        glob=False,
        separator=separator,
        decimal_comma=decimal_comma,
        infer_schema_length=None,
        schema_overrides={name: pl.String for name in text_columns if name in names},
        null_values=list(unknown) or None,
    )
    if decimal_comma:  # also in columns that hold words beside numbers, and in bounds such as <0,01
        mixed = [name for name, kind in frame.schema.items() if kind == pl.String and name not in text_columns]
        frame = frame.with_columns(pl.col(mixed).str.replace(r"^([<>=≤≥]*\s*-?[0-9]+),([0-9]+)$", "${1}.${2}"))
    return frame


def _has_decimal_comma(head: bytes, separator: str) -> bool:
    mark = re.escape(separator.encode())
    return re.search(rb"(^|[\r\n]|" + mark + rb")\s*-?[0-9]+,[0-9]+\s*($|[\r\n]|" + mark + rb")", head) is not None


# ------------------------------------------------------------------------------------------------------ large sources


def read_csv_pieces(
    path: Path,
    columns: Mapping[str, pa.DataType],
    *,
    optional: Iterable[str] = (),
    null_values: Sequence[str] = (),
) -> Iterator[pl.DataFrame]:
    """The named columns of a .csv or .csv.gz, some `PIECE_BYTES` of text at a time, under a progress bar.

    Args:
        path: the file.
        columns: the columns wanted, with their types.
        optional: those among them that the table may lack; they are then left out.
        null_values: fields that are null, beside those that are empty.

    Raises:
        ValueError: naming the file that is damaged, cut short, not UTF-8 or empty, lacks a column, or holds something
            else than the column's type.
    """
    packed = path.suffix == ".gz"
    rows = 0
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            names = _header(file.readline(HEAD_BYTES).decode("utf-8-sig"))
        if not names:
            raise ValueError(f"{path} is empty")
        if missing := [name for name in columns if name not in names and name not in optional]:
            raise ValueError(f"{path} lacks the column(s) {', '.join(missing)}; it has {', '.join(names)}")
        present = {name: kind for name, kind in columns.items() if name in names}
        with (
            path.open("rb") as raw,
            tqdm.wrapattr(
                raw, "read", total=path.stat().st_size, desc=f"reading {path.name}", leave=False, disable=None
            ) as watched,
            pa.input_stream(pa.PythonFile(watched, "r"), compression="gzip" if packed else None) as text,
            csv.open_csv(
                text,
                csv.ReadOptions(block_size=PIECE_BYTES, column_names=names, skip_rows=1),
                csv.ParseOptions(newlines_in_values=True),
                csv.ConvertOptions(
                    column_types=present,
                    include_columns=list(present),
                    strings_can_be_null=True,
                    null_values=["", *null_values],
                ),
            ) as reader,
        ):
            for batch in reader:
                rows += batch.num_rows
                yield pl.DataFrame(pl.from_arrow(batch))
    except (EOFError, zlib.error, OSError) as error:
        raise ValueError(f"{path} is damaged or incomplete ({error}); download it again") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a table in UTF-8: {error}") from error
    except pa.ArrowInvalid as error:
        if "Empty CSV" not in str(error):
            raise ValueError(f"{path} is not readable: {error}") from error
    if not rows:
        raise ValueError(f"{path} has no rows")


def _header(line: str, separator: str = ",") -> list[str]:
    """The names in the first line of a CSV; none where it is blank."""
    return [name.strip().strip('"') for name in line.split(separator)] if line.strip() else []
