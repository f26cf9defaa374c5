"""Summary statistics of each variable up to the prediction time: the table that trees and linear models learn from."""

import numpy as np

from hymate_training.collation import ExampleDataset
from modeling_hymate import HyMaTEFeatureExtractor

EARLY_HOURS = 12.0
STATISTICS = ("first", "last", "min", "max", "mean", "deviation", "early_mean", "count")


def summary_features(dataset: ExampleDataset, extractor: HyMaTEFeatureExtractor) -> np.ndarray:
    """`STATISTICS` of each variable's numbers, in clinical units and NaN where there is none, and static features.

    The early mean is that of the record's first 12 hours. Events without a number are in the count alone.

    Returns:
        `(examples, variables * statistics + static features)`.
    """
    events = dataset.events.take(dataset.rows)
    events = events.select(events.times <= np.repeat(dataset.prediction_times, events.lengths))
    size = len(events) * extractor.num_variables
    cells = events.rows * extractor.num_variables + events.variable_ids
    features = np.full((size, len(STATISTICS)), np.nan)
    features[:, -1] = np.bincount(cells, minlength=size)
    known = ~np.isnan(events.values)
    if known.any():
        cells, values, times = cells[known], events.values[known].astype(np.float64), events.times[known]
        order = np.argsort(cells, kind="stable")  # events are in time order within a record
        cells, values, early = cells[order], values[order], times[order] <= EARLY_HOURS
        starts = np.flatnonzero(np.diff(cells, prepend=-1))
        ends = np.append(starts[1:], len(cells))
        mean = np.add.reduceat(values, starts) / (ends - starts)
        square = np.add.reduceat(values**2, starts) / (ends - starts)
        early_counts = np.add.reduceat(early.astype(float), starts)
        with np.errstate(invalid="ignore"):
            early_mean = np.add.reduceat(np.where(early, values, 0), starts) / early_counts
        smallest, largest = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
        deviation = np.sqrt(np.maximum(0, square - mean**2))
        features[cells[starts], :-1] = np.stack(
            [values[starts], values[ends - 1], smallest, largest, mean, deviation, early_mean], axis=1
        )
    static = extractor.encode_static(dataset.events.static, len(dataset.events))[dataset.rows]
    return np.concatenate([features.reshape(len(events), -1), static], axis=1)
