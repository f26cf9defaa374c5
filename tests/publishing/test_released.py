"""The released checkpoints in model_cards/: they load from a clone, and evaluation gives what their card says."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoFeatureExtractor, AutoModelForPreTraining, AutoModelForSequenceClassification, pipeline

from hymate_training.cli.main import main
from hymate_training.concepts.vocabulary import load_vocabulary
from hymate_training.publishing.push import endpoint_code, package_code, plan_push
from modeling_hymate import HyMaTEForSequenceClassification

MODEL_CARDS = Path(__file__).resolve().parents[2] / "model_cards"
MORTALITY = MODEL_CARDS / "hymate-physionet2012-mortality"
PRETRAINED = MODEL_CARDS / "hymate-physionet2012-pretrained"
SEPSIS = MODEL_CARDS / "hymate-physionet2019-sepsis"
SEPSIS_ENCODER = MODEL_CARDS / "hymate-physionet2019-pretrained"
ICU = MODEL_CARDS / "hymate-icu-pretrained"
LARGEST = 2_000_000  # bytes


@pytest.mark.parametrize(
    "folder", [MORTALITY, PRETRAINED, SEPSIS, SEPSIS_ENCODER, ICU], ids=lambda folder: folder.name
)
def test_a_folder_holds_what_is_pushed_and_nothing_else_but_the_code(folder):
    plan = plan_push(folder)
    assert plan.left == ()
    endpoint = set(endpoint_code()) if folder in (MORTALITY, SEPSIS) else set()
    assert set(plan.uploaded) == {path.name for path in folder.iterdir()} | set(package_code()) | endpoint
    assert not list(folder.glob("*.py"))
    assert sum(path.stat().st_size for path in folder.iterdir()) < LARGEST


def test_they_load_and_answer_without_trust_in_remote_code():
    extractor = AutoFeatureExtractor.from_pretrained(MORTALITY)
    inputs = extractor({"time": [0.5, 2.0, 30.0], "variable": ["HR", "GCS", "GCS"], "value": [92, 15, 6]})
    classifier, info = AutoModelForSequenceClassification.from_pretrained(MORTALITY, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        probabilities = classifier.predictions(classifier(**inputs).logits)
        forecast = AutoModelForPreTraining.from_pretrained(PRETRAINED)(**inputs).logits
    torch.testing.assert_close(probabilities.sum(), torch.tensor(1.0))
    assert forecast.isfinite().all()


def test_the_encoder_of_several_sources_knows_their_concepts():
    extractor = AutoFeatureExtractor.from_pretrained(ICU)
    assert set(extractor.variables) <= set(load_vocabulary().concepts)
    of_sources = json.loads((ICU / "training_run.json").read_text())["sources"]
    assert len(of_sources) == 5
    record = {"time": [0.5, 2.0, 30.0], "variable": ["heart_rate", "lactate", "sodium"], "value": [92, 1.5, 139]}
    with torch.no_grad():
        forecast = AutoModelForPreTraining.from_pretrained(ICU)(**extractor(record)).logits
    assert forecast.isfinite().all()


@pytest.mark.parametrize("trust", [False, True])
def test_the_pipeline_uses_the_installed_code(trust):
    classify = pipeline("ehr-classification", model=str(MORTALITY), device="cpu", trust_remote_code=trust)
    assert type(classify.model) is HyMaTEForSequenceClassification
    answer = classify({"time": [0.5, 2.0], "variable": ["HR", "GCS"], "value": [92, 15]})
    assert sum(answer["scores"].values()) == pytest.approx(1)


def test_evaluation_reproduces_the_card(shared_data, tmp_path, capsys):
    raw = shared_data("physionet2019")
    arguments = ["prepare", "physionet2019", "--split", "random", "--raw", str(raw)]
    assert main([*arguments, "--output", str(tmp_path / "data")]) == 0
    arguments = ["evaluate", "--checkpoint", str(SEPSIS), "--data", str(tmp_path / "data")]
    arguments += ["--task", "sepsis_onset", "--split", "test"]
    assert main([*arguments, "--output", str(tmp_path / "evaluation.json")]) == 0
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    header = yaml.safe_load(re.match(r"---\n(.*?)\n---", (SEPSIS / "README.md").read_text(), re.DOTALL).group(1))
    (result,) = header["model-index"][0]["results"]
    assert result["dataset"]["args"]["fingerprint"] == evaluation["split_fingerprint"]
    stated = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert stated["roc_auc"] == pytest.approx(evaluation["metrics"]["auroc"], abs=2e-4)
    assert stated["average_precision"] == pytest.approx(evaluation["metrics"]["auprc"], abs=2e-3)
    assert stated["normalized_utility"] == pytest.approx(evaluation["metrics"]["normalized_utility"], abs=2e-3)
    assert stated["expected_calibration_error"] < 0.03


def test_what_was_refitted_is_not_evaluated_on_its_own_records(shared_data, tmp_path, capsys):
    raw = shared_data("physionet2012")
    assert main(["prepare", "physionet2012", "--raw", str(raw), "--output", str(tmp_path / "data")]) == 0
    arguments = ["evaluate", "--checkpoint", str(MORTALITY), "--data", str(tmp_path / "data")]
    arguments += ["--task", "in_hospital_mortality", "--split", "validation"]
    assert main([*arguments, "--output", str(tmp_path / "evaluation.json")]) == 2
    assert "was trained on the validation split" in capsys.readouterr().err
