"""What MIMIC-III and MIMIC-IV have in common: stays in an ICU, their events, records and tasks.

Memory does not grow with the tables: they are streamed, each row goes to a temporary file of its block of stays beside
the output, and the blocks become shards one after another.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import time, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from hymate_training.data.schema import SPLITS, SURVIVAL_COLUMNS, StaticColumn, TaskInfo
from hymate_training.data.splits import split_at_random
from hymate_training.data.writer import PreparedFolderWriter, nest_events
from hymate_training.readers.mimic_items import Variable, convert, resolve_variables
from hymate_training.readers.store import EventStore
from hymate_training.readers.times import still_open

SPLIT = {"train": 0.70, "validation": 0.15, "test": 0.15}
STATIC = ("age", "gender", "first_careunit", "admission_type", "admission_location")
SPLIT_DESCRIPTION = "Patients, shuffled with seed {}: 70% train, 15% validation, 15% test."
KEY_COLUMNS = ("source", "part", "itemid", "unit")

MORTALITY = {
    hours: TaskInfo(
        name,
        f"Does the patient die in the hospital? Asked {hours} hours after admission to the ICU, of patients who are "
        "then alive and still there.",
        "binary",
        ("boolean_value",),
        ("survived", "died"),
    )
    for hours, name in ((48, "in_hospital_mortality"), (24, "in_hospital_mortality_24h"))
}
LENGTH_OF_STAY = TaskInfo(
    "length_of_stay",
    "Days from admission to the ICU to leaving it, deaths included. Asked at 24 hours, of patients still there.",
    "regression",
    ("float_value",),
    ("days",),
)
READMISSION = TaskInfo(
    "readmission_30d",
    "Is the patient admitted to an ICU again within 30 days? Asked on leaving the ICU alive (no death within 6 "
    "hours). Deaths outside an ICU count as no readmission.",
    "binary",
    ("boolean_value",),
    ("not readmitted", "readmitted"),
)
DECOMPENSATION = TaskInfo(
    "decompensation_24h",
    "Does the patient die in the hospital within the next 24 hours? Asked every hour from the fourth to the "
    "end of the stay.",
    "binary",
    ("boolean_value",),
    ("survives 24 hours", "dies within 24 hours"),
)
TIME_TO_DEATH = TaskInfo(
    "time_to_death",
    "When does the patient die in the ICU, or within 6 hours of leaving it? Asked at 24 hours, of patients then alive "
    "and still there; who leaves it alive is censored on leaving.",
    "time_to_event",
    SURVIVAL_COLUMNS,
    ("death",),
)
TASKS = (*MORTALITY.values(), LENGTH_OF_STAY, READMISSION, DECOMPENSATION, TIME_TO_DEATH)
FIRST_DECOMPENSATION_HOUR = 4


def add_event_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--min-stays",
        type=int,
        default=10,
        help="Drop variables that occur in fewer than this many training stays (default: 10).",
    )
    parser.add_argument(
        "--event-time",
        choices=("stored", "charted"),
        default="stored",
        help="When a charted value counts: when it was stored, or at its chart time (default: stored).",
    )


def check_arguments(min_stays: int, event_time: str) -> None:
    """Raise ValueError for an argument that cannot be meant."""
    if min_stays < 1:
        raise ValueError(f"--min-stays must be at least 1, got {min_stays}")
    if event_time not in ("stored", "charted"):
        raise ValueError(f"--event-time must be 'stored' or 'charted', got {event_time!r}")


# ------------------------------------------------------------------------------------------------------------- stays


def complete_stays(
    stays: pl.DataFrame,
    admissions: pl.DataFrame,
    patients: pl.DataFrame,
    paths: dict[str, Path],
    seed: int,
    dropped: Counter[str],
) -> pl.DataFrame:
    """One row per ICU stay, by stay_id: times, what is known at its start, what is to be predicted, split, number.

    Args:
        stays: stay_id, subject_id, hadm_id, first_careunit, intime, outtime.
        admissions: hadm_id, deathtime, hospital_expire_flag, admission_type, admission_location.
        patients: subject_id, gender and what `age` is made of.
        paths: files of the three, for messages.
        seed: of the shuffling of patients, who are divided 70/15/15.
        dropped: where what is left out is counted.

    Raises:
        ValueError: if a stay has no admission or patient, or no stay has a length.
    """
    for other, name, key in ((admissions, "admissions", "hadm_id"), (patients, "patients", "subject_id")):
        if (unknown := stays.join(other, on=key, how="anti")).height:
            raise ValueError(f"{paths[name]} has no row for {key} {unknown[key][0]} of {paths['icustays']}")
    if admissions["hospital_expire_flag"].is_in([0, 1]).not_().fill_null(True).any():
        raise ValueError(f"{paths['admissions']}: hospital_expire_flag must be 0 or 1")
    contradictory = pl.col("deathtime").is_not_null() & (pl.col("hospital_expire_flag") == 0)
    dropped["discharge flags that contradict a time of death (taken as deaths)"] = admissions.filter(
        contradictory
    ).height
    admissions = admissions.with_columns(
        hospital_expire_flag=pl.when(contradictory).then(1).otherwise("hospital_expire_flag")
    )
    dropped["times of death at midnight (taken as the end of that day, or of the stay that ends on it)"] = (
        admissions.filter(_at_midnight()).height
    )
    known = stays.drop_nulls(["intime", "outtime"]).filter(pl.col("outtime") > pl.col("intime"))
    dropped["stays without a start, an end or a length"] = stays.height - known.height
    if not known.height:
        raise ValueError(f"{paths['icustays']}: no stay has an intime before its outtime")
    assigned = split_at_random(known["subject_id"].to_list(), SPLIT, seed)
    split = pl.DataFrame({"subject_id": list(assigned), "split": list(assigned.values())})
    following = pl.col("intime").shift(-1).over("subject_id", order_by="intime")
    return (
        known.join(admissions, on="hadm_id", how="left")
        .join(patients, on="subject_id", how="left")
        .join(split, on="subject_id", how="left")
        .with_columns(deathtime=_time_of_death())
        .with_columns(
            hours=_hours("outtime"),
            death=_hours("deathtime"),
            gap=(following - pl.col("outtime")).dt.total_seconds() / 86400,
        )
        .sort("stay_id")
        .with_row_index("stay")
    )


def _at_midnight() -> pl.Expr:
    return pl.col("deathtime").dt.time() == time(0)


def _time_of_death() -> pl.Expr:
    """The time of death; at midnight only its day is known, and it may be no earlier than that day's events."""
    died, left = pl.col("deathtime"), pl.col("outtime")
    by_day = pl.when(died.dt.date() == left.dt.date()).then(left).otherwise(died + timedelta(days=1, seconds=-1))
    return pl.when(_at_midnight()).then(by_day).otherwise(died)


