"""The prepared folder: the one layout between any source of health records and everything that trains on it.

    metadata.json                       DatasetInfo
    README.md                           data set card; its YAML makes `datasets.load_dataset(folder, "records")` work,
                                        and `load_dataset(folder, "<task>")`
    records/<split>-00000.parquet ...   one row per record, as many shards as the reader likes
    tasks/<task>/<split>.parquet        one row per prediction, the label schema of MEDS

A record's row holds `record_id: string`, `time: list<float32>` (hours since the record's start, ascending),
`variable: list<int32>` (index into `DatasetInfo.variables`), `value: list<float32>` in clinical units (null: the event
carries no number) and one nullable column per static variable (`double`, or `string` for a categorical one). A task's
row holds `record_id`, `prediction_time: float32` (hours; events at or before it are seen) and the label columns. Of a
time-to-event task these are `event_time: float32`, hours by the same clock, and `event_observed: bool`: true where the
event happened then, false where nothing is known from then on (the record is censored).
"""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from hymate_training.files import json_object, json_problem, regular

SPLITS = ("train", "validation", "test")
SCHEMA_VERSION = 1
METADATA_FILE = "metadata.json"
YEAR = 365.25 * 24  # hours

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
    "event_time": pa.float32(),
    "event_observed": pa.bool_(),
}
SURVIVAL_COLUMNS = ("event_time", "event_observed")  # both of them, of a time-to-event task
# the single label columns of MEDS that each kind of problem may use; a multilabel task names its own boolean columns
LABEL_COLUMNS = {
    "binary": ("boolean_value",),
    "multiclass": ("categorical_value",),
    "regression": ("float_value", "integer_value"),
}

_TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
_NAMES: dict[str, Any] = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}


# what a metadata.json must hold, as JSON Schema; a person may have edited it
METADATA = json_object(
    variables=_NAMES | {"items": _TEXT},
    static_columns={
        "type": "array",
        "items": json_object(name=_TEXT, kind={"enum": ["numeric", "categorical"]}, categories=_NAMES),
    },
    tasks={
        "type": "array",
        "items": json_object(
            name=_TEXT,
            problem_type={"enum": [*LABEL_COLUMNS, "multilabel", "time_to_event"]},
            label_columns=_NAMES,
            label_names=_NAMES,
        ),
    },
    dropped=json_object({"type": "integer", "minimum": 0}),
    **{key: {"type": "string"} for key in ("source", "split_description", "license", "citation")},
    extra={
        "type": "object",
        "properties": {
            **{key: {"type": "object"} for key in ("codes", "layout", "concepts")},
            "units": json_object({"type": ["string", "null"]}),
            "utility": json_object(_TEXT),
            "label_leads": json_object({"type": "number"}),
        },
    },
)


def record_shards(folder: Path, split: str) -> list[Path]:
    """The files of a split's records that are there, in order."""
    return sorted(regular(path) for path in (folder / "records").glob(f"{split}-*.parquet"))


def task_path(folder: Path, task: str, split: str) -> Path:
    """The file of a task's split."""
    return folder / "tasks" / task / f"{split}.parquet"


@dataclass(frozen=True)
class StaticColumn:
    """A variable known once per record: a number, or one of `categories`. Null where it is unknown."""

    name: str
    kind: Literal["numeric", "categorical"]
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskInfo:
    """What is predicted. `label_names` are the two classes, the classes, the outputs of several columns, or the one
    event of a time-to-event task."""

    name: str
    description: str
    problem_type: Literal["binary", "multiclass", "multilabel", "regression", "time_to_event"]
    label_columns: tuple[str, ...]
    label_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name) or self.name == "records":
            raise ValueError(f"task name {self.name!r}: use letters, digits, '_', '-' and '.', and not 'records'")
        if self.problem_type == "time_to_event":
            if self.label_columns != SURVIVAL_COLUMNS or len(self.label_names) != 1:
                raise ValueError(
                    f"task {self.name!r}: a time_to_event task has the label columns {' and '.join(SURVIVAL_COLUMNS)} "
                    "and one label name, that of its event"
                )
            return
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
    signed an agreement may see it), `utility` (task -> what its alarms are worth, one of `utility.UTILITIES`),
    `label_leads` (task -> hours by which a record's first positive label precedes its event) and, for simulated data,
    `drivers` (task -> what the outcome depends on).
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
        """The task of that name.

        Raises:
            ValueError: listing the tasks there are, if it is none of them.
        """
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
        """Inverse of `to_json`.

        Raises:
            ValueError, KeyError, TypeError or AttributeError: if the text is something else.
        """
        content = json.loads(text)
        if (version := content.pop("schema_version")) != SCHEMA_VERSION:
            raise ValueError(
                f"schema version {version}, this release reads {SCHEMA_VERSION}: run `hymate prepare` again"
            )
        if problem := json_problem(content, METADATA) or _contradiction(content):
            raise ValueError(problem)
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


def _contradiction(content: dict[str, Any]) -> str | None:
    """What a metadata.json that follows its schema says against itself; None where it does not."""
    for kind in ("static_columns", "tasks"):
        names = [item["name"] for item in content[kind]]
        if twice := [name for at, name in enumerate(names) if name in names[:at]]:
            return f"{kind} holds {twice[0]!r} twice"
    for task in content["tasks"]:
        wanted = {"binary": 2, "regression": 1, "multilabel": len(task["label_columns"])}.get(task["problem_type"])
        if wanted not in (None, len(task["label_names"])):
            return f"task {task['name']!r}: {wanted} label_names are needed, not {len(task['label_names'])}"
    return None
