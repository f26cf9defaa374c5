"""Stays in a hospital and the records, predictions and shards made of them: for sources of visits and persons."""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import polars as pl

from hymate_training.data.schema import SPLITS, SURVIVAL_COLUMNS, StaticColumn, TaskInfo
from hymate_training.data.splits import RANDOM_SPLIT, split_at_random
from hymate_training.data.writer import PreparedFolderWriter, nest_events
from hymate_training.readers.store import EventStore
from hymate_training.readers.times import single_precision, still_open

YEAR = 365.25 * 24 * 3600  # seconds
HOUR = 3600
DAY = 24 * HOUR
READMITTED_WITHIN = 30 * DAY
STATIC_COLUMNS = (StaticColumn("age", "numeric"), StaticColumn("gender", "categorical", ("female", "male")))


def add_stay_arguments(parser: argparse.ArgumentParser, stay: str, person: str) -> None:
    """Adds the fields of `Stays` as options, in the words that a source has for a stay and a person."""
    article = "an" if stay[0] in "aeiou" else "a"
    parser.add_argument(
        "--records",
        choices=("visit", "person"),
        default="visit",
        help=f"What a record is: {article} {stay}, or all that is known of a {person} (default: visit).",
    )
    parser.add_argument(
        "--observed-hours",
        type=float,
        default=24.0,
        help=f"Hours of {article} {stay} after which its outcomes are predicted (default: 24).",
    )
    parser.add_argument(
        "--min-records",
        type=int,
        default=10,
        help="Drop variables that occur in fewer than this many training records (default: 10).",
    )


@dataclass(frozen=True)
class Written:
    """What was written: the variables that were kept, by number, and the tasks."""

    variables: tuple[str, ...]
    tasks: tuple[TaskInfo, ...]


