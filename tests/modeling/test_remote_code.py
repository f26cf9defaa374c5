"""The Auto classes, with our package (the local code serves) and without it (the folder's own code does)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoProcessor,
    pipeline,
)
from transformers.utils import logging as transformers_logging

from modeling_hymate import (
    HyMaTEConfig,
    HyMaTEFeatureExtractor,
    HyMaTEForPreTraining,
    HyMaTEForSequenceClassification,
    HyMaTEModel,
)
from tests.support import remote_client
from tests.support.helpers import perturbed, tiny_config

CODE = {
    "attention.py",
    "channel_statistics.py",
    "channel_tokens.py",
    "configuration_hymate.py",
    "constants.py",
    "dropout.py",
    "embedding.py",
    "events.py",
    "feature_extraction_hymate.py",
    "forecast.py",
    "hazards.py",
    "inputs.py",
    "items.py",
    "losses.py",
    "mamba.py",
    "modeling_hymate.py",
    "native.py",
    "native_layers.py",
    "outputs.py",
    "pipeline_hymate.py",
    "running_quantities.py",
    "scan.py",
    "stream.py",
    "streaming.py",
    "triton_convolution.py",
    "triton_launch.py",
    "triton_operators.py",
    "triton_scan.py",
    "value_statistics.py",
}
RECORDS = [
    {"time": [0.0, 1.5, 1.5, 30.0], "variable": ["HR", "GCS", "HR", "Ward"], "value": [88, 15, 91.5, None], "Age": 71},
    {"time": [2.0, 4.0], "variable": ["GCS", "HR"], "value": [9, 130], "Age": None},
    {"time": [0.25, 0.5, 7.0], "variable": ["HR", "HR", "GCS"], "value": [60, 62, 3], "Age": 34},
]


@pytest.fixture(scope="module")
def extractor() -> HyMaTEFeatureExtractor:
    return HyMaTEFeatureExtractor.fit(RECORDS, ["HR", "GCS", "Ward"], numeric_columns=["Age"])


@pytest.fixture(scope="module")
def config(extractor: HyMaTEFeatureExtractor) -> HyMaTEConfig:
    return tiny_config(
        num_variables=extractor.num_variables,
        num_static_features=len(extractor.static_feature_names),
        time_scale=extractor.time_scale,
        id2label={0: "survived", 1: "died"},
        problem_type="single_label_classification",
    )


@pytest.fixture(scope="module")
def classifier(config: HyMaTEConfig) -> HyMaTEForSequenceClassification:
    return perturbed(HyMaTEForSequenceClassification(config)).eval()


@pytest.fixture(scope="module")
def classifier_folder(classifier, extractor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "classifier"
    classifier.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pretrained_folder(config, extractor, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pretrained"
    perturbed(HyMaTEForPreTraining(config), seed=1).save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder


def test_auto_classes_open_a_folder(classifier_folder, pretrained_folder, classifier):
    assert type(AutoConfig.from_pretrained(classifier_folder)) is HyMaTEConfig
    opened = {
        AutoModel: (classifier_folder, HyMaTEModel),
        AutoModelForSequenceClassification: (classifier_folder, HyMaTEForSequenceClassification),
        AutoModelForPreTraining: (pretrained_folder, HyMaTEForPreTraining),
        AutoFeatureExtractor: (classifier_folder, HyMaTEFeatureExtractor),
        AutoProcessor: (classifier_folder, HyMaTEFeatureExtractor),
    }
    for auto, (folder, expected) in opened.items():
        assert type(auto.from_pretrained(folder)) is expected, auto
    encoder = AutoModel.from_pretrained(classifier_folder)
    for name, tensor in classifier.hymate.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], tensor), name


def test_local_code_wins_over_a_folders_code(classifier_folder):
    """Also where the user trusts remote code: one process, one set of classes."""
    model = AutoModelForSequenceClassification.from_pretrained(classifier_folder, trust_remote_code=True)
    assert type(model) is HyMaTEForSequenceClassification
    served = pipeline("ehr-classification", model=str(classifier_folder), device="cpu", trust_remote_code=True)
    assert type(served.model) is HyMaTEForSequenceClassification


def test_pretrained_checkpoint_opens_as_a_classifier_and_says_that_its_head_is_fresh(pretrained_folder, caplog):
    transformers_logging.enable_propagation()
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            pretrained_folder, output_loading_info=True, num_labels=3
        )
    finally:
        transformers_logging.disable_propagation()
    assert set(report["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert "classifier.weight" in caplog.text
    assert "MISSING" in caplog.text
    assert model.classifier.out_features == 3
    encoder = AutoModelForPreTraining.from_pretrained(pretrained_folder).hymate
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(model.hymate.state_dict()[name], tensor), name


def test_saved_folder_holds_all_the_code(classifier_folder, pretrained_folder):
    for folder in (classifier_folder, pretrained_folder):
        assert {path.name for path in folder.glob("*.py")} == CODE
        auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
        assert set(auto_map) == {
            "AutoConfig",
            "AutoModel",
            "AutoModelForPreTraining",
            "AutoModelForSequenceClassification",
        }
        opened_by = json.loads((folder / "preprocessor_config.json").read_text())["auto_map"]
        assert set(opened_by) == {"AutoFeatureExtractor", "AutoProcessor"}
    assert json.loads((classifier_folder / "config.json").read_text())["custom_pipelines"]
    assert not json.loads((pretrained_folder / "config.json").read_text())["custom_pipelines"]


def test_folder_works_where_our_packages_are_missing(classifier_folder, classifier, extractor, tmp_path):
    """Bit-equal outputs, a training step, a second save that opens there and here, and the pipeline."""
    records, second, results = tmp_path / "records.json", tmp_path / "second", tmp_path / "results"
    records.write_text(json.dumps(RECORDS))
    client = Path(remote_client.__file__)
    done = subprocess.run(
        [sys.executable, "-I", str(client), str(classifier_folder), str(second), str(records), str(results)],
        cwd=tmp_path,
        env={
            **os.environ,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "1",
            "HYMATE_SCAN_BACKEND": "chunked",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads((results / "answers.json").read_text())
    assert answers["imported"] == []
    assert answers["processor"] == "HyMaTEFeatureExtractor"

    features = dict(extractor(RECORDS))
    there = load_file(results / "features.safetensors")
    assert set(there) == set(features)
    for name, tensor in features.items():
        assert torch.equal(there[name], tensor), name
    model = HyMaTEForSequenceClassification.from_pretrained(second)
    expected = {
        "loaded": outputs(classifier, features),
        "encoder": outputs(classifier.hymate, features),
        "trained": outputs(model, features),
        "reloaded": outputs(model, features),
    }
    for stage, here in expected.items():
        there = load_file(results / f"{stage}.safetensors")
        assert set(there) == set(here)
        for name, tensor in here.items():
            assert torch.equal(there[name], tensor), (stage, name)
    assert not torch.equal(expected["trained"]["logits"], expected["loaded"]["logits"])

    for name in CODE:
        assert (second / name).read_bytes() == (classifier_folder / name).read_bytes(), name
    assert AutoFeatureExtractor.from_pretrained(second).to_dict() == extractor.to_dict()
    assert {path.name for path in second.iterdir()} == {path.name for path in classifier_folder.iterdir()}
    assert second_pipeline(second) == answers["pipeline"]


@pytest.fixture(autouse=True)
def _same_backend(monkeypatch):
    monkeypatch.setenv("HYMATE_SCAN_BACKEND", "chunked")


def second_pipeline(folder: Path) -> list:
    return pipeline("ehr-classification", model=str(folder), device="cpu")(RECORDS)


def outputs(model, features) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        found = model.eval()(**features)
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}
