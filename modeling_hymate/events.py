"""Events of many records as flat arrays, read from the shapes in which users hold them."""

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from numbers import Integral
from typing import Any, Literal

import numpy as np

from .items import as_number, column_of, is_listlike, is_missing, object_array

EVENT_COLUMNS = ("time", "variable", "value")
MAX_HOURS = 110 * 365.25 * 24  # of a record: nobody's lasts longer
MAX_ID_LENGTH = 256  # characters; arrays of text are as wide as their longest item
SHORTENED_ID = re.compile(r"[0-9](\.[0-9]+)?[eE]\+?[0-9]+")  # 1.33E+10: a number that a spreadsheet rounded
# names under which exports hold what is `record_id` here
OTHER_ID = re.compile(
    r"((record|patient|subject|person|case|(icu)?stay|hadm|admission|visit|encounter)[_ ]?)?id|mrn", re.IGNORECASE
)


@dataclass
class Events:
    """Events of a batch of records, record after record.

    Attributes:
        offsets: where each record begins, and the end: record i holds the events `offsets[i]:offsets[i + 1]`.
        times: hours since the record's start, `(events,)`.
        variable_ids: index of each event's variable, `(events,)`.
        values: in clinical units, `(events,)`; NaN where an event carries no number.
        static: one array a static column, `(records,)`; NaN or None where unknown.
        record_ids: name of each record; its position where the input has none.
        ignored: number of events dropped because their variable is unknown, by name.
        is_one_record: whether the input was a record by itself, and not a collection of one or more.
    """

    offsets: np.ndarray
    times: np.ndarray
    variable_ids: np.ndarray
    values: np.ndarray
    static: dict[str, np.ndarray] = field(default_factory=dict)
    record_ids: list[str] = field(default_factory=list)
    ignored: Counter = field(default_factory=Counter)
    is_one_record: bool = False

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Number of events of each record."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> np.ndarray:
        """Record of each event, `(events,)`."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def select(self, keep: np.ndarray) -> "Events":
        """The events at which the boolean array `keep` is true; records may end up empty."""
        offsets = np.concatenate([[0], np.cumsum(keep)])[self.offsets]
        return replace(
            self,
            offsets=offsets,
            times=self.times[keep],
            variable_ids=self.variable_ids[keep],
            values=self.values[keep],
        )

    def take(self, rows: np.ndarray) -> "Events":
        """The records at the positions `rows`, in that order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        chosen = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return replace(
            self,
            offsets=offsets,
            times=self.times[chosen],
            variable_ids=self.variable_ids[chosen],
            values=self.values[chosen],
            static={name: column[rows] for name, column in self.static.items()},
            record_ids=[self.record_ids[row] for row in rows],
        )

    @classmethod
    def join(cls, parts: Sequence["Events"]) -> "Events":
        """The records of all parts, which have the same static columns, one part after the other."""
        return cls(
            offsets=np.concatenate([[0], np.cumsum(np.concatenate([part.lengths for part in parts]))]),
            times=np.concatenate([part.times for part in parts]),
            variable_ids=np.concatenate([part.variable_ids for part in parts]),
            values=np.concatenate([part.values for part in parts]),
            static={name: _concatenate([part.static[name] for part in parts]) for name in parts[0].static},
            record_ids=[record_id for part in parts for record_id in part.record_ids],
            ignored=sum((part.ignored for part in parts), Counter()),
        )

    def latest(self, max_events: int) -> "Events":
        """The last `max_events` events of each record."""
        check_count("max_events", max_events)
        position_from_end = np.repeat(self.offsets[1:], self.lengths) - np.arange(len(self.times))
        return self.select(position_from_end <= max_events)


