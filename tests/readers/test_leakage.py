"""No task of the simulated stays sees past its prediction; and the check that all readers share finds a leak."""

import dataclasses

import numpy as np
import pytest

from hymate_training.data.collators import TaskCollator
from hymate_training.data.prepared_folder import PreparedFolder
from tests.support.leakage import check_leakage


def test_nothing_after_the_prediction_is_seen(synthetic_folder):
    for task in PreparedFolder(synthetic_folder).info.tasks:
        check_leakage(synthetic_folder, task.name)


@pytest.mark.parametrize("late", [1e-3, 2.0])
def test_the_check_finds_a_leak(late, synthetic_folder, monkeypatch):
    """A collator that looks a little past the prediction time is caught."""
    honest = TaskCollator.__call__

    def leaky(self, examples):
        later = np.asarray(examples.prediction_times) + late
        return honest(self, dataclasses.replace(examples, prediction_times=later))

    monkeypatch.setattr(TaskCollator, "__call__", leaky)
    with pytest.raises(AssertionError, match="changes with what comes after the prediction"):
        check_leakage(synthetic_folder, "in_hospital_mortality")
