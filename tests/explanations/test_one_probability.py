"""One record, one probability: every entrance says the same, calibrated as the model is."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from markupsafe import Markup
from transformers import pipeline

from hymate_training.cli.main import main
from hymate_training.data.collators import TaskCollator
from hymate_training.data.examples import last_times, load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.explanations.attribution import METHODS, Explainer, explain
from hymate_training.explanations.cohort import cohort_of_task
from hymate_training.explanations.pictures import Picture
from hymate_training.explanations.report import build_report
from hymate_training.explanations.trajectory import risk_trajectory
from hymate_training.inference.prediction import predict_examples
from modeling_hymate import HyMaTEFeatureExtractor, HyMaTEForSequenceClassification
from tests.explanations.conftest import TEMPERATURE

TASK, SPLIT = "in_hospital_mortality", "validation"
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def explainer(checkpoint) -> Explainer:
    model = HyMaTEForSequenceClassification.from_pretrained(checkpoint)
    assert model.config.temperature == TEMPERATURE
    return Explainer(model, HyMaTEFeatureExtractor.from_pretrained(checkpoint))


@pytest.fixture(scope="module")
def cohort(explainer, synthetic_folder):
    return cohort_of_task(explainer, PreparedFolder(synthetic_folder), TASK, SPLIT)


@pytest.fixture(scope="module")
def expected(explainer, cohort) -> np.ndarray:
    """Probabilities by the plainest route: the forward pass, and what the model makes of its logits."""
    with torch.no_grad():
        logits = explainer.model(**explainer.extractor.encode(cohort.events)).logits
    probabilities = explainer.model.predictions(logits)[:, 1].numpy()
    assert np.abs(probabilities - logits.softmax(-1)[:, 1].numpy()).max() > 0.05  # calibration changes them
    return probabilities


@pytest.fixture(scope="module")
def frames(cohort, explainer) -> dict[str, pl.DataFrame]:
    """The cohort's records as a user has them."""
    events = cohort.events
    names = np.array(explainer.extractor.variables, dtype=object)
    return {
        "events": pl.DataFrame(
            {
                "record_id": pl.Series(events.record_ids)[events.rows],
                "time": events.times,
                "variable": pl.Series(names[events.variable_ids], dtype=pl.String),
                "value": pl.Series(events.values).fill_nan(None),
            }
        ),
        "static": pl.DataFrame({"record_id": events.record_ids, **events.static}),
    }


def test_the_pipeline(checkpoint, frames, expected):
    classify = pipeline("ehr-classification", model=str(checkpoint), device="cpu")
    answers = classify(frames["events"], frames["static"])
    np.testing.assert_allclose([answer["scores"]["died"] for answer in answers], expected, atol=TOLERANCE)


def test_hymate_predict(checkpoint, frames, expected, tmp_path):
    for name, frame in frames.items():
        frame.write_parquet(tmp_path / f"{name}.parquet")
    files = [f"--{name}={tmp_path / name}.parquet" for name in frames]
    output = tmp_path / "predictions.parquet"
    assert main(["predict", "--checkpoint", str(checkpoint), *files, "--output", str(output)]) == 0
    np.testing.assert_allclose(pl.read_parquet(output)["died"], expected, atol=TOLERANCE)


def test_hymate_evaluate(checkpoint, synthetic_folder, cohort, expected, tmp_path):
    output = tmp_path / "evaluation.json"
    data = ["--data", str(synthetic_folder), "--task", TASK, "--split", SPLIT]
    assert main(["evaluate", "--checkpoint", str(checkpoint), *data, "--output", str(output)]) == 0
    labels = cohort.outcomes == "died"
    metrics = json.loads(output.read_text())["metrics"]
    assert metrics["brier"] == pytest.approx(np.mean((expected - labels) ** 2), abs=TOLERANCE)
    assert metrics["log_loss"] == pytest.approx(-np.log(np.where(labels, expected, 1 - expected)).mean(), abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_explain(method, explainer, cohort, expected):
    few = cohort.take(np.arange(4))
    found = explain(explainer.model, explainer.extractor, few.events, method=method, window_hours=48, steps=4)
    np.testing.assert_allclose(found.records["prediction"], expected[:4], atol=TOLERANCE)
    np.testing.assert_allclose(1 / (1 + np.exp(-found.records["score"].to_numpy())), expected[:4], atol=TOLERANCE)


def test_the_trajectory_ends_there(explainer, cohort, expected):
    trajectory = risk_trajectory(explainer, cohort.take(np.array([2])).events, max_times=4, num_steps=1)
    assert trajectory.predictions["prediction"][-1] == pytest.approx(expected[2], abs=TOLERANCE)


def test_the_report(checkpoint, frames, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(Picture, "html", lambda picture: Markup(""))
    few = frames["events"]["record_id"].unique(maintain_order=True).head(3).to_list()
    tables = {name: frame.filter(pl.col("record_id").is_in(few)) for name, frame in frames.items()}
    report = build_report(checkpoint, tmp_path / "report", **tables, record_ids=few, window_hours=48)
    assert report.findings == []
    for record_id, probability in zip(few, expected[:3], strict=True):
        page = (report.page.parent / "patients" / f"{record_id}.html").read_text()
        assert f'<strong class="number">{probability:.1%}</strong>' in page


@pytest.fixture(scope="module", params=[1, 3], ids=["once", "three times"])
def asked_folder(request, synthetic_folder, tmp_path_factory) -> PreparedFolder:
    """A task that asks each record so often."""
    folder = Path(shutil.copytree(synthetic_folder, tmp_path_factory.mktemp("asked") / "data"))
    path = folder / "tasks" / TASK / f"{SPLIT}.parquet"
    table = pl.read_parquet(path)
    earlier = [table.with_columns(pl.col("prediction_time") - 12 * times) for times in range(request.param)]
    pl.concat(earlier).write_parquet(path)
    return PreparedFolder(folder)


def test_a_model_of_many_hours_is_asked_when_evaluate_asks_it(explainer, asked_folder):
    """At the prediction times of the task, which are later than the last event, and not at that event."""
    folder = asked_folder
    extractor = copy.copy(explainer.extractor)
    extractor.trained_hours = [2.0, 48.0]
    of_hours = Explainer(explainer.model, extractor)
    asked = cohort_of_task(of_hours, folder, TASK, SPLIT).take(np.arange(12))
    assert (asked.hours > last_times(asked.events)).any()

    dataset = load_task(folder, TASK, SPLIT, extractor.variables)
    values = predict_examples(of_hours.model, dataset, TaskCollator(extractor)).values[:, 1]
    examples = zip(dataset.record_ids, dataset.prediction_times.tolist(), values, strict=True)
    evaluated = {(record_id, hour): value for record_id, hour, value in examples}
    expected = [evaluated[each] for each in zip(asked.record_ids, asked.hours.tolist(), strict=True)]

    for method in METHODS:
        options = {"method": method, "window_hours": 48, "steps": 4, "asked": asked.asked}
        found = explain(of_hours.model, extractor, asked.events, **options)
        np.testing.assert_allclose(found.records["prediction"], expected, atol=TOLERANCE)
    at_last_event = explain(of_hours.model, extractor, asked.events).records["prediction"]
    assert np.abs(at_last_event.to_numpy() - expected).max() > 1e-4
    trajectory = risk_trajectory(of_hours.asking(asked.asked), asked.events, max_times=4, num_steps=1)
    last = trajectory.predictions.group_by("record_id", maintain_order=True).last()
    np.testing.assert_allclose(last["time"], asked.hours)
    np.testing.assert_allclose(last["prediction"], expected, atol=TOLERANCE)
