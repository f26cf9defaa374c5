"""Committed checkpoints still load, and give the answers that they gave when they were made."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification

import hymate_native
from tests.support.helpers import close
from tests.support.make_checkpoints import FOLDER, HEADS, logits_of, main

needs_kernels = pytest.mark.skipif(not hymate_native.is_available(), reason="no C++ compiler built the kernels")
AUTO = {"classification": AutoModelForSequenceClassification, "pretraining": AutoModelForPreTraining}


@pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_kernels), "chunked", "reference"])
@pytest.mark.parametrize("name", HEADS)
def test_checkpoint_gives_its_stored_logits(name, backend, monkeypatch):
    monkeypatch.setenv("HYMATE_SCAN_BACKEND", backend)
    model, report = AUTO[name].from_pretrained(FOLDER / name, output_loading_info=True)
    assert type(model) is HEADS[name]
    assert not any(report.values()), report
    stored = json.loads((FOLDER / name / "logits.json").read_text())
    extractor = AutoFeatureExtractor.from_pretrained(FOLDER / name)
    close(torch.tensor(logits_of(model, extractor)), torch.tensor(stored), 1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_checkpoint_saves_as_it_was(name, tmp_path):
    """Tensors bit by bit, and nothing of the configuration or the feature extractor is lost or changed."""
    AUTO[name].from_pretrained(FOLDER / name).save_pretrained(tmp_path)
    AutoFeatureExtractor.from_pretrained(FOLDER / name).save_pretrained(tmp_path)
    before, after = (load_file(folder / "model.safetensors") for folder in (FOLDER / name, tmp_path))
    assert before.keys() == after.keys()
    for parameter, tensor in before.items():
        assert torch.equal(after[parameter], tensor), parameter
    for file in ("config.json", "preprocessor_config.json"):
        old, new = (json.loads((folder / file).read_text()) for folder in (FOLDER / name, tmp_path))
        old.pop("transformers_version", None)
        assert old.items() <= {**new, "custom_pipelines": old.get("custom_pipelines")}.items(), file


@pytest.mark.parametrize("name", HEADS)
def test_checkpoint_is_small_and_opens_as_an_encoder(name):
    assert sum(path.stat().st_size for path in (FOLDER / name).iterdir()) < 100_000
    _, report = AutoModel.from_pretrained(FOLDER / name, output_loading_info=True)
    assert not report["missing_keys"]


def test_script_makes_such_checkpoints(tmp_path):
    main(tmp_path)
    for name in HEADS:
        assert {path.name for path in (tmp_path / name).iterdir()} == {path.name for path in (FOLDER / name).iterdir()}
        stored, made = (load_file(folder / name / "model.safetensors") for folder in (FOLDER, tmp_path))
        assert {key: tensor.shape for key, tensor in stored.items()} == {
            key: tensor.shape for key, tensor in made.items()
        }
