"""Events of your own, in CSV or Parquet files: long format, with tables of static columns and of labels.

`--events`, once per file, one row per event:
    record_id   a stay, visit or patient; any text or whole number
    time        hours since the record's start, 0 or more; or a timestamp, with `--start`
    variable    name of what was measured or happened, without spaces around it
    value       a number, a bound such as <0.01, or a word; empty where there is none, such as for a diagnosis code
    unit        optional; a variable in several units becomes one variable per unit, such as `glucose [mmol/L]`
or one column per variable instead of `variable` and `value`. `hymate_training.data.exports` has the rules in full.
`--static`, optional, one row per record: `record_id` and any other columns. Numbers are numeric, text and true/false
are categorical; an empty cell is unknown, in a CSV also NA, N/A, NaN and NULL. Two names have a meaning:
`patient_id` (records of one patient go to one split) and `split` (train, validation or test, where that is decided).
`--labels`, optional, one file per task, named after the file or given as NAME=FILE, one row per prediction:
    record_id
    prediction_time   hours; events at or before it are seen; without the column it is the record's last event
    the label         one column, by its name in MEDS (boolean_value, categorical_value, float_value, integer_value) or
                      by its type under any name: true/false or 1/0 is binary, text is multiclass, other numbers are
                      regression; several columns of true/false or 1/0 are multilabel; for a time to event two columns,
                      event_time, by the clock of prediction_time, and event_observed, true/false or 1/0: false where
                      nothing is known from that time on

Files may be CSV (also packed, in UTF-16, or with semicolons and decimal commas), Parquet, or folders of Parquet files.
What was understood is printed; what could be meant in two ways is refused: categories that differ in spelling alone,
dates, numbers with a decimal comma among commas, whole numbers of two values other than 1 and 0 as a label.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from hymate_training.data.exports import Layout, Problems, hours_since_start, read_events, read_starts
from hymate_training.data.schema import (
    LABEL_COLUMNS,
    SPLITS,
    SURVIVAL_COLUMNS,
    YEAR,
    DatasetInfo,
    StaticColumn,
    TaskInfo,
)
from hymate_training.data.splits import split_at_random
from hymate_training.data.tables import UNKNOWN, numbers, read_frame, refuse
from hymate_training.data.writer import PreparedFolderWriter, nest_events
from modeling_hymate.events import MAX_HOURS

EVENT_COLUMNS = ("record_id", "time", "variable", "value")


@dataclass(frozen=True)
class Times:
    """What tells hours from timestamps: the layout, and each record's start where one was given."""

    layout: Layout
    starts: pl.DataFrame | None


BEGINS, ENDS = "hours to the first event", "hours to the last event"  # beside columns of the user's
MAX_CATEGORIES = 100
RECORDS_PER_SHARD = 20_000
DECIMAL_COMMA = re.compile(r"-?[0-9]+,[0-9]+")
DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}|[0-9]{1,2}[./-][0-9]{1,2}[./-][0-9]{2,4}")
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,49}")
SAME = {"m": "male", "f": "female", "y": "yes", "true": "yes", "n": "no", "false": "no"}  # abbreviation -> word
PROBLEM_OF = {name: problem for problem, names in LABEL_COLUMNS.items() for name in names}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = "CSV (also .csv.gz) or Parquet"
    parser.add_argument(
        "--events",
        type=Path,
        action="append",
        required=True,
        help=f"{kinds}: record_id, time, variable, value and maybe unit; or one column per variable. Once per file.",
    )
    parser.add_argument(
        "--start", type=Path, help=f"{kinds}: record_id and start, where times are timestamps and not hours."
    )
    parser.add_argument(
        "--columns",
        nargs="+",
        default=(),
        metavar="ROLE=COLUMN",
        help="Your names for record_id, time, variable, value, unit, start, prediction_time or patient_id.",
    )
    parser.add_argument("--layout", type=Path, metavar="FILE", help="YAML file of columns, files and time_zone.")
    parser.add_argument(
        "--time-zone", help="Time zone of timestamps without an offset from UTC, such as Europe/Berlin."
    )
    parser.add_argument(
        "--static", type=Path, help=f"{kinds}: record_id, one row per record; may hold patient_id and split."
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        default=(),
        metavar="[NAME=]FILE",
        help=f"{kinds}, one per task: record_id, prediction_time (hours) and the label.",
    )
    parser.add_argument(
        "--fractions",
        nargs=3,
        type=float,
        default=(0.8, 0.1, 0.1),
        metavar=("TRAIN", "VALIDATION", "TEST"),
        help="Shares of the patients, unless the static table holds a split (default: 0.8 0.1 0.1).",
    )
    parser.add_argument(
        "--license",
        default="other",
        help="License of the data by its identifier on the Hub, such as cc-by-4.0, for the data set's card (default: "
        "other, with which it can only be pushed as private).",
    )


