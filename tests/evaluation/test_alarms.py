"""Alarms that snooze, which of them are true and how early they come: by hand, and against a loop over the hours."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hymate_training.evaluation.alarms import ESTIMATES, alarm_report, in_order, raised
from hymate_training.evaluation.resampling import Resampler
from hymate_training.evaluation.sample import LabeledPredictions


def hourly(*labels: str, probabilities: tuple[str, ...], repeat: int = 1):
    """One record per string, a character per hour: 1 where the label is positive; 9 for a probability of 0.9."""
    records = [index for _ in range(repeat) for index in range(len(labels))]
    names = [f"{turn}" for turn, record in enumerate(records) for _ in labels[record]]
    times = np.concatenate([np.arange(len(labels[record]), dtype=np.float32) for record in records])
    y = [int(letter) for record in records for letter in labels[record]]
    p = [int(letter) / 10 for record in records for letter in probabilities[record]]
    return LabeledPredictions("binary", y, p, groups=names), times


def test_alarms_by_hand():
    # the first alarm of record 0 is false, the second detects; record 1 is alarmed while the label still sleeps, which
    # its snooze outlasts; record 2 is missed; record 3 alarmed for nothing
    sample, times = hourly(
        "00000011",
        "00011111",
        "00000001",
        "00000000",
        probabilities=("90000990", "01900000", "00000000", "00000099"),
        repeat=10,
    )
    found = alarm_report(sample, times, [0.5], snooze_hours=2, label_lead=6.0)
    assert found["patient_days"] == pytest.approx(10 * 4 * 8 / 24)
    assert found["num_events"] == 30
    (row,) = found["by_threshold"]
    assert row["num_alarms"] == 10 * (2 + 1 + 0 + 1)
    assert row["alarms_per_100_patient_days"] == pytest.approx(100 * 40 / (320 / 24))
    assert row["share_of_alarms_true"] == pytest.approx(2 / 4)
    assert row["share_of_events_detected"] == pytest.approx(2 / 3)
    assert row["median_lead_hours"] == pytest.approx((7 + 7) / 2)  # at hours 5 and 2, events at 12 and 9


def by_loop(records, times, labels, probabilities, threshold, snooze):
    """Alarms, true ones, and the lead of each record's first true one to its first positive label."""
    alarms, true, leads = 0, 0, []
    for record in np.unique(records):
        rows = sorted(np.flatnonzero(records == record), key=lambda row: times[row])
        silent_until, detected = -np.inf, False
        for row in rows:
            if probabilities[row] < threshold or times[row] < silent_until:
                continue
            alarms, silent_until = alarms + 1, times[row] + snooze
            if any(labels[other] and times[row] <= times[other] < silent_until for other in rows):
                true += 1
                if not detected:
                    leads.append(min(times[other] for other in rows if labels[other]) - times[row])
                detected = True
    return alarms, true, leads


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 30), st.booleans(), st.sampled_from([0.1, 0.5, 0.9])),
        min_size=2,
        max_size=60,
        unique_by=lambda row: row[:2],
    ),
    st.sampled_from([1.0, 2.5, 6.0]),
    st.randoms(),
)
def test_alarms_agree_with_a_loop_over_the_hours_in_any_order(rows, snooze, random):
    random.shuffle(rows)
    records, times, labels, probabilities = (np.array(column) for column in zip(*rows, strict=True))
    sample = LabeledPredictions("binary", labels, probabilities, groups=records)
    alarms, true, leads = by_loop(records, times, labels, probabilities, 0.5, snooze)
    hours = in_order(sample, times.astype(np.float32), snooze)
    found = raised(hours, sample.predictions, 0.5, snooze)
    assert len(found) == alarms
    right = hours.next_positive[found] < hours.time[found] + snooze
    assert right.sum() == true
    first = found[right][np.diff(hours.record[found[right]], prepend=-1) > 0]
    assert sorted(hours.first_positive[hours.record[first]] - hours.time[first]) == sorted(leads)


def test_intervals_are_those_of_repeated_records():
    rng = np.random.default_rng(0)
    records, times = np.repeat(np.arange(60), 30), np.tile(np.arange(30.0), 60)
    labels = (rng.random(60)[records] < 0.5) & (times > 15 + 10 * rng.random(60)[records])
    sample = LabeledPredictions("binary", labels, rng.random(1800) * 0.5 + 0.3 * labels, groups=records)
    resampler = Resampler(60, num_samples=50, seed=2)
    found = alarm_report(sample, times, [0.4], resampler=resampler)["by_threshold"][0]
    values = []
    for counts in np.concatenate(list(resampler.counts())):
        drawn = np.repeat(np.arange(60), counts.astype(int))
        rows = np.concatenate([np.flatnonzero(records == record) for record in drawn])
        copy = LabeledPredictions(
            "binary", labels[rows], sample.predictions[rows], groups=np.repeat(np.arange(len(drawn)), 30)
        )
        row = alarm_report(copy, times[rows], [0.4], resampler=Resampler(60, num_samples=1))["by_threshold"][0]
        values.append([row[name] for name in ESTIMATES])
    expected = np.quantile(np.array(values, dtype=float), (0.025, 0.975), axis=0).T
    np.testing.assert_allclose([found["confidence_intervals"][name] for name in ESTIMATES], expected, rtol=1e-9)


def test_what_rests_on_few_records_is_not_told():
    sample, times = hourly("0001", probabilities=("0009",), repeat=3)
    (row,) = alarm_report(sample, times, [0.5])["by_threshold"]
    assert [row[name] for name in ESTIMATES] == [None] * 4
    with pytest.raises(ValueError, match="snooze_hours must be positive"):
        alarm_report(sample, times, [0.5], snooze_hours=0)