def _hours(column: str) -> pl.Expr:
    return (pl.col(column) - pl.col("intime")).dt.total_seconds() / 3600


# ------------------------------------------------------------------------------------------------------------ events


def events_of(name: str, batch: pl.DataFrame, event_time: str) -> pl.DataFrame:
    """Rows of a table -> events: stay or patient, when it is `seen`, part, itemid, unit, value (NaN: carries none).

    Args:
        name: of the table.
        batch: its rows, with the columns of MIMIC-IV.
        event_time: "stored", or "charted": when a charted value counts.

    Returns:
        `part` is empty, or tells an infusion's rate from its amount and a procedure from its duration.
    """
    who = pl.col("stay_id" if "stay_id" in batch.columns else "subject_id")
    if "charttime" in batch.columns:
        value = "valuenum" if "valuenum" in batch.columns else "value"
        seen = pl.max_horizontal("charttime", "storetime") if event_time == "stored" else pl.col("charttime")
        seen = pl.when(pl.col("charttime").is_not_null()).then(seen)
        return batch.select(
            who, seen.alias("seen"), _part(""), "itemid", _unit("valueuom"), pl.col(value).alias("value")
        )
    batch = batch.filter(pl.col("statusdescription").ne_missing("Rewritten"))
    start, end = pl.col("starttime").alias("seen"), pl.max_horizontal("starttime", "endtime").alias("seen")
    if name == "inputevents":
        rate = batch.filter(pl.col("rate").is_not_null()).select(
            who, start, _part(" rate"), "itemid", _unit("rateuom"), pl.col("rate").alias("value")
        )
        amount = batch.select(
            who, end, _part(" amount"), "itemid", _unit("amountuom"), pl.col("amount").alias("value")
        )
        return pl.concat([rate, amount])
    happened = batch.select(who, start, _part(""), "itemid", unit=pl.lit(None, pl.String), value=pl.lit(np.nan))
    lasting = batch.filter(pl.col("valueuom").is_in(["min", "hour", "day"])).select(
        who, end, _part(" duration"), "itemid", _unit("valueuom"), "value"
    )
    return pl.concat([happened, lasting])


def _part(part: str) -> pl.Expr:
    return pl.lit(part).alias("part")