def prepare(
    events: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    start: str | Path | None = None,
    columns: Sequence[str] = (),
    layout: str | Path | None = None,
    time_zone: str | None = None,
    static: str | Path | None = None,
    labels: Sequence[str] = (),
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    license: str = "other",
    seed: int = 0,
    overwrite: bool = False,
) -> DatasetInfo:
    """Read tables of events, of static columns and of labels into a prepared folder.

    Args:
        events: table of events, or several, as the module describes them.
        output: the prepared folder to make.
        start: table of each record's start, where times are timestamps.
        columns: names of the tables' columns, as ROLE=COLUMN.
        layout: YAML file of columns, files and time zone; see `hymate_training.data.exports.Layout`.
        time_zone: of timestamps without an offset from UTC.
        static: table of static columns.
        labels: tables of labels, as FILE or NAME=FILE.
        fractions: of the patients in train, validation and test, unless the static table holds a split.
        license: of the data, by its identifier on the Hub.
        seed: of the shuffling of patients.
        overwrite: replace an existing prepared folder.

    Raises:
        ValueError: naming the file, the column and where it can the row that is wrong.
    """
    if len(fractions) != 3 or min(fractions) < 0 or fractions[0] <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"--fractions must be three numbers from 0 on that sum to 1, train above 0; got {fractions}")
    if not LICENSE.fullmatch(license):
        raise ValueError(f"--license must be an identifier of the Hub, such as cc-by-4.0, got {license!r}")
    paths = [Path(path) for path in ([events] if isinstance(events, str | Path) else events)]
    laid_out = (Layout() if layout is None else Layout.read(layout)).with_columns(columns, time_zone)
    with PreparedFolderWriter(output, overwrite=overwrite) as writer:
        starts = None if start is None else read_starts(start, laid_out)
        export = read_events(paths, laid_out, starts)
        dropped: dict[str, int] = dict(export.dropped)
        rows, variables = _number_variables(export.events, paths)
        records = rows.group_by("record_id").agg(pl.col("time").min().alias(BEGINS), pl.col("time").max().alias(ENDS))
        records = records.sort("record_id")
        static = None if static is None else Path(static)
        records, static_columns, group = _add_static(records, static, laid_out, dropped)
        assigned, split_description = _assign(records, group, fractions, seed)
        records = records.with_columns(split=assigned)
        tasks = {}
        for name, path in _named_files(labels).items():
            task, frame = _read_labels(name, path, records, static_columns, Times(laid_out, starts), dropped)
            tasks[task] = frame
        _write(writer, rows, records, static_columns, tasks)
        info = DatasetInfo(
            source=paths[0].name.split(".")[0],
            variables=tuple(variables),
            static_columns=static_columns,
            tasks=tuple(tasks),
            dropped={reason: count for reason, count in dropped.items() if count},
            split_description=split_description,
            license=license,
            citation="Not published.",
            seed=None if group == "given_split" else seed,
            extra=_described(variables, laid_out),
        )
        writer.finish(info)
    return info


def _write(
    writer: PreparedFolderWriter,
    events: pl.DataFrame,
    records: pl.DataFrame,
    static_columns: Sequence[StaticColumn],
    tasks: dict[TaskInfo, pl.DataFrame],
) -> None:
    """Writes the records of each split, in shards, and its rows of each task."""
    for split in SPLITS:
        members = records.filter(pl.col("split") == split)
        for shard in members.iter_slices(RECORDS_PER_SHARD):
            chosen = events.join(shard.select("record_id"), on="record_id", how="semi")
            described = shard.select("record_id", *(column.name for column in static_columns))
            writer.write_records(split, nest_events(chosen, described))
        for task, frame in tasks.items():
            chosen = frame.join(members.select("record_id"), on="record_id", how="semi", maintain_order="left")
            if chosen.height:
                writer.write_task(task, split, chosen)


