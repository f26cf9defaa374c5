"""The prepared folder: the one layout between any source of health records and everything that trains on it.

    metadata.json                       DatasetInfo
    README.md                           data set card; its YAML makes `datasets.load_dataset(folder, "records")` work,
                                        and `load_dataset(folder, "<task>")`
    records/<split>-00000.parquet ...   one row a record, as many shards as the reader likes
    tasks/<task>/<split>.parquet        one row a prediction, the label schema of MEDS

A record's row holds `record_id: string`, `time: list<float32>` (hours since the record's start, ascending),
`variable: list<int32>` (index into `DatasetInfo.variables`), `value: list<float32>` in clinical units (null: the event
carries no number) and one nullable column a static variable (`double`, or `string` for a categorical one). A task's
row holds `record_id`, `prediction_time: float32` (hours; events at or before it are seen) and the label columns.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

SPLITS = ("train", "validation", "test")
SCHEMA_VERSION = 1

EVENT_FIELDS = (
    pa.field("record_id", pa.string(), nullable=False),
    pa.field("time", pa.list_(pa.float32())),
    pa.field("variable", pa.list_(pa.int32())),
    pa.field("value", pa.list_(pa.float32())),
)
TASK_FIELDS = (
    pa.field("record_id", pa.string(), nullable=False),
    pa.field("prediction_time", pa.float32(), nullable=False),
)
LABEL_TYPES = {
    "boolean_value": pa.bool_(),
    "categorical_value": pa.string(),
    "float_value": pa.float32(),
    "integer_value": pa.int64(),
}
# the single label columns of MEDS that each kind of problem may use; a multilabel task names its own boolean columns
LABEL_COLUMNS = {
    "binary": ("boolean_value",),
    "multiclass": ("categorical_value",),
    "regression": ("float_value", "integer_value"),
}


@dataclass(frozen=True)
class StaticColumn:
    """A variable known once a record: a number, or one of `categories`. Null where it is unknown."""

    name: str
    kind: Literal["numeric", "categorical"]
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskInfo:
    """What is predicted. `label_names` are the two classes, the classes, or the outputs of several columns."""

    name: str
    description: str
    problem_type: Literal["binary", "multiclass", "multilabel", "regression"]
    label_columns: tuple[str, ...]
    label_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.name) or self.name == "records":
            raise ValueError(f"task name {self.name!r}: use letters, digits, '_', '-' and '.', and not 'records'")
        allowed = LABEL_COLUMNS.get(self.problem_type)
        if allowed is not None and (len(self.label_columns) != 1 or self.label_columns[0] not in allowed):
            raise ValueError(
                f"task {self.name!r}: a {self.problem_type} task has one label column, {' or '.join(allowed)}, "
                f"not {', '.join(self.label_columns) or 'none'}"
            )
        if allowed is None and not self.label_columns:
            raise ValueError(f"task {self.name!r}: a multilabel task needs at least one boolean label column")

    @property
    def schema(self) -> pa.Schema:
        """Columns of the task's Parquet files."""
        labels = [pa.field(name, LABEL_TYPES.get(name, pa.bool_()), nullable=False) for name in self.label_columns]
        return pa.schema([*TASK_FIELDS, *labels])


