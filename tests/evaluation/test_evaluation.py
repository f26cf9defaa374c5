"""Which data a model can be evaluated on, and what an evaluation says about decisions."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

from hymate_training.data.collators import TaskCollator
from hymate_training.data.examples import check_static_columns, load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import TaskInfo
from hymate_training.evaluation.evaluation import check_task, evaluate
from hymate_training.fitting.finetuning import FinetuneOptions, finetune
from hymate_training.inference.checkpoints import label_names, load_checkpoint
from hymate_training.inference.prediction import predict_examples
from hymate_training.publishing.privacy import check_json
from hymate_training.readers import physionet2019
from tests.support.runs import TASK, TINY_MODEL
from tests.support.sepsis_files import make_hospital, write_hospital


def test_of_a_yes_or_no_question_the_name_of_yes_decides(finetuned):
    model = load_checkpoint(finetuned).model
    assert label_names(model) == ("survived", "died")
    check_task(model, TaskInfo("death", "", "binary", ("boolean_value",), ("no died", "died")))
    for labels in (("died", "survived"), ("no readmitted", "readmitted")):
        with pytest.raises(ValueError, match="the model predicts"):
            check_task(model, TaskInfo("other", "", "binary", ("boolean_value",), labels))


def test_data_without_a_static_column_of_the_model_are_refused(synthetic_folder, finetuned, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(synthetic_folder, folder)
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["static_columns"] = [column for column in metadata["static_columns"] if column["name"] != "age"]
    (folder / "metadata.json").write_text(json.dumps(metadata))
    extractor = load_checkpoint(finetuned).extractor
    check_static_columns(PreparedFolder(synthetic_folder), extractor)
    with pytest.raises(ValueError, match="lacks the static column 'age', with which the model was trained; it has"):
        check_static_columns(PreparedFolder(folder), extractor)


@pytest.fixture(scope="module")
def own_predictions(synthetic_folder, finetuned):
    """The model's probabilities of the validation split as a table, as a baseline's would come."""
    checkpoint, folder = load_checkpoint(finetuned), PreparedFolder(synthetic_folder)
    dataset = load_task(folder, TASK, "validation", checkpoint.extractor.variables)
    predicted = predict_examples(checkpoint.model, dataset, TaskCollator(checkpoint.extractor))
    return pl.DataFrame({"record_id": list(dataset.record_ids), "prediction": predicted.values[:, 1].astype(float)})


def test_a_model_is_no_better_than_itself(synthetic_folder, finetuned, own_predictions, tmp_path):
    path = tmp_path / "a twin.csv"
    own_predictions.sample(fraction=1, shuffle=True, seed=0).write_csv(path)
    found = evaluate(finetuned, synthetic_folder, TASK, thresholds=[0.2], baseline=path).content
    curves = found["net_benefit"]
    assert curves["baseline"] == pytest.approx(curves["model"])
    np.testing.assert_allclose(curves["confidence_intervals"]["model_minus_baseline"], 0, atol=1e-12)
    twin = found["baselines"]["a twin"]
    assert twin["metrics"] == pytest.approx(found["metrics"])
    assert twin["differences"]["auroc"]["interval"] == [0, 0]
    assert [row["threshold"] for row in found["thresholds"]] == sorted({0.2, found["decision_threshold"]})
    own = json.loads((finetuned / "evaluation.json").read_text())
    assert found["decision_threshold"] == own["positives"] / own["n"]
    assert "alarms" not in found


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda frame: frame.head(5), r"lacks \d+ of the \d+ examples"),
        (lambda frame: pl.concat([frame, frame.head(1)]), "row 1: record_id named before, or again below"),
        (lambda frame: frame.with_columns(prediction=pl.lit(1.2)), "row 1: prediction must be a probability"),
        (lambda frame: frame.drop("prediction"), "lacks the column 'prediction'"),
    ],
)
def test_a_baseline_that_does_not_fit_is_refused(
    synthetic_folder, finetuned, own_predictions, tmp_path, change, problem
):
    path = tmp_path / "baseline.parquet"
    change(own_predictions).write_parquet(path)
    with pytest.raises(ValueError, match=problem):
        evaluate(finetuned, synthetic_folder, TASK, baseline=path)


def test_an_hourly_task_has_alarms_and_a_baseline_by_the_hour(tmp_path):
    raw, prepared, run = tmp_path / "raw", tmp_path / "prepared", tmp_path / "run"
    physionet2019.prepare(write_hospital(raw, "A", make_hospital("A", 300)), prepared, split="random")
    finetune(prepared, "sepsis_onset", run, FinetuneOptions(epochs=1, batch_size=64, model=TINY_MODEL))
    folder = PreparedFolder(prepared)
    rows = pl.DataFrame(pl.from_arrow(folder.task("sepsis_onset", "validation")))
    alike = rows.select("record_id", "prediction_time", prediction=pl.lit(0.3))
    alike.write_parquet(tmp_path / "alike.parquet")
    found = evaluate(run, prepared, "sepsis_onset", snooze_hours=3, baseline=tmp_path / "alike.parquet").content
    assert found["baselines"]["alike"]["metrics"]["auroc"] == 0.5
    at = found["net_benefit"]["thresholds"].index(0.3)
    assert found["net_benefit"]["baseline"][at] == pytest.approx(found["net_benefit"]["treat_all"][at])
    assert found["alarms"]["label_lead_hours"] == 6
    assert found["alarms"]["snooze_hours"] == 3
    records = rows.group_by("record_id").agg(pl.col("boolean_value").any(), hours=pl.len())
    assert found["alarms"]["num_events"] == records["boolean_value"].sum()
    assert found["alarms"]["patient_days"] == pytest.approx(records["hours"].sum() / 24)
    assert [row["threshold"] for row in found["alarms"]["by_threshold"]] == [
        row["threshold"] for row in found["thresholds"]
    ]
    assert found["decision_threshold"] == found["threshold"]["value"]
    assert "alarms per 100 patient-days" in (run / "README.md").read_text()
    check_json(run / "evaluation.json")
