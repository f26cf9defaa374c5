"""What collators leave out: variables and events as augmentation, and everything after the cut of a forecast."""

import numpy as np
import pytest
import torch

from hymate_training.data.collators import ForecastCollator, TaskCollator, fit_feature_extractor
from hymate_training.data.examples import load_forecast, load_task
from hymate_training.data.prepared_folder import PreparedFolder
from tests.support.runs import TASK


def test_augmentation_removes_whole_variables_and_leaves_no_record_empty(synthetic_folder):
    folder = PreparedFolder(synthetic_folder)
    extractor = fit_feature_extractor(folder)
    dataset = load_task(folder, TASK, "train", extractor.variables)
    examples = dataset.__getitems__(list(range(40)))
    plain = TaskCollator(extractor)(examples)
    features = TaskCollator(extractor, variable_dropout=0.3, seed=1)(examples)
    again = TaskCollator(extractor, variable_dropout=0.3, seed=1)(examples)
    assert all(torch.equal(features[name], again[name]) for name in features)
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


def test_augmentation_removes_a_share_of_the_events(synthetic_folder):
    folder = PreparedFolder(synthetic_folder)
    extractor = fit_feature_extractor(folder)
    dataset = load_task(folder, TASK, "train", extractor.variables)
    examples = dataset.__getitems__(list(range(len(dataset))))
    before = TaskCollator(extractor)(examples)["attention_mask"].sum(1)
    after = TaskCollator(extractor, event_dropout=0.6, seed=1)(examples)["attention_mask"].sum(1)
    dropped = 1 - after / before
    assert 0.25 < dropped.mean() < 0.35
    assert dropped.min() < 0.1
    assert 0.5 < dropped[before > 20].max() < 0.75


def test_nothing_after_the_cut_reaches_the_forecaster(synthetic_folder):
    folder = PreparedFolder(synthetic_folder)
    extractor = fit_feature_extractor(folder)
    dataset = load_forecast(folder, "train", extractor.variables, 12.0)
    collator = ForecastCollator(extractor, fixed_cuts=True)
    examples = dataset.__getitems__(list(range(30)))
    features = collator(examples)
    assert features["forecast_mask"].any()
    last_input = (features["times"] * features["attention_mask"]).max(1).values * extractor.time_scale
    assert (last_input >= 0).all()
    # the targets are the first values after the input, found one by one
    events = examples.events
    for row in range(len(events)):
        part = slice(events.offsets[row], events.offsets[row + 1])
        later = events.times[part] > float(last_input[row]) + 1e-4
        for variable in np.flatnonzero(features["forecast_mask"][row, 0]):
            at = np.flatnonzero(later & (events.variable_ids[part] == variable))[0]
            expected = extractor.standardize(np.array([variable]), events.values[part][at : at + 1])[0]
            assert float(features["forecast_values"][row, 0, variable]) == pytest.approx(expected, abs=1e-5)
