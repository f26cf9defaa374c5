"""A table of events that is larger than memory, in files of whole records that are each small enough."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from hymate_training.data.tables import UNKNOWN, parquet_files, refuse
from hymate_training.inference.records import read_table
from modeling_hymate.events import EVENT_COLUMNS

EVENTS_PER_PART = 1_000_000
ROWS_AT_ONCE = 1 << 17


@dataclass(frozen=True)
class Part:
    """Some of the records of a table.

    Attributes:
        events: Parquet file of all events of these records.
        static: Parquet file of their static columns, if there is a table of these.
    """

    events: Path
    static: Path | None = None


def is_plain(path: str | Path) -> bool:
    """Whether a table is Parquet with the columns that `predict` names, times in hours and values as numbers, so that
    a part of it means what it does in the whole. In other tables the words of a column say together what it is."""
    path = Path(path)
    if not (path.is_dir() or path.name.lower().endswith(".parquet")) or not path.exists():
        return False
    try:
        schemas = [pq.read_schema(file) for file in parquet_files(path)]
    except (pa.ArrowInvalid, OSError):
        return False  # for the reader of whole tables to say
    names = {"record_id", *EVENT_COLUMNS}
    return all(schema.equals(schemas[0]) for schema in schemas) and (
        set(schemas[0].names) == names
        and all(_is_number(schemas[0].field(name).type) for name in ("time", "value"))
        and not _is_number(schemas[0].field("variable").type)
    )


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def count_events(path: str | Path) -> int:
    """The number of rows of a table in Parquet."""
    return sum(pq.read_metadata(file).num_rows for file in parquet_files(Path(path)))


def split_records(path: str | Path, folder: Path, events_per_part: int) -> list[Part]:
    """Writes a table of events into `folder` as parts of whole records, of about `events_per_part` events.

    Where the rows of each record lie together, whatever the order of the records, the parts follow each other as their
    records do in the table. Elsewhere each record goes to a part that its name decides.

    Args:
        path: a Parquet file, or a folder of such files, one after the other by name.
        folder: an existing folder.
        events_per_part: more where one record alone has more.
    """
    tables = _together(path, events_per_part) if _is_together(path) else None
    if tables is None:
        return _by_name(path, folder, events_per_part)
    parts = []
    for number, table in enumerate(tables):
        parts.append(Part(folder / f"part-{number:05d}.parquet"))
        pq.write_table(table, parts[-1].events, compression="lz4")
    return parts


def add_static(parts: Sequence[Part], source: Any, folder: Path) -> list[Part]:
    """Writes of a table of static columns to each part the rows of its records, and to the last part those of records
    without events, too.

    Args:
        parts: as `split_records` returns them.
        source: as of `predict`; None leaves the parts as they are.
        folder: where to write.

    Raises:
        ValueError: as `read_frame`, and for a record that is there twice.
    """
    if source is None:
        return list(parts)
    rest, name = read_table(source, "static", ("record_id",), UNKNOWN)
    refuse(name, rest["record_id"].is_duplicated(), "record_id appears more than once", rest["record_id"])
    complete = []
    for part in parts:
        own = pl.Series(pq.read_table(part.events, columns=["record_id"])["record_id"]).unique().cast(pl.String)
        there = rest["record_id"].is_in(own.implode())
        there |= part is parts[-1]
        path = folder / f"static-{part.events.name}"
        rest.filter(there).write_parquet(path)
        rest = rest.filter(~there)
        complete.append(Part(part.events, path))
    return complete


def _batches(path: str | Path, columns: list[str] | None = None, rows: int = ROWS_AT_ONCE) -> Iterator[pa.Table]:
    for file in parquet_files(Path(path)):
        with pq.ParquetFile(file, memory_map=True) as opened:
            for batch in opened.iter_batches(rows, columns=columns):
                yield pa.Table.from_batches([batch])


def _starts(names: pl.Series) -> np.ndarray:
    """Where the name is another than in the row before; the first row is such."""
    return np.flatnonzero(names.ne_missing(names.shift(1)).to_numpy() | (np.arange(len(names)) == 0))


def _is_together(path: str | Path) -> bool:
    runs: list[pl.Series] = []
    last = None
    for table in _batches(path, ["record_id"]):
        names = pl.Series(table["record_id"])
        begun = names[_starts(names)]
        if begun[0] == last:
            begun = begun[1:]
        if begun.is_duplicated().any():
            return False
        runs.append(begun)
        last = names[-1]
    return not pl.concat(runs).is_duplicated().any()


def _together(path: str | Path, events_per_part: int) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    for table in _batches(path, rows=min(events_per_part, ROWS_AT_ONCE)):
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


def _by_name(path: str | Path, folder: Path, events_per_part: int) -> list[Part]:
    count = -(-count_events(path) // events_per_part)
    writers: dict[int, pq.ParquetWriter] = {}
    try:
        for table in _batches(path):
            place = (pl.Series(table["record_id"]).cast(pl.String).hash(seed=0) % count).to_numpy()
            order = np.argsort(place, kind="stable")
            ordered, bounds = table.take(order), np.searchsorted(place[order], np.arange(count + 1))
            for number, (begin, end) in enumerate(pairwise(bounds.tolist())):
                if end > begin:
                    if number not in writers:
                        target = folder / f"part-{number:05d}.parquet"
                        writers[number] = pq.ParquetWriter(target, table.schema, compression="lz4")
                    writers[number].write_table(ordered.slice(begin, end - begin))
    finally:
        for writer in writers.values():
            writer.close()
    files = [folder / f"part-{number:05d}.parquet" for number in sorted(writers)]
    return [Part(file) for file in files]
