"""Events as hospitals export them: several files, their own column names, timestamps, wide tables, results in words.

What a file may hold, and the rule by which it is read:

- Columns under other names: a `Layout` says which is `record_id`, `time`, `variable`, `value`, `unit` and `start`, for
  all files or for one. With it other columns are left out, without it they are refused.
- `time` in hours since the record's start, or a date with a time of day (ISO 8601, or 31.01.2024 08:05), or a date
  alone, which stands for the end of its day (as a time to predict at, for its beginning). Timestamps need the record's
  `start`: a column of the events, or a table of its own. Where only some have an offset from UTC, the layout states
  the time zone of the others. Events before the start are dropped and counted.
- A long table has one row per event. Without a column `value` its events are codes, which carry no number. A table
  with neither `variable` nor `value` is wide: every other column is a variable, an empty cell no event.
- A result that is no number: `<0.01`, `>= 90` is its bound, beside an event `NAME <` or `NAME >` without number. A
  variable whose words are all yes or no (Y, N, true, false) is 1 or 0. Any other word is an event `NAME: word` without
  number.
- Everything else is a problem. All problems of all files are reported together, each with the first rows that have it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from hymate_training.data.tables import read_frame

LONG = ("variable", "value")
EVENT_ROLES = ("record_id", "time", *LONG, "unit", "start")
ROLES = (*EVENT_ROLES, "patient_id", "prediction_time")
SIGNS = {"<=": "<", ">=": ">", "≤": "<", "≥": ">"}
YES_NO = {"y": 1.0, "yes": 1.0, "true": 1.0, "n": 0.0, "no": 0.0, "false": 0.0}
BOUND = r"^(<=|>=|<|>|≤|≥)\s*(-?[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)$"
WORD = r"^[^0-9]*\pL[^0-9]*$"
DECIMAL_COMMA = r"^-?[0-9]+,[0-9]+$"
MAX_WORDS = 50  # of a variable, above which they are free text
EVENTS = {"record_id": pl.String, "time": pl.Float64, "variable": pl.String, "value": pl.Float64, "unit": pl.String}
SHOWN = 3  # rows of a problem that are named
DAY = 86_400  # seconds
FORMATS = tuple(
    f"{date}{between}{time}"
    for date, separators in (("%Y-%m-%d", " T"), ("%d.%m.%Y", " "))
    for between in separators
    for time in ("%H:%M:%S%.f", "%H:%M:%S", "%H:%M")
)
DATES = ("%Y-%m-%d", "%d.%m.%Y")
OFFSET = r"(Z|[+-][0-9]{2}:?[0-9]{2})$"


@dataclass(frozen=True)
class Layout:
    """How a hospital's files are laid out; kept beside the data and in what is made of them.

    Attributes:
        columns: role -> the column that has it.
        files: name of a file -> the columns that differ in it.
        time_zone: of timestamps without an offset from UTC, such as "Europe/Berlin".
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    time_zone: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.files, Mapping):
            raise ValueError(f"layout: files must map names of files to columns, not {self.files!r}")
        for columns in (self.columns, *self.files.values()):
            if not isinstance(columns, Mapping):
                raise ValueError(f"layout: columns must map roles to columns, not {columns!r}")
            if unknown := sorted(set(columns) - set(ROLES)):
                raise ValueError(f"layout: {unknown[0]!r} is not one of {', '.join(ROLES)}")
        if self.time_zone is not None:
            try:
                pl.Series([], dtype=pl.Datetime("us")).dt.replace_time_zone(self.time_zone)
            except pl.exceptions.PolarsError as error:
                raise ValueError(f"layout: {self.time_zone!r} is not a time zone such as Europe/Berlin") from error

    @classmethod
    def read(cls, path: str | Path) -> "Layout":
        """The layout of a YAML file with `columns`, `files` and `time_zone`.

        Raises:
            ValueError: naming the file that is not there or holds something else.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path} does not exist")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            return cls(**content)
        except (yaml.YAMLError, TypeError, AttributeError, UnicodeError) as error:
            raise ValueError(
                f"{path} must hold columns, files and time_zone: {' '.join(str(error).split())}"
            ) from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def with_columns(self, pairs: Sequence[str], time_zone: str | None = None) -> "Layout":
        """The layout with more columns, each as ROLE=COLUMN, and a time zone.

        Raises:
            ValueError: for a pair without an equals sign.
        """
        columns = dict(self.columns)
        for text in pairs:
            role, equals, column = text.partition("=")
            if not equals or not column:
                raise ValueError(f"--columns: {text!r} must have the form ROLE=COLUMN, such as record_id=PATIENT")
            columns[role] = column
        return Layout(columns, self.files, time_zone or self.time_zone)

    def of(self, path: Path) -> dict[str, str]:
        """Role -> column in a file."""
        return {**self.columns, **self.files.get(path.name, {})}

    def to_dict(self) -> dict[str, Any]:
        """What is stored: the fields that say something."""
        return {name: value for name, value in asdict(self).items() if value}


class Problems:
    """Collects what is wrong with files, and says it all at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, path: Path, wrong: pl.Series, problem: str, shown: pl.Series | None = None) -> None:
        """Note the rows at which `wrong` is true."""
        if wrong.any():
            rows = wrong.arg_true()
            self.add_rows(path, rows, problem, None if shown is None else shown[rows[0]])

    def add_rows(self, path: Path, rows: pl.Series, problem: str, shown: Any = None) -> None:
        """Note rows by number, the first of which holds `shown`; messages count from 1, without the header."""
        found = "" if shown is None else f", found {shown!r}"
        first = ", ".join(str(row + 1) for row in rows[:SHOWN])
        many = f" ({len(rows):,} rows: {first}{', ...' if len(rows) > SHOWN else ''})" if len(rows) > 1 else ""
        self.found.append(f"{path}: row {rows[0] + 1}: {problem}{found}{many}")

    def note(self, path: Path, problem: str) -> None:
        """Note a problem of a whole file."""
        self.found.append(f"{path}: {problem}")

    def raise_any(self) -> None:
        """Raise ValueError naming all of them, if there are any."""
        if self.found:
            raise ValueError("; ".join(self.found))