@dataclass(frozen=True)
class Stays:
    """What a record is, and when its tasks are asked.

    Attributes:
        records: "visit", or "person": all that is known of one.
        observed_hours: of a stay, after which its tasks are asked; what lasts less is no admission.
        min_records: training records that a variable must be met in.
        noun: what the source calls a stay.
    """

    records: Literal["visit", "person"]
    observed_hours: float
    min_records: int
    noun: str

    def __post_init__(self) -> None:
        if self.records not in ("visit", "person"):
            raise ValueError(f"--records must be 'visit' or 'person', got {self.records!r}")
        if not 0 < self.observed_hours < float("inf"):
            raise ValueError(f"--observed-hours must be positive, got {self.observed_hours:g}")
        if self.min_records < 1:
            raise ValueError(f"--min-records must be at least 1, got {self.min_records}")

    @property
    def tasks(self) -> tuple[TaskInfo, TaskInfo, TaskInfo, TaskInfo]:
        asked = f"Asked {self.observed_hours:g} hours after its start, of stays at least that long."
        return (
            TaskInfo(
                "in_hospital_mortality",
                f"Does the patient die in this stay? {asked}",
                "binary",
                ("boolean_value",),
                ("survived", "died"),
            ),
            TaskInfo(
                "length_of_stay",
                f"Days from the stay's start to its end, deaths included. {asked}",
                "regression",
                ("float_value",),
                ("days",),
            ),
            TaskInfo(
                "readmission_30d",
                f"Does another stay of at least {self.observed_hours:g} hours begin within 30 days? Asked on leaving "
                "alive. Deaths after it count as no readmission.",
                "binary",
                ("boolean_value",),
                ("not readmitted", "readmitted"),
            ),
            TaskInfo(
                "time_to_death",
                f"When does the patient die in this stay? {asked} Who leaves it alive is censored on leaving.",
                "time_to_event",
                SURVIVAL_COLUMNS,
                ("death",),
            ),
        )

    def owners(
        self,
        visits: pl.DataFrame,
        splits: pl.DataFrame,
        person_names: Sequence[str] | None = None,
        visit_names: Sequence[str] | None = None,
    ) -> pl.DataFrame:
        """A row per record: record, name, person_id, start (seconds; null: its first event), born, gender, split.

        Args:
            visits: number, visit, person_id, start, end, born, gender, death (seconds), days.
            splits: person_id and split.
            person_names: of each person_id; the number itself where absent.
            visit_names: of each visit; the number itself where absent.
        """
        visits = visits.join(splits, on="person_id", how="left", maintain_order="left")
        if self.records == "visit":
            return visits.select(
                pl.col("number").alias("record"),
                _named(visits["visit"], visit_names),
                *("person_id", "start", "born", "gender", "split"),
            )
        persons = visits.group_by("person_id").agg(pl.col("born", "gender", "split").first()).sort("person_id")
        return persons.with_row_index("record").select(
            "record",
            _named(persons["person_id"], person_names),
            "person_id",
            pl.lit(None, pl.Float64).alias("start"),
            *("born", "gender", "split"),
        )

    def locate(
        self, events: pl.DataFrame, visits: pl.DataFrame, owners: pl.DataFrame, table: str, dropped: Counter[str]
    ) -> pl.DataFrame:
        """Events (person_id, visit, seconds, ...) -> those of a record, `record` in place of person and visit."""
        timed = events.drop_nulls(["person_id", "seconds"])
        dropped[f"{table}: rows without a person or a time"] += events.height - timed.height
        if self.records == "person":
            owned = timed.join(owners.select("record", "person_id"), on="person_id", how="inner")
            dropped[f"{table}: rows of a person without a {self.noun}"] += timed.height - owned.height
            return owned.drop("person_id", "visit")
        spans = visits.select(pl.col("number").alias("record"), "visit", "person_id", "start", "end")
        named = timed.join(spans, on=["visit", "person_id"], how="inner")
        rest = timed.join(spans, on=["visit", "person_id"], how="anti").drop("visit").sort("seconds")
        within = rest.join_asof(
            spans.drop("visit").sort("start"),
            left_on="seconds",
            right_on="start",
            by="person_id",
            strategy="backward",
            check_sortedness=False,  # it cannot be checked with `by`; both are sorted above
        ).drop_nulls("record")
        found = pl.concat([named.drop("visit"), within], how="diagonal")
        inside = found.filter(pl.col("seconds").is_between("start", "end"))
        dropped[f"{table}: rows outside any {self.noun}"] += timed.height - inside.height
        return inside.drop("person_id", "start", "end")

    def predictions(self, visits: pl.DataFrame, owners: pl.DataFrame) -> dict[TaskInfo, pl.DataFrame]:
        """Each task's predictions: record, asked (seconds), label; the time of an event in seconds, too."""
        mortality, length, readmission, time_to_death = self.tasks
        key = "number" if self.records == "visit" else "person_id"
        numbered = visits.join(
            owners.select("record", pl.col("record" if self.records == "visit" else "person_id").alias(key)), on=key
        )
        admissions = numbered.filter(pl.col("end") - pl.col("start") >= self.observed_hours * HOUR)
        asked = (pl.col("start") + self.observed_hours * HOUR).alias("asked")
        died = (pl.col("death") <= pl.col("end")).fill_null(False)
        alive = admissions.filter(pl.col("death").is_null() | (pl.col("death") > asked) | ~died)
        starts = admissions.select("person_id", pl.col("start").alias("following")).sort("following")
        left = admissions.filter(~died).sort("end")
        left = left.join_asof(
            starts,
            left_on="end",
            right_on="following",
            by="person_id",
            strategy="forward",
            check_sortedness=False,  # it cannot be checked with `by`; both are sorted above
        )
        again = (pl.col("following") - pl.col("end") <= READMITTED_WITHIN).fill_null(False)
        return {
            mortality: alive.select("record", asked, died.alias("boolean_value")),
            length: alive.select("record", asked, pl.col("days").alias("float_value")),
            readmission: left.select("record", pl.col("end").alias("asked"), again.alias("boolean_value")),
            time_to_death: alive.select(
                "record",
                asked,
                pl.when(died).then("death").otherwise("end").alias("event_time"),
                died.alias("event_observed"),
            ),
        }


