"""Writing a prepared folder: shard by shard, checked, whole or not at all."""

import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from hymate_training.data.card import card
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import EVENT_FIELDS, METADATA_FILE, SPLITS, DatasetInfo, TaskInfo, task_path
from hymate_training.data.validation import check_no_null, check_records, check_task
from hymate_training.files import refuse_existing, write_file, writing_folder

OWN_FILES = re.compile(
    rf"metadata\.json|README\.md|records/({'|'.join(SPLITS)})-\d+\.parquet|tasks/[^/]+/({'|'.join(SPLITS)})\.parquet"
)


def nest_events(events: pl.DataFrame, static: pl.DataFrame) -> pl.DataFrame:
    """Long events and one static row per record -> rows of records, the same whatever the order of the events.

    Args:
        events: record_id, time (hours), variable (index), value.
        static: record_id, of the same type, and the static columns; records without events do not appear.

    Returns:
        One row per record, by record_id, which is text.
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


@dataclass(frozen=True, eq=False)
class Shard:
    """Records of a split that were checked and written to a file of their own.

    Attributes:
        path: the file.
        first_event: record -> hours of its first event.
        largest_variable: index of a variable.
        static: static column -> the categories met; None: numeric.
    """

    path: Path
    first_event: dict[str, float]
    largest_variable: int
    static: dict[str, set[str] | None]


def write_shard(path: Path, split: str, frame: pl.DataFrame, columns: Sequence[str] | None = None) -> Shard:
    """Checks records and writes them to a file, which `PreparedFolderWriter.add_shard` takes, here or elsewhere.

    Args:
        path: the file, on the disk of the prepared folder.
        split: name of the split.
        frame: the columns of a record, in any order; see `nest_events`.
        columns: order of the static columns; that of the frame where absent.

    Raises:
        ValueError: as `PreparedFolderWriter.write_records`.
    """
    names = [name for name in frame.columns if name not in {field.name for field in EVENT_FIELDS}]
    static: dict[str, set[str] | None] = {
        name: None if frame.schema[name].is_numeric() else set() for name in columns or names
    }
    types = [pa.field(name, pa.float64() if kind is None else pa.string()) for name, kind in static.items()]
    where = f"records of split {split!r}"
    table = _to_arrow(frame, pa.schema([*EVENT_FIELDS, *types]), where)
    first, largest = check_records(table, where)
    first_event = dict(zip(frame["record_id"].to_list(), first.tolist(), strict=True))
    if len(first_event) < len(first):
        record_id = frame.filter(frame["record_id"].is_duplicated())["record_id"][0]
        raise ValueError(f"record {record_id!r} of split {split!r} was already written to {split!r}")
    for name, categories in static.items():
        if categories is not None:
            categories.update(frame[name].drop_nulls().unique())
    pq.write_table(table, path, compression="zstd")
    return Shard(path, first_event, largest, static)


class PreparedFolderWriter:
    """Writes a prepared folder: shard by shard, checked, and whole or not at all.

        with PreparedFolderWriter(output) as writer:
            writer.write_records("train", frame)            # as often as needed, one shard each
            writer.write_task(task, "train", labels)        # after the records of that split
            writer.finish(info)

    Everything goes to a hidden sibling of `output`, which takes its name when the block ends and disappears when the
    block raises. An existing `output` is refused, unless it is empty, or `overwrite` is set and it holds a prepared
    folder and nothing else.
    """

    def __init__(self, output: str | Path, *, overwrite: bool = False) -> None:
        self.output = Path(output).absolute()
        _check_replaceable(self.output, overwrite)
        self._first_event: dict[str, dict[str, float]] = {}  # split -> record -> hours of its first event
        self._static: dict[str, set[str] | None] = {}  # static column -> the categories met; None: numeric
        self._largest_variable = -1
        self._shards = dict.fromkeys(SPLITS, 0)
        self._tasks: dict[TaskInfo, list[str]] = {}
        self._finished = False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "PreparedFolderWriter":
        self._incoming = self._stack.enter_context(writing_folder(self.output))
        (self._incoming / "records").mkdir()
        self._stack.push(self._check_finished)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _check_finished(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and not self._finished:
            raise RuntimeError("PreparedFolderWriter: call finish(info) before the block ends")

    def write_records(self, split: str, frame: pl.DataFrame) -> None:
        """Write one shard of a split.

        Args:
            split: name of the split.
            frame: the columns of a record, in any order; see `nest_events`.

        Raises:
            ValueError: naming the record whose events are out of order, that has a time which is negative or not
                finite, an infinite value, lists of unequal length or no event, or that was written before.
        """
        _check_split(split)
        names = [name for name in frame.columns if name not in {field.name for field in EVENT_FIELDS}]
        if self._static and set(names) != set(self._static):
            raise _other_columns(names, self._static)
        self.add_shard(split, write_shard(self._incoming / "records" / "next", split, frame, list(self._static)))

    def add_shard(self, split: str, shard: Shard) -> None:
        """Take over a file of records that `write_shard` wrote.

        Args:
            split: name of the split.
            shard: the file, which is moved.

        Raises:
            ValueError: naming the record that was written before, or the static columns that differ.
        """
        _check_split(split)
        if not self._static:
            self._static = {name: None if met is None else set() for name, met in shard.static.items()}
        numeric = {name: met is None for name, met in self._static.items()}
        if list(numeric.items()) != [(name, met is None) for name, met in shard.static.items()]:
            raise _other_columns(list(shard.static), self._static)
        self._largest_variable = max(self._largest_variable, shard.largest_variable)
        for name, met in shard.static.items():
            self._static[name] = None if met is None else met | (self._static[name] or set())
        written = self._first_event.setdefault(split, {})
        for other, records in self._first_event.items():
            if again := shard.first_event.keys() & records.keys():
                raise ValueError(f"record {min(again)!r} of split {split!r} was already written to {other!r}")
        written.update(shard.first_event)
        shard.path.replace(self._incoming / "records" / f"{split}-{self._shards[split]:05d}.parquet")
        self._shards[split] += 1

    def write_task(self, task: TaskInfo, split: str, frame: pl.DataFrame) -> None:
        """Write the labels of a split, whose records have been written; once per task and split.

        Args:
            task: what is asked.
            split: name of the split.
            frame: the columns of `task.schema`, one row per prediction.

        Raises:
            ValueError: if a label is missing or of the wrong kind, a prediction occurs twice, or its record is not in
                the split or has no event at or before the prediction time.
        """
        _check_split(split)
        where = f"task {task.name!r}, split {split!r}"
        if split in self._tasks.setdefault(task, []):
            raise ValueError(f"{where}: written twice")
        table = _to_arrow(frame, task.schema, where)
        known = self._first_event.get(split, {})
        records = pl.DataFrame(
            {"record_id": list(known), "first": list(known.values())},
            schema_overrides={"record_id": pl.String, "first": pl.Float64},
        )
        check_task(table, task, where, records["record_id"])
        rows = pl.DataFrame(pl.from_arrow(table.select(["record_id", "prediction_time"])))
        early = rows.join(records, on="record_id", maintain_order="left").filter(
            pl.col("first") > pl.col("prediction_time")
        )
        if early.height:
            record_id, time, _ = early.row(0)
            raise ValueError(f"{where}: record {record_id!r} has no event at or before its prediction at {time} h")
        path = task_path(self._incoming, task.name, split)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, compression="zstd")
        self._tasks[task].append(split)

    def finish(self, info: DatasetInfo) -> None:
        """Check the whole against its description and write metadata.json and README.md.

        Raises:
            ValueError: if nothing was written, or the description says otherwise than what was written.
        """
        if not any(self._shards.values()):
            raise ValueError(f"{info.source}: no record is left to write; dropped: {info.dropped}")
        if self._largest_variable >= len(info.variables):
            raise ValueError(
                f"variable index {self._largest_variable} is out of range: there are {len(info.variables)} variables"
            )
        if len(set(info.variables)) != len(info.variables):
            raise ValueError("variable names must be unique")
        described = {column.name: column for column in info.static_columns}
        if set(described) != set(self._static):
            raise ValueError(
                f"static columns written: {sorted(self._static)}, described in static_columns: {sorted(described)}"
            )
        for name, met in self._static.items():
            if (met is None) != (described[name].kind == "numeric"):
                raise ValueError(f"static column {name!r} is described as {described[name].kind} and is not")
            if unknown := sorted((met or set()) - set(described[name].categories)):
                raise ValueError(
                    f"static column {name!r} holds {unknown[0]!r}, which is not among its categories, "
                    f"{described[name].categories}; list all of them in StaticColumn"
                )
        if set(info.tasks) != set(self._tasks):
            written, listed = (sorted(task.name for task in tasks) for tasks in (self._tasks, info.tasks))
            raise ValueError(f"tasks written: {written}, described: {listed}")
        write_file(self._incoming / METADATA_FILE, info.to_json() + "\n")
        write_file(self._incoming / "README.md", card(PreparedFolder(self._incoming)))
        self._finished = True


def _other_columns(names: Sequence[str], first: Iterable[str]) -> ValueError:
    return ValueError(f"static columns {list(names)} differ from those of the first shard, {list(first)}")


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; use one of {', '.join(SPLITS)}")


def _check_replaceable(output: Path, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not (output / METADATA_FILE).is_file():
        raise ValueError(f"{output} exists and is not a prepared folder; choose another output")
    refuse_existing(output, overwrite)
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output).as_posix()
        if not path.is_dir() and not OWN_FILES.fullmatch(name):
            raise ValueError(
                f"{output} holds {name}, which `hymate prepare` did not write and --overwrite would delete; move it "
                "elsewhere, or choose another output"
            )


def _to_arrow(frame: pl.DataFrame, schema: pa.Schema, where: str) -> pa.Table:
    missing = [name for name in schema.names if name not in frame.columns]
    if missing:
        raise ValueError(f"{where}: missing column(s) {', '.join(missing)}; expected {', '.join(schema.names)}")
    if unexpected := [name for name in frame.columns if name not in schema.names]:
        raise ValueError(f"{where}: unexpected column(s) {', '.join(unexpected)}; expected {', '.join(schema.names)}")
    try:
        table = frame.select(schema.names).to_arrow()
        check_no_null(table, schema, where)
        return table.cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise ValueError(
            f"{where}: columns must be {', '.join(f'{f.name} ({f.type})' for f in schema)}: {error}"
        ) from error