@dataclass(frozen=True)
class Export:
    """Events that were read: record_id, time (hours), variable, value (null: none), unit; and what was dropped."""

    events: pl.DataFrame
    dropped: dict[str, int]


def read_events(
    paths: Sequence[str | Path],
    layout: Layout | None = None,
    starts: pl.DataFrame | None = None,
    *,
    timed: bool = True,
) -> Export:
    """Read the files of a hospital's events.

    Args:
        paths: CSV or Parquet files, as the module describes them.
        layout: their columns, where those have other names.
        starts: when each record starts, as `read_starts` returns it, where events have timestamps.

        timed: read the times; without, every event is at hour 0, and timestamps need no start.

    Raises:
        ValueError: naming all problems of all files, each with the first rows that have it.
    """
    layout, problems = layout or Layout(), Problems()
    dropped: Counter[str] = Counter()
    parts = [_read_file(Path(path), layout, starts, problems, dropped, timed) for path in paths]
    problems.raise_any()
    return Export(pl.concat(parts), {reason: count for reason, count in dropped.items() if count})


def _read_file(
    path: Path, layout: Layout, starts: pl.DataFrame | None, problems: Problems, dropped: Counter[str], timed: bool
) -> pl.DataFrame:
    columns = layout.of(path)
    frame = read_frame(path, columns=columns)
    if "time" not in frame.columns:
        raise ValueError(f"{path} lacks the column {columns.get('time', 'time')!r}; it has {', '.join(frame.columns)}")
    wide = not set(LONG) & set(frame.columns)
    if not wide and "variable" not in frame.columns:
        raise ValueError(f"{path} lacks the column 'variable'; it has {', '.join(frame.columns)}")
    surplus = [name for name in frame.columns if name not in EVENT_ROLES]
    if surplus and not wide and not columns:
        raise ValueError(
            f"{path}: unexpected column {surplus[0]!r}; events have record_id, time, {', '.join(LONG)}, maybe unit; "
            "what is known once per record belongs in the static table, and --columns names the columns meant"
        )
    nothing = pl.Series("time", [0.0] * frame.height)
    hours = hours_since_start(path, frame, "time", layout, starts, problems) if timed else nothing
    frame = frame.with_columns(hours, row=pl.int_range(frame.height))
    begun = frame.filter(pl.col("time") >= 0)
    dropped["events before the record's start"] += frame.height - begun.height
    frame = begun
    if wide:
        if not surplus:
            raise ValueError(f"{path} has no column of a variable beside record_id and time")
        parts = [_variable(path, frame, name, problems) for name in surplus]
        return pl.concat(parts)
    return _long(path, frame, problems)


