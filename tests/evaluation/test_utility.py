"""The utility of alarms: the published curve at its corners, cases added up by hand, thresholds, and the command."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hymate_training.cli.main import main
from hymate_training.evaluation.metrics import report
from hymate_training.evaluation.resampling import Resampler
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.evaluation.utility import (
    add_utility,
    best_threshold,
    normalized_utility,
    physionet2019_gains,
    sepsis_utilities,
    utility_samples,
)
from hymate_training.readers import physionet2019
from tests.support.sepsis_files import make_hospital, write_hospital


@pytest.mark.parametrize(
    ("hours", "alarm", "silence"),
    [
        (-np.inf, -0.05, 0),  # no sepsis
        (-30, -0.05, 0),
        (-13, -0.05, 0),
        (-12, 0, 0),
        (-9, 0.5, 0),
        (-6, 1, 0),
        (-3, 2 / 3, -2 / 3),
        (0, 1 / 3, -4 / 3),
        (3, 0, -2),
        (4, 0, 0),
        (50, 0, 0),
    ],
)
def test_the_published_curve(hours, alarm, silence):
    found = sepsis_utilities(np.array([hours], dtype=float))
    assert [float(column[0]) for column in found] == pytest.approx([alarm, silence])


def stay(name: str, length: int, turns: int | None) -> tuple[list[str], list[float], list[int]]:
    """Record, hour and published label of each hour; the label turns positive at the hour `turns`."""
    hours = range(1, length + 1)
    return (
        [name] * length,
        [float(hour) for hour in hours],
        [int(turns is not None and hour >= turns) for hour in hours],
    )


def rows(*stays: tuple[str, int, int | None]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    columns = zip(*(stay(*one) for one in stays), strict=True)
    records, times, labels = (np.array([cell for part in column for cell in part]) for column in columns)
    return records, times, labels


def test_two_patients_by_hand():
    """One septic at hour 16 (label from hour 10 on), seen for 20 hours; one without sepsis, seen for 5."""
    records, times, labels = rows(("s", 20, 10), ("n", 5, None))
    gains = physionet2019_gains(records, times, labels)
    # hours 4..10 are 12 to 6 h before: alarm 0, 1/6 .. 1, silence 0; hours 11..19 fall from 1 to 0, silence 0 to -2
    rising = [0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1]
    falling = [1 - k / 9 + 2 * k / 9 for k in range(1, 10)]
    assert gains == pytest.approx([-0.05] * 3 + rising + falling + [0] + [-0.05] * 5)
    possible = 3.5 + 9 + 45 / 9
    assert normalized_utility(gains, gains > 0) == pytest.approx(1)
    assert normalized_utility(gains, np.zeros(25, bool)) == 0
    everywhere = (possible - 8 * 0.05) / possible
    assert normalized_utility(gains, np.ones(25, bool)) == pytest.approx(everywhere)
    at_the_label = labels == 1  # hours 10 to 20
    assert normalized_utility(gains, at_the_label) == pytest.approx((1 + 9 + 5) / possible)


def test_a_record_that_begins_positive_has_its_onset_six_hours_in():
    records, times, labels = rows(("s", 10, 1))
    alarm, silence = sepsis_utilities(times - 7)
    assert physionet2019_gains(records, times, labels) == pytest.approx(alarm - silence)


def test_the_hour_counts_and_not_the_row():
    records, times, labels = rows(("s", 20, 10))
    kept = times % 3 == 1  # hours 1, 4, 7, 10, ...
    whole = physionet2019_gains(records, times, labels)
    assert physionet2019_gains(records[kept], times[kept], labels[kept]) == pytest.approx(whole[kept])


def test_order_and_other_patients_change_nothing():
    one, other = rows(("s", 20, 10)), rows(("n", 5, None), ("s", 20, 10), ("t", 9, 4))
    gains = physionet2019_gains(*other)
    assert gains[5:25] == pytest.approx(physionet2019_gains(*one))
    order = np.random.default_rng(0).permutation(len(gains))
    assert physionet2019_gains(*(column[order] for column in other)) == pytest.approx(gains[order])


def test_nothing_to_gain_is_undefined_and_said():
    records, times, labels = rows(("n", 5, None), ("m", 5, None))
    gains = physionet2019_gains(records, times, labels)
    sample = LabeledPredictions("binary", [0, 1] * 5, np.linspace(0, 1, 10), groups=records)
    evaluation = report(sample, num_samples=20)
    add_utility(evaluation, gains, sample, {"value": 0.5})
    assert evaluation["metrics"]["normalized_utility"] is None
    assert evaluation["confidence_intervals"]["normalized_utility"] is None
    assert "no alarm could gain" in evaluation["undefined"]["normalized_utility"]


columns = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        arrays.arrays(float, n, elements=st.floats(-3, 3)),
        arrays.arrays(np.float32, n, elements=st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.99, 1.0])),
    )
)


@given(columns)
def test_no_threshold_is_better_than_the_best(case):
    gains, probabilities = case
    threshold = best_threshold(gains, probabilities)
    earned = gains[probabilities.astype(float) >= threshold].sum()
    candidates = [*probabilities.astype(float), 2.0]
    assert earned == pytest.approx(max(gains[probabilities >= value].sum() for value in candidates), abs=1e-9)


def test_the_interval_holds_the_value_and_resamples_records():
    generator = np.random.default_rng(0)
    stays = [(f"p{index}", 40, 20 if index % 4 == 0 else None) for index in range(40)]
    records, times, labels = rows(*stays)
    gains = physionet2019_gains(records, times, labels)
    alarms = generator.random(len(gains)) < 0.2 + 0.5 * labels
    value = normalized_utility(gains, alarms)
    sample = LabeledPredictions("binary", labels, alarms, groups=records)
    resampler = Resampler(sample.num_records, num_samples=300)
    low, high = resampler.interval(utility_samples(gains, alarms, sample, resampler))
    assert low < value < high


@pytest.fixture(scope="module")
def sepsis_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sepsis-data")
    physionet2019.prepare(write_hospital(folder / "raw", "B", make_hospital("B", 40)), folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def trained(sepsis_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sepsis") / "run"
    model = ["--model", "hidden_size=8", "num_mamba_layers=1", "num_attention_heads=2", "num_pooling_queries=2"]
    arguments = ["finetune", "--data", sepsis_folder, "--task", "sepsis_onset", "--output", folder, "--epochs", "1"]
    assert main([*map(str, arguments), *model, "state_size=4", "--batch-size", "128"]) == 0
    return folder


def test_evaluate_adds_the_utility_at_the_threshold_of_the_validation_split(sepsis_folder, trained, tmp_path, capsys):
    kept = json.loads((trained / "evaluation.json").read_text())
    assert kept["threshold"]["chosen_on"] == "validation"
    assert 0 <= kept["metrics"]["normalized_utility"] <= 1  # chosen there, so never below silence
    arguments = ["evaluate", "--checkpoint", trained, "--data", sepsis_folder, "--task", "sepsis_onset"]
    for name in ("stored", "chosen"):
        output = tmp_path / f"{name}.json"
        assert main([*map(str, arguments), "--split", "test", "--output", str(output)]) == 0
        printed = capsys.readouterr().out
        assert "normalized utility" in printed
        assert "chosen on the validation split" in printed
        evaluation = json.loads(output.read_text())
        assert evaluation["threshold"]["value"] == pytest.approx(kept["threshold"]["value"])
        assert evaluation["split_fingerprint"] != evaluation["threshold"]["split_fingerprint"]
        low, high = evaluation["confidence_intervals"]["normalized_utility"]
        assert low <= evaluation["metrics"]["normalized_utility"] <= high
        (trained / "evaluation.json").unlink(missing_ok=True)  # the second time it is chosen again, on validation
