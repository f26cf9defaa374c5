"""A table of events that is larger than memory, in files of whole records that are each small enough."""

import gzip
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from hymate_training.data.tables import HEAD_BYTES, UNKNOWN, parquet_files, read_csv_pieces, refuse
from hymate_training.inference.hours import read_times
from hymate_training.inference.records import read_table

EVENTS_PER_PART = 1 << 18
MOST_PARTS = 512  # files open at a time; parts of still larger tables have more events
ROWS_AT_ONCE = 1 << 19
READ_AHEAD = 1 << 20  # bytes of a file of Parquet
TEXT, NUMBER = pa.string(), pa.float64()
EVENTS = {"record_id": TEXT, "time": NUMBER, "variable": TEXT, "value": NUMBER}
WORDS = ["record_id", "variable"]  # repeated by many rows, so that they are handled as numbers between files
TIMES = {"record_id": TEXT, "prediction_time": NUMBER}
SHORTEST_ROW = 7  # bytes of a CSV of events, such as 1,0,K,
PACKED = 20  # times smaller than its text is a packed CSV at most, roughly


@dataclass(frozen=True)
class Part:
    """Some of the records of a table.

    Attributes:
        events: Parquet file of all events of these records.
        static: Parquet file of their static columns, if there is a table of these.
        times: Parquet file of the times at which they are asked, likewise.
    """

    events: Path
    static: Path | None = None
    times: Path | None = None


def names_of(paths: Sequence[Path], static: Any, at: Any) -> Part:
    """What messages call the tables of which a part is one."""
    named = (
        str(source) if isinstance(source, str | Path) else name for source, name in ((static, "static"), (at, "at"))
    )
    return Part(Path(", ".join(map(str, paths))), *map(Path, named))


def may_exceed(paths: Sequence[Path], rows: int) -> bool:
    """Whether tables may have more rows than that, as their size tells; False for what is no such file."""
    most = 0
    for path in paths:
        if not path.exists():
            return False
        if path.is_dir() or path.name.lower().endswith(".parquet"):
            most += _count(path)
        else:
            most += path.stat().st_size * (PACKED if path.suffix == ".gz" else 1) // SHORTEST_ROW
    return most > rows


def count_events(files: Sequence[Path]) -> int:
    """The number of rows of Parquet files."""
    return sum(pq.read_metadata(file).num_rows for file in files)


def _count(path: Path) -> int:
    try:
        return count_events(parquet_files(path))
    except (pa.ArrowInvalid, OSError, ValueError):
        return 0  # for the reader of whole tables to say


def plain_events(paths: Sequence[Path], folder: Path) -> list[Path] | None:
    """Tables of events as Parquet files of one schema, of which a part means what it does in the whole.

    Such are Parquet, and CSV with commas in UTF-8, with the columns that `predict` names, times in hours and values as
    numbers. In other tables the words of a column say together what it is.

    Args:
        paths: the tables.
        folder: an existing folder, where a CSV becomes Parquet, piece by piece.

    Returns:
        The files, one table after the other; None if one of the tables is not such.
    """
    files: list[Path] = []
    for path in paths:
        own = _as_parquet(path, EVENTS, folder / f"events-{len(files)}.parquet", alone=True)
        if own is None:
            return None
        files += own
    first, *others = (pq.read_schema(file) for file in files)
    return files if all(schema.equals(first) for schema in others) else None


def _as_parquet(
    path: Path, columns: Mapping[str, pa.DataType], target: Path, *, alone: bool = False
) -> list[Path] | None:
    """The Parquet files of a table that has these columns, and with `alone` no other; or `target`, to which a CSV is
    written. None if it is no such table."""
    try:
        if path.is_dir() or path.name.lower().endswith(".parquet"):
            files = parquet_files(path)
            return files if all(_holds(pq.read_schema(file), columns, alone) for file in files) else None
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as text:
            names = text.readline(HEAD_BYTES).decode("utf-8-sig").strip().replace('"', "").split(",")
        if not set(columns) <= set(names) or len(names) > len(set(names)) or (alone and len(names) > len(columns)):
            return None
        schema = pa.schema(list(columns.items()))
        with _writer(target, schema) as writer:
            for piece in read_csv_pieces(path, columns):
                writer.write_table(piece.to_arrow().cast(schema))
        return [target]
    except (pa.ArrowInvalid, OSError, EOFError, ValueError):
        return None  # for the reader of whole tables to say