def _long(path: Path, frame: pl.DataFrame, problems: Problems) -> pl.DataFrame:
    names = frame["variable"].cast(pl.String).str.strip_chars()
    missing = (names == "").fill_null(True)
    _note(path, problems, missing, "variable is missing", frame)
    unit = pl.col("unit").cast(pl.String).str.strip_chars() if "unit" in frame.columns else pl.lit(None, pl.String)
    value = frame["value"] if "value" in frame.columns else pl.Series("value", [None] * frame.height, pl.Float64)
    rows = frame.select("record_id", "time", "row", names.alias("variable"), value.alias("value"), unit.alias("unit"))
    return _results(path, rows.filter(~missing), problems)


def _variable(path: Path, frame: pl.DataFrame, name: str, problems: Problems) -> pl.DataFrame:
    """A column of a wide table as a long one."""
    if frame.schema[name].is_temporal() or frame.schema[name].is_nested():
        problems.note(path, f"the column {name!r} must hold numbers or words, not {frame.schema[name]}")
        return pl.DataFrame(schema=EVENTS)
    named = pl.lit(name).alias("variable"), pl.col(name).alias("value"), pl.lit(None, pl.String).alias("unit")
    rows = frame.select("record_id", "time", "row", *named)
    return _results(path, rows.drop_nulls("value"), problems)


# ----------------------------------------------------------------------------------------------------------- results


def _results(path: Path, rows: pl.DataFrame, problems: Problems) -> pl.DataFrame:
    """Events of results in numbers, bounds and words."""
    kind = rows.schema["value"]
    if kind.is_temporal() or kind.is_nested():
        problems.note(path, f"value must be numbers or words, not {kind}")
        return pl.DataFrame(schema=EVENTS)
    if kind != pl.String:
        numbers = rows.with_columns(pl.col("value").cast(pl.Float64).fill_nan(None))
        _note(path, problems, numbers["value"].is_infinite(), "value must be finite", rows)
        return numbers.select(list(EVENTS))
    text = pl.when(pl.col("value").str.strip_chars() != "").then(pl.col("value").str.strip_chars())
    found = rows.with_columns(text=text).with_columns(
        number=pl.col("text").cast(pl.Float64, strict=False),
        bound=pl.col("text").str.extract(BOUND, 2).cast(pl.Float64, strict=False),
        sign=pl.col("text").str.extract(BOUND, 1).replace(SIGNS),
    )
    _note(path, problems, found["number"].is_infinite(), "value must be finite", found, found["text"])
    is_word = pl.col("number").is_null() & pl.col("bound").is_null()
    found = found.with_columns(pl.col("number").fill_nan(None), word=pl.when(is_word).then("text"))
    _check_words(path, found, problems)
    answer = pl.col("word").str.to_lowercase().replace_strict(YES_NO, default=None, return_dtype=pl.Float64)
    only_answers = (pl.col("word").is_null() | answer.is_not_null()).all() & pl.col("number").is_null().all()
    found = found.with_columns(answer=pl.when(only_answers.over("variable")).then(answer))
    spoken = pl.col("word").is_not_null() & pl.col("answer").is_null()
    named = pl.format("{}: {}", "variable", pl.col("word").str.to_lowercase())
    events = found.with_columns(
        value=pl.coalesce("number", "bound", "answer"), variable=pl.when(spoken).then(named).otherwise("variable")
    )
    flags = found.filter(pl.col("bound").is_not_null()).with_columns(
        variable=pl.format("{} {}", "variable", "sign"), value=pl.lit(None, pl.Float64), unit=pl.lit(None, pl.String)
    )
    return pl.concat([events.select(list(EVENTS)), flags.select(list(EVENTS))])