@dataclass(frozen=True)
class DatasetInfo:
    """What a prepared folder holds, kept as its metadata.json.

    `dropped` counts what the reader left out, by reason. `extra` is the source's own: `description` (Markdown for the
    card), `units` (variable -> unit), `license_name` (of the license "other"), `credentialed` (true: only people who
    signed an agreement may see it), `utility` (task -> what its alarms are worth, one of `utility.UTILITIES`) and, for
    simulated data, `drivers` (task -> what the outcome depends on).
    """

    source: str
    variables: tuple[str, ...]
    static_columns: tuple[StaticColumn, ...]
    tasks: tuple[TaskInfo, ...]
    dropped: dict[str, int]
    split_description: str
    license: str
    citation: str
    seed: int | None
    extra: dict[str, Any] = field(default_factory=dict)

    def task(self, name: str) -> TaskInfo:
        """The task of that name; ValueError listing the known ones if there is none."""
        for task in self.tasks:
            if task.name == name:
                return task
        known = ", ".join(task.name for task in self.tasks) or "none"
        raise ValueError(f"unknown task {name!r}; this data set has: {known}")

    @property
    def schema(self) -> pa.Schema:
        """Columns of the records' Parquet files."""
        types = {"numeric": pa.float64(), "categorical": pa.string()}
        return pa.schema(
            [*EVENT_FIELDS, *(pa.field(column.name, types[column.kind]) for column in self.static_columns)]
        )

    def to_json(self) -> str:
        return json.dumps({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}, indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "DatasetInfo":
        """Inverse of `to_json`; ValueError (or KeyError, TypeError) if the text is something else."""
        content = json.loads(text)
        if (version := content.pop("schema_version")) != SCHEMA_VERSION:
            raise ValueError(
                f"schema version {version}, this release reads {SCHEMA_VERSION}: run `hymate prepare` again"
            )
        content["variables"] = tuple(content["variables"])
        content["static_columns"] = tuple(
            StaticColumn(**{**column, "categories": tuple(column["categories"])})
            for column in content["static_columns"]
        )
        content["tasks"] = tuple(
            TaskInfo(
                **{**task, "label_columns": tuple(task["label_columns"]), "label_names": tuple(task["label_names"])}
            )
            for task in content["tasks"]
        )
        return cls(**content)


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


# ------------------------------------------------------------------------------------------------------------- reading


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
    shards = _record_shards(folder, split)
    if not shards:
        raise _unknown_split(folder, split, [name for name in SPLITS if _record_shards(folder, name)])
    return pa.concat_tables([_read_parquet(path, info.schema) for path in shards])


def read_task(folder: str | Path, task: str, split: str) -> pa.Table:
    """The labels of a task's split, one row a prediction. Raises ValueError naming what is missing."""
    folder = Path(folder)
    schema = read_info(folder).task(task).schema
    path = _task_path(folder, task, split)
    if not path.is_file():
        raise _unknown_split(folder, split, [name for name in SPLITS if _task_path(folder, task, name).is_file()])
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


def _record_shards(folder: Path, split: str) -> list[Path]:
    return sorted((folder / "records").glob(f"{split}-*.parquet")) if split in SPLITS else []


def _task_path(folder: Path, task: str, split: str) -> Path:
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


# ------------------------------------------------------------------------------------------------------------- writing


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
        path = _task_path(self._partial, task.name, split)
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
        (self._partial / "README.md").write_text(_card(self._partial, info), encoding="utf-8")
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


def replace_folder(new: Path, output: Path) -> None:
    if not output.exists():
        new.rename(output)
        return
    old = new.with_name(new.name + "-old")
    output.rename(old)
    try:
        new.rename(output)
    except BaseException:
        old.rename(output)
        raise
    shutil.rmtree(old)


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


# ------------------------------------------------------------------------------------------------- what a folder holds


def summary_tables(folder: str | Path, info: DatasetInfo) -> dict[str, list[list[str]]]:
    """Rows of three tables, headings first: `splits`, `tasks` (with prevalence or mean), and `dropped` by reason."""
    folder = Path(folder)
    splits = [["split", "records", "events", "median events a record"]]
    for split in SPLITS:
        lengths = [_record_lengths(path) for path in _record_shards(folder, split)]
        if lengths:
            counts = np.concatenate(lengths)
            splits.append([split, f"{len(counts):,}", f"{counts.sum():,}", f"{np.median(counts):,.0f}"])
    tasks = [["task", "type", "split", "predictions", "labels"]]
    for task in info.tasks:
        for split in SPLITS:
            if (path := _task_path(folder, task.name, split)).is_file():
                frame = pl.read_parquet(path)
                tasks.append([task.name, task.problem_type, split, f"{frame.height:,}", _describe_labels(task, frame)])
    dropped = [["dropped", "count"], *([reason, f"{count:,}"] for reason, count in info.dropped.items())]
    return {"splits": splits, "tasks": tasks, "dropped": dropped}


def _record_lengths(shard: Path) -> np.ndarray:
    column = pq.ParquetFile(shard).read(["variable"])["variable"]
    return np.concatenate([np.diff(chunk.offsets) for chunk in column.chunks])


def _describe_labels(task: TaskInfo, frame: pl.DataFrame) -> str:
    if not frame.height:
        return "none"
    columns = {name: frame[name].to_numpy() for name in task.label_columns}
    first = columns[task.label_columns[0]]
    if task.problem_type == "binary":
        return f"{first.mean():.2%} {task.label_names[1]}"
    if task.problem_type == "regression":
        return f"mean {first.mean():.4g}, median {np.median(first):.4g}"
    if task.problem_type == "multiclass":
        return ", ".join(f"{(first == name).mean():.1%} {name}" for name in task.label_names)
    return ", ".join(f"{labels.mean():.1%} {name}" for name, labels in columns.items())


def _card(folder: Path, info: DatasetInfo) -> str:
    """The data set card: YAML that `datasets` reads, then what a person wants to know."""
    return "\n".join(_card_lines(folder, info)) + "\n"


def _card_lines(folder: Path, info: DatasetInfo) -> Iterator[str]:
    def data_files(template: str) -> list[dict[str, str]]:
        paths = {split: template.format(split) for split in SPLITS}
        return [{"split": split, "path": path} for split, path in paths.items() if any(folder.glob(path))]

    configs = [{"config_name": "records", "data_files": data_files("records/{}-*.parquet"), "default": True}]
    configs += [
        {"config_name": task.name, "data_files": data_files(f"tasks/{task.name}/{{}}.parquet")} for task in info.tasks
    ]
    header: dict[str, Any] = {"license": info.license}
    if info.license == "other":  # the Hub asks for a name, in the form of its identifiers
        name = info.extra.get("license_name", "unspecified")
        header["license_name"] = re.sub(r"[^a-z0-9.]+", "-", name.lower())
    header |= {
        "pretty_name": f"{info.source}, prepared for HyMaTE",
        "tags": ["electronic-health-records", "clinical-time-series", "hymate"],
        "configs": configs,
    }
    yield f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n"
    yield f"# {info.source}, prepared for HyMaTE\n"
    if "description" in info.extra:
        yield f"{info.extra['description']}\n"
    tables = summary_tables(folder, info)
    yield "## Records and splits\n"
    yield f"{info.split_description}\n"
    yield from _markdown_table(tables["splits"])
    yield "## Tasks\n"
    yield from (f"- `{task.name}`: {task.description}" for task in info.tasks)
    yield ""
    yield from _markdown_table(tables["tasks"])
    if info.dropped:
        yield "## Dropped\n"
        yield from _markdown_table(tables["dropped"])
    yield "## Variables\n"
    units = info.extra.get("units", {})
    listed = (f"`{name}` ({units[name]})" if units.get(name) else f"`{name}`" for name in info.variables)
    if len(info.variables) <= 200:
        yield ", ".join(listed) + "\n"
    else:
        yield f"{len(info.variables):,}, listed in metadata.json.\n"
    if info.static_columns:
        names = (
            f"`{c.name}` ({', '.join(c.categories) or units.get(c.name) or 'number'})" for c in info.static_columns
        )
        yield f"Static: {', '.join(names)}\n"
    for task_name, drivers in info.extra.get("drivers", {}).items():
        yield f"## What drives `{task_name}`\n"
        yield from _markdown_table([list(drivers[0]), *([str(value) for value in d.values()] for d in drivers)])
    yield "## Citation\n"
    yield info.citation


def _markdown_table(rows: list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(rows[0])} |"
    yield "|" + "---|" * len(rows[0])
    yield from (f"| {' | '.join(row)} |" for row in rows[1:])
    yield ""
