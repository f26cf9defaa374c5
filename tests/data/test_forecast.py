"""What a model learns to forecast, for any records: what a plain loop finds after each cut, and nothing before it."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hymate_training.data.collators import ForecastCollator, prediction_mask
from hymate_training.data.examples import ExampleDataset
from modeling_hymate import Events, HyMaTEFeatureExtractor

START = 2.0  # hours of a record that every cut leaves
NAMES = ["a", "b", "c"]
TARGETS = ("forecast_values", "forecast_mask", "measured_mask")
INPUTS = ("values", "times", "variable_ids", "value_mask")
EXTRACTOR = HyMaTEFeatureExtractor(
    NAMES,
    value_ranges=[[-1e3, 1e3], [-1, 1], [0, 1e6]],
    value_medians=[None, None, 10.0],
    value_means=[1.0, 0.0, 2.0],
    value_deviations=[2.0, 0.5, 3.0],
    time_scale=16.0,
)

hours = st.one_of(st.integers(0, 12).map(float), st.floats(0, 12, width=32))
values = st.one_of(st.just(np.nan), st.floats(-1e4, 1e4, width=32))
# one value per time and variable: of two, neither is the first
record = st.dictionaries(st.tuples(hours, st.integers(0, 2)), values, max_size=12)
records = st.lists(st.tuples(record, st.floats(START + 0.5, 14, width=32)), min_size=1, max_size=4)
options = st.fixed_dictionaries(
    {
        "forecast_horizons": st.lists(st.sampled_from([0.25, 1.0, 2.5, 20.0]), min_size=1, max_size=3, unique=True),
        "cuts_per_record": st.integers(1, 3),
        "cut_by": st.sampled_from(["time", "event"]),
        "max_events": st.one_of(st.none(), st.integers(1, 5)),
        "seed": st.integers(0, 9),
    }
)

Event = tuple[float, int, float]


def listed(drawn: list[tuple[dict, float]]) -> list[list[Event]]:
    """Records with an event at their start and one late enough to be forecast, in the order of time."""
    return [
        sorted((time, variable, value) for (time, variable), value in {(0.0, 0): 1.0, **some, (last, 1): 0.5}.items())
        for some, last in drawn
    ]


def batch_of(collator: ForecastCollator, drawn: list[list[Event]], rows: list[int]) -> dict[str, torch.Tensor]:
    flat = [event for one in drawn for event in one]
    times, variables, numbers = (np.array(column, np.float32) for column in zip(*flat, strict=True))
    events = Events(
        offsets=np.cumsum([0, *map(len, drawn)]),
        times=times,
        variable_ids=variables.astype(np.int32),
        values=numbers,
        record_ids=[str(number) for number in range(len(drawn))],
    )
    last = np.array([one[-1][0] for one in drawn])
    return collator(ExampleDataset(events, np.arange(len(drawn)), last).__getitems__(rows))


def cuts_of(features: dict[str, torch.Tensor]) -> np.ndarray:
    """Hours of the cuts, row by row."""
    return (features["prediction_times"][prediction_mask(features)] * EXTRACTOR.time_scale).numpy()


def targets_of(features: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """What is to be forecast at each of these cuts, `(cuts, horizons, variables)`."""
    return {name: features[name][prediction_mask(features)].numpy() for name in TARGETS}


def plainly(one: list[Event], cut: np.float32, horizons: list[float]) -> dict[str, np.ndarray]:
    """The targets of a cut, `(horizons, variables)`, an event at a time."""
    found = {
        name: np.zeros((len(horizons), len(NAMES)), bool if name.endswith("mask") else np.float32) for name in TARGETS
    }
    for at, horizon in enumerate(horizons):
        for time, variable, value in one:
            ahead = np.float32(time) - cut
            if not 0 < ahead <= np.float32(horizon):
                continue
            found["measured_mask"][at, variable] = True
            if not np.isnan(value) and not found["forecast_mask"][at, variable]:
                found["forecast_mask"][at, variable] = True
                number = EXTRACTOR.standardize(np.array([variable]), np.array([value], np.float32))
                found["forecast_values"][at, variable] = number[0]
    return found


@settings(max_examples=150, deadline=None)
@given(drawn=records, options=options)
def test_targets_are_what_a_plain_loop_finds_after_each_cut(drawn, options):
    drawn = listed(drawn)
    collator = ForecastCollator(EXTRACTOR, min_observed_hours=START, **options)
    features = batch_of(collator, drawn, list(range(len(drawn))))
    cuts, found, count = cuts_of(features), targets_of(features), options["cuts_per_record"]
    assert len(cuts) == count * len(drawn)
    for at, cut in enumerate(cuts):
        one = drawn[at // count]
        assert START <= cut < one[-1][0] or (options["cut_by"] == "time" and cut == one[-1][0])
        expected = plainly(one, cut, options["forecast_horizons"])
        for name in TARGETS:
            np.testing.assert_allclose(found[name][at], expected[name], rtol=1e-6, err_msg=name)
    padded = ~prediction_mask(features)
    assert not any(features[name][padded].any() for name in TARGETS)


@settings(max_examples=100, deadline=None)
@given(drawn=records, options=options, random=st.randoms(use_true_random=False))
def test_a_row_is_the_same_in_any_batch_and_whatever_the_order(drawn, options, random):
    """Alone, among others, the others in another order, and events of one time in another order."""
    drawn = listed(drawn)
    collator = ForecastCollator(EXTRACTOR, min_observed_hours=START, **options)
    rows, count = list(range(len(drawn))), options["cuts_per_record"]
    together = targets_of(batch_of(collator, drawn, rows))
    for row in rows:
        alone = targets_of(batch_of(collator, drawn, [row]))
        for name in TARGETS:
            assert np.array_equal(alone[name], together[name][row * count : (row + 1) * count]), name
    random.shuffle(rows)
    shuffled = targets_of(batch_of(collator, drawn, rows))
    for name in TARGETS:
        split = np.split(together[name], len(drawn))
        assert np.array_equal(shuffled[name], np.concatenate([split[row] for row in rows])), name
    mixed = [sorted(random.sample(one, len(one)), key=lambda event: event[0]) for one in drawn]
    for name, found in targets_of(batch_of(collator, mixed, list(range(len(drawn))))).items():
        assert np.array_equal(found, together[name]), name


@settings(max_examples=100, deadline=None)
@given(drawn=records, options=options)
def test_inputs_end_at_the_cuts_and_targets_begin_there(drawn, options):
    """Other numbers after the last cut leave the inputs; other ones before it, or past the horizon, the targets."""
    drawn, count = listed(drawn), options["cuts_per_record"]
    collator = ForecastCollator(EXTRACTOR, min_observed_hours=START, **options)
    rows = list(range(len(drawn)))
    features = batch_of(collator, drawn, rows)
    cuts = cuts_of(features).reshape(-1, count)
    until = cuts + np.float32(max(options["forecast_horizons"]) + 1e-3)

    def changed(reach: str) -> dict[str, torch.Tensor]:
        def told(row: int, event: Event) -> Event:
            time = np.float32(event[0])
            seen, ahead = time <= cuts[row], (cuts[row] < time) & (time <= until[row])
            other = not seen.any() if reach == "later" else not ahead.any()
            return (event[0], event[1], 0.125) if other else event

        return batch_of(collator, [[told(row, one) for one in drawn[row]] for row in rows], rows)

    later = changed("later")
    for name in INPUTS:
        assert torch.equal(later[name], features[name]), name
    for name, found in targets_of(changed("elsewhere")).items():
        assert np.array_equal(found, targets_of(features)[name]), name
    known = features["attention_mask"]
    last = torch.where(known, features["times"], -torch.inf).amax(1) * EXTRACTOR.time_scale
    asked = torch.where(prediction_mask(features), features["prediction_times"], -torch.inf).amax(1)
    assert (last <= asked * EXTRACTOR.time_scale).all()
    if options["max_events"] is not None:
        assert known.sum(1).max() <= options["max_events"]