def _named(numbers: pl.Series, names: Sequence[str] | None) -> pl.Series:
    texts = numbers.cast(pl.String) if names is None else pl.Series(names, dtype=pl.String).gather(numbers)
    return texts.alias("name")


def settle_deaths(visits: pl.DataFrame, dropped: Counter[str], clock: float = 0.0) -> pl.DataFrame:
    """Visits whose death and whose discharge agree, so that no two tasks contradict each other.

    - A death at a day's last second is one whose time of day is not known: it was in the person's last visit that ends
      on that day, and at its end, unless that visit was left alive.
    - A death within a visit is one whatever the discharge says.
    - A discharge as dead is a death, at the visit's end where no earlier time is known.

    Args:
        visits: person_id, start, end, death (seconds) and `expired`: whether the discharge says that the person died;
            null where it says nothing.
        dropped: where contradictions are counted.
        clock: seconds that the clock by which a day ends is ahead of that of the times.

    Returns:
        The visits, `death` the earliest of the person, without `expired`.
    """
    death, end, expired = pl.col("death"), pl.col("end"), pl.col("expired")
    day, of_end = (death + clock) // DAY, (end + clock) // DAY
    by_day = ((death + clock) % DAY == DAY - 1) & (death > end) & (day == of_end) & expired.fill_null(True)
    visits = visits.with_columns(by_day=by_day.fill_null(False))
    last = pl.col("by_day") & (end == end.filter(pl.col("by_day")).max().over("person_id"))
    visits = visits.with_columns(death=pl.when(last).then("end").otherwise("death")).drop("by_day")
    within = (death.is_between("start", "end")).fill_null(False)
    dropped["discharges as alive of visits with a death (taken as deaths)"] = visits.filter(~expired & within).height
    later = expired & death.is_not_null() & ~within
    dropped["discharges as dead without a death by then (taken as deaths)"] = visits.filter(later).height
    visits = visits.with_columns(death=pl.when(expired & ~within).then("end").otherwise("death")).drop("expired")
    return visits.with_columns(death.min().over("person_id"))


def split_by_outcome(visits: pl.DataFrame, seed: int) -> pl.DataFrame:
    """person_id and split, 80/10/10 at random; those who die in a visit are divided apart from the others."""
    died = visits.group_by("person_id").agg((pl.col("death") <= pl.col("end")).fill_null(False).any().alias("died"))
    outcome = {str(person): "died" if dead else "survived" for person, dead in died.iter_rows()}
    assigned = split_at_random(outcome, RANDOM_SPLIT, seed, outcome)
    split = pl.col("person_id").cast(pl.String).replace_strict(assigned, return_dtype=pl.String)
    return died.select("person_id", split.alias("split"))


def write_stays(
    writer: PreparedFolderWriter,
    stays: Stays,
    store: EventStore,
    names: list[str],
    owners: pl.DataFrame,
    visits: pl.DataFrame,
    dropped: Counter[str],
) -> Written:
    """Write records and tasks of all events in the store.

    Args:
        writer: of the prepared folder.
        stays: what a record is.
        store: the events; `seconds` by the clock of `owners`.
        names: of each key of the store; keys of one name are one variable.
        owners: the records, as `Stays.owners` returns them.
        visits: as for `Stays.owners`.
        dropped: where what is left out is counted.

    Raises:
        ValueError: if no variable occurs in enough training records.
    """
    variables, table = _variables(stays, store, names, owners, dropped)
    predictions = stays.predictions(visits, owners)
    asked = pl.concat([rows.select("record", "asked") for rows in predictions.values()]).unique()
    starts = []
    for block in store.blocks():
        known = block.join(table, on="key").drop("key")
        origin = known.group_by("record").agg(first=pl.col("seconds").min()).join(owners, on="record")
        origin = origin.with_columns(start=pl.coalesce("start", "first"))
        starts.append(origin.select("record", "start", "first"))
        hours = known.join(origin.select("record", "start"), on="record").with_columns(
            time=(pl.col("seconds") - pl.col("start")) / HOUR
        )
        moments = asked.join(origin.select("record", "start"), on="record")
        moments = moments.select("record", time=(pl.col("asked") - pl.col("start")) / HOUR)
        hours = hours.with_columns(single_precision(hours, moments, "record"))
        static = origin.select(
            pl.col("record").alias("record_id"), age=(pl.col("start") - pl.col("born")) / YEAR, gender="gender"
        )
        for split in SPLITS:
            members = origin.filter(pl.col("split") == split).select("record")
            chosen = hours.join(members, on="record", how="semi").select("record", "time", "variable", "value")
            if chosen.height:
                frame = nest_events(chosen.rename({"record": "record_id"}), static)
                ids = owners["name"].gather(frame["record_id"].cast(pl.UInt32))
                writer.write_records(split, frame.with_columns(ids.alias("record_id")))
    begun = pl.concat(starts).join(owners.select("record", "name", "split"), on="record")
    dropped["records without an event"] = owners.height - begun.height
    tasks = tuple(task for task, rows in predictions.items() if _write_task(writer, task, rows, begun, dropped))
    return Written(variables, tasks)


