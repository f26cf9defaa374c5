"""A time-to-event model from data to its card: trained, asked at any hour, evaluated, predicted, explained, pushed."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from transformers import pipeline

from hymate_training.cli.main import main
from hymate_training.data.collators import TaskCollator
from hymate_training.data.examples import DrawnTimesDataset, ask_at, load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import TaskInfo
from hymate_training.evaluation.comparison import compare
from hymate_training.evaluation.evaluation import evaluate
from hymate_training.explanations.attribution import explain
from hymate_training.fitting.finetuning import FinetuneOptions, finetune
from hymate_training.fitting.hazards import life_table, time_fields
from hymate_training.inference.checkpoints import at_horizons, load_checkpoint
from hymate_training.inference.export import export
from hymate_training.inference.prediction import predict, predict_examples
from hymate_training.inference.prepared import predict_split
from hymate_training.publishing.push import push
from hymate_training.readers import physionet2012
from modeling_hymate import Stream
from tests.docs.pages import trim_physionet2012
from tests.support.runs import TASK as BINARY
from tests.support.runs import TINY_MODEL, event_frame

TASK = "time_to_death"
HORIZONS = [24.0, 72.0]
NAMES = ["death within 24 hours", "death within 3 days"]
EVENT = TaskInfo(TASK, "Death.", "time_to_event", ("event_time", "event_observed"), ("death",))


@pytest.fixture(scope="module")
def trained(synthetic_folder, tmp_path_factory):
    """A model that is asked at many hours, so that each record has several predictions in one pass. Read it only."""
    options = FinetuneOptions(
        epochs=1, batch_size=16, learning_rate=0.01, prediction_times=3, horizons="24, 72", model=TINY_MODEL
    )
    return finetune(synthetic_folder, TASK, tmp_path_factory.mktemp("survival") / "run", options).output


@pytest.fixture
def dataset(synthetic_folder):
    folder = PreparedFolder(synthetic_folder)
    return load_task(folder, TASK, "train", folder.info.variables)


def test_times_are_measured_from_the_prediction(synthetic_folder, dataset):
    table = PreparedFolder(synthetic_folder).task(TASK, "train")
    until = table["event_time"].to_numpy()
    np.testing.assert_allclose(dataset.labels[:, 0], until - 48, atol=1e-3)
    np.testing.assert_array_equal(dataset.labels[:, 1], table["event_observed"].to_numpy(zero_copy_only=False))
    early = ask_at(dataset, [12.0, 24.0], own=True)
    np.testing.assert_allclose(early.labels[:3, 0], until[0] - np.array([12, 24, 48]), atol=1e-3)
    drawn = DrawnTimesDataset(dataset, 2, seed=0)
    first = drawn.labels.copy()
    np.testing.assert_allclose(first[:, 0] + drawn.prediction_times, np.repeat(until, 3), atol=1e-3)
    drawn.set_epoch(1)
    assert (drawn.labels[:, 0] != first[:, 0]).any()
    np.testing.assert_allclose(drawn[4].labels, drawn.labels[4:5])


def test_bins_have_the_same_number_of_events_and_hold_nobodys_own_time():
    rng = np.random.default_rng(0)
    labels = np.stack([rng.exponential(100, 1000), rng.random(1000) < 0.5], axis=1)
    fields = time_fields(EVENT, labels, 16, None)
    bins, times = fields["time_bins"], labels[labels[:, 1] == 1, 0]
    counts, _ = np.histogram(times, [0, *bins])
    assert len(bins) == 16
    assert counts.min() > 0.8 * counts.mean()
    assert all(float(f"{end:.3g}") == end for end in bins)
    assert fields["horizons"] == [hours for hours in (6, 12, 24, 48, 72, 168, 336) if bins[0] <= hours <= bins[-1]]
    few = time_fields(EVENT, labels[:60], 16, None)["time_bins"]
    assert len(few) == labels[:60, 1].sum() // 10
    with pytest.raises(
        ValueError, match="4 training examples have their event observed; bins of time need at least 10"
    ):
        time_fields(EVENT, np.stack([np.ones(50), np.arange(50) < 4], axis=1), 16, None)
    with pytest.raises(ValueError, match="horizons must lie above 0 and up to"):
        time_fields(EVENT, labels, 16, "24, 90000")
    with pytest.raises(ValueError, match="horizons must be hours, separated by commas, got 'a week'"):
        time_fields(EVENT, labels, 16, "a week")


def test_the_first_hazards_are_those_of_the_life_table():
    rng = np.random.default_rng(0)
    happens, lost = rng.exponential(50, 20_000), rng.exponential(80, 20_000)
    labels = np.stack([np.minimum(happens, lost), happens <= lost], axis=1)
    bins = [10.0, 30.0, 60.0]
    expected = 1 - np.exp(-np.diff([0, *bins]) / 50)
    found = 1 / (1 + np.exp(-life_table(labels, bins)))
    np.testing.assert_allclose(found, expected, rtol=0.15)


def test_an_evaluation_has_metrics_horizons_and_hours(synthetic_folder, trained, tmp_path):
    found = evaluate(trained, synthetic_folder, TASK, "test", tmp_path / "test.json", at=[12, 48]).content
    assert set(found["metrics"]) == {"concordance", "auroc_dynamic", "integrated_brier_score"}
    assert [row["hours"] for row in found["horizons"]] == HORIZONS
    assert set(found["by_hour"]) == {"12", "48"}
    assert found["plots"] == ["test_survival.png"]
    assert (
        found["positives"]
        == PreparedFolder(synthetic_folder).task(TASK, "test")["event_observed"].to_numpy(False).sum()
    )
    assert "conformal" not in found
    assert json.loads((trained / "evaluation.json").read_text())["problem_type"] == "time_to_event"
    with pytest.raises(ValueError, match="the model was trained for a task of another kind"):
        evaluate(trained, synthetic_folder, BINARY, "test")


def test_a_binary_model_is_not_asked_when(synthetic_folder, finetuned):
    with pytest.raises(ValueError, match="another kind than 'time_to_death', a time_to_event"):
        evaluate(finetuned, synthetic_folder, TASK, "test")
    events, static = event_frame(synthetic_folder)
    with pytest.raises(ValueError, match="horizons are for time-to-event models"):
        predict(finetuned, events, static, horizons=[24])


def test_predictions_are_risks_within_horizons(synthetic_folder, trained, tmp_path, capsys):
    events, static = event_frame(synthetic_folder)
    own = predict(trained, events, static).frame
    assert own.columns == ["record_id", *NAMES, "remarks"]
    assert (own[NAMES[0]] < own[NAMES[1]]).all()
    asked = predict(trained, events, static, horizons=[72, 6, 24], every=12).frame
    assert asked.columns[2:5] == [NAMES[1], "death within 6 hours", NAMES[0]]
    assert asked.height > own.height
    last = own.join(predict(trained, events, static, horizons=[72]).frame, on="record_id")
    np.testing.assert_allclose(last[NAMES[1]], last[f"{NAMES[1]}_right"], rtol=1e-6)
    assert load_checkpoint(trained).label_names == tuple(NAMES)  # asking at others leaves the model as it was
    events.write_csv(tmp_path / "events.csv")
    arguments = ["predict", "--checkpoint", str(trained), "--events", str(tmp_path / "events.csv")]
    arguments += ["--output", str(tmp_path / "out.csv"), "--overwrite"]
    assert main([*arguments, "--horizons", "6", "72"]) == 0
    assert "death within 6 hours" in pl.read_csv(tmp_path / "out.csv").columns
    assert main([*arguments, "--horizons", "1e6"]) == 2
    assert "horizons must be hours above 0 and at most" in capsys.readouterr().err
    assert main([*arguments, "--conformal", "0.9"]) == 2
    assert "models of one label or one number" in capsys.readouterr().err


def test_the_whole_curve_is_there(synthetic_folder, trained):
    opened = load_checkpoint(trained)
    dataset = load_task(PreparedFolder(synthetic_folder), TASK, "test", opened.extractor.variables)
    collator, times = TaskCollator(opened.extractor), opened.model.config.curve_times
    curve = predict_examples(opened.model, dataset, collator, horizons=times).values
    assert (np.diff(curve, axis=1) > 0).all()
    other = predict_examples(at_horizons(opened, [times[2]]).model, dataset, collator).values
    np.testing.assert_allclose(other[:, 0], curve[:, 2], rtol=1e-6)


def test_pipeline_and_stream_name_risks_and_no_label(synthetic_folder, trained):
    opened, (events, static) = load_checkpoint(trained), event_frame(synthetic_folder, 1)
    record = {name: events[name].to_list() for name in ("time", "variable", "value")}
    known = static.drop("record_id").to_dicts()[0]
    found = pipeline("ehr-classification", model=str(trained))(record, static=known, prediction_times=[48.0])[0]
    assert list(found["scores"]) == NAMES
    assert "label" not in found
    stream = Stream(opened.model, opened.extractor, static=known)
    stream.add(record)
    answer = stream.ask(48.0)
    assert "label" not in answer
    assert answer["scores"] == pytest.approx(found["scores"], abs=1e-5)


def test_an_explanation_is_of_the_risk_within_a_horizon(synthetic_folder, trained):
    events, static = event_frame(synthetic_folder, 3)
    opened, expected = load_checkpoint(trained), predict(trained, events, static).frame
    with pytest.raises(ValueError, match="name the label to be explained; the model predicts death within 24 hours"):
        explain(opened.model, opened.extractor, events, static)
    for method in ("attention", "integrated_gradients"):
        found = explain(opened.model, opened.extractor, events, static, method=method, label=NAMES[1]).records
        both = expected.join(found, on="record_id", how="inner", suffix="_explained")
        assert both.height == 3
        np.testing.assert_allclose(both["prediction"], both[NAMES[1]], atol=1e-4)


def test_it_is_exported_with_its_risks(trained, tmp_path):
    assert export(trained, tmp_path / "model.pt2", "torch").difference < 1e-4


def test_it_can_be_pushed_with_its_card(synthetic_folder, trained):
    assert "evaluation_survival.png" in str(push("org/name", checkpoint=trained, dry_run=True))
    card = (trained / "README.md").read_text()
    assert "Within so many hours of the prediction" in card
    assert "concordance, time-dependent" in card


def test_two_models_of_the_same_bins_are_compared(synthetic_folder, trained, tmp_path):
    other = shutil.copytree(trained, tmp_path / "other")
    found = compare(trained, other, synthetic_folder, TASK, "test", num_samples=5).content
    assert {row["difference"] for row in found["differences"].values()} == {0}


def test_a_prepared_split_is_asked_at_any_horizon(synthetic_folder, trained):
    found = predict_split(trained, synthetic_folder, "test", task=TASK, horizons=[6]).frame
    assert found["death within 6 hours"].is_between(0, 1).all()


def test_real_stays_from_the_download_to_an_evaluation(shared_data, tmp_path):
    raw = tmp_path / "raw"
    trim_physionet2012(shared_data("physionet2012"), raw, stays=240)
    info = physionet2012.prepare(raw, tmp_path / "data")
    assert info.task(TASK).problem_type == "time_to_event"
    options = FinetuneOptions(epochs=1, batch_size=32, model=TINY_MODEL)
    run = finetune(tmp_path / "data", TASK, tmp_path / "run", options).output
    found = evaluate(run, tmp_path / "data", TASK, "test").content
    assert 0 < found["metrics"]["concordance"] < 1
    assert 0 < found["metrics"]["integrated_brier_score"] < 0.5
    assert 0 < found["horizons"][0]["mean_risk"] < 0.5


def test_what_does_not_apply_is_refused(synthetic_folder, tmp_path):
    for changes, message in (
        ({"pos_weight": "balanced"}, "pos_weight applies to binary and multilabel tasks"),
        ({"time_bins": 0}, "time_bins must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            finetune(synthetic_folder, TASK, tmp_path / "run", FinetuneOptions(model=TINY_MODEL, **changes))
    options = FinetuneOptions(auxiliary_tasks=TASK, model=TINY_MODEL)
    with pytest.raises(
        ValueError, match="auxiliary task 'time_to_death' is time_to_event; only binary and regression"
    ):
        finetune(synthetic_folder, BINARY, tmp_path / "other", options)
