"""Collation: what a batch holds is what a plain loop would put there; cuts of long records; static columns."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset

from hymate_training.data.collators import ForecastCollator, TaskCollator, fit_feature_extractor
from hymate_training.data.examples import ExampleDataset, load_forecast, load_task
from hymate_training.data.pool import FolderPool
from hymate_training.data.prepared_folder import PreparedFolder
from modeling_hymate import Events, HyMaTEFeatureExtractor
from tests.support.helpers import make_model, same

CATEGORIES = ("a", "b", "1")


@pytest.fixture(scope="module")
def years() -> ExampleDataset:
    """Two records of ten years: three visits of a few hours and nothing in between."""
    visits = np.concatenate([start + np.arange(0, 5, 0.5) for start in (0, 30_000, 87_600)]).astype(np.float32)
    events = Events(
        offsets=np.array([0, 30, 60]),
        times=np.tile(visits, 2),
        variable_ids=np.arange(60, dtype=np.int32) % 6,
        values=np.arange(60, dtype=np.float32),
        record_ids=["0", "1"],
    )
    return ExampleDataset(events, np.arange(2), np.full(2, visits[-1]))


@pytest.fixture(scope="module")
def extractor(years) -> HyMaTEFeatureExtractor:
    return HyMaTEFeatureExtractor.fit(years.events, [f"code {number}" for number in range(6)])


def test_cuts_at_events_always_leave_something_to_forecast(years, extractor):
    cuts = []
    for epoch in range(60):
        years.set_epoch(epoch)
        examples = years.__getitems__([0, 1])
        collator = ForecastCollator(extractor, min_observed_hours=1.0, cuts_per_record=3, cut_by="event", seed=3)
        features = collator(examples)
        assert features["forecast_mask"].shape == (2, 3, 1, 6)
        assert features["forecast_mask"].any(-1).all()
        assert features["attention_mask"].any(1).all()
        cuts += collator._cuts(examples).ravel().tolist()
        plain = ForecastCollator(extractor, min_observed_hours=1.0, cuts_per_record=3, seed=3)
        assert (plain._cuts(examples) >= 1).all()
    assert min(cuts) >= 1
    # all three visits are reached, where cuts uniform over the hours would hardly ever meet one
    assert np.histogram(cuts, [0, 10, 29_000, 30_010, 87_000, 87_610])[0].astype(bool).tolist()[::2] == [True] * 3


def test_windows_of_long_records_end_at_the_cut_and_differ_by_epoch(years, extractor):
    last = set()
    for epoch in range(20):
        years.set_epoch(epoch)
        examples = years.__getitems__([0])
        collator = ForecastCollator(extractor, min_observed_hours=1.0, max_events=4, cut_by="event")
        features = collator(examples)
        [[cut]] = collator._cuts(examples)
        seen = years.events.times[:30][years.events.times[:30] <= cut]
        assert torch.equal(
            features["times"][0], torch.from_numpy((seen[-4:] / extractor.time_scale).astype(np.float32))
        )
        last.add(float(features["times"][0, -1]))
    assert len(last) > 5
    fixed = ForecastCollator(extractor, min_observed_hours=1.0, cut_by="event", fixed_cuts=True)
    years.set_epoch(0)
    one = fixed(years.__getitems__([0, 1]))
    years.set_epoch(1)
    same(fixed(years.__getitems__([0, 1])), one)


def test_channel_tokens_follow_the_codes_of_a_record_not_the_vocabulary(years):
    for num_variables in (6, 5000):
        extractor = HyMaTEFeatureExtractor.fit(years.events, [f"code {number}" for number in range(num_variables)])
        features = TaskCollator(extractor, max_events=4)(years.__getitems__([0, 1]))
        model = make_model(num_variables=num_variables, num_static_features=0)
        assert model(**features).channel_hidden_state.shape[1] == 4


def test_batches_hold_what_a_plain_loop_puts_there(synthetic_folder):
    extractor = fit_feature_extractor(PreparedFolder(synthetic_folder))
    dataset = load_task(PreparedFolder(synthetic_folder), "in_hospital_mortality", "train", extractor.variables)
    indices = np.random.default_rng(0).permutation(len(dataset))[:16]
    features = TaskCollator(extractor)(dataset.__getitems__(indices))
    for row, index in enumerate(indices):
        start = dataset.events.offsets[dataset.rows[index]]
        stop = dataset.events.offsets[dataset.rows[index] + 1]
        for place in range(features["values"].shape[1]):
            at = start + place
            present = at < stop and dataset.events.times[at] <= dataset.prediction_times[index]
            assert features["attention_mask"][row, place] == present
            if present:
                variable, value = dataset.events.variable_ids[at], dataset.events.values[at]
                assert features["variable_ids"][row, place] == variable
                assert features["times"][row, place] == np.float32(dataset.events.times[at] / extractor.time_scale)
                known = not np.isnan(value)
                assert features["value_mask"][row, place] == known
                expected = extractor.standardize(np.array([variable]), np.array([value]))[0] if known else 0
                assert features["values"][row, place] == np.float32(expected)
    assert torch.equal(features["labels"], torch.from_numpy(dataset.labels[indices]))
    one_by_one = TaskCollator(extractor)([ConcatDataset([dataset, dataset])[len(dataset) + at] for at in indices])
    same(one_by_one, features)
    assert features["max_channels"] == max(
        len(set(row[row_mask].tolist()))
        for row, row_mask in zip(features["variable_ids"], features["attention_mask"], strict=True)
    )
    cut = ForecastCollator(extractor)
    apart, together = cut([dataset[at] for at in indices]), cut(dataset.__getitems__(indices))
    same(apart, together)
    with pytest.raises(ValueError, match="a batch must be what a data set of examples returns"):
        TaskCollator(extractor)([{"values": [1.0]}])


event = st.tuples(
    st.one_of(st.integers(0, 6).map(float), st.floats(0, 48, width=32)),
    st.integers(0, 2),
    st.one_of(st.just(np.nan), st.floats(-1e6, 1e6, width=32)),
)


@settings(max_examples=100, deadline=None)
@given(
    records=st.lists(st.lists(event, min_size=1, max_size=9), min_size=1, max_size=6),
    later=st.floats(0, 60, width=32),
    max_events=st.one_of(st.none(), st.integers(1, 5)),
    random=st.randoms(use_true_random=False),
)
def test_a_batch_holds_the_latest_events_before_each_prediction(records, later, max_events, random):
    """Ties, records of different lengths, missing numbers; what comes later, the other records and their order are
    nothing to a row."""
    ordered = [sorted(record, key=lambda one: one[0]) for record in records]
    hours = np.array([max(record[0][0], min(later, record[-1][0])) for record in ordered], dtype=np.float32)

    def dataset(changed: bool) -> ExampleDataset:
        flat = [
            (time, variable, 1e9 if changed and time > asked else value)
            for record, asked in zip(ordered, hours, strict=True)
            for time, variable, value in record
        ]
        times, variables, values = (np.array(column) for column in zip(*flat, strict=True))
        offsets = np.cumsum([0, *map(len, ordered)])
        ids = [str(number) for number in range(len(ordered))]
        events = Events(
            offsets, times.astype(np.float32), variables.astype(np.int32), values.astype(np.float32), record_ids=ids
        )
        return ExampleDataset(events, np.arange(len(ordered)), hours)

    extractor = HyMaTEFeatureExtractor(
        ["a", "b", "c"],
        value_ranges=[[-1e3, 1e3], [-1, 1], [0, 1e6]],
        value_medians=[None, None, 10.0],
        value_means=[1.0, 0.0, 2.0],
        value_deviations=[2.0, 0.5, 3.0],
        time_scale=16.0,
    )
    collator, rows = TaskCollator(extractor, max_events), list(range(len(ordered)))
    features = collator(dataset(False).__getitems__(rows))
    for row, (record, asked) in enumerate(zip(ordered, hours, strict=True)):
        seen = [one for one in record if np.float32(one[0]) <= asked][-(max_events or 99) :]
        mask = features["attention_mask"][row]
        assert mask.tolist() == [True] * len(seen) + [False] * (len(mask) - len(seen))
        times, variables, values = (np.array(column) for column in zip(*seen, strict=True))
        assert features["variable_ids"][row][mask].tolist() == variables.tolist()
        assert features["times"][row][mask].tolist() == (times.astype(np.float32) / 16).tolist()
        assert features["value_mask"][row][mask].tolist() == (~np.isnan(values)).tolist()
        expected = np.nan_to_num(extractor.standardize(variables, values.astype(np.float32))).astype(np.float32)
        assert features["values"][row][mask].numpy() == pytest.approx(expected, rel=1e-6)
        assert not features["values"][row][~mask].any()
    same(collator(dataset(True).__getitems__(rows)), features)
    random.shuffle(rows)
    shuffled = collator(dataset(False).__getitems__(rows))
    for name in ("values", "times", "variable_ids", "attention_mask", "value_mask"):
        assert torch.equal(shuffled[name], features[name][rows])


def test_static_columns_encode_alike_from_any_array():
    numbers = np.array([1.5, np.nan, 3.0])
    letters = ["a", None, 1]
    extractor = HyMaTEFeatureExtractor(
        static_columns=[
            {"name": "number", "range": [0, 2], "mean": 1.0, "deviation": 0.5},
            {"name": "letter", "categories": CATEGORIES},
        ]
    )
    expected = np.array([[1, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 1], [2, 0, 0, 0, 1, 0]], dtype=np.float32)
    for column in (numbers, numbers.astype(np.float32), np.array([1.5, None, 3], dtype=object)):
        encoded = extractor.encode_static({"number": column, "letter": np.array(letters, dtype=object)}, 3)
        assert np.array_equal(encoded, expected)
    assert np.array_equal(extractor.encode_static({}, 1), [[0, 1, 0, 0, 0, 1]])
    with pytest.raises(ValueError, match="'letter': 'z' is not one of 'a', 'b', '1'"):
        extractor.encode_static({"letter": np.array(["z"], dtype=object)}, 1)
    with pytest.raises(ValueError, match="'number' must hold finite numbers"):
        extractor.encode_static({"number": np.array([np.inf])}, 1)


def test_records_too_short_to_forecast_are_named(synthetic_folder):
    extractor = fit_feature_extractor(PreparedFolder(synthetic_folder))
    with pytest.raises(ValueError, match="min_observed_hours=1000"):
        load_forecast(FolderPool([synthetic_folder]), "train", extractor.variables, 1000)
