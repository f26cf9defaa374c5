"""Conformal sets and intervals of new records: by the thresholds that the checkpoint keeps, or a clear refusal."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

from hymate_training.cli.main import main
from hymate_training.data.collators import TaskCollator
from hymate_training.data.examples import load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.evaluation.evaluation import evaluate
from hymate_training.fitting.finetuning import FinetuneOptions, finetune
from hymate_training.inference.checkpoints import load_checkpoint
from hymate_training.inference.conformal import conformal_columns, kept_thresholds
from hymate_training.inference.prediction import predict, predict_examples
from tests.support.runs import TASK, TINY_MODEL, event_frame

LABELS = ("survived", "died")


@pytest.fixture
def wide(finetuned, tmp_path):
    """The checkpoint with thresholds so that the sets of its predictions, all near the prevalence, differ."""
    folder = shutil.copytree(finetuned, tmp_path / "wide")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    by_sex = {"female": [0.1, None, 1.0], "male": [0.1, 0.5, 1.0]}
    by_age = {"65 to 79": [0.1, 0.5, 1.0]}
    evaluation["conformal"]["thresholds"] |= {"sex": by_sex, "age": by_age}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def rows(found: pl.DataFrame, static: pl.DataFrame) -> list[dict]:
    return found.join(static, on="record_id").to_dicts()


def plausible(row: dict, thresholds: dict[str, float] | float) -> str:
    """The set by its definition."""
    limits = thresholds if isinstance(thresholds, dict) else dict.fromkeys(LABELS, thresholds)
    return "; ".join(label for label in LABELS if 1 - row[label] <= limits[label])


@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
def test_sets_hold_the_labels_whose_score_is_within_the_threshold(synthetic_folder, finetuned, level):
    events, static = event_frame(synthetic_folder, 20)
    kept = json.loads((finetuned / "evaluation.json").read_text())["conformal"]
    at = kept["levels"].index(level)
    found = predict(finetuned, events, static, conformal=level).frame
    threshold = kept["thresholds"]["all"]["all"][at]
    assert all(row["conformal_set"] == plausible(row, threshold) for row in found.to_dicts())
    by_label = {label: kept["thresholds"]["label"].get(label, [None] * 3)[at] or np.inf for label in LABELS}
    found = predict(finetuned, events, static, conformal=level, conformal_by="label").frame
    assert all(row["conformal_set"] == plausible(row, by_label) for row in found.to_dicts())
    usual = predict(finetuned, events, static).frame
    assert usual.equals(found.drop("conformal_set"))


def test_each_group_has_its_own_threshold_and_one_without_gets_every_label(synthetic_folder, wide):
    events, static = event_frame(synthetic_folder, 20)
    everything = "; ".join(LABELS)
    for row in rows(predict(wide, events, static, conformal=0.9, conformal_by="sex").frame, static):
        assert row["conformal_set"] == (plausible(row, 0.5) if row["sex"] == "male" else everything), row["sex"]
    found = rows(predict(wide, events, static, conformal=0.8, conformal_by="age").frame, static)
    assert {row["conformal_set"] for row in found if row["age"] is None or not 65 <= row["age"] < 80} == {everything}
    assert any(row["conformal_set"] != everything for row in found)
    unheard = static.with_columns(sex=pl.lit("unheard of"))
    assert set(predict(wide, events, unheard, conformal=0.8, conformal_by="sex").frame["conformal_set"]) == {
        everything
    }


def test_sets_of_a_table_cover_what_evaluation_reports(synthetic_folder, finetuned):
    reported = evaluate(finetuned, synthetic_folder, TASK, "test").content["coverage"]["all"]["all"][1]
    opened = load_checkpoint(finetuned)
    dataset = load_task(PreparedFolder(synthetic_folder), TASK, "test", opened.extractor.variables)
    values = predict_examples(opened.model, dataset, TaskCollator(opened.extractor)).values
    sets = conformal_columns(opened, dataset, values, kept_thresholds(opened, 0.9, "all"), "all")["conformal_set"]
    held = [LABELS[label] in found.split("; ") for label, found in zip(dataset.labels, sets, strict=True)]
    assert np.mean(held) == pytest.approx(reported["coverage"])


def test_a_number_has_an_interval(synthetic_folder, tmp_path):
    options = FinetuneOptions(epochs=1, batch_size=16, model=TINY_MODEL)
    checkpoint = finetune(synthetic_folder, "length_of_stay", tmp_path / "run", options).output
    kept = json.loads((checkpoint / "evaluation.json").read_text())["conformal"]["thresholds"]["all"]["all"][0]
    events, static = event_frame(synthetic_folder)
    found = predict(checkpoint, events, static, conformal=0.8).frame
    assert found.columns == ["record_id", "days", "days_lower", "days_upper", "remarks"]
    for row in found.to_dicts():
        assert row["days_lower"] == pytest.approx(row["days"] - kept)
        assert row["days_upper"] == pytest.approx(row["days"] + kept)


def test_the_command_writes_sets_at_every_hour(synthetic_folder, finetuned, tmp_path, capsys):
    events, static = event_frame(synthetic_folder)
    events.write_csv(tmp_path / "events.csv")
    static.write_csv(tmp_path / "static.csv")
    arguments = ["predict", "--checkpoint", str(finetuned), "--events", str(tmp_path / "events.csv")]
    arguments += ["--static", str(tmp_path / "static.csv"), "--output", str(tmp_path / "out.csv"), "--overwrite"]
    hourly = ["--every", "12", "--untrained-hours"]
    assert main([*arguments, *hourly, "--conformal", "0.9", "--conformal-by", "label"]) == 0
    found = pl.read_csv(tmp_path / "out.csv").with_columns(pl.col("conformal_set").fill_null(""))
    kept = json.loads((finetuned / "evaluation.json").read_text())["conformal"]["thresholds"]["label"]
    limits = {label: kept.get(label, [None] * 3)[1] or np.inf for label in LABELS}
    assert found.height > 5
    assert all(row["conformal_set"] == plausible(row, limits) for row in found.to_dicts())
    capsys.readouterr()
    for wrong, message in (
        (["--conformal", "0.99"], "conformal must be one of 0.8, 0.9, 0.95, got 0.99"),
        (["--conformal", "0.9", "--conformal-by", "hair"], "conformal_by must be one of all, label, "),
        (["--conformal-by", "label"], "--conformal-by needs --conformal"),
    ):
        assert main([*arguments, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_a_checkpoint_without_thresholds_says_so(synthetic_folder, finetuned, tmp_path):
    events, _ = event_frame(synthetic_folder)
    folder = shutil.copytree(finetuned, tmp_path / "bare")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    del evaluation["conformal"]
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    with pytest.raises(ValueError, match="keeps no thresholds of conformal prediction; `hymate finetune` writes them"):
        predict(folder, events, conformal=0.9)
    (folder / "evaluation.json").unlink()
    with pytest.raises(ValueError, match="keeps no thresholds of conformal prediction"):
        predict(folder, events, conformal=0.9)
