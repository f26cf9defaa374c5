"""What new records are later compared with: counts of training records in bins, and nothing about a single one.

Every number describes a record once, so that counts of records can be compared by tests for independent draws: how
often and how long it was measured, of each variable whether it was and the mean of its values, its static columns, and
what the model says of it. A bin holds `SMALLEST_GROUP` records or none, and edges are rounded, so that none is a value
of a patient's.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from hymate_training.data.examples import ExampleDataset, first_times, last_times
from hymate_training.evaluation.metrics import SMALLEST_GROUP
from hymate_training.inference.checkpoints import label_names
from modeling_hymate import Events, HyMaTEForSequenceClassification
from modeling_hymate.items import is_missing

BINS = 10
DIGITS = 3  # significant, of edges
MOST_RECORDS = 20_000  # looked at
RECORDS_AT_ONCE = 500
MAX_VARIABLES = 500  # the most frequent ones are compared
KINDS = ("timing", "measured", "value", "static", "score")
MISSING, OTHER = "missing", "other"

MEASURED = ("measured", "not measured")

Column = np.ndarray  # (records,): numbers with NaN, yes or no, or names with None


def asked_last(dataset: ExampleDataset) -> ExampleDataset:
    """Each record of a data set's examples once, at its last event that any of them sees; of more than `MOST_RECORDS`
    so many, the same at every call."""
    events = dataset.events
    until = np.full(len(events), -np.inf, dtype=np.float32)
    np.maximum.at(until, dataset.rows, dataset.prediction_times)
    rows = np.flatnonzero((until >= first_times(events)) & (events.lengths > 0))
    if len(rows) > MOST_RECORDS:
        rows = np.sort(np.random.default_rng(0).choice(rows, MOST_RECORDS, replace=False))
    seen = ExampleDataset(events, rows, until[rows]).lengths
    return ExampleDataset(events, rows, events.times[events.offsets[rows] + seen - 1])


def seen_records(dataset: ExampleDataset) -> Events:
    """The record of each example, up to its prediction time."""
    records = dataset.events.take(dataset.rows)
    return records.select(records.times <= dataset.prediction_times[records.rows])


def describe_seen(dataset: ExampleDataset, variables: list[str], names: Sequence[str]) -> dict[str, dict[str, Column]]:
    """What `describe` says of the examples' records up to their prediction times, and of the static columns `names`.

    Its memory grows with the number of records, not with that of events.
    """
    parts = []
    for at in range(0, max(1, len(dataset)), RECORDS_AT_ONCE):
        part = slice(at, at + RECORDS_AT_ONCE)
        records = seen_records(ExampleDataset(dataset.events, dataset.rows[part], dataset.prediction_times[part]))
        parts.append(describe(records, variables, {name: records.static[name] for name in names}))
    return {
        kind: {name: np.concatenate([part[kind][name] for part in parts]) for name in columns}
        for kind, columns in parts[0].items()
    }


def describe(events: Events, variables: list[str], static: Mapping[str, Any]) -> dict[str, dict[str, Column]]:
    """What is counted of records: kind -> name -> one number or name per record.

    Args:
        events: the records, each with an event.
        variables: names of the variables.
        static: name of a static column -> its array, `(records,)`.

    Returns:
        `timing`: number of events, hours to the last one, and mean hours between times with events. `measured`: of
        each variable whether it is. `value`: of each variable the mean of a record's values, NaN where it has none.
        `static`: as it was given.
    """
    count, size = len(events), len(variables)
    place = events.rows * size + events.variable_ids
    known = ~np.isnan(events.values)
    events_of = np.bincount(place, minlength=count * size).reshape(count, size)
    numbers = np.bincount(place[known], minlength=count * size).reshape(count, size)
    sums = np.bincount(place[known], events.values[known], count * size).reshape(count, size)
    means = np.divide(sums, numbers, out=np.full(sums.shape, np.nan), where=numbers > 0)
    hours = last_times(events).astype(np.float64)
    moments = np.bincount(events.rows[_begins(events)], minlength=count)
    return {
        "timing": {
            "events": events.lengths.astype(np.float64),
            "hours": hours,
            "hours between measurements": np.divide(
                hours - _first(events), moments - 1, out=np.full(count, np.nan), where=moments > 1
            ),
        },
        "measured": {name: events_of[:, at] > 0 for at, name in enumerate(variables)},
        "value": {name: means[:, at] for at, name in enumerate(variables)},
        "static": {name: np.asarray(column) for name, column in static.items()},
    }


def _begins(events: Events) -> np.ndarray:
    """Where a record's events of another time begin."""
    return (np.diff(events.times, prepend=np.inf) != 0) | (np.diff(events.rows, prepend=-1) > 0)


def _first(events: Events) -> np.ndarray:
    return events.times[events.offsets[:-1]].astype(np.float64)


