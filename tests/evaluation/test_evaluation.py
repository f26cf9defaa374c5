"""Which data a model can be evaluated on."""

import json
import shutil

import pytest

from hymate_training.data.examples import check_static_columns
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import TaskInfo
from hymate_training.evaluation.evaluation import check_task
from hymate_training.inference.checkpoints import label_names, load_checkpoint


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