def _check_words(path: Path, found: pl.DataFrame, problems: Problems) -> None:
    words = found["word"]
    comma = words.str.contains(DECIMAL_COMMA)
    _note(path, problems, comma, "value must be a number with a decimal point, not a comma", found, words)
    unclear = words.is_not_null() & ~comma & ~words.str.contains(WORD)
    _note(path, problems, unclear, "value must be a number, a bound such as <0.01, or words", found, words)
    counts = found.group_by("variable").agg(pl.col("word").str.to_lowercase().n_unique())
    for variable, count in counts.filter(pl.col("word") > MAX_WORDS).sort("variable").iter_rows():
        problems.note(path, f"variable {variable!r} has {count:,} different words, more than {MAX_WORDS}: free text")


def _note(
    path: Path, problems: Problems, wrong: pl.Series, problem: str, rows: pl.DataFrame, shown: pl.Series | None = None
) -> None:
    """Note a problem of some of the rows of a file, each with its number there as `row`."""
    wrong = wrong.fill_null(False)
    if wrong.any():
        problems.add_rows(path, rows["row"].filter(wrong), problem, None if shown is None else shown.filter(wrong)[0])


# ------------------------------------------------------------------------------------------------------------- times


def read_starts(path: str | Path, layout: Layout | None = None) -> pl.DataFrame:
    """When each record starts.

    Args:
        path: a table of `record_id` and `start`; other columns are left out.
        layout: its columns, where those have other names, and the time zone.

    Returns:
        record_id, `begins` (seconds since 1970) and `utc`, whether that is by UTC.

    Raises:
        ValueError: naming what is wrong, and the rows.
    """
    path, layout, problems = Path(path), layout or Layout(), Problems()
    frame = read_frame(path, columns=layout.of(path))
    if "start" not in frame.columns:
        raise ValueError(
            f"{path} lacks the column 'start'; it has {', '.join(frame.columns)}; --columns start=COLUMN names it"
        )
    frame = frame.select("record_id", "start").unique(maintain_order=True)
    problems.add(path, frame["record_id"].is_duplicated(), "record_id has two starts", frame["record_id"])
    problems.add(path, frame["start"].is_null(), "start is missing")
    begins, utc = _seconds(path, frame["start"], layout, problems, end=False)
    problems.raise_any()
    return frame.select("record_id", begins.alias("begins"), pl.lit(utc).alias("utc"))


def hours_since_start(
    path: Path, frame: pl.DataFrame, name: str, layout: Layout, starts: pl.DataFrame | None, problems: Problems
) -> pl.Series:
    """A column of hours, or of timestamps, as hours since the record's start; 0 where there is a problem.

    Args:
        path: of the table, for messages.
        frame: the table: `record_id`, the column, and maybe `start`.
        name: of the column.
        layout: states the time zone.
        starts: as `read_starts` returns them, for timestamps.
        problems: where problems are noted.
    """
    column, nothing = frame[name], pl.Series(name, [0.0] * frame.height)
    hours = column.cast(pl.Float64, strict=False) if column.dtype == pl.String else column
    missing = column.is_null() | (hours.is_nan().fill_null(False) if hours.dtype.is_float() else False)
    problems.add(path, missing, f"{name} is missing")
    if hours.dtype.is_numeric() and not (hours.is_null() & column.is_not_null()).any():
        hours = hours.cast(pl.Float64).fill_nan(None)
        if name == "time":
            negative = (hours < 0).fill_null(False)
            problems.add(path, negative, "time must be hours since the record's start, 0 or more", hours)
            hours = hours.clip(0)
        return hours.fill_null(0.0).alias(name)
    if not (column.dtype == pl.String or column.dtype in (pl.Date, pl.Datetime)):
        problems.note(path, f"{name} must be hours or timestamps, not {column.dtype}")
        return nothing
    moments, utc = _seconds(path, column, layout, problems, end=name != "prediction_time")
    if "start" in frame.columns:
        begins, begins_utc = _seconds(path, frame["start"], layout, problems, end=False)
        problems.add(path, frame["start"].is_null(), "start is missing")
    elif starts is not None:
        joined = frame.select("record_id").join(starts, on="record_id", how="left", maintain_order="left")
        begins, begins_utc = joined["begins"], bool(starts["utc"].any())
        problems.add(path, begins.is_null(), "record_id has no start", frame["record_id"])
    else:
        if len(moments.drop_nulls()):
            need = "which need the record's start: a column `start`, or --start FILE"
            problems.note(path, f"{name} must be hours since the record's start; it holds timestamps, {need}")
        return nothing
    if utc != begins_utc and len(moments.drop_nulls()) and len(begins.drop_nulls()):
        problems.note(path, f"{name} has an offset from UTC and start has none, or the reverse: state --time-zone")
    return ((moments - begins) / 3600).fill_null(0.0).alias(name)


