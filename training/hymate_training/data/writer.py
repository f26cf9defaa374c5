"""Writing a prepared folder: shard by shard, checked, whole or not at all."""

import contextlib
import os
import shutil
from pathlib import Path
from types import TracebackType

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from hymate_training.data.card import card
from hymate_training.data.prepared_folder import task_path
from hymate_training.data.schema import EVENT_FIELDS, SPLITS, DatasetInfo, TaskInfo
from hymate_training.files import replace_folder


def nest_events(events: pl.DataFrame, static: pl.DataFrame) -> pl.DataFrame:
    """Long events and one static row a record -> rows of records, the same whatever the order of the events.

    `events`: record_id, time (hours), variable (index), value. `static`: record_id and the static columns; its records
    without events do not appear. `record_id` may be of any type, the same in both. Rows come out by record_id.
    """
    ordered = events.select(
        "record_id",
        pl.col("time").cast(pl.Float32),
        pl.col("variable").cast(pl.Int32),
        pl.col("value").cast(pl.Float32).fill_nan(None),
    ).sort("record_id", "time", "variable", "value", nulls_last=True)
    nested = ordered.group_by("record_id", maintain_order=True).agg("time", "variable", "value")
    joined = nested.join(static, on="record_id", how="left", validate="1:1", maintain_order="left")
    return joined.with_columns(pl.col("record_id").cast(pl.String))


class PreparedFolderWriter:
    """Writes a prepared folder: shard by shard, checked, and whole or not at all.

        with PreparedFolderWriter(output) as writer:
            writer.write_records("train", frame)            # as often as needed, a shard each
            writer.write_task(task, "train", labels)        # after the records of that split
            writer.finish(info)

    Everything goes to a hidden sibling of `output`, which takes its name when the block ends and disappears when the
    block raises. An existing `output` is refused, unless it is empty, or is a prepared folder and `overwrite` is set.
    """

    def __init__(self, output: str | Path, *, overwrite: bool = False) -> None:
        self.output = Path(output).absolute()
        _check_replaceable(self.output, overwrite)
        self._partial = self.output.with_name(f".{self.output.name}.partial-{os.getpid()}")
        self._first_event: dict[str, dict[str, float]] = {}  # split -> record -> hours of its first event
        self._static: dict[str, set[str] | None] = {}  # static column -> the categories met; None: numeric
        self._largest_variable = -1
        self._shards = dict.fromkeys(SPLITS, 0)
        self._tasks: dict[TaskInfo, list[str]] = {}
        self._finished = False
        self._made_parents: list[Path] = []

    def __enter__(self) -> "PreparedFolderWriter":
        self._made_parents = [parent for parent in self.output.parents if not parent.exists()]
        self.output.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._partial, ignore_errors=True)
        (self._partial / "records").mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if not self._finished:
                    raise RuntimeError("PreparedFolderWriter: call finish(info) before the block ends")
                replace_folder(self._partial, self.output)
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)
            for parent in self._made_parents:  # innermost first; those that hold the result stay
                with contextlib.suppress(OSError):
                    parent.rmdir()

    def write_records(self, split: str, frame: pl.DataFrame) -> None:
        """One shard of a split; the frame has the columns of a record, static ones last. See `nest_events`.

        Raises ValueError naming the record where the events are out of order, a time is negative or not finite, a
        value is infinite, the lists differ in length, or the record is empty or was written before.
        """
        _check_split(split)
        names = [name for name in frame.columns if name not in {field.name for field in EVENT_FIELDS}]
        static = {name: frame.schema[name].is_numeric() for name in names}
        if not self._static:
            self._static = {name: None if numeric else set() for name, numeric in static.items()}
        if list(self._static) != names or any((self._static[n] is None) != numeric for n, numeric in static.items()):
            raise ValueError(f"static columns {names} differ from those of the first shard, {list(self._static)}")
        types = [pa.field(name, pa.float64() if numeric else pa.string()) for name, numeric in static.items()]
        table = _to_arrow(frame, pa.schema([*EVENT_FIELDS, *types]), f"records of split {split!r}")

        first, largest = _check_events(table)
        self._largest_variable = max(self._largest_variable, largest)
        for name, categories in self._static.items():
            if categories is not None:
                categories.update(frame[name].drop_nulls().unique())
            elif (bad := frame.filter(pl.col(name).is_infinite() | pl.col(name).is_nan())).height:
                raise ValueError(
                    f"record {bad['record_id'][0]!r}: {name} must be a number or null, not {bad[name][0]}"
                )
        for record_id, time in zip(frame["record_id"].to_list(), first, strict=True):
            for other, records in self._first_event.items():
                if record_id in records:
                    raise ValueError(f"record {record_id!r} of split {split!r} was already written to {other!r}")
            self._first_event.setdefault(split, {})[record_id] = time
        pq.write_table(
            table, self._partial / "records" / f"{split}-{self._shards[split]:05d}.parquet", compression="zstd"
        )
        self._shards[split] += 1

    def write_task(self, task: TaskInfo, split: str, frame: pl.DataFrame) -> None:
        """The labels of a split, whose records have been written; once a task and split.

        Raises ValueError where a label is missing or of the wrong kind, a prediction occurs twice, or its record is
        not in the split or has no event at or before the prediction time.
        """
        _check_split(split)
        where = f"task {task.name!r}, split {split!r}"
        if split in self._tasks.setdefault(task, []):
            raise ValueError(f"{where}: written twice")
        table = _to_arrow(frame, task.schema, where)
        known = self._first_event.get(split, {})
        for record_id, time in zip(
            *(table[name].to_pylist() for name in ("record_id", "prediction_time")), strict=True
        ):
            if record_id not in known:
                raise ValueError(f"{where}: record {record_id!r} is not among the records of that split")
            if not np.isfinite(time):
                raise ValueError(f"{where}: record {record_id!r} has prediction_time {time}, which is not finite")
            if known[record_id] > time:
                raise ValueError(f"{where}: record {record_id!r} has no event at or before its prediction at {time} h")
        rows = pl.DataFrame(pl.from_arrow(table))
        if (repeated := rows.select("record_id", "prediction_time").is_duplicated()).any():
            raise ValueError(
                f"{where}: record {rows['record_id'][repeated.arg_max() or 0]!r} is predicted twice at one time"
            )
        if task.problem_type == "multiclass":
            unknown = sorted(set(rows["categorical_value"]) - set(task.label_names))
            if unknown:
                raise ValueError(f"{where}: unknown class {unknown[0]!r}; known: {', '.join(task.label_names)}")
        if task.label_columns == ("float_value",) and not rows["float_value"].is_finite().all():
            raise ValueError(f"{where}: float_value holds numbers that are not finite")
        path = task_path(self._partial, task.name, split)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, compression="zstd")
        self._tasks[task].append(split)

    def finish(self, info: DatasetInfo) -> None:
        """Check the whole against its description and write metadata.json and README.md."""
        if not any(self._shards.values()):
            raise ValueError(f"{info.source}: no record is left to write; dropped: {info.dropped}")
        if self._largest_variable >= len(info.variables):
            raise ValueError(
                f"variable index {self._largest_variable} is out of range: there are {len(info.variables)} variables"
            )
        if len(set(info.variables)) != len(info.variables):
            raise ValueError("variable names must be unique")
        described = {column.name: column for column in info.static_columns}
        if list(described) != list(self._static):
            raise ValueError(f"static columns written: {list(self._static)}, described: {list(described)}")
        for name, met in self._static.items():
            if (met is None) != (described[name].kind == "numeric"):
                raise ValueError(f"static column {name!r} is described as {described[name].kind} and is not")
            if unknown := sorted((met or set()) - set(described[name].categories)):
                raise ValueError(f"static column {name!r} holds {unknown[0]!r}, which is not among its categories")
        if set(info.tasks) != set(self._tasks):
            written, listed = (sorted(task.name for task in tasks) for tasks in (self._tasks, info.tasks))
            raise ValueError(f"tasks written: {written}, described: {listed}")
        (self._partial / "metadata.json").write_text(info.to_json() + "\n", encoding="utf-8")
        (self._partial / "README.md").write_text(card(self._partial, info), encoding="utf-8")
        self._finished = True


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")


