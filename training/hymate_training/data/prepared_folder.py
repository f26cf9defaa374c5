"""Opening a prepared folder and reading what it holds."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hymate_training.data.mapped import BLOCK, MappedArray, Names, blocks, mapped
from hymate_training.data.schema import METADATA_FILE, SPLITS, DatasetInfo, record_shards, task_path
from hymate_training.data.validation import check_no_null, check_records, check_task
from hymate_training.files import followed
from modeling_hymate import Events
from modeling_hymate.events import EVENT_COLUMNS

BLOCK_OF_LINES = 1 << 16


class PreparedFolder:
    """A prepared folder, opened once: its description is parsed once, and each split is read and checked once.

        folder = PreparedFolder("runs/physionet2012")
        folder.info.tasks
        folder.events("train")                              # all records of a split, flat arrays in mapped files
        folder.task("in_hospital_mortality", "train")       # its labels, a table

    Attributes:
        path: where it is.
        info: what it holds, by its metadata.json.

    Raises:
        ValueError: if there is no such folder, or it is not a prepared one. Reading a split raises it for whatever a
            writer would have refused, naming the file and the record.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.info = _read_info(self.path)
        self._events: dict[tuple[str, tuple[str, ...]], Events] = {}
        self._tasks: dict[tuple[str, str], pa.Table] = {}

    def __repr__(self) -> str:
        return f"PreparedFolder({str(self.path)!r})"

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that hold records."""
        return tuple(split for split in SPLITS if self.shards(split))

    def shards(self, split: str) -> list[Path]:
        """The files of a split's records, in order; none where the split is not there."""
        return record_shards(self.path, split) if split in SPLITS else []

    @cached_property
    def fingerprint(self) -> str:
        """Names exactly what the folder holds: 16 hex digits of a SHA-256 over metadata, records and labels.

        All files are read: about a second per gigabyte, once.
        """
        whole = hashlib.sha256()
        for path in [
            self.path / METADATA_FILE,
            *sorted(self.path.glob("records/*.parquet")),
            *sorted(self.path.glob("tasks/*/*.parquet")),
        ]:
            with path.open("rb") as file:
                whole.update(f"{path.relative_to(self.path).as_posix()}\0".encode())
                whole.update(hashlib.file_digest(file, "sha256").digest())
        return whole.hexdigest()[:16]

    def split_fingerprint(self, task: str, split: str) -> str:
        """Names the exact predictions and labels: 16 hex digits of a SHA-256, whatever the order of the rows."""
        lines = pl.concat(
            pl.Series([json.dumps(list(row.values()), ensure_ascii=True) for row in rows.to_pylist()], dtype=pl.String)
            for rows in self.task(task, split).to_batches(BLOCK_OF_LINES)
        ).sort()
        whole = hashlib.sha256()
        for at in range(0, len(lines), BLOCK_OF_LINES):
            whole.update(("\n" * (at > 0) + "\n".join(lines[at : at + BLOCK_OF_LINES])).encode())
        return whole.hexdigest()[:16]

    @cached_property
    def record_ids(self) -> dict[str, pl.Series]:
        """The records of each split, by name.

        Raises:
            ValueError: naming the files of a record that is there twice, in one split or in two.
        """
        ids_alone = pa.schema([self.info.schema.field("record_id")])
        parts = [
            (split, path, pl.Series(_read_parquet(path, ids_alone)["record_id"]))
            for split in self.splits
            for path in self.shards(split)
        ]
        ids = pl.concat([own for _, _, own in parts]) if parts else pl.Series([], dtype=pl.String)
        if (twice := ids.is_duplicated()).any():
            record_id = ids.filter(twice)[0]
            files = " and ".join(str(path) for _, path, own in parts if record_id in own)
            raise ValueError(f"{files}: record {record_id!r} occurs twice")
        return {split: pl.concat([own for part, _, own in parts if part == split]) for split in self.splits}

    def records(self, split: str) -> pa.Table:
        """The records of a split, one row per record. They are read anew at every call.

        Raises:
            ValueError: naming what is missing, or the file and the record that are not as they should be.
        """
        return pa.concat_tables([self.info.schema.empty_table(), *self.parts(split)])

    def parts(self, split: str) -> Iterator[pa.Table]:
        """The records of a split, checked, as many at a time as hold about `BLOCK` events.

        Raises:
            ValueError: as `records` does.
        """
        if split not in self.record_ids:
            raise self._unknown_split(split, self.splits)
        for path in self.shards(split):
            for table in _parquet_parts(path, self.info.schema):
                check_records(table, str(path), len(self.info.variables))
                self._check_categories(table, path)
                yield table

    def events(self, split: str, variables: Sequence[str] | None = None) -> Events:
        """All records of a split as flat arrays, in clinical units.

        The arrays of events are mapped files, see `MappedArray`: however many there are, they are not in the memory of
        the process, and the first call checks all of them.

        Args:
            split: name of the split.
            variables: what variable ids point into; `info.variables` where absent.

        Raises:
            ValueError: as `records` does, and if the folder has variables that `variables` lacks.
        """
        wanted = self.info.variables if variables is None else tuple(variables)
        if (split, wanted) not in self._events:
            if wanted == self.info.variables:
                events = _flat_events(self.parts(split), self.info, self.path)
            else:
                events = self._renumbered(self.events(split), wanted)
            self._events[split, wanted] = events
        return self._events[split, wanted]

    def _renumbered(self, events: Events, variables: Sequence[str]) -> Events:
        """Events whose variable ids point into `variables`."""
        position = {name: index for index, name in enumerate(variables)}
        unknown = [name for name in self.info.variables if name not in position]
        if unknown:
            raise ValueError(
                f"{self.path} holds variables that the model's feature extractor does not know: {unknown[:5]}"
            )
        to_known = np.array([position[name] for name in self.info.variables], dtype=np.int32)
        ids = mapped((to_known[block] for block in blocks(events.variable_ids)), np.int32, self.path)
        return replace(events, variable_ids=ids)

    def task(self, name: str, split: str) -> pa.Table:
        """The labels of a task's split, one row per prediction.

        Raises:
            ValueError: naming what is missing, or the file and the record that are not as they should be.
        """
        if (name, split) not in self._tasks:
            task, path = self.info.task(name), task_path(self.path, name, split)
            if split not in SPLITS or not path.is_file():
                raise self._unknown_split(split, [s for s in SPLITS if task_path(self.path, name, s).is_file()])
            table = _read_parquet(path, task.schema)
            check_task(table, task, str(path), self.record_ids.get(split, pl.Series([], dtype=pl.String)))
            self._tasks[name, split] = table
        return self._tasks[name, split]

    def _check_categories(self, table: pa.Table, path: Path) -> None:
        for column in self.info.static_columns:
            if column.kind == "categorical":
                found = pl.Series(table[column.name])
                unknown = found.is_not_null() & ~found.is_in(column.categories)
                if unknown.any():
                    at = int(unknown.arg_max() or 0)
                    raise ValueError(
                        f"{path}: record {table['record_id'][at].as_py()!r}: {column.name} is {found[at]!r}, which is "
                        f"not among its categories: {', '.join(column.categories)}"
                    )

    def _unknown_split(self, split: str, present: Sequence[str]) -> ValueError:
        return ValueError(f"{self.path} has no split {split!r}; it has: {', '.join(present) or 'none'}")


