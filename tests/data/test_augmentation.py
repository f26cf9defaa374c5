"""What collators leave out: variables and events as augmentation, and everything after the cut of a forecast."""

import numpy as np
import pytest
import torch

from hymate_training.data.collators import ForecastCollator, TaskCollator, fit_feature_extractor, prediction_mask
from hymate_training.data.examples import load_forecast, load_task
from hymate_training.data.pool import FolderPool
from hymate_training.data.prepared_folder import PreparedFolder
from tests.support.helpers import same
from tests.support.runs import TASK


def test_augmentation_removes_whole_variables_and_leaves_no_record_empty(synthetic_folder):
    folder = PreparedFolder(synthetic_folder)
    extractor = fit_feature_extractor(folder)
    dataset = load_task(folder, TASK, "train", extractor.variables)
    examples = dataset.__getitems__(list(range(40)))
    plain = TaskCollator(extractor)(examples)
    features = TaskCollator(extractor, variable_dropout=0.3, seed=1)(examples)
    again = TaskCollator(extractor, variable_dropout=0.3, seed=1)(examples)
    same(again, features)
    assert features["attention_mask"].any(1).all()
    dropped = 0
    for row in range(40):
        keep, kept = plain["attention_mask"][row], features["attention_mask"][row]
        before = torch.bincount(plain["variable_ids"][row][keep], minlength=extractor.num_variables)
        after = torch.bincount(features["variable_ids"][row][kept], minlength=extractor.num_variables)
        assert ((after == before) | (after == 0)).all()
        dropped += int(((before > 0) & (after == 0)).sum()) / max(1, int((before > 0).sum())) / 40
    assert 0.2 < dropped < 0.4
    everything = TaskCollator(extractor, variable_dropout=0.999, seed=1)(examples)
    assert everything["attention_mask"].any(1).all()


def test_augmentation_removes_a_share_of_the_events_of_half_of_the_records(synthetic_folder):
    folder = PreparedFolder(synthetic_folder)
    extractor = fit_feature_extractor(folder)
    dataset = load_task(folder, TASK, "train", extractor.variables)
    examples = dataset.__getitems__(list(range(len(dataset))))
    before = TaskCollator(extractor)(examples)["attention_mask"].sum(1)
    after = TaskCollator(extractor, event_dropout=0.6, seed=1)(examples)["attention_mask"].sum(1)
    dropped = 1 - after / before
    whole = dropped == 0
    assert 0.5 <= whole.float().mean() < 0.6  # some lose none by chance
    assert 0.25 < dropped[~whole].mean() < 0.4
    assert 0.5 < dropped[before > 20].max() < 0.75


@pytest.mark.parametrize("cut_by", ["time", "event"])
@pytest.mark.parametrize("max_events", [None, 40])
def test_forecast_targets_are_what_a_plain_loop_finds(synthetic_folder, cut_by, max_events):
    folder = PreparedFolder(synthetic_folder)
    extractor = fit_feature_extractor(folder)
    dataset = load_forecast(FolderPool([folder]), "train", extractor.variables, 12.0)
    horizons = [2.0, 6.0, 24.0]
    collator = ForecastCollator(extractor, 12.0, horizons, 4, max_events, cut_by=cut_by, fixed_cuts=True)
    examples = dataset.__getitems__(list(range(30)))
    features, cuts = collator(examples), collator._cuts(examples)
    asked = prediction_mask(features)
    times = features["prediction_times"][asked].numpy() * np.float32(extractor.time_scale)
    assert np.array_equal(times, cuts.ravel())
    targets = [features[name][asked].numpy() for name in ("forecast_values", "forecast_mask", "measured_mask")]
    expected = [np.zeros_like(found) for found in targets]
    values, known, measured = expected
    events = examples.events
    for row, cut in enumerate(times):
        record = row // 4
        for at in range(events.offsets[record], events.offsets[record + 1]):
            variable, value = events.variable_ids[at], events.values[at]
            for place, hours in enumerate(horizons):
                if not 0 < events.times[at] - cut <= hours:
                    continue
                measured[row, place, variable] = True
                if not np.isnan(value) and not known[row, place, variable]:
                    known[row, place, variable] = True
                    values[row, place, variable] = extractor.standardize(np.array([variable]), np.array([value]))[0]
    assert known.any()
    assert all(np.array_equal(found, right) for found, right in zip(targets, expected, strict=True))
    # nothing after a record's last cut reaches the forecaster, and what does is the latest before it
    last_input = (features["times"] * features["attention_mask"]).max(1).values
    last_asked = features["prediction_times"].masked_fill(~asked, 0).max(1).values
    assert (last_input <= last_asked).all()
    if max_events:
        assert features["attention_mask"].sum(1).max() == max_events
