"""Summary statistics of records at prediction times: the input of trees and linear models."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hymate_training.data.examples import ExampleDataset
from modeling_hymate import Events, HyMaTEFeatureExtractor

EARLY_HOURS = 12.0
CELLS_AT_ONCE = 2_000_000  # (example, variable) pairs, so that memory stays level


@dataclass(frozen=True)
class FeatureSet:
    """Which statistics a table of features holds, in this order.

    Attributes:
        whole: of each variable up to the prediction time: `first`, `last`, `min`, `max`, `mean` and `deviation` of its
            numbers, `early_mean` (of those in the record's first 12 hours), `change` (the last minus the one before),
            `count` of its events and `hours_since_last` of them.
        windows: hours before the prediction time.
        windowed: of each variable's numbers in each window: `min`, `max`, `mean`, `slope` (the last minus the first),
            and `count` of its events there.
        record: `prediction_time`, `hours_since_any_event`, `number_of_events`.
    """

    whole: tuple[str, ...]
    windows: tuple[float, ...] = ()
    windowed: tuple[str, ...] = ()
    record: tuple[str, ...] = ()


# of records that are asked once; what the published figures on PhysioNet 2012 rest on
ONCE_FEATURES = FeatureSet(whole=("first", "last", "min", "max", "mean", "deviation", "early_mean", "count"))
# of records that are asked many times
HOURLY_FEATURES = FeatureSet(
    whole=("first", "last", "min", "max", "mean", "deviation", "count", "hours_since_last", "change"),
    windows=(6.0, 24.0),
    windowed=("min", "max", "mean", "count", "slope"),
    record=("prediction_time", "hours_since_any_event", "number_of_events"),
)


def summary_features(dataset: ExampleDataset, extractor: HyMaTEFeatureExtractor, features: FeatureSet) -> np.ndarray:
    """`SummaryFeatures` of every example of a data set, `(examples, features)` in float32."""
    return SummaryFeatures(dataset.events, extractor, features)(dataset.rows, dataset.prediction_times)


class SummaryFeatures:
    """Summary statistics of each variable at any prediction time of a split's records, and static features.

    In clinical units; NaN where there is no number. Nothing after the prediction time is used. Events without a number
    are in the counts and in the hours since the last one alone. The events are sorted once; after that an example
    costs a binary search per variable and window.

    Args:
        events: of the records, times in float32.
        extractor: knows the variables, and encodes the static columns.
        features: the statistics.
    """

    def __init__(self, events: Events, extractor: HyMaTEFeatureExtractor, features: FeatureSet) -> None:
        self.features, self.variables = features, extractor.variables
        self.static_names = list(extractor.static_feature_names)
        self._static = extractor.encode_static(events.static, len(events))
        # a segment is a variable of a record; its events stay in time order
        segment = events.rows * len(self.variables) + events.variable_ids
        order = np.argsort(segment, kind="stable")
        segment, self._times = segment[order], events.times[order]
        self._starts = np.searchsorted(segment, np.arange(len(events) * len(self.variables) + 1))
        # whole numbers that grow from event to event: the segment, then the rank of the time
        self._moments = np.unique(self._times)
        self._keys = segment * (len(self._moments) + 1) + np.searchsorted(self._moments, self._times, "right")
        known = ~np.isnan(events.values[order])
        self._numbers_before = np.concatenate([[0], np.cumsum(known)])
        self._numbers = _Numbers(events.values[order][known].astype(np.float64), segment[known], len(self.variables))

    @property
    def names(self) -> list[str]:
        """Name of each column that `__call__` returns."""
        own = [
            *self.features.whole,
            *(f"{name}, last {hours:g} h" for hours in self.features.windows for name in self.features.windowed),
        ]
        return [
            *(f"{variable} {name}" for variable in self.variables for name in own),
            *self.features.record,
            *self.static_names,
        ]

    def __call__(self, rows: np.ndarray, prediction_times: np.ndarray) -> np.ndarray:
        """Features of the records at positions `rows` at `prediction_times` (hours), both `(examples,)`.

        Returns:
            `(examples, len(names))` in float32.
        """
        table = np.empty((len(rows), len(self.names)), dtype=np.float32)
        at_once = max(1, CELLS_AT_ONCE // max(1, len(self.variables)))
        for at in range(0, len(rows), at_once):
            part = slice(at, at + at_once)
            table[part] = self._features(rows[part], prediction_times[part].astype(np.float64))
        return table

    def _features(self, rows: np.ndarray, times: np.ndarray) -> np.ndarray:
        segments = rows[:, None] * len(self.variables) + np.arange(len(self.variables))
        starts, ends = self._starts[segments], self._until(segments, times)
        found = self._statistics(starts, ends, times, self.features.whole)
        if "early_mean" in self.features.whole:
            early = self._until(segments, np.minimum(times, EARLY_HOURS))
            found["early_mean"] = self._statistics(starts, early, times, ("mean",))["mean"]
        columns = [found[name] for name in self.features.whole]
        for hours in self.features.windows:
            within = self._statistics(self._until(segments, times - hours), ends, times, self.features.windowed)
            columns += [within[name] for name in self.features.windowed]
        of_variables = np.stack(columns, axis=-1).reshape(len(rows), -1)
        of_record = {
            "prediction_time": times,
            "hours_since_any_event": self._since(starts, ends, times).min(axis=1, initial=np.inf),
            "number_of_events": (ends - starts).sum(axis=1),
        }
        record = [np.where(np.isfinite(of_record[name]), of_record[name], np.nan) for name in self.features.record]
        return np.column_stack([of_variables, *record, self._static[rows]])

    def _until(self, segments: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Position behind the last event of each segment at or before a time of its example."""
        ranks = np.searchsorted(self._moments, times, "right")
        return np.searchsorted(self._keys, segments * (len(self._moments) + 1) + ranks[:, None], "right")

    def _statistics(
        self, starts: np.ndarray, ends: np.ndarray, times: np.ndarray, names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Statistics of stretches of events, by name; at least those that are asked for, but `early_mean`."""
        found = self._numbers.statistics(self._numbers_before[starts], self._numbers_before[ends], names)
        if "hours_since_last" in names:
            since = self._since(starts, ends, times)
            found["hours_since_last"] = np.where(np.isfinite(since), since, np.nan)
        return found | {"count": ends - starts}

    def _since(self, starts: np.ndarray, ends: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Hours since the last event of each stretch; infinite where it has none."""
        last, present = np.full(starts.shape, -np.inf), ends > starts
        last[present] = self._times[ends[present] - 1]
        return times[:, None] - last


class _Numbers:
    """The numbers of all segments one after the other, and their running sums.

    Sums are of what a number is above the first of its segment, in deviations of its variable: so a stretch of equal
    numbers has no deviation, and a variable of large numbers takes no digits from the others.
    """

    def __init__(self, values: np.ndarray, segment: np.ndarray, num_variables: int) -> None:
        self.values = np.append(values, np.nan)  # a place past the end may be looked at
        begins = np.diff(segment, prepend=-1) != 0
        self._first = np.append(values[begins][np.cumsum(begins) - 1], np.nan)
        variable = segment % num_variables
        counts = np.maximum(np.bincount(variable, minlength=num_variables), 1)
        means = np.bincount(variable, values, num_variables) / counts
        spread = np.sqrt(np.bincount(variable, (values - means[variable]) ** 2, num_variables) / counts)
        self._scale = np.append(np.where(spread > 0, spread, 1)[variable], np.nan)
        above = ((self.values - self._first) / self._scale)[:-1]
        self._sums, self._squares = (np.concatenate([[0.0], np.cumsum(part)]) for part in (above, above**2))

    def statistics(self, starts: np.ndarray, ends: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Statistics of stretches of numbers that lie in one segment each; NaN where one is too short for it."""
        present = ends > starts
        first, last = self._at(starts, present), self._at(ends - 1, present)
        found = {"first": first, "last": last, "slope": last - first}
        if "change" in names:
            found["change"] = last - self._at(ends - 2, ends - starts > 1)
        if "mean" in names:
            found |= self._moments_of(starts, ends)
        if {"min", "max"} & set(names):
            found |= self._extremes(starts, ends, present)
        return found

    def _at(self, places: np.ndarray, present: np.ndarray) -> np.ndarray:
        return np.where(present, self.values[np.maximum(places, 0)], np.nan)

    def _moments_of(self, starts: np.ndarray, ends: np.ndarray) -> dict[str, np.ndarray]:
        count = np.where(ends > starts, ends - starts, np.nan)
        mean, square = ((sums[ends] - sums[starts]) / count for sums in (self._sums, self._squares))
        scale = self._scale[starts]
        deviation = scale * np.sqrt(np.maximum(0, square - mean**2))
        return {"mean": self._first[starts] + scale * mean, "deviation": deviation}

    def _extremes(self, starts: np.ndarray, ends: np.ndarray, present: np.ndarray) -> dict[str, np.ndarray]:
        """By reduceat over pairs of start and end, of which every other result counts."""
        bounds = np.stack([starts[present], ends[present]], -1).ravel()
        found = {}
        for name, ufunc in (("min", np.minimum), ("max", np.maximum)):
            found[name] = np.full(starts.shape, np.nan)
            if len(bounds):
                found[name][present] = ufunc.reduceat(self.values, bounds)[::2]
        return found
