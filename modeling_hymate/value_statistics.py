"""What is learned of the values and times of training records: clipping ranges, means, deviations, a scale of time."""

import math
import sys
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from .items import is_listlike

CLIP_PERCENTILES = (0.1, 99.9)
RAREST = 0.001  # share of the values below which none becomes larger by being rarer
TIME_SCALE_PERCENTILE = 99
HEAVY_TAILS = 25.0  # a range wider than so many interquartile ranges
NUM_QUANTILES = 17
FIT_AT_ONCE = 1 << 21  # events that `fit` looks at in one go


def is_finite(number: Any) -> bool:
    """Whether something is a number that double precision holds."""
    is_number = isinstance(number, Real) and not isinstance(number, bool)
    return is_number and abs(number) <= sys.float_info.max  # math.isfinite fails for a large int


def check_statistics(prefix: str, column: str, bounds: Any, median: Any, mean: Any, deviation: Any):
    """Raises ValueError, which says which statistic of which column is wrong."""
    if not is_listlike(bounds) or len(bounds) != 2 or not all(map(is_finite, bounds)) or bounds[0] > bounds[1]:
        raise ValueError(f"{prefix}ranges of {column} must be two finite numbers, the lower first, got {bounds!r}")
    if median is not None and not (is_finite(median) and bounds[0] < median):
        raise ValueError(
            f"{prefix}medians of {column} must be a finite number above the lower end of its range, got {median!r}"
        )
    if not is_finite(mean):
        raise ValueError(f"{prefix}means of {column} must be a finite number, got {mean!r}")
    if not is_finite(deviation) or deviation <= 0:
        raise ValueError(f"{prefix}deviations of {column} must be a positive number, got {deviation!r}")


def check_quantiles(column: str, quantiles: Any):
    """Raises ValueError for what are no quantiles of a static column; None is none."""
    if quantiles is None:
        return
    known = is_listlike(quantiles) and len(quantiles) > 1 and all(map(is_finite, quantiles))
    if not known or list(quantiles) != sorted(quantiles) or quantiles[0] == quantiles[-1]:
        raise ValueError(f"quantiles of {column} must be finite numbers, ascending, not all the same: {quantiles!r}")


class Counted:
    """Numbers as the distinct ones among them, ascending, and how often each occurs."""

    def __init__(self):
        self.values, self.counts = np.zeros(0), np.zeros(0, dtype=np.int64)

    def add(self, numbers: np.ndarray) -> "Counted":
        values, counts = np.unique(numbers, return_counts=True)
        both = np.concatenate([self.values, values])
        self.values, place = np.unique(both, return_inverse=True)
        weights = np.concatenate([self.counts, counts])
        self.counts = np.bincount(place, weights, len(self.values)).astype(np.int64)
        return self

    def percentiles(self, percents: Sequence[float]) -> list[float]:
        """As `np.percentile` has them, linear between neighbors."""
        ends = np.cumsum(self.counts)
        places = np.asarray(percents) / 100 * (ends[-1] - 1)
        below, above = (
            self.values[np.searchsorted(ends, rank, side="right")] for rank in (np.floor(places), np.ceil(places))
        )
        return (below + (above - below) * (places - np.floor(places))).tolist()

    def mean(self, numbers: np.ndarray) -> float:
        """Mean of what the distinct values became, `(distinct,)`, each as often as its value occurs."""
        return float(np.average(numbers, weights=self.counts))


def fit_values(variable_ids: np.ndarray, values: np.ndarray, num_variables: int) -> dict[str, list]:
    """The statistics of each variable, as arguments of the feature extractor."""
    counted = [Counted() for _ in range(num_variables)]
    for at in range(0, len(values), FIT_AT_ONCE):  # the arrays may be files that are larger than the memory
        ids, numbers = variable_ids[at : at + FIT_AT_ONCE], values[at : at + FIT_AT_ONCE]
        known = ~np.isnan(numbers)
        ids, numbers = ids[known], numbers[known]
        sizes = np.bincount(ids, minlength=num_variables)
        groups = np.split(numbers[np.argsort(ids, kind="stable")], np.cumsum(sizes)[:-1])
        for variable in np.flatnonzero(sizes):
            counted[variable].add(groups[variable])
    fitted = [fit_variable(numbers) for numbers in counted]
    return {
        "value_ranges": [[low, high] for low, high, *_ in fitted],
        "value_medians": [median for _, _, median, *_ in fitted],
        "value_means": [mean for *_, mean, _ in fitted],
        "value_deviations": [deviation for *_, deviation in fitted],
    }