def _holds(schema: pa.Schema, columns: Mapping[str, pa.DataType], alone: bool) -> bool:
    """Whether a table has columns with numbers where these are to be numbers, and none where they are to be text."""
    if not set(columns) <= set(schema.names) or (alone and len(schema.names) > len(columns)):
        return False
    return all(
        name == "record_id" or _is_number(schema.field(name).type) == (kind == NUMBER)
        for name, kind in columns.items()
    )


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def split_records(files: Sequence[Path], folder: Path, events_per_part: int) -> list[Part]:
    """Writes a table of events into `folder` as parts of whole records, of about `events_per_part` events.

    Where the rows of each record lie together, whatever the order of the records, the parts follow each other as their
    records do in the table. Elsewhere each record goes to a part that its name decides.

    Args:
        files: Parquet files of one schema, one after the other.
        folder: an existing folder.
        events_per_part: more where one record alone has more, and where there would be more than `MOST_PARTS` parts.
    """
    events_per_part = max(events_per_part, -(-count_events(files) // MOST_PARTS))
    if not _is_together(files):
        return _by_name(files, folder, events_per_part)
    parts = []
    for number, table in enumerate(_together(files, events_per_part)):
        parts.append(Part(folder / f"part-{number:05d}.parquet"))
        with _writer(parts[-1].events, table.schema) as writer:
            writer.write_table(table)
    return parts


def add_tables(parts: Sequence[Part], static: Any, at: Any, folder: Path) -> list[Part]:
    """Writes of a table of static columns, and of one of times, to each part the rows of its records; the records
    without events are those of the last part.

    Args:
        parts: as `split_records` returns them.
        static: as of `predict`; None where there is none. It is held as a whole.
        at: the same.
        folder: where to write.

    Raises:
        ValueError: as `read_frame`, for a record that `static` holds twice, and for one that only `at` knows.
    """
    owners = pl.concat(
        pl.scan_parquet(part.events, glob=False)
        .select(pl.col("record_id").cast(pl.String).unique(), part=number)
        .collect()
        for number, part in enumerate(parts)
    )
    complete = list(parts)
    if static is not None:
        table, name = read_table(static, "static", ("record_id",), UNKNOWN)
        refuse(name, table["record_id"].is_duplicated(), "record_id appears more than once", table["record_id"])
        owned = table.join(owners, on="record_id", how="left", maintain_order="left")
        owned = owned.with_columns(pl.col("part").fill_null(len(parts) - 1))
        owners = pl.concat([owners, owned.select(owners.columns)]).unique()
        files = _distribute([owned], len(parts), lambda number: folder / f"static-{number:05d}.parquet")
        complete = [replace(part, static=file) for part, file in zip(complete, files, strict=True)]
    if at is not None:
        files = _distribute(_asked(at, owners, folder), len(parts), lambda number: folder / f"at-{number:05d}.parquet")
        complete = [replace(part, times=file) for part, file in zip(complete, files, strict=True)]
    return complete


def _asked(at: Any, owners: pl.DataFrame, folder: Path) -> Iterator[pl.DataFrame]:
    """The rows of a table of times, piece by piece, with the part of their records."""
    files = _as_parquet(Path(at), TIMES, folder / "times.parquet") if isinstance(at, str | Path) else None
    table, name = read_times(at) if files is None else (None, str(at))
    pieces = [table.to_arrow()] if table is not None else _batches(files or [], list(TIMES))
    before = 0
    for piece in pieces:
        rows = pl.DataFrame(pl.from_arrow(piece)).select(pl.col("record_id").cast(pl.String), "prediction_time")
        owned = rows.join(owners, on="record_id", how="left", maintain_order="left")
        if (unknown := owned["part"].is_null()).any():
            row = int(unknown.arg_max() or 0)
            raise ValueError(
                f"{name}: row {before + row + 1}: record_id is in neither the events nor the static table, found "
                f"{rows['record_id'][row]!r}"
            )
        before += rows.height
        yield owned


def _distribute(pieces: Iterable[pl.DataFrame], count: int, name: Callable[[int], Path]) -> list[Path]:
    """Writes the rows of each part, which the column `part` tells, to a file of its own; a part may have none."""
    files, writers = [name(number) for number in range(count)], {}
    with ExitStack() as stack:
        for piece in pieces:
            schema = piece.drop("part").to_arrow().schema
            for (number,), rows in piece.partition_by("part", as_dict=True, include_key=False).items():
                if number not in writers:
                    writers[number] = stack.enter_context(pq.ParquetWriter(files[number], schema, compression="lz4"))
                writers[number].write_table(rows.to_arrow().cast(schema))
        for number in set(range(count)) - set(writers):
            stack.enter_context(pq.ParquetWriter(files[number], schema))
    return files


def _batches(files: Sequence[Path], columns: list[str] | None = None, rows: int = ROWS_AT_ONCE) -> Iterator[pa.Table]:
    words = [name for name in WORDS if columns is None or name in columns]
    for file in files:
        # buffered beforehand, all of a file would be in memory at once
        with pq.ParquetFile(file, read_dictionary=words, pre_buffer=False, buffer_size=READ_AHEAD) as opened:
            for batch in opened.iter_batches(rows, columns=columns):
                yield pa.Table.from_batches([batch])


def _writer(target: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Writes what is read once and soon. Words are text to its readers, also where they are written as numbers."""
    words = [name for name in WORDS if name in schema.names]
    return pq.ParquetWriter(
        target, schema, compression="lz4", use_dictionary=words, write_statistics=False, store_schema=False
    )


def _starts(names: pl.Series) -> np.ndarray:
    """Where the name is another than in the row before; the first row is such."""
    return np.flatnonzero(names.ne_missing(names.shift(1)).to_numpy() | (np.arange(len(names)) == 0))


def _is_together(files: Sequence[Path]) -> bool:
    runs: list[pl.Series] = []
    last = None
    for table in _batches(files, ["record_id"]):
        names = pl.Series(table["record_id"])
        begun = names[_starts(names)]
        if begun[0] == last:
            begun = begun[1:]
        if begun.is_duplicated().any():
            return False
        runs.append(begun)
        last = names[-1]
    return not pl.concat(runs).is_duplicated().any()


def _together(files: Sequence[Path], events_per_part: int) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    for table in _batches(files, rows=min(events_per_part, ROWS_AT_ONCE)):
        held.append(table)
        if sum(map(len, held)) < events_per_part:
            continue
        whole = pa.concat_tables(held)
        end = int(_starts(pl.Series(whole["record_id"]))[-1])  # the last record may go on
        if end:
            yield whole.slice(0, end)
            held = [whole.slice(end)]
    if held:
        yield pa.concat_tables(held)


def _by_name(files: Sequence[Path], folder: Path, events_per_part: int) -> list[Part]:
    count = -(-count_events(files) // events_per_part)
    writers: dict[int, pq.ParquetWriter] = {}
    try:
        for table in _batches(files):
            place = (pl.Series(table["record_id"]).cast(pl.String).hash(seed=0) % count).to_numpy()
            order = np.argsort(place, kind="stable")
            ordered, bounds = table.take(order), np.searchsorted(place[order], np.arange(count + 1))
            for number, (begin, end) in enumerate(pairwise(bounds.tolist())):
                if end > begin:
                    if number not in writers:
                        target = folder / f"part-{number:05d}.parquet"
                        writers[number] = _writer(target, table.schema)
                    writers[number].write_table(ordered.slice(begin, end - begin))
    finally:
        for writer in writers.values():
            writer.close()
    files = [folder / f"part-{number:05d}.parquet" for number in sorted(writers)]
    return [Part(file) for file in files]