def _read_info(folder: Path) -> DatasetInfo:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; `hymate prepare SOURCE --output {folder}` makes one")
    path = folder / METADATA_FILE
    if not path.is_file():
        raise ValueError(f"{folder} is not a prepared folder: it has no metadata.json; `hymate prepare` makes one")
    try:
        return DatasetInfo.from_json(path.read_text(encoding="utf-8"))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} does not describe a prepared folder ({error!r}); run `hymate prepare` again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


def _read_parquet(path: Path, schema: pa.Schema) -> pa.Table:
    """The columns of `schema`, in its types."""
    return pa.concat_tables([schema.empty_table(), *_parquet_parts(path, schema)])


def _parquet_parts(path: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    """The columns of `schema` in its types, as many rows at a time as hold about `BLOCK` numbers in a column."""
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            missing = [name for name in schema.names if name not in file.schema_arrow.names]
            if missing:
                raise ValueError(f"{path} lacks the column(s) {', '.join(missing)}; run `hymate prepare` again")
            for batch in file.iter_batches(_rows_at_a_time(file.metadata), columns=schema.names):
                table = pa.Table.from_batches([batch]).select(schema.names)
                check_no_null(table, schema, str(path))
                yield table.cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise ValueError(f"{path} is not a readable part of a prepared folder: {error}") from error


def _rows_at_a_time(metadata: pq.FileMetaData) -> int:
    groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
    most = max((group.column(at).num_values for group in groups for at in range(group.num_columns)), default=0)
    largest = max((group.num_rows for group in groups), default=0)
    return max(1, BLOCK * largest // max(most, 1))


def refuse_inside(output: Path) -> None:
    """Raises ValueError if a file to be written lies in a prepared folder, which holds nothing but its own files."""
    for folder in followed(output).parents[:3]:  # those lie two folders deep at most
        if (folder / METADATA_FILE).is_file() and (folder / "records").is_dir():
            raise ValueError(f"{output} lies in the prepared folder {folder}: name another file to write")


def open_prepared(data: "str | Path | PreparedFolder") -> PreparedFolder:
    """A prepared folder by its path; one that is open already is returned as it is."""
    return data if isinstance(data, PreparedFolder) else PreparedFolder(data)


def _flat_events(parts: Iterable[pa.Table], info: DatasetInfo, folder: Path) -> Events:
    columns = {
        name: MappedArray(info.schema.field(name).type.value_type.to_pandas_dtype(), folder) for name in EVENT_COLUMNS
    }
    lengths, names = [np.zeros(1, dtype=np.int64)], []
    static: dict[str, list[np.ndarray]] = {column.name: [] for column in info.static_columns}
    for table in parts:
        lengths.append(pc.list_value_length(table["time"]).to_numpy())
        names.append(table["record_id"])
        for name, column in columns.items():
            column.append(table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False))
        for name, found in static.items():
            found.append(_static_array(table[name]))
    times, variable_ids, values = (columns[name].finish() for name in EVENT_COLUMNS)
    return Events(
        offsets=np.cumsum(np.concatenate(lengths)),
        times=times,
        variable_ids=variable_ids,
        values=values,
        static={name: np.concatenate(found) for name, found in static.items()},
        record_ids=Names(names),  # type: ignore[arg-type]  # which is as good as a list
    )


def _static_array(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_floating(column.type):
        return column.to_numpy()  # NaN where unknown
    coded = column.combine_chunks().dictionary_encode()  # so that rows share the text of their category
    categories = np.array([*coded.dictionary.to_pylist(), None], dtype=object)
    return categories[coded.indices.fill_null(len(categories) - 1).to_numpy()]