def _described(variables: dict[str, tuple[str, str]], layout: Layout) -> dict[str, Any]:
    """What of the tables a prepared folder keeps beside their content."""
    units = {name: unit for name, (_, unit) in variables.items() if unit}
    codes = {name: variable for name, (variable, _) in variables.items() if name != variable}
    described = {"units": units, "codes": codes, "layout": layout.to_dict()}
    return {name: value for name, value in described.items() if value}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _check_hours(path: Path, time: pl.Series) -> None:
    problem = (
        f"{time.name} must be hours since the record's start, not a date or seconds; {MAX_HOURS / YEAR:.0f} years "
    )
    refuse(path, time > MAX_HOURS, problem + "is the limit", time)


def _check_categories(path: Path, name: str, categories: Sequence[str]) -> None:
    """Raise ValueError if categories are meant as numbers or dates, or if two of them are likely one."""
    texts = [text for text in categories if not _is_number(text)]
    commas = [text for text in texts if DECIMAL_COMMA.fullmatch(text)]
    dates = [text for text in texts if DATE.match(text)]
    if 2 * len(commas) > len(categories):
        raise ValueError(f"{path}: {name!r} holds {commas[0]!r}: write numbers with a decimal point")
    if texts and 2 * len(texts) < len(categories):
        raise ValueError(f"{path}: {name!r} holds numbers, but also {texts[0]!r}: make it a number, or empty")
    if 2 * len(dates) > len(categories):
        raise ValueError(
            f"{path}: {name!r} holds dates, {dates[0]!r} first: make it a number, such as an age in years, or drop it"
        )
    met: dict[str, str] = {}
    for text in categories:
        folded = " ".join(text.casefold().split())
        other = met.setdefault(SAME.get(folded, folded), text)
        if other != text:
            raise ValueError(f"{path}: {name!r} holds {other!r} and {text!r}: write one category in one way")


