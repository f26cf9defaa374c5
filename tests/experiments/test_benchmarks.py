"""What the benchmarks compare with, and the page that they write."""

import numpy as np
import pytest

from benchmarks.measure import write_section
from hymate_training.data.collators import fit_feature_extractor
from hymate_training.data.examples import TaskDataset, load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.evaluation.summary_features import ONCE_FEATURES, summary_features


def test_features_updated_by_each_event_are_those_of_the_whole_stay(synthetic_folder):
    pytest.importorskip("xgboost")
    from benchmarks.streaming import RunningFeatures  # noqa: PLC0415 - needs xgboost

    folder = PreparedFolder(synthetic_folder)
    extractor = fit_feature_extractor(folder)
    dataset = load_task(folder, "in_hospital_mortality", "train", extractor.variables)
    for row in dataset.rows[:5]:
        events = dataset.events.take(np.array([row]))
        features = RunningFeatures(extractor.num_variables, extractor.encode_static(events.static, 1)[0])
        columns = (events.times.tolist(), events.variable_ids.tolist(), events.values.tolist())
        for event in zip(*columns, strict=True):
            features.add(*event)
        stay = TaskDataset(events, np.array([0]), np.array([np.inf]), np.array([0]))
        np.testing.assert_allclose(
            features.row[None], summary_features(stay, extractor, ONCE_FEATURES), rtol=1e-6, atol=1e-5
        )


def test_a_benchmark_replaces_its_own_section_of_the_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Speed\n\nText.\n\n## One\n\nold\n\n### Table\n\n## Two\n\nkept\n")
    write_section(page, "One", "new")
    write_section(page, "Three", "added")
    assert page.read_text() == "# Speed\n\nText.\n\n## One\n\nnew\n\n## Two\n\nkept\n\n## Three\n\nadded\n"