def _unit(column: str) -> pl.Expr:
    """Spelling without surrounding blanks and a trailing dot; null where there is none."""
    spelled = pl.col(column).str.strip_chars(" .")
    return pl.when(spelled.is_in(["", "None"]).not_()).then(spelled).alias("unit")


def _of_stays(name: str, events: pl.DataFrame, stays: pl.DataFrame, dropped: Counter[str]) -> pl.DataFrame:
    """The events that lie in a stay, with its number and their seconds since its start."""
    who = events.columns[0]
    numbered = events.drop_nulls("value").drop_nulls("itemid")
    dropped[f"{name}: rows without a number"] += events.height - numbered.height
    located = numbered.with_row_index("row").join(stays.select("stay", who, "intime", "outtime"), on=who)
    inside = located.filter(pl.col("seen").is_between("intime", "outtime"))
    if who == "subject_id":  # a moment at which one stay ends and the next begins belongs to the next
        inside = inside.sort("intime").unique("row", keep="last").sort("row")
    dropped[f"{name}: rows outside an ICU stay"] += numbered.height - inside.height
    return inside.select(
        pl.col("stay").alias("record"),
        seconds=(pl.col("seen") - pl.col("intime")).dt.total_seconds().cast(pl.Float64),
        source=pl.lit(name),
        part="part",
        itemid="itemid",
        unit="unit",
        value="value",
    )


def _choose_variables(
    store: EventStore,
    variables: dict[str, Variable],
    table: pl.DataFrame,
    stays: pl.DataFrame,
    min_stays: int,
    dropped: Counter[str],
) -> tuple[dict[str, Variable], pl.DataFrame]:
    """What `resolve_variables` returned, without the variables that too few training stays have."""
    names = list(variables)
    stays_with, events = np.zeros(len(names), dtype=np.int64), np.zeros(len(names), dtype=np.int64)
    training = stays.filter(pl.col("split") == "train").select(pl.col("stay").alias("record"))
    for raw in store.blocks():
        block = convert(raw, table)
        dropped["values that are not plausible"] += raw.height - block.height
        events += np.bincount(block["variable"], minlength=len(names))
        pairs = block.join(training, on="record", how="semi").select("record", "variable").unique()
        stays_with += np.bincount(pairs["variable"], minlength=len(names))
    kept = np.flatnonzero(stays_with >= min_stays)
    if not len(kept):
        raise ValueError(f"no variable occurs in {min_stays} training stays; lower --min-stays")
    rare = int(events.sum() - events[kept].sum())
    dropped[f"events of variables met in fewer than {min_stays} training stays"] = rare
    position = pl.DataFrame({"variable": kept.astype(np.int32), "position": np.arange(len(kept), dtype=np.int32)})
    table = table.join(position, on="variable").drop("variable").rename({"position": "variable"})
    return {names[index]: variables[names[index]] for index in kept}, table


# --------------------------------------------------------------------------------------------------- records, labels


def write_stays(
    writer: PreparedFolderWriter,
    stays: pl.DataFrame,
    events: Iterable[tuple[str, pl.DataFrame]],
    items: pl.DataFrame,
    min_stays: int,
    dropped: Counter[str],
) -> dict[str, Variable]:
    """Write the records and tasks of all stays.

    Args:
        writer: of the prepared folder.
        stays: as `complete_stays` returns them, with `age`.
        events: table and events of it, as `events_of` returns them, piece by piece.
        items: what `name_items` returned.
        min_stays: training stays that a variable must be met in.
        dropped: where what is left out is counted.

    Returns:
        The variables that were written, by name.
    """
    with tempfile.TemporaryDirectory(dir=writer.output.parent, prefix=f".{writer.output.name}.events-") as scratch:
        with EventStore(Path(scratch), stays.height, KEY_COLUMNS) as store:
            for name, rows in events:
                store.add(_of_stays(name, rows, stays, dropped))
        variables, table = resolve_variables(store, items)
        variables, table = _choose_variables(store, variables, table, stays, min_stays, dropped)
        first_event = _write_records(writer, store, stays, table)
    stays = stays.with_columns(first_event=first_event)
    dropped["stays without events"] = stays["first_event"].null_count()
    for task, labels in _labels(stays.drop_nulls("first_event"), dropped):
        for split in SPLITS:
            writer.write_task(task, split, labels.filter(pl.col("split") == split).drop("split"))
    return variables


def static_columns(stays: pl.DataFrame) -> tuple[StaticColumn, ...]:
    """What is known of a stay at its start."""
    return (
        StaticColumn("age", "numeric"),
        *(StaticColumn(name, "categorical", tuple(stays[name].drop_nulls().unique().sort())) for name in STATIC[1:]),
    )