def _seconds(path: Path, column: pl.Series, layout: Layout, problems: Problems, end: bool) -> tuple[pl.Series, bool]:
    """Seconds since 1970 of timestamps, and whether by UTC; a date alone stands for its day's end, or beginning."""
    moments, ahead = _moments(path, column, problems, end)
    has_offset, zone = ahead.is_not_null(), layout.time_zone
    if has_offset.any() and not has_offset.filter(moments.is_not_null()).all() and zone is None:
        problems.note(path, f"{column.name} has an offset from UTC in some rows only: state --time-zone of the others")
    seconds = moments.dt.epoch("us") / 1e6
    if zone is not None:
        local = moments.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null").dt.epoch("us") / 1e6
        skipped = moments.is_not_null() & local.is_null() & ~has_offset
        problems.add(path, skipped, f"{column.name} does not exist in {zone}, where clocks went forward", moments)
        seconds = pl.select(pl.when(has_offset).then(seconds).otherwise(local)).to_series()
    return seconds - ahead.fill_null(0.0), bool(has_offset.any()) or zone is not None


def _moments(path: Path, column: pl.Series, problems: Problems, end: bool) -> tuple[pl.Series, pl.Series]:
    """Timestamps without their offset from UTC, and that offset in seconds, null where there is none."""
    last = pl.duration(seconds=DAY - 1 if end else 0)
    none = pl.Series([None] * len(column), dtype=pl.Float64)
    if column.dtype == pl.Date:
        return pl.select(pl.lit(column).cast(pl.Datetime("us")) + last).to_series(), none
    if column.dtype == pl.Datetime:
        if column.dtype.time_zone is None:  # type: ignore[attr-defined]  # of a Datetime
            return column.cast(pl.Datetime("us")), none
        return column.dt.convert_time_zone("UTC").dt.replace_time_zone(None).cast(pl.Datetime("us")), none.fill_null(
            0.0
        )
    text = pl.lit(column.cast(pl.String).str.strip_chars())
    offset = pl.when(text.str.contains(":")).then(text.str.extract(OFFSET, 1))
    plain = pl.when(offset.is_null()).then(text).otherwise(text.str.replace(OFFSET, ""))
    times = [plain.str.to_datetime(form, strict=False, time_unit="us") for form in FORMATS]
    dates = [plain.str.to_date(form, strict=False).cast(pl.Datetime("us")) + last for form in DATES]
    digits = offset.str.replace_all(r"[^0-9]", "").cast(pl.Float64, strict=False)  # hhmm; none of Z
    minutes = (digits // 100) * 60 + digits % 100
    signed = pl.when(offset.str.starts_with("-")).then(-minutes).otherwise(minutes)
    found = pl.select(
        moment=pl.coalesce(times + dates),
        ahead=pl.when(offset.is_not_null()).then(signed.fill_null(0.0) * 60),
    )
    problem = f"{column.name} must be a number of hours, or a timestamp such as 2024-01-31 08:05 or 31.01.2024 08:05"
    problems.add(path, column.is_not_null() & found["moment"].is_null(), problem, column)
    return found["moment"], found["ahead"]