def fit_variable(counted: Counted, allow_log: bool = True) -> tuple[float, float, float | None, float, float]:
    """Low, high, median if the logarithm helps, mean and deviation of one variable's training values."""
    values = counted.values
    if not len(values):
        return 0.0, 0.0, None, 0.0, 1.0
    if len(values) == 1:
        return float(values[0]), float(values[0]), None, float(values[0]), 1.0
    low, median, high = counted.percentiles([CLIP_PERCENTILES[0], 50, CLIP_PERCENTILES[1]])
    if low == high:  # nearly all values are one, and clipping would make the others the same
        low, high = float(values[0]), float(values[-1])
        mean, deviation, _ = _moments(counted, values)
        return low, high, None, mean, max(deviation, math.sqrt(RAREST) * (high - low))
    scaled, used_median = np.clip(values, low, high), None
    mean, deviation, skewness = _moments(counted, scaled)
    if allow_log and median > low and skewness > 1:
        logarithm = np.log1p((scaled - low) / (median - low))
        found = _moments(counted, logarithm)
        if abs(found[2]) < skewness / 2:
            (mean, deviation, _), used_median = found, median
    return low, high, used_median, mean, deviation or 1.0


def fit_quantiles(counted: Counted, low: float, high: float) -> list[float] | None:
    """Quantiles of a static column between its clipping bounds, where these are so far apart that standardized numbers
    would mostly be the same, such as hours between admission and intensive care; None where they are not."""
    if not len(counted.values):
        return None
    lower, upper = counted.percentiles([25, 75])
    if high - low <= HEAVY_TAILS * (upper - lower) or lower == upper:
        return None
    inner = counted.percentiles(np.linspace(0, 100, NUM_QUANTILES)[1:-1].tolist())
    return [low, *inner, high]


def standardize_static(numbers: np.ndarray, column: Mapping[str, Any]) -> np.ndarray:
    """Numbers of a static column, NaN where missing, as multiples of a standard deviation: their own, or that of their
    ranks, if the column has quantiles, between which ranks are linear."""
    if column.get("quantiles") is None:
        return (np.clip(numbers, *column["range"]) - column["mean"]) / column["deviation"]
    quantiles, place, sizes = np.unique(column["quantiles"], return_inverse=True, return_counts=True)
    ranks = np.bincount(place, np.linspace(-1, 1, len(place))) / sizes  # equal quantiles share their mean rank
    return math.sqrt(3) * np.interp(numbers, quantiles, ranks)


def _moments(counted: Counted, numbers: np.ndarray) -> tuple[float, float, float]:
    """Mean, standard deviation and skewness of what the distinct values became."""
    mean = counted.mean(numbers)
    with np.errstate(over="ignore"):  # an infinite deviation is refused
        deviation = math.sqrt(counted.mean((numbers - mean) ** 2))
    return mean, deviation, counted.mean(((numbers - mean) / deviation) ** 3) if deviation else 0.0


def fit_time_scale(times: np.ndarray) -> float:
    """The smallest power of two, in hours, that 99 % of the events do not come after; 1 where these are at 0."""
    powers = np.exp2(np.arange(-24, 64))
    later = np.zeros(len(powers) + 1, dtype=np.int64)  # events by the number of powers that they come after
    for at in range(0, len(times), FIT_AT_ONCE):
        after = np.searchsorted(powers, times[at : at + FIT_AT_ONCE])
        later += np.bincount(after, minlength=len(later))
    place = np.argmax(np.cumsum(later) >= TIME_SCALE_PERCENTILE / 100 * len(times))
    return float(powers[place]) if place else 1.0
