"""Makes the tiny checkpoints that test_checkpoints.py loads: python tests/make_checkpoints.py

Run it for a new format of checkpoints only, into a new folder: what is committed stands for what users have.
"""

import json
import sys
from pathlib import Path

import torch

from modeling_hymate import HyMaTEFeatureExtractor, HyMaTEForPreTraining, HyMaTEForSequenceClassification
from tests.support.helpers import perturbed, tiny_config

FOLDER = Path(__file__).parents[1] / "checkpoints"
HEADS = {"classification": HyMaTEForSequenceClassification, "pretraining": HyMaTEForPreTraining}
RECORDS = [
    {"time": [0.0, 1.5, 1.5, 30.0], "variable": ["HR", "GCS", "HR", "Ward"], "value": [88, 15, 91.5, None], "Age": 71},
    {"time": [2.0, 4.0], "variable": ["GCS", "HR"], "value": [9, 130], "Age": None},
    {"time": [0.25, 0.5, 7.0], "variable": ["HR", "HR", "GCS"], "value": [60, 62, 3], "Age": 34},
]


def logits_of(model: torch.nn.Module, extractor: HyMaTEFeatureExtractor) -> list[list[float]]:
    with torch.no_grad():
        return model.eval()(**extractor(RECORDS)).logits.tolist()


def main(folder: Path = FOLDER):
    for seed, (name, head) in enumerate(HEADS.items()):
        extractor = HyMaTEFeatureExtractor.fit(RECORDS, ["HR", "GCS", "Ward"], numeric_columns=["Age"])
        config = tiny_config(
            num_variables=extractor.num_variables,
            num_static_features=len(extractor.static_feature_names),
            time_scale=extractor.time_scale,
            num_mamba_layers=1,
            num_statistic_bins=2,
            id2label={0: "survived", 1: "died"},
            problem_type="single_label_classification",
        )
        torch.manual_seed(seed)
        model = perturbed(head(config), seed)
        model.save_pretrained(folder / name)
        extractor.save_pretrained(folder / name)
        for path in (folder / name).glob("*.py"):
            path.unlink()  # today's code is what loads them
        (folder / name / "logits.json").write_text(json.dumps(logits_of(model, extractor)) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
