"""Predictions for the labels of a MEDS data set: those of the prepared folder, for every label, leaking nothing."""

import re
import shlex
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from hymate_training.cli.main import main
from hymate_training.data.collators import TaskCollator
from hymate_training.data.examples import load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.fitting.finetuning import FinetuneOptions, finetune
from hymate_training.inference.checkpoints import load_checkpoint
from hymate_training.inference.meds_labels import predict_labels
from hymate_training.inference.prediction import predict_examples
from hymate_training.readers import meds
from tests.readers.test_meds import NUM_SUBJECTS, START, make, make_labels
from tests.support.runs import TINY_MODEL

OPTIONS = FinetuneOptions(epochs=1, batch_size=8, model=TINY_MODEL)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("meds"))


@pytest.fixture(scope="module", params=[(5.0,), (3.0, 6.5)], ids=["asked once", "asked twice"])
def labels(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labels") / "ill"
    return make_labels(folder, "boolean_value", lambda subject: subject // 2 % 2 == 0, request.param)


@pytest.fixture(scope="module")
def prepared(raw, labels, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    meds.prepare(raw, folder, labels=[labels], min_subjects=2)
    return folder


@pytest.fixture(scope="module")
def model(prepared, tmp_path_factory) -> Path:
    return finetune(prepared, "ill", tmp_path_factory.mktemp("run") / "model", OPTIONS).output


def of_prepared(model: Path, prepared: Path) -> dict[tuple[str, float], float]:
    """(record, hour) -> probability, by way of the prepared folder."""
    checkpoint, folder, found = load_checkpoint(model), PreparedFolder(prepared), {}
    for split in folder.splits:
        dataset = load_task(folder, "ill", split, checkpoint.extractor.variables)
        values = predict_examples(checkpoint.model, dataset, TaskCollator(checkpoint.extractor)).values[:, 1]
        keys = zip(dataset.record_ids, dataset.prediction_times.tolist(), strict=True)
        found |= dict(zip(keys, values.tolist(), strict=True))
    return found


def test_predictions_are_those_of_the_prepared_folder(raw, labels, model, prepared, tmp_path):
    result = predict_labels(model, raw, labels, tmp_path / "out")
    expected = of_prepared(model, prepared)
    hours = (pl.col("prediction_time") - START).dt.total_seconds() / 3600 - 24 * pl.col("subject_id")
    rows = result.frame.select("subject_id", hours, "predicted_boolean_probability").rows()
    found = {(str(subject), hour): probability for subject, hour, probability in rows}
    assert set(expected) <= set(found)
    assert len(found) == result.frame.height == len(set(found))  # those of no split are predicted, too
    for key, probability in expected.items():
        assert found[key] == pytest.approx(probability, abs=1e-5)
    assert len({round(probability, 6) for probability in found.values()}) > NUM_SUBJECTS / 2
    assert result.unseen == 0
    written = pl.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert written.equals(result.frame)
    given = pl.concat(pl.read_parquet(path) for path in sorted(labels.iterdir()))
    assert written.select("subject_id", "prediction_time", "boolean_value").equals(given)
    probability = written["predicted_boolean_probability"]
    assert (written["predicted_boolean_value"] == (probability >= 0.5)).all()


def test_it_is_the_schema_of_meds_evaluation(raw, labels, model, tmp_path):
    schema = pytest.importorskip("meds_evaluation.schema", reason="needs meds-evaluation")
    import pyarrow.parquet as pq  # noqa: PLC0415 - used here only

    path = predict_labels(model, raw, labels, tmp_path / "out").output
    schema.PredictionSchema.validate(pq.read_table(path))


def test_nothing_after_a_prediction_changes_it(raw, labels, model, tmp_path):
    before = predict_labels(model, raw, labels, tmp_path / "before").frame
    last = before.group_by("subject_id").agg(pl.col("prediction_time").max())
    changed = tmp_path / "raw"
    shutil.copytree(raw, changed)
    for path in changed.rglob("data/**/*.parquet"):
        rows = pl.read_parquet(path).join(last, on="subject_id", how="left")
        later = pl.col("time") > pl.col("prediction_time")
        rows = rows.with_columns(numeric_value=pl.when(later).then(999.0).otherwise("numeric_value"))
        extra = rows.filter(pl.col("code") == "HR").with_columns(
            time=pl.col("prediction_time") + timedelta(microseconds=1), numeric_value=pl.lit(1.0, pl.Float32)
        )
        pl.concat([rows.cast({"numeric_value": pl.Float32}), extra]).drop("prediction_time").write_parquet(path)
    after = predict_labels(model, changed, labels, tmp_path / "after").frame
    ends = before.join(last, on=["subject_id", "prediction_time"], how="semi")
    assert ends.height == last.height
    np.testing.assert_allclose(
        before["predicted_boolean_probability"], after["predicted_boolean_probability"], atol=1e-6
    )


def test_a_label_before_any_event_rests_on_static_columns(raw, model, tmp_path):
    early = make_labels(tmp_path / "early", "boolean_value", lambda subject: subject % 2 == 0, (-3.0, 4.0))
    result = predict_labels(model, raw, early, tmp_path / "out")
    assert result.unseen == NUM_SUBJECTS
    assert result.frame.height == 2 * NUM_SUBJECTS
    assert result.frame["predicted_boolean_probability"].is_between(0, 1).all()


def test_labels_that_cannot_be_predicted_are_refused(raw, labels, model, tmp_path, finetuned):
    unknown = pl.DataFrame({"subject_id": [999], "prediction_time": [START], "boolean_value": [True]})
    (tmp_path / "unknown").mkdir()
    unknown.write_parquet(tmp_path / "unknown" / "0.parquet")
    with pytest.raises(ValueError, match="lacks subject 999"):
        predict_labels(model, raw, tmp_path / "unknown", tmp_path / "out")
    numbers = make_labels(tmp_path / "numbers", "float_value", float)
    with pytest.raises(ValueError, match="holds float_value"):
        predict_labels(model, raw, numbers, tmp_path / "out")
    with pytest.raises(ValueError, match="no subject in a split 'sealed'"):
        predict_labels(model, raw, labels, tmp_path / "out", split="sealed")
    assert not (tmp_path / "out").exists()


def test_the_command_predicts_a_split(raw, labels, model, tmp_path, capsys):
    arguments = ["predict", "--checkpoint", model, "--raw", raw, "--labels", labels, "--output", tmp_path / "out"]
    assert main([*map(str, arguments), "--split", "held_out"]) == 0
    frame = pl.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert set(frame["subject_id"]) == {20, 21, 22}
    assert f"{frame.height} labels -> " in capsys.readouterr().out
    assert main([*map(str, arguments), "--split", "held_out"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*map(str, arguments), "--split", "held_out", "--overwrite"]) == 0
    whole = predict_labels(model, raw, labels, tmp_path / "whole").frame
    same = frame.join(whole, on=["subject_id", "prediction_time"], suffix="_whole")
    np.testing.assert_allclose(
        same["predicted_boolean_probability"], same["predicted_boolean_probability_whole"], atol=1e-6
    )
    assert main(list(map(str, arguments[:3] + arguments[5:]))) == 2
    assert "--labels needs --raw" in capsys.readouterr().err
    assert main(list(map(str, [*arguments, "--events", "events.csv"]))) == 2
    assert "give one of --events, --data and --labels" in capsys.readouterr().err
    assert main(list(map(str, [*arguments, "--max-events", "7"]))) == 2
    assert "--max-events is for --events" in capsys.readouterr().err


def test_the_entry_of_meds_dev_trains_and_predicts(raw, labels, tmp_path):
    entry = Path(__file__).parents[2] / "examples" / "meds_dev" / "hymate"
    commands = yaml.safe_load((entry / "model.yaml").read_text())["commands"]["supervised"]
    folders = {"dataset_dir": raw, "labels_dir": labels, "output_dir": tmp_path / "train"}
    lines = commands["train"].format(**folders).splitlines()
    folders |= {"output_dir": tmp_path / "predict", "model_initialization_dir": tmp_path / "train"}
    lines += commands["predict"].format(split="held_out", **folders).splitlines()
    for line in lines:
        in_shell = re.sub(r'\$\(basename "([^"]+)"\)', lambda found: Path(found[1]).name, line)
        program, command, *arguments = shlex.split(in_shell)
        if program == "python":
            subprocess.run([sys.executable, command, *arguments], check=True)
            continue
        assert program == "hymate"
        short = ["--epochs", "1", "--model", "hidden_size=8", "num_mamba_layers=1"] if command == "finetune" else []
        assert main([command, *arguments, *short]) == 0
    frame = pl.read_parquet(tmp_path / "predict" / "predictions.parquet")
    assert set(frame["subject_id"]) == {20, 21, 22}
    assert frame.schema["predicted_boolean_probability"] == pl.Float64  # as meds-evaluation 0.0.3 wants it
