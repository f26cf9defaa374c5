"""What is said anew of released weights: units, notes on the recipe, and never of a run of other weights."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from experiments.evidence import release
from experiments.evidence.release import MODEL_CARDS, RELEASES, changed_since, state_units, take_released
from experiments.evidence.tables import card_notes, read_results
from experiments.evidence.units import RESULTS
from hymate_training.cli.options import read_recipe
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.inference.checkpoints import RUN_FILE, WEIGHTS_FILE, load_checkpoint, load_extractor
from hymate_training.publishing.privacy import NOTES_FILE, check_text

MORTALITY = RELEASES["mortality"]


def test_weights_are_kept_and_others_are_not_taken_for_them(tmp_path):
    take_released(tmp_path, MORTALITY.encoder)
    take_released(tmp_path, MORTALITY.encoder)
    own = tmp_path / MORTALITY.encoder / WEIGHTS_FILE
    assert own.read_bytes() == (MODEL_CARDS / MORTALITY.encoder / WEIGHTS_FILE).read_bytes()
    own.write_bytes(b"of another run")
    with pytest.raises(ValueError, match="other weights"):
        take_released(tmp_path, MORTALITY.encoder)


def test_the_metrics_of_refitted_weights_need_their_run(tmp_path, monkeypatch):
    released = shutil.copytree(MODEL_CARDS / MORTALITY.encoder, tmp_path / "model_cards" / MORTALITY.encoder)
    run = json.loads((released / RUN_FILE).read_text())
    (released / RUN_FILE).write_text(json.dumps(run | {"refit": {"epochs": 3}}))
    monkeypatch.setattr(release, "MODEL_CARDS", released.parent)
    with pytest.raises(ValueError, match=r"must be the run that .* came of, since it was refitted"):
        take_released(tmp_path / "work", MORTALITY.encoder)
    shutil.copytree(released, tmp_path / "work" / MORTALITY.encoder)
    take_released(tmp_path / "work", MORTALITY.encoder)


def test_units_are_those_of_the_reader_and_change_no_prediction(checkpoint_without_units, synthetic_folder):
    record = {"time": [1.0, 2.0], "variable": ["heart_rate", "lactate"], "value": [92, 2.1]}
    info = PreparedFolder(synthetic_folder).info

    def answer() -> torch.Tensor:
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint_without_units).eval()
        with torch.no_grad():
            return model(**load_extractor(checkpoint_without_units)(record)).logits

    before = answer()
    assert not load_checkpoint(checkpoint_without_units).extractor.units
    state_units(checkpoint_without_units, info)
    units = load_extractor(checkpoint_without_units).units
    assert units == {name: unit for name, unit in info.extra["units"].items() if unit}
    assert torch.equal(answer(), before)


@pytest.fixture
def checkpoint_without_units(finetuned, tmp_path):
    folder = shutil.copytree(finetuned, tmp_path / "model")
    path = folder / "preprocessor_config.json"
    content = json.loads(path.read_text())
    assert content.pop("units")
    path.write_text(json.dumps(content))
    return folder


def test_a_note_names_what_the_recipe_had_not(tmp_path):
    recipe = read_recipe("demo")
    for kind in ("pretrain", "finetune"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / RUN_FILE).write_text(json.dumps({"kind": kind, "recipe": recipe[kind]}))
    folders = [tmp_path / "pretrain", tmp_path / "finetune"]
    assert changed_since(folders, "demo") == ""
    changed = next(iter(recipe["pretrain"]))
    (folders[0] / RUN_FILE).write_text(
        json.dumps({"kind": "pretrain", "recipe": recipe["pretrain"] | {changed: None}})
    )
    assert changed_since(folders, "demo").endswith(f"trained with another `{changed}`.")


@pytest.mark.parametrize("name", RELEASES)
def test_the_released_card_has_the_cross_validation_of_the_documentation(name, tmp_path):
    study = RELEASES[name].study
    notes = card_notes(study, read_results(RESULTS / study.name))
    assert notes in (MODEL_CARDS / RELEASES[name].name / NOTES_FILE).read_text()
    for title in ("Net benefit", "Coverage of conformal sets"):
        assert f"### {title}\n" in notes
    (tmp_path / NOTES_FILE).write_text(notes)
    assert check_text(tmp_path / NOTES_FILE) == notes
