"""An untrained classifier of the simulated stays, whose probabilities are calibrated by a temperature far from one."""

from pathlib import Path

import pytest

from hymate_training.data.collators import fit_feature_extractor
from hymate_training.data.prepared_folder import PreparedFolder
from modeling_hymate import HyMaTEForSequenceClassification
from tests.support.helpers import perturbed, tiny_config

TEMPERATURE = 2.5


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
