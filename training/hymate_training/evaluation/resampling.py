"""Resamples of the records, with all of their rows, and intervals from what a statistic is on each of them."""

from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

WEIGHTS_AT_ONCE = 1_000_000  # weights held at a time: 8 MB, near the size of a cache


class Resampler:
    """Draws as many records as there are with replacement, `num_samples` times.

    The draws depend on the number of records, `num_samples` and `seed` alone, so that whatever is computed on the
    resamples of one Resampler, or of two that are alike, is paired.

    Args:
        num_records: how many records there are.
        num_samples: how many resamples.
        seed: of the draws.
        level: what share of the resamples an interval covers.

    Raises:
        ValueError: if `num_samples` or `level` cannot be.
    """

    def __init__(self, num_records: int, *, num_samples: int = 1000, seed: int = 0, level: float = 0.95) -> None:
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, not {num_samples}")
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, not {level}")
        self.num_records, self.num_samples, self.seed, self.level = num_records, num_samples, seed, level

    def counts(self, width: int = 1) -> Iterator[np.ndarray]:
        """How often each record is drawn, float64 `(resamples, num_records)`, some resamples at a time: fewer for a
        caller that holds `width` numbers for each resample."""
        generator = np.random.default_rng(self.seed)
        at_once = max(1, WEIGHTS_AT_ONCE // max(width, self.num_records))
        starts = range(0, self.num_samples, at_once)
        for start in tqdm(starts, desc="bootstrap", unit="chunk", delay=3, leave=False, disable=None):
            size = min(at_once, self.num_samples - start)
            drawn = generator.integers(self.num_records, size=(size, self.num_records))
            drawn += self.num_records * np.arange(size)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=size * self.num_records)
            yield counts.reshape(size, self.num_records).astype(np.float64)

    def sums(self, per_record: np.ndarray) -> np.ndarray:
        """What numbers of each record `(num_records, ...)` sum to in each resample, `(num_samples, ...)`."""
        flat = per_record.reshape(self.num_records, -1)
        sums = np.concatenate([counts @ flat for counts in self.counts()])
        return sums.reshape(self.num_samples, *per_record.shape[1:])

    def interval(self, values: np.ndarray) -> list[float] | None:
        """`percentile_interval` of values `(num_samples,)`; None where there is one record only."""
        return None if self.num_records < 2 else percentile_interval(values, self.level)

    def intervals(self, values: np.ndarray) -> list[list[float] | None]:
        """`interval` of each column of values `(num_samples, n)`."""
        return [self.interval(column) for column in values.T]


def percentile_interval(values: np.ndarray, level: float) -> list[float] | None:
    """The middle `level` of the resamples' values; None where fewer than half of them are defined (not NaN)."""
    defined = values[~np.isnan(values)]
    if len(defined) < len(values) / 2:
        return None
    return np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]).tolist()


def record_sums(record: np.ndarray, num_records: int, columns: np.ndarray) -> np.ndarray:
    """Sums over the rows of each record: columns `(n, k)` -> `(num_records, k)`."""
    return np.stack([np.bincount(record, column, num_records) for column in columns.T], axis=1)