def units_and_codes(variables: dict[str, Variable]) -> dict[str, dict[str, str]]:
    """The unit of each variable that has one, and the item it comes from: entries of `DatasetInfo.extra`."""
    return {
        "units": {**{name: variable.unit for name, variable in variables.items() if variable.unit}, "age": "years"},
        "codes": {name: str(variable.item) for name, variable in variables.items()},
    }


def _write_records(
    writer: PreparedFolderWriter, store: EventStore, stays: pl.DataFrame, table: pl.DataFrame
) -> pl.Series:
    """Writes one shard per block and split; hours of each stay's first event, null where it has none."""
    first = [pl.DataFrame(schema={"stay": pl.UInt32, "first": pl.Float32})]
    for block in store.blocks():
        hours = (pl.col("seconds") / 3600).cast(pl.Float32).alias("time")
        events = convert(block, table).select(pl.col("record").alias("record_id"), hours, "variable", "value")
        first.append(events.group_by(pl.col("record_id").alias("stay")).agg(pl.col("time").min().alias("first")))
        for split in SPLITS:
            members = stays.filter(pl.col("split") == split).select(pl.col("stay").alias("record_id"), *STATIC)
            chosen = events.join(members.select("record_id"), on="record_id", how="semi")
            if chosen.height:
                frame = nest_events(chosen, members)
                ids = stays["stay_id"].gather(frame["record_id"].cast(pl.UInt32)).cast(pl.String)
                writer.write_records(split, frame.with_columns(ids.alias("record_id")))
    return stays.select("stay").join(pl.concat(first), on="stay", how="left", maintain_order="left")["first"]


def _labels(stays: pl.DataFrame, dropped: Counter[str]) -> Iterator[tuple[TaskInfo, pl.DataFrame]]:
    """Each task with its predictions: split, record_id, prediction_time, label."""

    def asked(members: pl.DataFrame, task: TaskInfo, time: pl.Expr, *labels: pl.Expr) -> tuple[TaskInfo, pl.DataFrame]:
        rows = members.select(
            "split",
            "first_event",
            pl.col("stay_id").cast(pl.String).alias("record_id"),
            time.cast(pl.Float32).alias("prediction_time"),
            *(label.alias(name) for label, name in zip(labels, task.label_columns, strict=True)),
        )
        seen = rows.filter(pl.col("first_event") <= pl.col("prediction_time")).drop("first_event")
        dropped[f"predictions of {task.name} before the stay's first event"] = rows.height - seen.height
        return task, seen

    died = pl.col("hospital_expire_flag") == 1

    def there_at(hours: float) -> pl.DataFrame:
        return stays.filter((pl.col("hours") >= hours) & (pl.col("death").is_null() | (pl.col("death") > hours)))

    for hours, task in MORTALITY.items():
        yield asked(there_at(hours), task, pl.lit(hours), died)
    yield asked(there_at(24), LENGTH_OF_STAY, pl.lit(24), (pl.col("hours") / 24).cast(pl.Float32))
    left_alive = stays.filter(pl.col("death").is_null() | (pl.col("death") > pl.col("hours") + 6))
    left_alive = left_alive.filter(~(died & pl.col("death").is_null()))
    yield asked(left_alive, READMISSION, pl.col("hours"), (pl.col("gap") <= 30).fill_null(False))
    timed = stays.filter(~(died & pl.col("death").is_null()))
    dropped["stays that end in a death without a time, of decompensation_24h"] = stays.height - timed.height
    hourly = timed.with_columns(
        hour=pl.int_ranges(FIRST_DECOMPENSATION_HOUR, pl.col("hours").floor().cast(pl.Int64) + 1)
    )
    hourly = (
        hourly.filter(pl.col("hour").list.len() > 0)
        .explode("hour")
        .filter(pl.col("death").is_null() | (pl.col("hour") < pl.col("death")))
    )
    within = (pl.col("death") - pl.col("hour") <= 24).fill_null(False)
    yield asked(hourly, DECOMPENSATION, pl.col("hour"), within)
    there = there_at(24).join(timed.select("stay"), on="stay", how="semi")
    dies = (pl.col("death") <= pl.col("hours") + 6).fill_null(False)
    until = pl.when(dies).then("death").otherwise("hours").cast(pl.Float32)
    task, rows = asked(there, TIME_TO_DEATH, pl.lit(24), until, dies)
    yield task, still_open(rows)
