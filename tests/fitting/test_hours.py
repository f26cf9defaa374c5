"""Many prediction times of a record in one pass: what is trained and said equals what single predictions give."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hymate_training.cli.main import main
from hymate_training.data.collators import TaskCollator, fit_feature_extractor, prediction_mask
from hymate_training.data.examples import DrawnTimesDataset, TaskDataset, ask_at, load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.evaluation.evaluation import evaluate, format_evaluation
from hymate_training.fitting.auxiliary import AuxiliaryCollator, AuxiliaryModel, AuxiliaryTargets
from hymate_training.fitting.finetuning import FinetuneOptions, ask_through_records, finetune, validation_hours
from hymate_training.fitting.run import make_config
from hymate_training.inference.checkpoints import load_checkpoint
from hymate_training.inference.prediction import predict_examples
from modeling_hymate import HyMaTEFeatureExtractor, HyMaTEForSequenceClassification
from tests.support.helpers import close, gradients_of, perturbed
from tests.support.runs import TASK, TINY, TINY_MODEL, hymate

HOURLY = "hourly_risk"


def hourly(dataset: TaskDataset, seed: int = 0) -> TaskDataset:
    """Rows of other hours for each record, in random order, some before its first event; random labels."""
    rng = np.random.default_rng(seed)
    drawn = {(row, hour) for row in dataset.rows for hour in rng.uniform(0, 48, rng.integers(1, 9)).round(1)}
    rows, times = rng.permutation(sorted(drawn)).T
    return TaskDataset(dataset.events, rows.astype(np.int64), times, rng.integers(0, 2, len(rows)))


@pytest.fixture(scope="module")
def extractor(synthetic_folder) -> HyMaTEFeatureExtractor:
    return fit_feature_extractor(PreparedFolder(synthetic_folder))


@pytest.fixture(scope="module")
def dataset(synthetic_folder, extractor) -> TaskDataset:
    return hourly(load_task(PreparedFolder(synthetic_folder), TASK, "validation", extractor.variables))


@pytest.fixture(scope="module")
def model(extractor) -> HyMaTEForSequenceClassification:
    torch.manual_seed(0)
    fields = TINY_MODEL | {"num_statistic_bins": 2, "problem_type": "single_label_classification"}
    return perturbed(HyMaTEForSequenceClassification(make_config(extractor, fields))).eval()


@pytest.fixture(scope="module")
def hourly_folder(synthetic_folder, tmp_path_factory) -> Path:
    """The simulated stays with a task of several predictions per record."""
    folder = tmp_path_factory.mktemp("hourly") / "prepared"
    source = PreparedFolder(synthetic_folder)
    tasks = folder / "tasks" / HOURLY
    tasks.mkdir(parents=True)
    (folder / "records").symlink_to(synthetic_folder / "records")
    metadata = json.loads((synthetic_folder / "metadata.json").read_text())
    [task] = (task for task in metadata["tasks"] if task["name"] == TASK)
    metadata["tasks"] = [task | {"name": HOURLY}]
    (folder / "metadata.json").write_text(json.dumps(metadata))
    for split in ("train", "validation"):
        asked = hourly(load_task(source, TASK, split, source.info.variables))
        columns = {"record_id": asked.record_ids.tolist(), "prediction_time": asked.prediction_times}
        pq.write_table(pa.table(columns | {"boolean_value": asked.labels.astype(bool)}), tasks / f"{split}.parquet")
    return folder


def alone(collator, dataset: TaskDataset, index: int) -> dict[str, torch.Tensor]:
    """The features of a record that ends at the prediction time, asked there."""
    row, time = dataset.rows[index], dataset.prediction_times[index]
    events = dataset.events.take(np.array([row]))
    cut = events.select(events.times <= time)
    extractor = collator.feature_extractor
    limit = extractor.max_events if collator.max_events is None else collator.max_events
    features = extractor.encode(cut if limit is None else cut.latest(limit), prediction_times=[float(time)])
    return dict(features)


@pytest.mark.parametrize("max_events", [None, 30])
def test_predictions_equal_those_of_records_that_end_there(model, extractor, dataset, max_events):
    collator = TaskCollator(extractor, max_events)
    found = predict_examples(model, dataset, collator, batch_size=7)
    with torch.no_grad():
        outputs = [model(**alone(collator, dataset, index)) for index in range(len(dataset))]
    expected = torch.cat([model.predictions(output.logits)[:, 0] for output in outputs])
    close(torch.from_numpy(found.values), expected)
    shares = np.zeros(extractor.num_variables)
    for output in outputs:
        real = output.channel_ids[0] >= 0
        shares[output.channel_ids[0][real]] += output.channel_weights[0, 0][real].numpy()
    np.testing.assert_allclose(found.variable_shares, shares, atol=1e-4)


@pytest.mark.parametrize("max_events", [None, 30])
def test_loss_and_gradients_of_a_batch_are_those_of_its_examples(model, extractor, dataset, max_events):
    collator = TaskCollator(extractor, max_events)
    indices = np.flatnonzero(np.isin(dataset.rows, np.unique(dataset.rows)[:6]))
    targets = AuxiliaryTargets(np.random.default_rng(0).normal(size=(len(dataset), 2)), np.array([False, False]))
    targets.values[indices[0], 0] = np.nan
    targets = replace(targets, values=targets.values.astype(np.float32))
    torch.manual_seed(1)
    both = AuxiliaryModel(model, targets.binary, 0.5)
    features = AuxiliaryCollator(collator, targets)(dataset.__getitems__(indices))
    assert features["prediction_times"].shape == prediction_mask(features).shape
    assert int(prediction_mask(features).sum()) == len(indices)
    loss = both(**features).loss
    grouped = gradients_of(both, loss)

    logits, pooled = [], []
    for index in indices:
        output = model(**alone(collator, dataset, index))
        logits.append(output.logits[0])
        pooled.append(output.pooler_output[0])
    labels = torch.from_numpy(dataset.labels[indices])
    expected = torch.nn.functional.cross_entropy(torch.cat(logits), labels)
    known = ~np.isnan(targets.values[indices])
    assert 0 < (~known).sum() < 3
    right = torch.from_numpy(targets.values[indices][known])
    expected = expected + 0.5 * (both.heads(torch.cat(pooled))[known] - right).square().mean()
    close(loss, expected)
    single = gradients_of(both, expected)
    for name, gradient in single.items():
        close(grouped[name], gradient, 2e-5)


def test_a_record_asked_once_keeps_its_shapes(synthetic_folder, extractor):
    dataset = load_task(PreparedFolder(synthetic_folder), TASK, "validation", extractor.variables)
    features = TaskCollator(extractor)(dataset.__getitems__([3, 1, 2, 3]))
    assert "prediction_times" not in features
    assert features["labels"].tolist() == dataset.labels[[3, 3, 1, 2]].tolist()
    assert len(features["values"]) == 4


def test_times_are_drawn_anew_for_each_epoch_and_from_nothing_else(synthetic_folder, extractor):
    once = load_task(PreparedFolder(synthetic_folder), TASK, "train", extractor.variables)
    drawn = DrawnTimesDataset(once, 5, seed=3)
    times = {}
    for epoch in (0, 1, 0):
        drawn.set_epoch(epoch)
        assert (drawn.prediction_times <= np.repeat(once.prediction_times, 6)).all()
        assert (drawn.prediction_times[5::6] == once.prediction_times).all()
        assert np.array_equal(drawn.labels, np.repeat(once.labels, 6))
        assert np.array_equal(times.setdefault(epoch, drawn.prediction_times), drawn.prediction_times)
        examples = drawn.__getitems__(range(12))
        assert np.array_equal(examples.prediction_times, drawn.prediction_times[:12])
    assert (times[0] != times[1]).mean() > 0.8
    assert drawn.first.min() < drawn.prediction_times.min() < 5
    hours = times[0].reshape(-1, 6)[:, :5]
    np.testing.assert_allclose(hours.mean(), (drawn.first + drawn.last).mean() / 2, rtol=0.05)


def test_records_are_asked_while_their_outcome_is_open(dataset):
    rows = np.arange(3)
    once = TaskDataset(dataset.events, rows, np.array([10.0, 24.0, 48.0]), np.array([0, 1, 0]))
    asked = ask_at(once, [24.0, 6.0])
    assert list(zip(asked.rows, asked.prediction_times, asked.labels, strict=True)) == [
        (0, 6.0, 0),
        (1, 6.0, 1),
        (1, 24.0, 1),
        (2, 6.0, 0),
        (2, 24.0, 0),
    ]
    own = ask_at(once, [24.0, 6.0], own=True)
    assert own.prediction_times.tolist() == [6, 10, 6, 24, 6, 24, 48]
    with pytest.raises(ValueError, match="no record is asked at hour 50 or later: the last is at 48"):
        ask_at(once, [50.0])
    with pytest.raises(ValueError, match="not negative, got -1"):
        ask_at(once, [-1.0])
    with pytest.raises(ValueError, match="more than once"):
        ask_at(dataset, [6.0])


def test_trained_hours_go_with_the_checkpoint(dataset, extractor):
    extractor = HyMaTEFeatureExtractor.from_dict(extractor.to_dict())
    asked, hours = ask_through_records({"train": dataset, "validation": dataset}, extractor, FinetuneOptions())
    assert (asked["train"], hours) == (dataset, None)
    assert extractor.trained_hours == [dataset.prediction_times.min(), dataset.prediction_times.max()]
    with pytest.raises(ValueError, match="prediction times of its own"):
        ask_through_records({"train": dataset}, extractor, FinetuneOptions(prediction_times=2))
    with pytest.raises(ValueError, match="prediction_times must be at least 1"):
        FinetuneOptions(prediction_times=0)
    with pytest.raises(ValueError, match="trained_hours must be a first and a last hour"):
        HyMaTEFeatureExtractor(trained_hours=[48.0, 6.0])
    assert validation_hours(0.5, 48.0) == [6, 12, 24, 36, 48]
    assert validation_hours(7, 24.0) == [12, 24]
    assert validation_hours(0, 8000.0) == [2000, 4000, 6000, 8000]


def test_a_model_of_many_hours_is_calibrated_and_evaluated_by_hour(synthetic_folder, finetuned, tmp_path, capsys):
    arguments = ["--data", synthetic_folder, "--task", TASK]
    run = tmp_path / "run"
    command = ["finetune", *arguments, "--output", run, "--prediction-times", "3", "--epochs", "1", *TINY]
    command += ["--auxiliary-tasks", "length_of_stay"]
    assert main(list(map(str, command))) == 0
    assert "by hour (the model was trained at hours 0" in capsys.readouterr().out
    checkpoint = load_checkpoint(run)
    assert checkpoint.extractor.trained_hours[1] == 48
    content = json.loads((run / "evaluation.json").read_text())
    assert list(content["by_hour"]) == ["6", "12", "24", "36", "48"]
    # its own hour, asked beside others, is what the evaluation says at the top
    assert content["by_hour"]["48"]["metrics"] == pytest.approx(content["metrics"], abs=1e-5)
    assert content["by_hour"]["6"]["metrics"] != content["by_hour"]["48"]["metrics"]
    assert main(["evaluate", "--checkpoint", str(finetuned), *map(str, arguments), "--at", "6", "24", "--output",
                 str(tmp_path / "evaluation.json")]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "by hour (the model was trained at the end of each record alone, and what it says earlier" in printed
    assert list(json.loads((tmp_path / "evaluation.json").read_text())["by_hour"]) == ["6", "24"]


def test_predictions_of_many_hours_are_taken_apart(hourly_folder, tmp_path):
    options = FinetuneOptions(epochs=1, batch_size=16, examples_per_record=4, model=TINY_MODEL)
    result = finetune(hourly_folder, HOURLY, tmp_path / "run", options)
    data = load_task(PreparedFolder(hourly_folder), HOURLY, "validation", PreparedFolder(hourly_folder).info.variables)
    assert result.evaluation.content["n"] == len(data)
    found = evaluate(result.output, hourly_folder, HOURLY, at=[12.0, 24.0]).content
    times = data.prediction_times
    expected = [(times <= 12).sum(), ((times > 12) & (times <= 24)).sum(), (times > 24).sum()]
    assert {name: part["n"] for name, part in found["by_hour"].items()} == dict(
        zip(["up to 12", "after 12 to 24", "after 24"], expected, strict=True)
    )
    assert "after 12 to 24" in format_evaluation(found)
    assert found["trained_hours"][1] <= 48


def test_two_processes_share_the_records_of_an_hourly_task(hourly_folder, tmp_path):
    output = tmp_path / "run"
    result = hymate(
        *["finetune", "--data", hourly_folder, "--task", HOURLY, "--output", output, "--epochs", "1", *TINY],
        launcher=["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
        ACCELERATE_USE_CPU="true",
        OMP_NUM_THREADS="1",
    )
    assert result.returncode == 0, result.stderr[-2000:]
    run = json.loads((output / "training_run.json").read_text())
    evaluation = json.loads((output / "evaluation.json").read_text())
    assert evaluation["n"] == run["num_examples"]["validation"] > evaluation["num_records"]
    assert run["history"][-1]["auroc"] == pytest.approx(evaluation["metrics"]["auroc"], abs=1e-6)
    assert run["history"][-1]["step"] == math.ceil(math.ceil(run["num_records"]["train"] / 16) / 2)