def _named_files(labels: Sequence[str]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for text in labels:
        name, equals, path = str(text).partition("=")
        file = Path(path if equals else name)
        task = name if equals else file.name.split(".")[0]
        if task in named:
            raise ValueError(f"--labels: two tasks are called {task!r}; name one as NAME=FILE")
        named[task] = file
    return named


# ---------------------------------------------------------------------------------------------------- what they hold


def _number_variables(events: pl.DataFrame, paths: Sequence[Path]) -> tuple[pl.DataFrame, dict[str, tuple[str, str]]]:
    """Events with the variables numbered; and the variables by name, each as the table has it, and its unit."""
    _check_hours(paths[0], events["time"])
    if (earliest := float(events["time"].to_numpy().min())) > YEAR:
        raise ValueError(
            f"{paths[0]}: time must be hours since the record's start; the earliest event of all comes at hour "
            f"{earliest:,.0f}. Subtract each record's own start"
        )
    keys = events.select("variable", pl.col("unit").fill_null(""))
    several = pl.col("variable").is_duplicated() & (pl.col("unit") != "")
    names = keys.unique().select(
        "variable",
        "unit",
        name=pl.when(several).then(pl.format("{} [{}]", "variable", "unit")).otherwise("variable"),
    )
    names = names.sort("name").with_row_index("index")
    index = keys.join(names, on=["variable", "unit"], how="left", maintain_order="left")["index"].cast(pl.Int32)
    numbered = events.select("record_id", "time", index.alias("variable"), "value")
    return numbered, {
        name: (variable, unit) for variable, unit, name in names.select("variable", "unit", "name").iter_rows()
    }


def _add_static(
    records: pl.DataFrame, path: Path | None, layout: Layout, dropped: dict[str, int]
) -> tuple[pl.DataFrame, tuple[StaticColumn, ...], str]:
    """The records with their static columns, what those are, and the column by which they are split."""
    if path is None:
        return records, (), "record_id"
    frame = read_frame(path, UNKNOWN, layout.of(path))
    refuse(path, frame["record_id"].is_duplicated(), "record_id occurs twice", frame["record_id"])
    without = records.join(frame, on="record_id", how="anti")
    if without.height:
        raise ValueError(
            f"{path} has no row for {without.height} record(s) with events, {without['record_id'][0]!r} first"
        )
    dropped["rows of the static table whose record has no events"] = frame.height - records.height
    columns = []
    for name in frame.columns:
        if name in ("record_id", "patient_id", "split"):
            continue
        if name in EVENT_COLUMNS:
            raise ValueError(f"{path}: {name!r} cannot be the name of a static column; choose another")
        kind = frame.schema[name]
        if kind.is_numeric() or kind == pl.Null:
            frame = frame.with_columns(numbers(path, frame[name]).alias(name))
            columns.append(StaticColumn(name, "numeric"))
        elif kind in (pl.String, pl.Boolean):
            frame = frame.with_columns(pl.col(name).cast(pl.String))
            categories = tuple(frame[name].drop_nulls().unique().sort())
            _check_categories(path, name, categories)
            if len(categories) > MAX_CATEGORIES:
                raise ValueError(
                    f"{path}: {name!r} has {len(categories)} categories, more than {MAX_CATEGORIES}: drop it"
                )
            columns.append(StaticColumn(name, "categorical", categories))
        else:
            raise ValueError(f"{path}: {name!r} must hold numbers, text or true/false, not {kind}")
    for name in ("patient_id", "split"):
        if name in frame.columns:
            refuse(path, frame[name].is_null(), f"{name} is missing")
    if "split" in frame.columns:
        refuse(path, ~frame["split"].is_in(SPLITS), f"split must be one of {', '.join(SPLITS)}", frame["split"])
        frame = frame.rename({"split": "given_split"})
    joined = records.join(frame, on="record_id", how="left", maintain_order="left")
    if "given_split" in frame.columns:
        if "patient_id" in frame.columns:
            several = (
                joined.group_by("patient_id").agg(pl.col("given_split").n_unique().alias("n")).filter(pl.col("n") > 1)
            )
            if several.height:
                raise ValueError(f"{path}: patient {several['patient_id'].sort()[0]!r} has records in several splits")
        return joined, tuple(columns), "given_split"
    return joined, tuple(columns), "patient_id" if "patient_id" in frame.columns else "record_id"


def _assign(records: pl.DataFrame, group: str, fractions: Sequence[float], seed: int) -> tuple[pl.Series, str]:
    if group == "given_split":
        return records["given_split"], "As given by the column split."
    assigned = split_at_random(records[group], dict(zip(SPLITS, fractions, strict=True)), seed)
    shares = ", ".join(f"{share:.0%} {split}" for split, share in zip(SPLITS, fractions, strict=True))
    split_by = {"patient_id": "patient", "record_id": "record"}[group]
    return records[group].replace_strict(assigned, return_dtype=pl.String), f"By {split_by}, seed {seed}: {shares}."


def _read_labels(
    name: str,
    path: Path,
    records: pl.DataFrame,
    static_columns: Sequence[StaticColumn],
    times: "Times",
    dropped: dict[str, int],
) -> tuple[TaskInfo, pl.DataFrame]:
    """The task that the columns tell of, and its rows; rows that cannot be asked are dropped and counted."""
    frame = read_frame(path, UNKNOWN, times.layout.of(path))
    columns = [column for column in frame.columns if column not in ("record_id", "prediction_time")]
    if not columns:
        raise ValueError(f"{path} has no label column beside record_id and prediction_time")
    answers = {word.lower() for word in (name, *columns)}
    if telling := [column.name for column in static_columns if column.name.lower() in answers]:
        raise ValueError(
            f"{path}: {telling[0]!r} is also a static column, which would tell the model the answer; drop it there"
        )
    is_timed = bool(set(columns) & set(SURVIVAL_COLUMNS))
    task, labels = (
        _event_labels(name, path, frame, columns, times) if is_timed else _labels(name, path, frame, columns)
    )
    rows = frame.select("record_id").with_columns(labels)
    known = records.select("record_id", BEGINS, ENDS)
    if "prediction_time" in frame.columns:
        problems = Problems()
        rows = rows.with_columns(
            hours_since_start(path, frame, "prediction_time", times.layout, times.starts, problems)
        )
        problems.raise_any()
        _check_hours(path, rows["prediction_time"])
    else:
        last = rows.join(known, on="record_id", how="left", maintain_order="left")[ENDS]
        rows = rows.with_columns(last.alias("prediction_time"))
    if is_timed:
        ahead = rows["event_time"] - rows["prediction_time"].cast(pl.Float32)
        refuse(path, ahead < 0, "event_time lies before prediction_time, so that nothing is left to predict")
        refuse(path, (ahead == 0) & rows["event_observed"], "the event happens at prediction_time, not after it")
    keys = rows.select("record_id", "prediction_time")
    refuse(path, keys.is_duplicated(), "this record and prediction_time occur twice", rows["record_id"])
    labelled = rows.drop_nulls(list(task.label_columns))
    recorded = labelled.join(known, on="record_id", how="inner", maintain_order="left")
    asked = recorded.filter(pl.col("prediction_time").cast(pl.Float32) >= pl.col(BEGINS).cast(pl.Float32))
    for reason, before, after in (
        ("without a label", rows, labelled),
        ("of a record without events", labelled, recorded),
        ("before the record's first event", recorded, asked),
    ):
        if before.height > after.height:
            dropped[f"predictions of {name} {reason}"] = before.height - after.height
    if not asked.height:
        raise ValueError(f"{path}: no prediction is left; does its record_id match that of the events?")
    return task, asked.select("record_id", "prediction_time", *task.label_columns)


def _event_labels(
    name: str, path: Path, frame: pl.DataFrame, columns: list[str], times: "Times"
) -> tuple[TaskInfo, list[pl.Series]]:
    """The time-to-event task of a table, and its two columns."""
    if sorted(columns) != sorted(SURVIVAL_COLUMNS):
        needed = " and ".join(SURVIVAL_COLUMNS)
        raise ValueError(f"{path}: a time to event has the columns {needed} and no others; found {', '.join(columns)}")
    problems = Problems()
    until = hours_since_start(path, frame, "event_time", times.layout, times.starts, problems)
    problems.raise_any()
    _check_hours(path, until)
    task = TaskInfo(name, f"Time to {name}, of {path.name}.", "time_to_event", SURVIVAL_COLUMNS, (name,))
    return task, [until.cast(pl.Float32), _booleans(path, frame, "event_observed")]


def _labels(name: str, path: Path, frame: pl.DataFrame, columns: list[str]) -> tuple[TaskInfo, list[pl.Series]]:
    """The task and its label columns, by name or by type."""
    if len(columns) > 1:
        if named := [column for column in columns if column in PROBLEM_OF]:
            raise ValueError(f"{path}: {named[0]} must be the only label column; found {', '.join(columns)}")
        labels = [_booleans(path, frame, column) for column in columns]
        description = f"Several yes or no questions: {', '.join(columns)}."
        return TaskInfo(name, description, "multilabel", tuple(columns), tuple(columns)), labels
    column = columns[0]
    kind = frame.schema[column]
    if column in PROBLEM_OF:
        label = column
    elif kind.is_numeric():
        label = _label_of_numbers(path, numbers(path, frame[column]), kind.is_integer())
    elif kind in (pl.Boolean, pl.String):
        label = "boolean_value" if kind == pl.Boolean else "categorical_value"
    else:
        raise ValueError(f"{path}: {column} must hold true/false, text or numbers, not {kind}")
    what = name if column in PROBLEM_OF else column
    described = f"{column} of {path.name}."
    if label == "boolean_value":
        values = _booleans(path, frame, column)
        return TaskInfo(name, described, "binary", (label,), (f"no {what}", what)), [values.alias(label)]
    if label == "categorical_value":
        values = frame[column].cast(pl.String)
        classes = tuple(values.drop_nulls().unique().sort())
        _check_categories(path, column, classes)
        if not 2 <= len(classes) <= MAX_CATEGORIES:
            raise ValueError(f"{path}: {column} has {len(classes)} classes; a task needs 2 to {MAX_CATEGORIES}")
        return TaskInfo(name, described, "multiclass", (label,), classes), [values.alias(label)]
    values = numbers(path, frame[column])
    if label == "integer_value":
        refuse(path, (values != values.floor()).fill_null(False), f"{column} must be whole numbers", values)
        values = values.cast(pl.Int64)
    return TaskInfo(name, described, "regression", (label,), (what,)), [values.alias(label)]


def _label_of_numbers(path: Path, column: pl.Series, is_integer: bool) -> str:
    """The label column of MEDS that a column of numbers stands for."""
    values = sorted(column.drop_nulls().unique())
    if values and set(values) <= {0.0, 1.0}:
        return "boolean_value"
    if len(values) == 2 and all(value == int(value) for value in values):
        raise ValueError(
            f"{path}: {column.name} holds two numbers, {values[0]:g} and {values[1]:g}: write 1/0 or true/false for a "
            "yes or no, text for two classes, or name the column integer_value if it is a number to be predicted"
        )
    return "integer_value" if is_integer else "float_value"


def _booleans(path: Path, frame: pl.DataFrame, name: str) -> pl.Series:
    """The column as true and false, 1 and 0 alike."""
    if frame.schema[name] == pl.Boolean:
        return frame[name]
    if not frame.schema[name].is_numeric():
        raise ValueError(f"{path}: {name} must hold true/false or 1/0, not {frame.schema[name]}")
    values = numbers(path, frame[name])
    refuse(path, ~values.is_in([0.0, 1.0]).fill_null(True), f"{name} must be true/false or 1/0", values)
    return values.cast(pl.Boolean)
