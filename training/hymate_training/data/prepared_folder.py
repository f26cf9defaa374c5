"""Opening a prepared folder and reading what it holds."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hymate_training.data.schema import SPLITS, DatasetInfo
from modeling_hymate import Events

METADATA_FILE = "metadata.json"


class PreparedFolder:
    """A prepared folder, opened once: its description is parsed once, and each split is read once.

        folder = PreparedFolder("runs/physionet2012")
        folder.info.tasks
        folder.events("train")                              # all records of a split, flat arrays
        folder.task("in_hospital_mortality", "train")       # its labels, a table

    Raises:
        ValueError: if there is no such folder, or it is not a prepared one.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.info = read_info(self.path)
        self._events: dict[str, Events] = {}
        self._tasks: dict[tuple[str, str], pa.Table] = {}

    def __repr__(self) -> str:
        return f"PreparedFolder({str(self.path)!r})"

    @cached_property
    def fingerprint(self) -> str:
        """Names what the folder holds, by its metadata."""
        return fingerprint((self.path / METADATA_FILE).read_bytes())

    def records(self, split: str) -> pa.Table:
        """The records of a split, one row each, every shard a chunk. Raises ValueError naming what is missing."""
        return read_records(self.path, split)

    def task(self, name: str, split: str) -> pa.Table:
        """The labels of a task's split, one row per prediction. Raises ValueError naming what is missing."""
        if (name, split) not in self._tasks:
            self._tasks[name, split] = read_task(self.path, name, split)
        return self._tasks[name, split]

    def split_fingerprint(self, task: str, split: str) -> str:
        """Names the exact predictions and labels: 16 hex digits of a SHA-256, whatever the order of the rows."""
        lines = sorted(json.dumps(list(row.values()), ensure_ascii=True) for row in self.task(task, split).to_pylist())
        return fingerprint("\n".join(lines).encode())

    def events(self, split: str, variables: Sequence[str] | None = None) -> Events:
        """All records of a split as flat arrays, in clinical units.

        Args:
            split: name of the split.
            variables: what variable ids point into; `info.variables` where absent.

        Raises:
            ValueError: if the split is not there, or the folder has variables that `variables` lacks.
        """
        if split not in self._events:
            self._events[split] = _flat_events(self.records(split), self.info)
        events = self._events[split]
        if variables is None or tuple(variables) == self.info.variables:
            return events
        position = {name: index for index, name in enumerate(variables)}
        unknown = [name for name in self.info.variables if name not in position]
        if unknown:
            raise ValueError(
                f"{self.path} holds variables that the model's feature extractor does not know: {unknown[:5]}"
            )
        to_known = np.array([position[name] for name in self.info.variables], dtype=np.int32)
        return replace(events, variable_ids=to_known[events.variable_ids])


def open_prepared(data: "str | Path | PreparedFolder") -> PreparedFolder:
    """A prepared folder by its path; one that is open already is returned as it is."""
    return data if isinstance(data, PreparedFolder) else PreparedFolder(data)


def _flat_events(table: pa.Table, info: DatasetInfo) -> Events:
    columns = {name: table[name].combine_chunks() for name in ("time", "variable", "value")}
    offsets = columns["time"].offsets.to_numpy()
    return Events(
        offsets=(offsets - offsets[0]).astype(np.int64),
        times=columns["time"].flatten().to_numpy(),
        variable_ids=columns["variable"].flatten().to_numpy(),
        values=columns["value"].flatten().to_numpy(zero_copy_only=False),
        static={column.name: _static_array(table[column.name]) for column in info.static_columns},
        record_ids=table["record_id"].to_pylist(),
    )


def _static_array(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_floating(column.type):
        return column.to_numpy()  # NaN where unknown
    return np.array(column.to_pylist(), dtype=object)


def read_info(folder: str | Path) -> DatasetInfo:
    """What the prepared folder holds. Raises ValueError where there is no such folder or it is not a prepared one."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; `hymate prepare SOURCE --output {folder}` makes one")
    path = folder / "metadata.json"
    if not path.is_file():
        raise ValueError(f"{folder} is not a prepared folder: it has no metadata.json; `hymate prepare` makes one")
    try:
        return DatasetInfo.from_json(path.read_text(encoding="utf-8"))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} does not describe a prepared folder ({error!r}); run `hymate prepare` again"
        ) from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_records(folder: str | Path, split: str) -> pa.Table:
    """The records of a split, one row each, every shard a chunk. Raises ValueError naming what is missing."""
    folder = Path(folder)
    info = read_info(folder)
    shards = record_shards(folder, split)
    if not shards:
        raise _unknown_split(folder, split, [name for name in SPLITS if record_shards(folder, name)])
    return pa.concat_tables([_read_parquet(path, info.schema) for path in shards])


def read_task(folder: str | Path, task: str, split: str) -> pa.Table:
    """The labels of a task's split, one row a prediction. Raises ValueError naming what is missing."""
    folder = Path(folder)
    schema = read_info(folder).task(task).schema
    path = task_path(folder, task, split)
    if not path.is_file():
        raise _unknown_split(folder, split, [name for name in SPLITS if task_path(folder, task, name).is_file()])
    return _read_parquet(path, schema)


def split_fingerprint(folder: str | Path, task: str, split: str) -> str:
    """Names the exact set of predictions and labels: 16 hex digits of a SHA-256, whatever the order of the rows."""
    rows = read_task(folder, task, split).to_pylist()
    lines = sorted(json.dumps(list(row.values()), ensure_ascii=True) for row in rows)
    return fingerprint("\n".join(lines).encode())


def fingerprint(content: bytes) -> str:
    """16 hex digits of a SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def data_fingerprint(folder: str | Path) -> str:
    """Names what a prepared folder holds, by its metadata."""
    return fingerprint((Path(folder) / "metadata.json").read_bytes())


def record_shards(folder: Path, split: str) -> list[Path]:
    return sorted((folder / "records").glob(f"{split}-*.parquet")) if split in SPLITS else []


def task_path(folder: Path, task: str, split: str) -> Path:
    return folder / "tasks" / task / f"{split}.parquet"


def _unknown_split(folder: Path, split: str, present: list[str]) -> ValueError:
    return ValueError(f"{folder} has no split {split!r}; it has: {', '.join(present) or 'none'}")


def _read_parquet(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            missing = [name for name in schema.names if name not in file.schema_arrow.names]
            if missing:
                raise ValueError(f"{path} lacks the column(s) {', '.join(missing)}; run `hymate prepare` again")
            return file.read(columns=schema.names).select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise ValueError(f"{path} is not a readable part of a prepared folder: {error}") from error
