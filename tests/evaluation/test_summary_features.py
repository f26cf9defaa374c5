"""Features of trees: against one loop per cell, with ties, windows, gaps and events without numbers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hymate_training.data.examples import ExampleDataset
from hymate_training.evaluation.summary_features import (
    EARLY_HOURS,
    HOURLY_FEATURES,
    ONCE_FEATURES,
    FeatureSet,
    SummaryFeatures,
    summary_features,
)
from modeling_hymate import Events, HyMaTEFeatureExtractor

SCALES = np.array([1.0, 1e5, 1e-3, 40.0])  # of each variable's numbers
NAMES = [f"v{index}" for index in range(len(SCALES))]
EVERYTHING = replace(HOURLY_FEATURES, whole=(*HOURLY_FEATURES.whole, "early_mean"))


@pytest.fixture(scope="module")
def extractor() -> HyMaTEFeatureExtractor:
    neutral = {"value_ranges": [[-9, 9]] * 4, "value_medians": [None] * 4, "value_means": [0.0] * 4}
    column = {"name": "age", "range": [-9.0, 9.0], "mean": 0.0, "deviation": 1.0}
    return HyMaTEFeatureExtractor(NAMES, **neutral, value_deviations=[1.0] * 4, static_columns=[column])


def random_events(seed: int, num_records: int) -> Events:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 12, num_records)
    rows = np.repeat(np.arange(num_records), lengths)
    times = rng.integers(0, 40, len(rows)).astype(np.float32)  # whole hours, so that there are ties
    order = np.lexsort((times, rows))
    variables = rng.integers(0, len(SCALES), len(rows))
    numbers = (3 + rng.integers(0, 3, len(rows))) * SCALES[variables]  # often the same one again
    return Events(
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        times=times[order],
        variable_ids=variables,
        values=np.where(rng.random(len(rows)) < 0.2, np.nan, numbers),
        static={"age": rng.normal(size=num_records)},
        record_ids=[str(row) for row in range(num_records)],
    )


def expected(events: Events, row: int, time: float, variable: int, hours: float | None) -> dict[str, float]:
    """The statistics of one cell, of the whole record where there are no `hours`."""
    inside = slice(events.offsets[row], events.offsets[row + 1])
    chosen = (events.times[inside] <= time) & (events.variable_ids[inside] == variable)
    if hours is not None:
        chosen &= events.times[inside] > time - hours
    values, times = events.values[inside][chosen].astype(float), events.times[inside][chosen]
    found = {"count": len(values), "hours_since_last": time - times[-1] if len(times) else np.nan}
    known, early = values[~np.isnan(values)], values[~np.isnan(values) & (times <= EARLY_HOURS)]
    if not len(known):
        return dict.fromkeys((*EVERYTHING.whole, "slope"), np.nan) | found
    return found | {
        "first": known[0],
        "last": known[-1],
        "min": known.min(),
        "max": known.max(),
        "mean": known.mean(),
        "deviation": known.std(),
        "early_mean": early.mean() if len(early) else np.nan,
        "change": known[-1] - known[-2] if len(known) > 1 else np.nan,
        "slope": known[-1] - known[0],
    }


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_every_cell_is_that_of_a_plain_loop(extractor, seed, num_records):
    events = random_events(seed, num_records)
    features = SummaryFeatures(events, extractor, EVERYTHING)
    rng = np.random.default_rng(seed)
    rows, times = rng.integers(0, num_records, 8), rng.uniform(-1, 50, 8)
    times[:4] = np.round(times[:4])
    table = features(rows, times)
    assert table.shape == (8, len(features.names))
    for example, (row, time) in enumerate(zip(rows, times, strict=True)):
        cells = dict(zip(features.names, table[example], strict=True))
        for index, name in enumerate(NAMES):
            for hours, statistics, suffix in (
                (None, EVERYTHING.whole, ""),
                *((hours, HOURLY_FEATURES.windowed, f", last {hours:g} h") for hours in HOURLY_FEATURES.windows),
            ):
                told = expected(events, row, time, index, hours)
                for statistic in statistics:
                    value = cells.pop(f"{name} {statistic}{suffix}")
                    exact = 1e-5 * SCALES[index]
                    assert value == pytest.approx(told[statistic], rel=1e-6, abs=exact, nan_ok=True)
        inside = events.times[events.offsets[row] : events.offsets[row + 1]]
        seen = inside[inside <= time]
        assert cells.pop("number_of_events") == len(seen)
        assert cells.pop("prediction_time") == pytest.approx(time)
        since = time - seen[-1] if len(seen) else np.nan
        assert cells.pop("hours_since_any_event") == pytest.approx(since, abs=1e-5, nan_ok=True)
        assert cells.pop("age") == pytest.approx(events.static["age"][row], abs=1e-5)
        assert cells == {"age missing": 0}


def test_equal_numbers_have_no_deviation_among_large_ones(extractor):
    """Sums that run over all records would leave the rounding of large numbers in the deviation of small ones."""
    count = 20_000
    rng = np.random.default_rng(0)
    values = np.where(np.arange(count) % 2, 7.4, rng.normal(3e5, 1e5, count)).astype(np.float32)
    events = Events(
        offsets=np.arange(0, count + 1, 10),
        times=np.tile(np.arange(10, dtype=np.float32), count // 10),
        variable_ids=np.arange(count) % 2,
        values=values,
        static={"age": np.zeros(count // 10)},
        record_ids=[str(row) for row in range(count // 10)],
    )
    last = np.full(len(events), 9.0)
    found = SummaryFeatures(events, extractor, FeatureSet(("deviation", "mean")))(np.arange(len(events)), last)
    assert (found[:, 2] == 0).all()
    assert (found[:, 3] == np.float32(7.4)).all()


def test_nothing_after_the_prediction_time_is_used(extractor):
    events = random_events(3, 30)
    cut = events.select(events.times <= 17)
    rows, times = np.arange(30), np.full(30, 17.0)
    np.testing.assert_array_equal(
        *(SummaryFeatures(some, extractor, EVERYTHING)(rows, times) for some in (events, cut))
    )


def test_every_example_of_a_data_set_has_its_features(extractor):
    events = random_events(5, 6)
    once = ExampleDataset(events, np.arange(6), np.full(6, 48.0))
    hourly = ExampleDataset(events, np.repeat(np.arange(6), 2), np.tile([24.0, 48.0], 6))
    for chosen in (ONCE_FEATURES, HOURLY_FEATURES):
        names = SummaryFeatures(events, extractor, chosen).names
        assert len(set(names)) == len(names)
        at_the_end, both = (summary_features(dataset, extractor, chosen) for dataset in (once, hourly))
        assert both.shape == (12, len(names))
        np.testing.assert_array_equal(at_the_end, both[1::2])