def _variables(
    stays: Stays, store: EventStore, names: list[str], owners: pl.DataFrame, dropped: Counter[str]
) -> tuple[tuple[str, ...], pl.DataFrame]:
    """The variables that enough training records have, by name; and the variable of each key."""
    counts = store.records_with(owners.filter(pl.col("split") == "train")["record"])
    kept = sorted({name for name, count in zip(names, counts, strict=True) if count >= stays.min_records})
    if not kept:
        raise ValueError(f"no variable occurs in {stays.min_records} training records; lower --min-records")
    position = {name: index for index, name in enumerate(kept)}
    rows = [(key, position[name]) for key, name in enumerate(names) if name in position]
    dropped[f"events of variables met in fewer than {stays.min_records} training records"] = sum(
        store.rows[key] for key, name in enumerate(names) if name not in position
    )
    return tuple(kept), pl.DataFrame(rows, schema={"key": pl.UInt32, "variable": pl.Int32}, orient="row")


def _write_task(
    writer: PreparedFolderWriter, task: TaskInfo, rows: pl.DataFrame, begun: pl.DataFrame, dropped: Counter[str]
) -> bool:
    """Writes what of a task can be asked; whether there was anything."""
    known = rows.join(begun, on="record", how="inner", maintain_order="left")
    timed = known.with_columns(
        prediction_time=((pl.col("asked") - pl.col("start")) / HOUR).cast(pl.Float32),
        first_time=((pl.col("first") - pl.col("start")) / HOUR).cast(pl.Float32),
    )
    if task.problem_type == "time_to_event":
        until = ((pl.col("event_time") - pl.col("start")) / HOUR).cast(pl.Float32)
        timed = still_open(timed.with_columns(until.alias("event_time")))
        dropped[f"predictions of {task.name} after its event"] = known.height - timed.height
    seen = timed.filter(pl.col("first") <= pl.col("asked"))
    dropped[f"predictions of {task.name} before the record's first event"] = (
        rows.height - known.height + timed.height - seen.height
    )
    apart = seen.sort("record", "asked").unique(["record", "prediction_time"], keep="first", maintain_order=True)
    dropped[f"predictions of {task.name} too close to another to tell apart"] = seen.height - apart.height
    for split in SPLITS:
        chosen = apart.filter(pl.col("split") == split).select(
            pl.col("name").alias("record_id"), "prediction_time", *task.label_columns
        )
        if apart.height:
            writer.write_task(task, split, chosen)
    return apart.height > 0


def units_and_codes(variables: Sequence[tuple[str, str, str]], written: Written) -> dict[str, dict[str, str]]:
    """What `DatasetInfo.extra` says of the variables that were written, out of all, each (name, unit, code)."""
    kept = {name: (unit, code) for name, unit, code in variables if name in set(written.variables)}
    return {
        "units": {**{name: unit for name, (unit, _) in kept.items() if unit}, "age": "years"},
        "codes": {name: code for name, (_, code) in kept.items()},
    }