def parse_events(
    records: Any,
    variables: Sequence[str],
    static: Any = None,
    static_columns: Sequence[str] = (),
    unknown_variables: Literal["error", "ignore"] = "error",
    allow_empty: bool = False,
) -> Events:
    """Reads records in clinical units into flat arrays, each record's events in time order.

    Args:
        records: one of
            - a long-format pandas or polars frame, or a mapping of its columns to lists: one row per event, columns
              `time` (hours), `variable` (name or index) and `value` (number, or missing for an event without one),
              and `record_id` unless it is one record; static columns repeat their value within a record. Levels of
              a pandas index that have the names of such columns are read as columns;
            - one record as a mapping of those columns to lists, static columns beside them as single values;
            - a mapping whose columns hold one list per record (a slice of a prepared data set);
            - a sequence of any mix of single records (mappings or frames), such as rows of a prepared data set.
        variables: known variables, in the order of their indices.
        static: static columns, where `records` does not hold them: a frame or mapping with `record_id` and the
            static columns, or without `record_id` in the order of the records.
        static_columns: names of the static columns to read; one that is nowhere given is missing for all.
        unknown_variables: `"error"` or `"ignore"`, which drops such events and counts them in `Events.ignored`.
        allow_empty: accept records without events.

    Raises:
        ValueError: for a missing column, an unknown variable, a value that is no number, a time that is negative,
            beyond a life or no number, and unless allowed a record without events; the message names the column, the
            row and the record.
    """
    if unknown_variables not in ("error", "ignore"):
        raise ValueError(f"unknown_variables must be 'error' or 'ignore', got {unknown_variables!r}")
    columns, lengths, record_ids, own_static, is_one_record = _flatten(records, static_columns)
    if not len(lengths):
        raise ValueError("records is empty: hand over at least one record")
    rows = np.repeat(np.arange(len(lengths)), lengths)
    times = _numbers(columns["time"], "time", rows, record_ids)
    values = _numbers(columns["value"], "value", rows, record_ids)
    _check_numbers(times, values, rows, record_ids)
    variable_ids, ignored = _variable_indices(columns["variable"], variables, unknown_variables, rows, record_ids)
    known = variable_ids >= 0
    rows, times, values, variable_ids = rows[known], times[known], values[known], variable_ids[known]
    counts = np.bincount(rows, minlength=len(lengths))
    if (counts == 0).any() and not allow_empty:
        empty = record_ids[int(np.argmin(counts))]
        reason = " left: all of its variables are unknown" if ignored else ""
        raise ValueError(f"record {empty!r} has no events{reason}")
    order = _in_order(rows, times, variable_ids, values)  # ties have one order, whatever that of the input
    return Events(
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        times=times[order],
        variable_ids=variable_ids[order],
        values=values[order],
        static=_static_arrays(static, static_columns, own_static, record_ids),
        record_ids=record_ids,
        ignored=ignored,
        is_one_record=is_one_record,
    )


