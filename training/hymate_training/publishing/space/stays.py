"""Stays to ask a model about: simulated, or read from a CSV file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .checkpoint import Shown

COLUMNS = ["time", "variable", "value"]
COURSES = ("steady", "rising", "falling")
EVERY = (1, 2, 4, 8)  # hours between measurements, of the variables attended to most first
LONGEST = 48  # hours of a simulated stay
DRIFT = 2.5  # standard deviations over a stay
MOST_EVENTS, MOST_STAYS = 5_000, 200


@dataclass(frozen=True)
class Stay:
    """Events in clinical units as a table of `COLUMNS`, in the order of their times, and static columns."""

    events: pd.DataFrame
    static: dict[str, Any] = field(default_factory=dict)

    def record(self, keep: Any = slice(None)) -> dict[str, Any]:
        """What the pipeline takes, with the events of those rows alone."""
        columns = self.events.iloc[keep]
        values = [None if pd.isna(value) else float(value) for value in columns["value"]]
        return {
            "time": columns["time"].tolist(),
            "variable": columns["variable"].tolist(),
            "value": values,
            **self.static,
        }


def checked(events: pd.DataFrame, static: dict[str, Any]) -> Stay:
    """A stay from a table that a person filled in; empty rows are left out.

    Raises:
        ValueError: naming the row and the column of what is no number, and for a table without events.
    """
    events = events[COLUMNS].replace(r"^\s*$", None, regex=True).dropna(how="all").reset_index(drop=True)
    for column in ("time", "value"):
        numbers = pd.to_numeric(events[column], errors="coerce").astype("float64")
        if (bad := numbers.isna() & events[column].notna()).any():
            row = int(bad.to_numpy().argmax())
            raise ValueError(f"row {row + 1}, column {column}: {events[column][row]!r} is not a number")
        events[column] = numbers
    for column, told in (("time", "the hours since the stay's start"), ("variable", "what was measured")):
        if (missing := events[column].isna()).any():
            raise ValueError(f"row {int(missing.to_numpy().argmax()) + 1}, column {column}: it must say {told}")
    if events.empty:
        raise ValueError("there are no measurements: add one, or draw a simulated stay")
    if len(events) > MOST_EVENTS:
        raise ValueError(f"the stay has {len(events):,} measurements; this page takes {MOST_EVENTS:,}")
    return Stay(events.sort_values("time", kind="stable", ignore_index=True), static)


def read_stays(path: str | Path, shown: Shown) -> dict[str, Stay]:
    """The stays of a CSV file: record_id -> stay. It has the columns `time`, `variable` and `value`, maybe
    `record_id`, and maybe the model's static columns.

    Raises:
        ValueError: saying what is wrong with the file.
    """
    try:
        table = pd.read_csv(path, dtype={"record_id": str, "variable": str}, encoding="utf-8-sig")
    except (ValueError, pd.errors.ParserError) as error:
        raise ValueError(f"the file is not a CSV table: {str(error).splitlines()[0]}") from error
    if missing := [name for name in COLUMNS if name not in table]:
        raise ValueError(f"the file lacks the column {missing[0]!r}; it has {', '.join(map(repr, table.columns))}")
    if table.empty:
        raise ValueError("the file has no rows")
    names = [column["name"] for column in shown.extractor.static_columns if column["name"] in table]
    groups = table.groupby("record_id", sort=False) if "record_id" in table else [("the stay", table)]
    stays = {}
    for name, rows in groups:
        known = {column: rows[column].dropna().drop_duplicates().tolist() for column in names}
        if several := [column for column, found in known.items() if len(found) > 1]:
            raise ValueError(f"record {name}: column {several[0]} must say the same in all of its rows")
        stays[str(name)] = checked(rows, {column: found[0] for column, found in known.items() if len(found)})
        if len(stays) > MOST_STAYS:
            raise ValueError(f"the file has more than {MOST_STAYS} stays: upload a part of it")
    return stays


def simulate(shown: Shown, label: str, course: str, seed: int) -> Stay:
    """A stay around the typical values of the model's training data.

    Args:
        shown: the checkpoint.
        label: the output that is followed.
        course: `"steady"`, or values drift to where the model's answer is `"rising"` or `"falling"`.
        seed: of what is drawn.
    """
    rng, extractor = np.random.default_rng(seed), shown.extractor
    hours = LONGEST if extractor.trained_hours is None else min(LONGEST, extractor.trained_hours[1])
    ids = np.array([extractor.variables.index(name) for name in shown.leading])
    drift = DRIFT * {"steady": 0, "rising": 1, "falling": -1}[course] * _directions(shown, label, ids)
    rows = []
    for place, variable in enumerate(ids):
        every = EVERY[min(place // 3, len(EVERY) - 1)]
        times = np.arange(rng.uniform(0, every), hours, every)
        wander = 0.25 * np.cumsum(rng.normal(size=len(times))) / np.sqrt(1 + np.arange(len(times)))
        standardized = rng.normal(scale=0.4) + wander + drift[place] * (times / hours - 0.3)
        numbers = extractor.destandardize(np.full(len(times), variable), standardized)
        has_number = typical_value(shown, shown.leading[place]) is not None
        rows += [
            (round(float(time), 2), shown.leading[place], float(f"{number:.3g}") if has_number else None)
            for time, number in zip(times, numbers, strict=True)
        ]
    static: dict[str, Any] = {}
    for column in extractor.static_columns:
        if "categories" in column:
            static[column["name"]] = str(rng.choice(column["categories"])) if column["categories"] else None
        else:
            drawn = np.clip(rng.normal(column["mean"], 0.7 * column["deviation"]), *column["range"])
            static[column["name"]] = float(f"{drawn:.3g}")
    return checked(pd.DataFrame(rows, columns=COLUMNS), static)


def typical_value(shown: Shown, variable: str) -> float | None:
    """A variable's mean in the training data; None where it never carried a number."""
    place = shown.extractor.variables.index(variable)
    if not any(shown.extractor.value_ranges[place]):
        return None
    return float(f"{shown.extractor.destandardize(np.array([place]), np.zeros(1))[0]:.3g}")


def _directions(shown: Shown, label: str, ids: np.ndarray) -> np.ndarray:
    """Of each variable, 1 where a high value alone raises the model's answer above that of a low one, else -1."""
    ends = np.repeat([1.5, -1.5], len(ids))
    values = shown.extractor.destandardize(np.tile(ids, 2), ends)
    records = [
        {"time": [1.0], "variable": [shown.extractor.variables[variable]], "value": [float(value)]}
        for variable, value in zip(np.tile(ids, 2), values, strict=True)
    ]
    scores = np.array([answer["scores"][label] for answer in shown.classify(records, top_k=1)])
    high, low = scores.reshape(2, -1)
    return np.where(high >= low, 1, -1)
