"""The hours at which records are asked: at regular steps, or as a table says; and whether a model is trained there."""

from typing import Any

import numpy as np
import polars as pl

from hymate_training.data.examples import last_times
from hymate_training.data.tables import numbers, refuse
from hymate_training.inference.records import read_table
from modeling_hymate import Events

MOST_TIMES = 100_000  # at which one record may be asked
UNTRAINED = "the model was not trained at this hour"
HOW_TO_TRAIN = (
    "fine-tune a model for other hours (`hymate finetune --prediction-times 8`, or a task that asks at them)"
)


def regular_hours(events: Events, every: float) -> tuple[np.ndarray, np.ndarray]:
    """Asks each record at `every` hours after its start, twice that, and so on, up to the first such hour that is not
    before its last event, so that each record is asked at least once and each event is seen.

    Returns:
        The record of each prediction, ascending, and its hour, `(predictions,)` each.

    Raises:
        ValueError: for a step that is not a positive number, or so small that a record is asked too often.
    """
    if not (np.isfinite(every) and np.float32(every) > 0):
        raise ValueError(f"every must be a positive number of hours, got {every}")
    last = last_times(events).astype(np.float32)
    nearest = np.rint(last / np.float64(every))
    counts = np.maximum(1, nearest + ((nearest * every).astype(np.float32) < last))
    if (counts > MOST_TIMES).any():
        row = int(counts.argmax())
        raise ValueError(
            f"every {every:g} hours asks record {events.record_ids[row]!r}, whose last event is at {last[row]:g} "
            f"hours, {counts[row]:.3g} times, more than {MOST_TIMES}: choose a longer step, or check that its times "
            "are hours since the record's start"
        )
    repeats = counts.astype(np.int64)
    rows = np.repeat(np.arange(len(events)), repeats)
    number = np.arange(len(rows)) - np.repeat(np.cumsum(repeats) - repeats, repeats) + 1
    return rows, np.round(number * every, 9)


def read_times(source: Any) -> tuple[pl.DataFrame, str]:
    """A table of `record_id` and `prediction_time`, and what messages call it; see `read_table`."""
    try:
        return read_table(source, "at", ("record_id", "prediction_time"))
    except ValueError as error:
        if "subject_id" not in str(error):
            raise
        raise ValueError(
            f"{error}. Labels of MEDS have subject_id and a timestamp: give record_id, and prediction_time in hours "
            "since the record's start"
        ) from error


def listed_hours(events: Events, source: Any) -> tuple[np.ndarray, np.ndarray]:
    """Asks records as a table says.

    Args:
        events: the records.
        source: a CSV or Parquet file, or a polars or pandas frame: `record_id` and `prediction_time` (hours since the
            record's start), in any order; other columns are not looked at.

    Returns:
        The record and the hour of each row, `(rows,)` each.

    Raises:
        ValueError: naming the row whose record is unknown, whose time is missing, negative or no finite number, or
            that repeats an earlier one.
    """
    frame, name = read_times(source)
    hours = numbers(name, frame["prediction_time"])
    refuse(name, hours.is_null(), "prediction_time is missing")
    refuse(name, hours < 0, "prediction_time is hours since the record's start, not negative", hours)
    refuse(name, hours > float(np.finfo(np.float32).max), "prediction_time must be finite", hours)
    asked = frame.select("record_id", hours)
    repeated = asked.select(~pl.struct(pl.all()).is_first_distinct()).to_series()
    refuse(name, repeated, "the record is asked at this prediction_time already", asked["record_id"])
    place = {record_id: row for row, record_id in enumerate(events.record_ids)}
    known = asked["record_id"].is_in(events.record_ids)
    refuse(name, ~known, "record_id is in neither the events nor the static table", asked["record_id"])
    return np.array([place[record_id] for record_id in asked["record_id"]]), hours.to_numpy()


def is_untrained(hours: np.ndarray, trained_hours: list[float] | None) -> np.ndarray:
    """Which of the hours lie outside those at which a model was trained; all, if at the end of each record alone."""
    if trained_hours is None:
        return np.ones(len(hours), dtype=bool)
    first, last = np.asarray(trained_hours, dtype=np.float32)
    rounded = hours.astype(np.float32)
    return (rounded < first) | (rounded > last)


def said_of_training(trained_hours: list[float] | None) -> str:
    """At which hours a model was trained, as the end of a sentence about it."""
    if trained_hours is None:
        return "was trained at the end of each record alone"
    return f"was trained at hours {trained_hours[0]:g} to {trained_hours[1]:g}"


def refuse_untrained(hours: np.ndarray, record_ids: list[str], trained_hours: list[float] | None) -> None:
    """Raises ValueError for the first record that is asked at an hour at which the model was not trained."""
    untrained = is_untrained(hours, trained_hours)
    if not untrained.any():
        return
    at = int(untrained.argmax())
    right = "leave every and at (--every, --at) out" if trained_hours is None else "ask at those hours"
    raise ValueError(
        f"the model {said_of_training(trained_hours)}, but record {record_ids[at]!r} is asked at hour {hours[at]:g}, "
        f"and {untrained.sum()} of {len(hours)} predictions are such: {right}, {HOW_TO_TRAIN}, or allow untrained "
        "hours (untrained_hours, --untrained-hours), whose rows are marked"
    )
