"""Tables of a source: found in a folder or an archive whatever their case, and read in pieces, from CSV or Parquet."""

import contextlib
import gzip
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from hymate_training.data.tables import read_csv_pieces
from hymate_training.files import regular
from hymate_training.readers.stays import DAY

ID, NUMBER, TEXT, TIME = pa.int64(), pa.float64(), pa.string(), pa.timestamp("ms")
KINDS: dict[pa.DataType, Any] = {ID: pl.Int64, NUMBER: pl.Float64, TEXT: pl.String, TIME: pl.Datetime("ms")}
SUFFIXES = (".parquet", ".csv.gz", ".csv")
PARQUET_ROWS = 1 << 18  # read at a time
FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M")


def find_tables(raw: Path, scratch: Path, wanted: Sequence[str]) -> dict[str, Path]:
    """Table -> its file, or its folder of Parquet files; what an archive holds is unpacked to `scratch`.

    Args:
        raw: a folder that holds the tables, at any depth, or the .zip of one; or the .zip itself.
        scratch: an empty folder.
        wanted: names of tables; a file's name may have a prefix such as `2b_`, and any case.

    Raises:
        ValueError: if there is no such folder or archive, or it holds a table twice.
    """
    if raw.is_dir():
        found = _tables_in(raw, wanted)
        archives = sorted(raw.glob("*.zip"))
        return find_tables(archives[0], scratch, wanted) if not found and len(archives) == 1 else found
    if raw.suffix != ".zip" or not raw.is_file():
        raise ValueError(f"{raw}: no such folder or .zip; --raw is what holds the tables, such as {wanted[0]}.csv.gz")
    try:
        with zipfile.ZipFile(raw) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            size, free = (found / 2**30 for found in (_size(members), shutil.disk_usage(scratch).free))
            if size > free:
                raise ValueError(f"{raw} unpacks to {size:,.1f} GiB, and {scratch} has {free:,.1f} GiB left")
            for member in members:
                path = Path(member.filename)
                if "__MACOSX" not in path.parts and _name_of(path, wanted):
                    with archive.open(member) as source, (scratch / path.name).open("xb") as copy:
                        shutil.copyfileobj(source, copy)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        raise ValueError(f"{raw} is damaged or incomplete ({error}); download it again") from error
    return _tables_in(scratch, wanted)


def _size(members: Sequence[zipfile.ZipInfo]) -> int:
    return sum(member.file_size for member in members)


def _tables_in(folder: Path, wanted: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        name = _name_of(path, wanted)
        if name is None or path.parent in found.values():
            continue
        if regular(path).is_dir() and not any(map(regular, path.glob("*.parquet"))):
            continue
        if name in found:
            raise ValueError(f"{folder} holds the table {name} twice: {found[name]} and {path}")
        found[name] = path
    return found


def _name_of(path: Path, wanted: Sequence[str]) -> str | None:
    """The table that a file or folder is by its name; None for anything else."""
    name = path.name.lower()
    suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)
    if path.name.startswith(".") or (suffix is None and path.suffix):
        return None
    stem = re.sub(r"^\d+[a-z]?_", "", name.removesuffix(suffix or ""))
    return stem if stem in wanted else None


def read_pieces(
    path: Path, columns: Mapping[str, pa.DataType], required: Sequence[str] = ()
) -> Iterator[pl.DataFrame]:
    """The columns of a table in pieces, whatever their case; one that it lacks is null.

    Args:
        path: the file, or the folder of Parquet files.
        columns: name -> type. Text may come as a date or a time, where the file has it so.
        required: columns that must be there.

    Raises:
        ValueError: naming the file that is damaged or lacks a required column, or the column of another type.
    """
    spelled = {name.lower(): name for name in _columns_of(path)}
    if missing := [name for name in required if name not in spelled]:
        raise ValueError(f"{path} lacks the column(s) {', '.join(missing)}; it has {', '.join(spelled)}")
    own = {name: spelled[name] for name in columns if name in spelled}
    for piece in _pieces(path, {spelling: columns[name] for name, spelling in own.items()}):
        frame = piece.rename({spelling: name for name, spelling in own.items()})
        frame = frame.with_columns(pl.lit(None).alias(name) for name in columns if name not in own)
        yield frame.select(_typed(name, kind, frame.schema[name], path) for name, kind in columns.items())


def _typed(name: str, kind: pa.DataType, found: pl.DataType, path: Path) -> pl.Expr:
    if kind == TEXT and found.is_temporal():
        return pl.col(name)
    if found.is_nested() or (found.is_temporal() and kind != TIME) or (kind != TEXT and found == pl.String):
        raise ValueError(f"{path}: {name} must be {kind}, not {found}")
    return pl.col(name).cast(KINDS[kind])


def _pieces(path: Path, columns: Mapping[str, pa.DataType]) -> Iterator[pl.DataFrame]:
    if not _is_parquet(path):
        yield from read_csv_pieces(path, columns)
        return
    for file in _parquet_files(path):
        with _readable(file), pq.ParquetFile(file) as table:
            for batch in table.iter_batches(PARQUET_ROWS, columns=list(columns)):
                yield pl.DataFrame(pl.from_arrow(batch))


def _columns_of(path: Path) -> list[str]:
    with _readable(path):
        if _is_parquet(path):
            return pq.read_schema(_parquet_files(path)[0]).names
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.readline(1 << 16).decode("utf-8-sig").strip()
    if not header:
        raise ValueError(f"{path} is empty")
    return [name.strip().strip('"') for name in header.split(",")]


def _is_parquet(path: Path) -> bool:
    return path.is_dir() or path.suffix == ".parquet"


def _parquet_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.glob("*.parquet"))


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or incomplete ({error}); download it again") from error


def seconds_of(frame: pl.DataFrame, stem: str, path: Path, *, end: bool = True, whole_days: bool = False) -> pl.Series:
    """When something was, in seconds since 1970, from `<stem>_datetime`, or else from `<stem>_date`.

    Args:
        frame: the columns, as text or temporal.
        stem: of their names.
        path: for the message.
        end: a date alone stands for the end of its day, not for its beginning.
        whole_days: the datetimes are dates, too.

    Raises:
        ValueError: naming the column and what in it is no time.
    """
    moment = _datetimes(frame[f"{stem}_datetime"], path).dt.epoch("us").cast(pl.Float64) / 1e6
    day = _datetimes(frame[f"{stem}_date"], path).dt.epoch("s").cast(pl.Float64)
    wait = DAY - 1 if end else 0
    return pl.select(pl.coalesce(moment + wait if whole_days else moment, day + wait)).to_series()


def _datetimes(column: pl.Series, path: Path) -> pl.Series:
    if column.dtype == pl.Null:
        return column.cast(pl.Datetime("us"))
    if column.dtype == pl.Datetime:
        return column.dt.replace_time_zone(None).cast(pl.Datetime("us"))
    if column.dtype == pl.Date:
        return column.cast(pl.Datetime("us"))
    text = column.str.strip_chars().str.replace(r"(Z|[+-]00:?00)$", "").replace("", None)
    parsed = [text.str.to_datetime(form, strict=False, time_unit="us") for form in FORMATS]
    parsed.append(text.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")))
    found = pl.select(pl.coalesce(parsed)).to_series()
    if (wrong := text.is_not_null() & found.is_null()).any():
        raise ValueError(
            f"{path}: {column.name} must be a time such as 2024-01-31 08:05:00, found {text.filter(wrong)[0]!r}"
        )
    return found