def _check_replaceable(output: Path, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / "metadata.json").is_file():
        raise ValueError(f"{output} exists and is not a prepared folder; choose another output")
    if not overwrite:
        raise ValueError(f"{output} exists; choose another output, or replace it with --overwrite")


def _to_arrow(frame: pl.DataFrame, schema: pa.Schema, where: str) -> pa.Table:
    missing = [name for name in schema.names if name not in frame.columns]
    if missing:
        raise ValueError(f"{where}: missing column(s) {', '.join(missing)}; expected {', '.join(schema.names)}")
    if unexpected := [name for name in frame.columns if name not in schema.names]:
        raise ValueError(f"{where}: unexpected column(s) {', '.join(unexpected)}; expected {', '.join(schema.names)}")
    for field_ in schema:
        if not field_.nullable and frame[field_.name].null_count():
            raise ValueError(f"{where}: {field_.name} is null in {frame[field_.name].null_count()} row(s)")
    try:
        return frame.select(schema.names).to_arrow().cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise ValueError(
            f"{where}: columns must be {', '.join(f'{f.name} ({f.type})' for f in schema)}: {error}"
        ) from error


def _check_events(table: pa.Table) -> tuple[list[float], int]:
    """Validates a shard's events; the time of each record's first event and the largest variable index."""
    ids, columns = table["record_id"], {}
    for name in ("time", "variable", "value"):
        lists = table[name].combine_chunks()
        if lists.null_count:
            raise ValueError(f"record {ids[lists.is_null().to_numpy(False).argmax()].as_py()!r}: {name} is null")
        columns[name] = lists.flatten()
        lengths = np.diff(lists.offsets.to_numpy())
        if name == "time":
            counts = lengths
        elif (wrong := lengths != counts).any():
            raise ValueError(f"record {ids[wrong.argmax()].as_py()!r}: time and {name} differ in length")
    if (counts == 0).any():
        raise ValueError(f"record {ids[(counts == 0).argmax()].as_py()!r} has no events; drop and count such records")
    if not len(counts):
        return [], -1
    record = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(counts) - counts
    times = columns["time"].to_numpy(zero_copy_only=False)
    variables = columns["variable"].to_numpy(zero_copy_only=False)
    if columns["variable"].null_count or (variables < 0).any():
        raise ValueError("a variable index is null or negative; it must point into DatasetInfo.variables")
    backwards = np.diff(times, prepend=times[0]) < 0
    backwards[first] = False
    for wrong, problem in (
        (~np.isfinite(times), "has a time that is missing or not finite"),
        (times < 0, "has a negative time; times are hours since the record's start"),
        (backwards, "has events out of order; sort them by time"),
        (np.isinf(columns["value"].to_numpy(zero_copy_only=False)), "has an infinite value"),
    ):
        if wrong.any():
            raise ValueError(f"record {ids[int(record[wrong.argmax()])].as_py()!r} {problem}")
    return times[first].tolist(), int(variables.max())
