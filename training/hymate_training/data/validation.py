"""What the records and labels of a prepared folder must be: checked when they are written, and again when read."""

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from hymate_training.data.schema import YEAR, TaskInfo
from modeling_hymate.events import MAX_HOURS


def check_no_null(table: pa.Table, schema: pa.Schema, where: str) -> None:
    """Raise ValueError, which begins with `where`, if a column that `schema` says is never null holds one."""
    for field in schema:
        if not field.nullable and (count := table[field.name].null_count):
            raise ValueError(f"{where}: {field.name} is null in {count} row(s)")


def check_records(table: pa.Table, where: str, num_variables: int | None = None) -> tuple[np.ndarray, int]:
    """Check the events and the numeric static columns of some records.

    Args:
        table: records, with the columns of `DatasetInfo.schema`.
        where: what the message begins with, such as the file.
        num_variables: variable indices must be below it; not checked where it is None.

    Returns:
        The time of each record's first event, `(records,)`, and the largest variable index, -1 without records.

    Raises:
        ValueError: naming the record and what is wrong with it.
    """
    ids, columns = table["record_id"], {}
    for name in ("time", "variable", "value"):
        lists = table[name].combine_chunks()
        if lists.null_count:
            raise ValueError(f"{where}: record {_first(ids, lists.is_null().to_numpy(False))}: {name} is null")
        columns[name] = lists.flatten()
        lengths = np.diff(lists.offsets.to_numpy())
        if name == "time":
            counts = lengths
        elif (wrong := lengths != counts).any():
            raise ValueError(f"{where}: record {_first(ids, wrong)}: time and {name} differ in length")
    if (counts == 0).any():
        raise ValueError(f"{where}: record {_first(ids, counts == 0)} has no events; drop and count such records")
    _check_numeric_columns(table, where)
    if not len(counts):
        return np.zeros(0, dtype=np.float32), -1
    ends = np.cumsum(counts)
    times = columns["time"].to_numpy(zero_copy_only=False)
    variables = pc.fill_null(columns["variable"], -1).to_numpy(zero_copy_only=False)
    largest = int(variables.max())
    limit = largest + 1 if num_variables is None else num_variables
    backwards = np.diff(times, prepend=times[0]) < 0
    backwards[ends - counts] = False
    for wrong, problem in (
        (~np.isfinite(times), "has a time that is missing or not finite"),
        (times < 0, "has a negative time; times are hours since the record's start"),
        (backwards, "has events out of order; sort them by time"),
        (
            times > MAX_HOURS,
            f"lasts for more than {MAX_HOURS / YEAR:.0f} years; times are hours since the record's start, and a "
            "placeholder date such as 1900-01-01 must not begin it",
        ),
        (np.isinf(columns["value"].to_numpy(zero_copy_only=False)), "has an infinite value"),
        (variables < 0, "has a variable index that is null or negative; it must point into DatasetInfo.variables"),
        (variables >= limit, f"has a variable index that is out of range: there are {limit} variables"),
    ):
        if wrong.any():
            record = ids[int(np.searchsorted(ends, wrong.argmax(), side="right"))].as_py()
            raise ValueError(f"{where}: record {record!r} {problem}")
    return times[ends - counts], largest


def _check_numeric_columns(table: pa.Table, where: str) -> None:
    for name in table.schema.names:
        if pa.types.is_floating(table.schema.field(name).type):
            numbers = pl.Series(table[name])
            if (wrong := (~numbers.is_finite()).fill_null(False)).any():
                record = _first(table["record_id"], wrong.to_numpy())
                raise ValueError(
                    f"{where}: record {record}: {name} must be a number or null, not {numbers.filter(wrong)[0]}"
                )


def check_task(table: pa.Table, task: TaskInfo, where: str, record_ids: pl.Series) -> None:
    """Check the predictions of a task's split.

    Args:
        table: predictions, with the columns of `task.schema`.
        task: what the labels must be.
        where: what the message begins with, such as the file.
        record_ids: the records of the split.

    Raises:
        ValueError: naming the record and what is wrong with it.
    """
    rows = pl.DataFrame(pl.from_arrow(table))
    ids, times = rows["record_id"], rows["prediction_time"]

    def refuse(wrong: pl.Series, problem: str) -> None:
        if wrong.any():
            at = int(wrong.arg_max() or 0)
            raise ValueError(f"{where}: record {ids[at]!r} {problem.format(time=times[at])}")

    refuse(~ids.is_in(record_ids.implode()), "is not among the records of that split")
    refuse(~times.is_finite(), "has prediction_time {time}, which is not finite")
    refuse(rows.select("record_id", "prediction_time").is_duplicated(), "is predicted twice at one time")
    if task.problem_type == "multiclass":
        unknown = rows.filter(~pl.col("categorical_value").is_in(task.label_names))
        if unknown.height:
            label = unknown["categorical_value"][0]
            raise ValueError(f"{where}: unknown class {label!r}; known: {', '.join(task.label_names)}")
    if task.problem_type == "time_to_event":
        until = rows["event_time"]
        early = (until < times) | ((until == times) & rows["event_observed"])
        refuse(~until.is_finite(), "has an event_time that is not finite")
        refuse(early, "is asked at {time} h, which is not before its event, or after it was lost from sight")
    if task.label_columns == ("float_value",):
        refuse(~rows["float_value"].is_finite(), "has a float_value that is not finite")


def _first(ids: pa.ChunkedArray, wrong: np.ndarray) -> str:
    return repr(ids[int(wrong.argmax())].as_py())
