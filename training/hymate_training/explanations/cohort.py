"""The records that a report is about: of a task's split, or any others in clinical units."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hymate_training.data.collators import asked_at_last_event
from hymate_training.data.examples import ExampleDataset, check_static_columns, last_times, load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import DatasetInfo, TaskInfo
from hymate_training.data.subgroups import subgroup_columns
from hymate_training.evaluation.evaluation import check_task
from hymate_training.explanations.attribution import Explainer
from modeling_hymate import Events, HyMaTEFeatureExtractor


@dataclass(frozen=True)
class Cohort:
    """The records that are explained, and what is known of them.

    Attributes:
        events: the events up to each record's prediction time, one prediction per record.
        title: data set and task, as the report's heading names them.
        hours: hour at which each record is asked, `(records,)`: that of its last event where the model was trained so.
        at_last_event: whether that is so.
        question: what is asked, in a sentence; empty where that is not known.
        outcomes: outcome of each record by name, `(records,)`; None where it is not known.
        truths: the same as numbers, 1 where it is the explained label, or the number that is predicted.
        sight: of a time to an event, `(records, 2)`: the hour at which it came or the record was last in sight, and
            whether it came.
        starts: when each record began, by the clock; None where that is not known.
        subgroups: column -> subgroup of each record, `(records,)`.
        units: variable -> unit.
        drivers: variables that drive the outcome, where it was simulated.
        account: what the report says of the data, by heading.
        sources: files and folders that the records were read from; a report is never written there.
    """

    events: Events
    title: str
    hours: np.ndarray
    at_last_event: bool = True
    question: str = ""
    outcomes: np.ndarray | None = None
    truths: np.ndarray | None = None
    sight: np.ndarray | None = None
    starts: list[datetime | None] | None = None
    subgroups: dict[str, np.ndarray] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    drivers: tuple[str, ...] = ()
    account: dict[str, Any] = field(default_factory=dict)
    sources: tuple[Path, ...] = ()

    def __len__(self) -> int:
        return len(self.events)

    @property
    def record_ids(self) -> list[str]:
        """Names of the records."""
        return list(self.events.record_ids)

    @property
    def asked(self) -> dict[str, float] | None:
        """The hour at which each record is asked, by its name, as `Explainer` takes it; None for its last event."""
        if self.at_last_event:
            return None
        return dict(zip(self.events.record_ids, self.hours.tolist(), strict=True))

    def take(self, rows: np.ndarray) -> "Cohort":
        """The records at these positions."""
        return replace(
            self,
            events=self.events.take(rows),
            hours=self.hours[rows],
            outcomes=None if self.outcomes is None else self.outcomes[rows],
            truths=None if self.truths is None else self.truths[rows],
            sight=None if self.sight is None else self.sight[rows],
            starts=None if self.starts is None else [self.starts[row] for row in rows],
            subgroups={name: column[rows] for name, column in self.subgroups.items()},
        )

    def named(self, record_ids: Sequence[str]) -> "Cohort":
        """The records of these names, each once; ValueError for a name that is not there."""
        known = {record_id: row for row, record_id in enumerate(self.events.record_ids)}
        absent = [record_id for record_id in record_ids if record_id not in known]
        if absent:
            raise ValueError(f"record {absent[0]!r} is not among the {len(known)} records that have events to explain")
        return self.take(np.array([known[record_id] for record_id in dict.fromkeys(record_ids)], dtype=int))

    def drawn(self, num_records: int, seed: int) -> "Cohort":
        """`num_records` records drawn at random, or all where there are fewer; in the order in which they stand."""
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:num_records]))


def cohort_of_task(
    explainer: Explainer,
    data: PreparedFolder,
    task: str,
    split: str = "validation",
    *,
    max_events: int | None = None,
    seed: int = 0,
) -> Cohort:
    """The records of a task's split, each asked at its prediction time; where it has several, at a drawn one.

    Each is asked as `evaluate` asks it, which says the same of it.

    Args:
        explainer: the model and the output to be explained.
        data: the prepared folder.
        task: name of the task.
        split: name of the split.
        max_events: keep the latest events of longer records; as many as in training by default.
        seed: of the drawn prediction times.

    Raises:
        ValueError: if the model was trained for another task, task or split are not there, or no record has events.
    """
    info = data.info
    asked = info.task(task)
    check_task(explainer.model, asked)
    check_static_columns(data, explainer.extractor)
    dataset = load_task(data, task, split, explainer.extractor.variables)
    shuffled = np.random.default_rng(seed).permutation(len(dataset))
    chosen = np.sort(shuffled[np.unique(dataset.rows[shuffled], return_index=True)[1]])
    events = dataset.events.take(dataset.rows[chosen])
    hours = dataset.prediction_times[chosen]
    events = events.select(events.times <= np.repeat(hours, events.lengths))
    at_last_event = asked_at_last_event(dataset, explainer.extractor)
    cohort = Cohort(
        events=events,
        hours=last_times(events) if at_last_event else hours,
        at_last_event=at_last_event,
        title=f"{asked.name.replace('_', ' ')}, {split} split of {info.source}",
        question=asked.description,
        outcomes=outcome_names(asked, dataset.labels[chosen], explainer.label),
        truths=truths_of(asked, dataset.labels[chosen], explainer.label),
        sight=dataset.outcomes[chosen] if asked.problem_type == "time_to_event" else None,
        # subgroups of a column are made over the whole split, so that they do not depend on what is drawn
        subgroups={name: column[chosen] for name, column in subgroup_columns(dataset).items()},
        units=explainer.extractor.units | info.extra.get("units", {}),
        drivers=true_drivers(info, asked.name, explainer.label),
        account={
            "Data": info.source,
            "Task": asked.description,
            "Asked": _asked_in_words(hours, at_last_event),
            "Split": f"{split} (fingerprint {data.split_fingerprint(task, split)})",
        },
        sources=(data.path,),
    )
    return with_events(cohort, explainer.extractor, max_events)


def cohort_of_records(
    explainer: Explainer,
    records: Any,
    static: Any = None,
    *,
    title: str = "records",
    max_events: int | None = None,
    sources: Sequence[Path] = (),
) -> Cohort:
    """Records in clinical units, whole, without outcomes.

    Args:
        explainer: the model and the output to be explained.
        records: `Events`, or anything that the feature extractor takes.
        static: static columns where `records` does not hold them, as for the feature extractor.
        title: what the report's heading calls them.
        max_events: keep the latest events of longer records; as many as in training by default.
        sources: files that they were read from.

    Raises:
        ValueError: for bad records, or where none has events.
    """
    events = records if isinstance(records, Events) else explainer.extractor.parse(records, static)
    dataset = ExampleDataset(events, np.arange(len(events)), last_times(events))
    cohort = Cohort(
        events,
        title,
        dataset.prediction_times,
        subgroups=subgroup_columns(dataset),
        units=explainer.extractor.units,
        account={"Data": title, "Asked": "each record at its last event"},
        sources=tuple(sources),
    )
    return with_events(cohort, explainer.extractor, max_events)


def with_starts(cohort: Cohort, starts: pl.DataFrame, time_zone: str | None = None) -> Cohort:
    """The same records, with the clock times at which they began, as `exports.read_starts` returns them.

    Those that are known by UTC are given in the time zone, or by UTC where none is stated.
    """
    moments = starts.select("record_id", start=pl.from_epoch((pl.col("begins") * 1e6).cast(pl.Int64), time_unit="us"))
    if time_zone is not None and starts["utc"].any():
        local = pl.col("start").dt.replace_time_zone("UTC").dt.convert_time_zone(time_zone)
        moments = moments.with_columns(local.dt.replace_time_zone(None))
    known = dict(zip(moments["record_id"], moments["start"], strict=True))
    return replace(cohort, starts=[known.get(record_id) for record_id in cohort.record_ids])


def with_events(cohort: Cohort, extractor: HyMaTEFeatureExtractor, max_events: int | None) -> Cohort:
    """The records that have events, shortened to the latest; says in the account how many were left out."""
    events = extractor.shorten(cohort.events, max_events)
    kept = np.flatnonzero(events.lengths)
    if not len(kept):
        raise ValueError("no record has events before its prediction time")
    left_out = len(events) - len(kept)
    account = cohort.account | ({"Left out": f"{left_out:,} records without events"} if left_out else {})
    return replace(cohort, events=events, account=account).take(kept)


def outcome_names(task: TaskInfo, labels: np.ndarray, label: str) -> np.ndarray:
    """Outcome of each record in words; numbers are split at their median."""
    if task.problem_type == "regression":
        middle = float(np.median(labels))
        return np.where(labels > middle, f"above {middle:g}", f"up to {middle:g}").astype(object)
    if task.problem_type == "time_to_event":
        event = task.label_names[0]
        return np.where(labels[:, 1] > 0, f"{event} observed", f"no {event} observed").astype(object)
    if task.problem_type == "multilabel":
        return np.where(labels[:, task.label_names.index(label)] > 0, label, f"no {label}").astype(object)
    return np.array(task.label_names, dtype=object)[labels]


def truths_of(task: TaskInfo, labels: np.ndarray, label: str) -> np.ndarray | None:
    """Outcome of each record as a number: whether it is the label, or the number that is predicted; None for the risk
    within a horizon, before which some records are no longer observed."""
    if task.problem_type == "time_to_event":
        return None
    if task.problem_type == "regression":
        return labels.astype(np.float64)
    at = task.label_names.index(label)
    return ((labels[:, at] > 0) if task.problem_type == "multilabel" else labels == at).astype(np.float64)


def _asked_in_words(hours: np.ndarray, at_last_event: bool) -> str:
    if at_last_event:
        until = f"hour {hours[0]:g}" if np.ptp(hours) == 0 else "its prediction time"
        return f"each record at its last event up to {until}, as in training"
    if np.ptp(hours) == 0:
        return f"each record at hour {hours[0]:g}"
    return f"each record at its prediction time, hours {hours.min():g} to {hours.max():g}"


def true_drivers(info: DatasetInfo, task: str, label: str) -> tuple[str, ...]:
    """Variables that drive the label of a simulated task, or any of the task's outputs where none has its name."""
    drivers = info.extra.get("drivers", {}).get(task, [])
    own = [driver for driver in drivers if driver["output"] == label] or drivers
    return tuple(dict.fromkeys(driver["variable"] for driver in own))