def check_count(name: str, value: Any):
    """Raises ValueError unless an argument is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def parse_hours(hours: Any, name: str) -> np.ndarray:
    """Times at which a record is asked, as float64 `(times,)`.

    Raises:
        ValueError: naming the argument, for what is no list of hours that a record can last.
    """
    if not is_listlike(hours) or not len(hours):
        raise ValueError(f"{name} must be a list of hours, got {hours!r}")
    column = column_of({name: hours}, name)
    try:
        numbers = column.astype(np.float64) if column.dtype.kind in "iuf" else np.array(list(map(as_number, column)))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    bad = ~((numbers >= 0) & (numbers <= MAX_HOURS))
    if bad.any():
        raise ValueError(
            f"{name}: {numbers[bad][0]} is not a finite number of hours since the record's start, not negative, and "
            "at most 110 years"
        )
    return numbers


def _in_order(*keys: np.ndarray) -> np.ndarray | slice:
    """What sorts by the first key, its ties by the second, and so on; nothing to do where all is in order."""
    tied, ordered = np.ones(max(0, len(keys[0]) - 1), dtype=bool), True
    for key in keys:
        before, after = key[:-1][tied], key[1:][tied]
        ordered &= bool((before <= after).all())
        tied[tied] = before == after
    return slice(None) if ordered else np.lexsort(keys[::-1])


def _is_frame(data: Any) -> bool:
    if hasattr(data, "collect_schema") and hasattr(data, "lazy") and not hasattr(data, "height"):
        raise ValueError("a lazy frame holds no rows yet: hand over what its collect() returns")
    return hasattr(data, "columns") and hasattr(data, "__getitem__") and not isinstance(data, Mapping)


def _column_names(data: Any) -> list[str]:
    if isinstance(data, Mapping):
        return list(data.keys())
    names = [str(name) for name in getattr(data, "column_names", data.columns)]  # PyArrow's columns are no names
    if len(set(names)) < len(names):
        raise ValueError(f"the frame has two columns called {Counter(names).most_common(1)[0][0]!r}")
    return names


def _without_index(data: Any, what: str, names: Sequence[str]) -> Any:
    """A pandas frame with those levels of its index as columns that have the name of one of `names`.

    Raises:
        ValueError: without a `record_id`, for an index that may hold the ids of several records.
    """
    index: Any = getattr(data, "index", None)
    if isinstance(data, Mapping) or not hasattr(index, "nlevels"):
        return data
    wanted = [name for name in index.names if name in names and name not in data.columns]
    data = data.reset_index(level=wanted) if wanted else data
    if "record_id" not in data.columns:
        _refuse_index(data.index, what)
    return data


def _refuse_index(index: Any, what: str):
    """Unnamed whole numbers that differ are positions; anything else may tell records apart, and be unheard."""
    levels = [name for name in index.names if name not in EVENT_COLUMNS and name is not None]
    if levels or index.nlevels > 1 or index.dtype.kind not in "iu" or not index.is_unique:
        named = f"has the index {levels[0]!r}" if levels else "has an index of its own"
        raise ValueError(
            f"{what} {named} and no column 'record_id': name the index record_id if it holds the records' ids, or "
            "drop it with reset_index(drop=True)"
        )


def _record_ids(data: Any) -> tuple[np.ndarray, np.ndarray]:
    """The column `record_id`: the id of each run of rows that repeat it, and their numbers.

    Raises:
        ValueError: for what cannot tell records apart.
    """
    column = data["record_id"]
    if hasattr(column, "rle") and str(column.dtype) == "String":  # of polars, which makes no object of each row
        runs = column.rle().struct
        ids, sizes = runs.field("value").to_numpy(), runs.field("len").to_numpy()
    else:
        whole = column_of(data, "record_id")
        if whole.dtype.kind == "f":
            raise ValueError(f"column 'record_id' must hold text or whole numbers, not {whole.dtype}")
        if whole.dtype.kind not in "iu":
            _check_kinds(whole)
        begins = _begins(whole)
        ids, sizes = whole[begins], np.diff(begins, append=len(whole))
    if ids.dtype.kind in "iu":
        return ids, sizes
    found = {item for item in set(ids.tolist()) if not is_missing(item)}
    for item in found:
        if isinstance(item, str) and len(item) > MAX_ID_LENGTH:
            raise ValueError(f"column 'record_id' holds an id of more than {MAX_ID_LENGTH} characters")
        if isinstance(item, str) and SHORTENED_ID.fullmatch(item):
            raise ValueError(
                f"column 'record_id': {item!r} is a number that a spreadsheet has shortened, so that several records "
                "may have become one"
            )
    if both := {item for item in found if not isinstance(item, str) and str(item) in found}:
        raise ValueError(f"column 'record_id' holds the number {min(both)} and the same as text: make them one or two")
    return ids, sizes


def _check_kinds(ids: np.ndarray):
    # found by their types first: there may be millions of ids
    if any(kind is bool or not issubclass(kind, str | Integral) for kind in set(map(type, ids.tolist()))):
        for item in ids.tolist():
            if isinstance(item, bool) or not (isinstance(item, str | Integral) or is_missing(item)):
                raise ValueError(f"column 'record_id' must hold text or whole numbers, not {type(item).__name__}")


def _refuse_other_ids(data: Any, what: str):
    """Without `record_id`, a column or an index that tells stays or patients apart would go unheard."""
    for name in _column_names(data):
        if isinstance(data, Mapping) and hasattr(getattr(data[name], "index", None), "nlevels"):
            _refuse_index(data[name].index, what)
        if OTHER_ID.fullmatch(str(name)) and is_listlike(data[name]) and len(set(column_of(data, name).tolist())) > 1:
            raise ValueError(
                f"{what} has no column 'record_id', but {name!r}: rename it to record_id, or leave it out"
            )


def _require_columns(data: Any, where: str):
    names = _column_names(data)
    if missing := [name for name in EVENT_COLUMNS if name not in names]:
        raise ValueError(f"{where} lacks the column {missing[0]!r}; it has {', '.join(map(repr, names)) or 'none'}")


def _flatten(records: Any, static_columns: Sequence[str]):
    """Columns of all events, number of events per record, record names, the static values found in the records, and
    whether this was one record by itself."""
    is_one_record = False
    if _is_frame(records):
        records = _without_index(records, "the frame", (*EVENT_COLUMNS, "record_id", *static_columns))
        return *_flatten_frame(records, static_columns), "record_id" not in _column_names(records)
    if isinstance(records, Mapping):
        _require_columns(records, "the record")
        nested = is_listlike(records["time"]) and is_listlike(next(iter(records["time"]), None))
        if not nested and is_listlike(records.get("record_id")):
            return *_flatten_frame(records, static_columns), False
        is_one_record = not nested
        records = _unzip(records) if nested else [records]
    if isinstance(records, str) or not isinstance(records, Sequence):
        try:
            records = list(records)
        except TypeError:
            raise ValueError(
                f"records must be a frame, a mapping or a sequence of them, got {type(records).__name__}"
            ) from None
    parts: dict[str, list[np.ndarray]] = {name: [] for name in EVENT_COLUMNS}
    lengths, record_ids = [], []
    own_static: dict[str, list] = {name: [] for name in static_columns}
    for position, given in enumerate(records):
        if not (_is_frame(given) or isinstance(given, Mapping)):
            raise ValueError(f"record {position} must be a mapping or a frame, got {type(given).__name__}")
        record = _without_index(given, f"record {position}", (*EVENT_COLUMNS, "record_id", *static_columns))
        names = _column_names(record)
        record_id = str(position)
        if "record_id" in names:
            (own,), _ = _record_ids({"record_id": [_constant(record["record_id"], "record_id", position)]})
            if is_missing(own) or own == "":
                raise ValueError(f"record {position}: the record id is missing")
            record_id = str(own)
        else:
            _refuse_other_ids(record, f"record {position}")
        _require_columns(record, f"record {record_id!r}")
        columns = {name: column_of(record, name) for name in EVENT_COLUMNS}
        sizes = {name: len(column) for name, column in columns.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"record {record_id!r}: columns differ in length: {sizes}")
        for name, column in columns.items():
            parts[name].append(column)
        lengths.append(sizes["time"])
        record_ids.append(record_id)
        for name, found in own_static.items():
            found.append(_constant(record[name], name, record_id, sizes["time"]) if name in names else None)
    columns = {name: _concatenate(column) for name, column in parts.items()}
    return columns, np.array(lengths, dtype=np.int64), record_ids, own_static, is_one_record


def _unzip(columns: Mapping) -> list[dict]:
    """Rows of a mapping whose columns hold one item per record."""
    columns = {
        name: column.unbind() if getattr(column, "is_nested", False) else column for name, column in columns.items()
    }
    size = len(columns["time"])
    for name, column in columns.items():
        if not is_listlike(column) or len(column) != size:
            found = f"{len(column)} items" if is_listlike(column) else f"a {type(column).__name__}"
            raise ValueError(
                f"column {name!r} must hold one item per record, as 'time' does ({size}); it holds {found}"
            )
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _constant(column: Any, name: str, record_id: Any, num_events: int | None = None) -> Any:
    """What a column says about a whole record: a single value, or the one that all of its rows repeat."""
    if not is_listlike(column):
        return column.item() if hasattr(column, "item") else column
    if num_events is not None and len(column) not in (1, num_events):
        raise ValueError(
            f"column {name!r} must hold one value per record, or one per event: record {record_id!r} has "
            f"{num_events} events, but {len(column)} of them"
        )
    try:
        found = {item for item in column_of({name: column}, name).tolist() if not is_missing(item)}
    except TypeError:  # a list or a mapping is no item of a set
        raise ValueError(f"column {name!r} must hold numbers or text, but record {record_id!r} has others") from None
    if len(found) > 1:
        raise ValueError(f"column {name!r} must hold one value per record, but record {record_id!r} has {len(found)}")
    return next(iter(found), None)


def _concatenate(parts: list[np.ndarray]) -> np.ndarray:
    parts = [part for part in parts if len(part)] or parts[:1] or [np.zeros(0)]
    if len({part.dtype.kind for part in parts}) > 1:
        parts = [part.astype(object) for part in parts]
    return np.concatenate(parts)


def _flatten_frame(frame: Any, static_columns: Sequence[str]):
    _require_columns(frame, "the frame")
    names = _column_names(frame)
    if "record_id" not in names:
        _refuse_other_ids(frame, "the frame")
    columns = {name: column_of(frame, name) for name in (*EVENT_COLUMNS, *(set(static_columns) & set(names)))}
    size = len(columns["time"])
    ids, runs = (
        _record_ids(frame) if "record_id" in names else (np.zeros(size, dtype=np.int64), np.ones(size, np.int64))
    )
    sizes = {name: len(column) for name, column in columns.items()} | {"record_id": int(runs.sum())}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"columns differ in length: {sizes}")
    begun = ids.tolist()
    numbers = {item: number for number, item in enumerate(dict.fromkeys(begun))}
    rows = np.repeat(np.fromiter(map(numbers.__getitem__, begun), np.int64, len(begun)), runs)
    for record_id, number in numbers.items():
        if is_missing(record_id) or record_id == "":
            raise ValueError(f"column 'record_id', row {int(np.argmax(rows == number))}: the record id is missing")
    record_ids = list(map(str, numbers))
    lengths = np.bincount(rows, minlength=len(numbers))
    if len(numbers) < len(begun):  # the rows of a record are not together
        order = np.argsort(rows, kind="stable")
        columns = {name: column[order] for name, column in columns.items()}
    own_static = {
        name: [
            _constant(part, name, record_id)
            for part, record_id in zip(np.split(columns[name], np.cumsum(lengths)[:-1]), record_ids, strict=True)
        ]
        if name in columns
        else [None] * len(record_ids)
        for name in static_columns
    }
    return columns, lengths, record_ids, own_static


def _begins(items: np.ndarray) -> np.ndarray:
    """Where each run of equal items begins: records mostly lie together, and have far fewer runs than events."""
    try:
        return np.flatnonzero(np.append(True, items[1:] != items[:-1])[: len(items)])
    except TypeError:  # the NA of pandas equals nothing, and does not even differ
        return np.arange(len(items))


def _place(at: int, rows: np.ndarray, record_ids: list[str]) -> str:
    row = rows[at]
    return f"event {at - int(np.searchsorted(rows, row))} of record {record_ids[row]!r}"


def _numbers(column: np.ndarray, name: str, rows: np.ndarray, record_ids: list[str]) -> np.ndarray:
    if column.dtype.kind in "iuf":
        return column.astype(np.float64)
    if column.dtype.kind in "mM":
        raise ValueError(f"column {name!r} must hold numbers (times in hours), got {column.dtype}")
    numbers = np.empty(len(column))
    for at, item in enumerate(column):
        try:
            numbers[at] = as_number(item)
        except ValueError:
            raise ValueError(f"column {name!r}, {_place(at, rows, record_ids)}: {item!r} is not a number") from None
    return numbers


def _check_numbers(times: np.ndarray, values: np.ndarray, rows: np.ndarray, record_ids: list[str]):
    """Raises ValueError for the first time or value that cannot be."""
    for bad, column, rule in (
        (~np.isfinite(times), "time", "a finite number of hours"),
        (times < 0, "time", "hours since the record's start, not negative"),
        (times > MAX_HOURS, "time", "hours since the record's start: 110 years is the limit"),
        (np.isinf(values), "value", "a finite number, or missing"),
    ):
        if bad.any():
            at = int(np.argmax(bad))
            given = (times if column == "time" else values)[at]
            raise ValueError(f"column {column!r}, {_place(at, rows, record_ids)}: {given} is not {rule}")


def _variable_indices(column, variables, unknown_variables, rows, record_ids) -> tuple[np.ndarray, Counter]:
    ignored: Counter = Counter()
    if column.dtype.kind in "iu":
        outside = (column < 0) | (column >= len(variables))
        if outside.any():
            at = int(np.argmax(outside))
            place = _place(at, rows, record_ids)
            raise ValueError(
                f"column 'variable', {place}: index {column[at]} is not in [0, {len(variables)}), the known variables"
            )
        return column.astype(np.int64), ignored
    if len(column) and column.dtype.kind == "f":
        raise ValueError("column 'variable' must hold names or whole-number indices, got floating-point numbers")
    odd = {kind for kind in set(map(type, column)) if kind is bool or not issubclass(kind, str | Integral)}
    for at, item in enumerate(column) if odd else ():
        if type(item) in odd and not is_missing(item):
            place = _place(at, rows, record_ids)
            raise ValueError(f"column 'variable', {place}: {item!r} is neither a name nor a whole-number index")
    # names, and indices beside them where records of both kinds were mixed
    index = {position: position for position in range(len(variables))}
    index |= {name: position for position, name in enumerate(variables)}
    indices = np.fromiter(map(index.get, column.tolist(), repeat(-1)), dtype=np.int64, count=len(column))
    if (indices < 0).any():
        unknown = np.flatnonzero(indices < 0)
        if unknown_variables == "error":
            at = int(unknown[0])
            if is_missing(column[at]):
                raise ValueError(f"column 'variable', {_place(at, rows, record_ids)}: the variable is missing")
            raise ValueError(
                f"column 'variable', {_place(at, rows, record_ids)}: {describe_unknown(column[at], variables)} "
                "(unknown_variables='ignore' drops such events)"
            )
        ignored.update(str(column[at]) for at in unknown)
    return indices, ignored


def describe_unknown(variable: Any, variables: Sequence[str]) -> str:
    """That a variable is not among the known ones, and which of them may be meant."""
    folded = {name.casefold(): name for name in variables}
    close = difflib.get_close_matches(str(variable).strip().casefold(), folded, n=1)
    hint = f"; did you mean {folded[close[0]]!r}?" if close else ""
    return f"{variable!r} is not one of the {len(variables)} known variables{hint}"


def _static_arrays(static, static_columns, own_static, record_ids) -> dict[str, np.ndarray]:
    arrays = {}
    if static is None:
        return {
            name: object_array(own_static[name]) if name in own_static else np.full(len(record_ids), None, object)
            for name in static_columns
        }
    if not (_is_frame(static) or isinstance(static, Mapping)):
        raise ValueError(f"static must be a frame or a mapping of its columns, got {type(static).__name__}")
    static = _without_index(static, "static", ("record_id", *static_columns))
    if isinstance(static, Mapping) and not any(is_listlike(static[name]) for name in static):
        static = {name: [item] for name, item in static.items()}
    names = _column_names(static)
    if "record_id" not in names:
        _refuse_other_ids(static, "static")
    rows = np.arange(len(record_ids))
    if "record_id" in names:
        given = [str(item) for item in np.repeat(*_record_ids(static))]
        position = {record_id: row for row, record_id in enumerate(given)}
        if len(position) < len(given):
            raise ValueError(f"static holds record_id {Counter(given).most_common(1)[0][0]!r} more than once")
        if absent := [record_id for record_id in record_ids if record_id not in position]:
            raise ValueError(f"static has no row for record_id {absent[0]!r}")
        rows = np.array([position[record_id] for record_id in record_ids])
    for name in static_columns:
        if name not in names:
            raise ValueError(f"static lacks the column {name!r}; it has {', '.join(map(repr, names))}")
        column = column_of(static, name)
        if "record_id" not in names and len(column) != len(record_ids):
            raise ValueError(
                f"static column {name!r} has {len(column)} rows for {len(record_ids)} records; add a record_id column"
            )
        arrays[name] = column[rows]
    return arrays
