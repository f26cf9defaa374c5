"""An untrained classifier of the simulated stays, whose probabilities are calibrated by a temperature far from one."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from hymate_training.data.collators import fit_feature_extractor
from hymate_training.data.examples import load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.evaluation.evaluation import evaluate
from hymate_training.files import write_json
from hymate_training.fitting.finetuning import keep_aggregates
from hymate_training.inference.checkpoints import EVALUATION_FILE
from modeling_hymate import HyMaTEFeatureExtractor, HyMaTEForSequenceClassification
from tests.support.helpers import perturbed, tiny_config

TEMPERATURE = 2.5
TASK = "in_hospital_mortality"


@pytest.fixture(scope="session")
def checkpoint(synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it only: every test of the room shares it."""
    folder = tmp_path_factory.mktemp("classifier")
    extractor = fit_feature_extractor(PreparedFolder(synthetic_folder))
    config = tiny_config(
        num_variables=extractor.num_variables,
        num_static_features=len(extractor.static_feature_names),
        num_labels=2,
        id2label={0: "survived", 1: "died"},
        problem_type="single_label_classification",
        temperature=TEMPERATURE,
        time_scale=extractor.time_scale,
    )
    perturbed(HyMaTEForSequenceClassification(config)).save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def evaluated(checkpoint: Path, synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a model of many hours, with its evaluation and the aggregates of its training data. Read it only."""
    folder = Path(shutil.copytree(checkpoint, tmp_path_factory.mktemp("evaluated") / "model"))
    extractor = HyMaTEFeatureExtractor.from_pretrained(folder)
    extractor.trained_hours = [6.0, 48.0]
    extractor.save_pretrained(folder)
    data = PreparedFolder(synthetic_folder)
    content = evaluate(folder, data, TASK).content
    predicted = np.linspace(0.02, 0.98, 25)
    content["calibration"]["curve"] = {  # so few records have none
        "predicted": predicted.tolist(),
        "observed": (predicted**1.1).tolist(),
        "intervals": np.column_stack([0.9 * predicted, 0.05 + 0.95 * predicted]).tolist(),
    }
    write_json(folder / EVALUATION_FILE, content)
    datasets = {split: load_task(data, TASK, split, extractor.variables) for split in ("train", "validation")}
    keep_aggregates(folder, datasets, TASK, 64)
    return folder
