"""Records from tables of events and of static columns: each record is kept, and what is unknown of it is said.

One rule holds for whatever a model does not know: it is taken as missing, and said. A static column or value that is
absent, a category that was not in the training data, and a record without events, of which the model speaks from its
static columns alone. Events of unknown variables are an error, unless they are to be ignored.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs

from hymate_training.data.tables import UNKNOWN, numbers, read_frame, refuse, tidy_frame
from modeling_hymate import Events, HyMaTEFeatureExtractor
from modeling_hymate.events import EVENT_COLUMNS, describe_unknown, parse_events
from modeling_hymate.items import is_missing

IGNORED = "events of unknown variables were dropped"
KINDS_SHOWN = 12  # of remarks in a summary; the output holds all
NAMES_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Records:
    """Records in clinical units, and what is to be said about them.

    Attributes:
        events: those of all records: first the records of the table of events, then those of the static table alone.
        remarks: per record, what is unknown of it or was dropped.
        unknown_columns: static columns that are unknown for all records.
        absent_variables: known variables that no record has an event of.
    """

    events: Events
    remarks: list[list[str]]
    unknown_columns: list[str]
    absent_variables: list[str]

    def about_all(self) -> list[str]:
        """What concerns all records at once, in sentences."""
        return say_of_all(self.events.ignored, self.absent_variables, self.unknown_columns)


def say_of_all(ignored: Counter, absent_variables: Sequence[str], unknown_columns: Sequence[str]) -> list[str]:
    """What concerns all records at once, in sentences; arguments as the attributes of `Records` and `Events`."""
    said = []
    if ignored:
        said.append(f"dropped {ignored.total()} events of unknown variables: {_some(list(ignored))}")
    if absent_variables:
        said.append(f"no record has an event of {len(absent_variables)} variables: {_some(absent_variables)}")
    if unknown_columns:
        said.append(f"unknown for all of them, so taken as missing: {', '.join(unknown_columns)}")
    return said


def count_remarks(remarks: Iterable[Sequence[str]], total: int, unit: str) -> list[str]:
    """How many of `total` have each remark, the most frequent first."""
    return say_counts(Counter(text for texts in remarks for text in texts), total, unit)


def say_counts(counts: Counter, total: int, unit: str) -> list[str]:
    """How many of `total` have each remark, the most frequent first."""
    found = counts.most_common()
    shown = [f"{text}: {count} of {total} {unit}" for text, count in found[:KINDS_SHOWN]]
    return [*shown, *([f"and {len(found) - KINDS_SHOWN} other remarks"] if len(found) > KINDS_SHOWN else [])]


def read_records(
    extractor: HyMaTEFeatureExtractor,
    events: Any,
    static: Any = None,
    *,
    ignore_unknown_variables: bool = False,
    is_part: bool = False,
) -> Records:
    """Reads records from a table of events and, where it is given, one of static columns.

    Args:
        extractor: knows the variables and the static columns.
        events: a CSV or Parquet file, or a polars or pandas frame: `record_id`, `time` (hours), `variable`, `value`;
            static columns may stand there, too.
        static: the same, with one row per record: `record_id` and the static columns. Its records need no events.
        ignore_unknown_variables: drop and count events of variables that the model does not know.
        is_part: the table is a part of a larger one, and may well hold no event of a known variable.

    Raises:
        ValueError: for a file that cannot be read or lacks a column, for bad records, and for unknown variables
            unless they are ignored.
    """
    frame, name = read_table(events, "events", ("record_id", *EVENT_COLUMNS))
    refuse(name, frame["variable"].is_null(), "variable is missing")
    indices = frame["variable"].cast(pl.Enum(extractor.variables), strict=False).to_physical()
    unknown = indices.is_null()
    if unknown.all() and not (is_part and ignore_unknown_variables):
        raise ValueError(f"{name}: none of its variables is known; the first is {frame['variable'][0]!r}")
    if unknown.any() and not ignore_unknown_variables:
        row = int(unknown.arg_max() or 0)
        raise ValueError(
            f"{name}: row {row + 1}: variable {describe_unknown(frame['variable'][row], extractor.variables)} "
            "(ignore_unknown_variables, --ignore-unknown-variables, drops such events)"
        )
    dropped = set(frame["record_id"].filter(unknown))
    names = [column["name"] for column in extractor.static_columns]
    if not unknown.any():  # as indices, which are read much faster
        frame = frame.with_columns(indices.alias("variable"))
    parsed = parse_events(frame, extractor.variables, None, names, "ignore", allow_empty=True)
    own, static_name = (None, "") if static is None else read_table(static, "static", ("record_id",), UNKNOWN)
    if own is not None:
        refuse(static_name, own["record_id"].is_duplicated(), "record_id appears more than once", own["record_id"])
        parsed = _with_records(parsed, own["record_id"].to_list())
    remarks = [[IGNORED] if record_id in dropped else [] for record_id in parsed.record_ids]
    columns = {}
    for column in extractor.static_columns:
        given = parsed.static[column["name"]]
        if own is not None and column["name"] in own.columns:
            given = _own_column(own, static_name, column, parsed.record_ids)
        columns[column["name"]] = _known_values(column, given, remarks)
    observed = np.bincount(parsed.variable_ids, minlength=extractor.num_variables) > 0
    return Records(
        events=replace(parsed, static=columns),
        remarks=remarks,
        unknown_columns=[name for name, column in columns.items() if all(map(is_missing, column))],
        absent_variables=[name for name, seen in zip(extractor.variables, observed, strict=True) if not seen],
    )


def read_table(
    source: Any, name: str, columns: Sequence[str], unknown: Sequence[str] = ()
) -> tuple[pl.DataFrame, str]:
    """A user's table with these columns, and what messages call it: its file, or `name`.

    Raises:
        ValueError: for anything but a file or a polars or pandas frame, and as `read_frame`; for a missing column.
    """
    if isinstance(source, str | Path):
        name, frame = str(source), read_frame(source, unknown)
    elif isinstance(source, pl.DataFrame):
        frame = tidy_frame(source, name)
    elif hasattr(source, "iloc"):
        frame = tidy_frame(pl.from_pandas(source), name)
    else:
        raise ValueError(f"{name} must be a file or a polars or pandas frame, not a {type(source).__name__}")
    if missing := [column for column in columns if column not in frame.columns]:
        raise ValueError(f"{name} lacks the column {missing[0]!r}; it has {', '.join(frame.columns)}")
    return frame.with_columns(cs.boolean().cast(pl.String)), name  # true and false are categories


def _with_records(events: Events, record_ids: list[str]) -> Events:
    """The records, and behind them those of `record_ids` that are not among them: these have no events."""
    there = set(events.record_ids)
    extra = [record_id for record_id in record_ids if record_id not in there]
    return replace(
        events,
        offsets=np.append(events.offsets, np.full(len(extra), events.offsets[-1])),
        record_ids=[*events.record_ids, *extra],
        static={name: np.append(column, np.full(len(extra), None)) for name, column in events.static.items()},
    )


def _own_column(own: pl.DataFrame, name: str, column: dict, record_ids: list[str]) -> np.ndarray:
    """A column of the static table, of the records in their order."""
    given = own[column["name"]]
    found = given.cast(pl.String) if "categories" in column else numbers(name, given)
    table = own.select("record_id", found.alias("found"))
    ids = pl.DataFrame({"record_id": record_ids})
    return ids.join(table, on="record_id", how="left", maintain_order="left")["found"].to_numpy()


def _known_values(column: dict, given: np.ndarray, remarks: list[list[str]]) -> np.ndarray:
    """A static column without what the model does not know, which is remarked."""
    name, categories = column["name"], set(map(str, column.get("categories", ())))
    known = given.copy()
    for row, item in enumerate(given):
        if is_missing(item) or item == "":
            remarks[row].append(f"{name} is missing")
        elif "categories" in column and str(item) not in categories:
            known[row] = None
            remarks[row].append(f"{name} {str(item)!r} was not in the training data, so taken as missing")
    return known


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