def scores_of(model: HyMaTEForSequenceClassification, values: np.ndarray) -> dict[str, np.ndarray]:
    """Predictions `(records, num_labels)` by the name of the output; of a yes or no question, those of yes."""
    names = label_names(model)
    chosen = range(1, 2) if names_one_answer(model) else range(len(names))
    return {names[at]: values[:, at].astype(np.float64) for at in chosen}


def names_one_answer(model: HyMaTEForSequenceClassification) -> bool:
    """Whether a model answers a yes or no question."""
    return model.config.problem_type == "single_label_classification" and len(label_names(model)) == 2


def summarize(described: Mapping[str, Mapping[str, Column]]) -> dict[str, Any]:
    """Counts of records by bin: kind -> name -> `edges` or `categories`, and `counts`.

    What too few records have is left out, and of variables all but the `MAX_VARIABLES` most frequent.
    """
    measured = described.get("measured", {})
    frequent = set(sorted(measured, key=lambda name: -measured[name].sum())[:MAX_VARIABLES])
    summary: dict[str, Any] = {}
    for kind, columns in described.items():
        kept = {
            name: column for name, column in columns.items() if kind not in ("measured", "value") or name in frequent
        }
        found = {name: _summary(kind, column) for name, column in kept.items()}
        summary[kind] = {name: one for name, one in found.items() if one is not None}
    return summary


def _summary(kind: str, column: Column) -> dict[str, Any] | None:
    if column.dtype.kind == "b":
        told = (int(column.sum()), int((~column).sum()))
        return {"categories": dict(zip(MEASURED, map(_enough, told), strict=True))}
    if column.dtype.kind != "f":
        return _named(column)
    found = column[~np.isnan(column)]
    if len(found) < 2 * SMALLEST_GROUP:
        return None
    bins = int(np.clip(len(found) // (3 * SMALLEST_GROUP // 2), 2, BINS))
    edges = np.unique(_rounded(np.quantile(found, np.arange(1, bins) / bins)))
    counts = np.bincount(np.searchsorted(edges, found, "right"), minlength=len(edges) + 1)
    while len(counts) > 1 and counts.min() < SMALLEST_GROUP:  # the smallest joins the smaller of its neighbors
        at = int(counts.argmin())
        left = at > 0 and (at == len(counts) - 1 or counts[at - 1] <= counts[at + 1])
        edge = at - 1 if left else at
        counts[edge] += counts[edge + 1]
        counts, edges = np.delete(counts, edge + 1), np.delete(edges, edge)
    if len(counts) < 2:
        return None
    summary: dict[str, Any] = {"edges": edges.tolist(), "counts": counts.tolist()}
    if kind != "value":  # whether a variable has a value is compared on its own
        summary[MISSING] = _enough(len(column) - len(found))
    return summary


def _named(column: Column) -> dict[str, Any] | None:
    names, counts = np.unique([MISSING if is_missing(name) else str(name) for name in column], return_counts=True)
    large = counts >= SMALLEST_GROUP
    categories = {str(name): int(count) for name, count in zip(names[large], counts[large], strict=True)}
    if rest := _enough(int(counts[~large].sum())):
        categories[OTHER] = categories.get(OTHER, 0) + rest
    return {"categories": categories} if categories else None


def _enough(count: int) -> int:
    return count if count >= SMALLEST_GROUP else 0


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.array([float(f"{value:.{DIGITS}g}") for value in values])


def count_like(summary: Mapping[str, Any], column: Column) -> np.ndarray:
    """Counts of other records in the bins of a summary, in the order of `counts_of`.

    Names that the summary does not know count as other ones.
    """
    if "categories" in summary:
        if column.dtype.kind == "b":
            column = np.where(column, *MEASURED)
        names = [MISSING if is_missing(name) else str(name) for name in column]
        known = [name for name in summary["categories"] if name != OTHER]
        counts = {name: names.count(name) for name in known}
        return np.array([*counts.values(), len(names) - sum(counts.values())])
    numbers = column.astype(np.float64)  # of objects, where no record has a number
    found = numbers[~np.isnan(numbers)]
    binned = np.bincount(np.searchsorted(summary["edges"], found, "right"), minlength=len(summary["counts"]))
    return np.append(binned, len(column) - len(found)) if MISSING in summary else binned


def counts_of(summary: Mapping[str, Any]) -> np.ndarray:
    """The counts of a summary itself."""
    if "categories" in summary:
        known = [count for name, count in summary["categories"].items() if name != OTHER]
        return np.array([*known, summary["categories"].get(OTHER, 0)])
    return np.array([*summary["counts"], *([summary[MISSING]] if MISSING in summary else [])])


def names_of(summary: Mapping[str, Any]) -> list[str]:
    """What each bin of a summary holds, in words."""
    if "categories" in summary:
        return [*(name for name in summary["categories"] if name != OTHER), OTHER]
    edges = [f"{edge:g}" for edge in summary["edges"]]
    inner = [f"{low} to {high}" for low, high in pairwise(edges)]
    return [f"below {edges[0]}", *inner, f"{edges[-1]} and above", *([MISSING] if MISSING in summary else [])]
