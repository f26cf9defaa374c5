"""`hymate push` looks before it uploads: what is on the list goes, anything patient-level stops it."""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hymate_training.evaluation.plots import save_plots
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.publishing import push
from modeling_hymate import HyMaTEFeatureExtractor, HyMaTEForSequenceClassification
from tests.support.helpers import tiny_config

RECORD = {"time": [0.0, 1.0], "variable": ["HR", "GCS"], "value": [90.0, 14.0], "Age": 60.0}
README = """---
license: apache-2.0
library_name: transformers
---
# A model

Hand over events with `time`, `variable` and `value`; `record_id` names the record of each.
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("push") / "checkpoint"
    extractor = HyMaTEFeatureExtractor.fit(RECORD, ["HR", "GCS"], numeric_columns=["Age"])
    config = tiny_config(num_variables=2, num_static_features=2)
    HyMaTEForSequenceClassification(config).save_pretrained(folder)
    extractor.save_pretrained(folder)
    (folder / "README.md").write_text(README)
    return folder


@pytest.fixture
def checkpoint(saved, tmp_path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def test_plan_takes_the_checkpoint_and_leaves_the_rest(checkpoint):
    (checkpoint / "training_run.json").write_text(json.dumps({"recipe": {"epochs": 3}, "history": [{"auroc": 0.8}]}))
    (checkpoint / "evaluation.json").write_text(json.dumps({"metrics": {"auroc": 0.8}, "n": 100}))
    (checkpoint / "logs").mkdir()
    (checkpoint / "logs" / "events.out.tfevents.1.host").write_bytes(b"\x00\xff\xfe")
    plan = push.plan_push(checkpoint)
    assert set(plan.uploaded) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        *push.CODE,
    }
    assert set(plan.left) == {"training_run.json", "evaluation.json", "logs/events.out.tfevents.1.host"}
    shown = push.describe(plan, checkpoint, "https://hub/org/name")
    for name in (*plan.uploaded, *plan.left):
        assert name in shown


@pytest.mark.parametrize("problem_type", ["binary", "multiclass", "multilabel", "regression"])
def test_every_plot_of_an_evaluation_may_go(checkpoint, problem_type):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(3), 60)
    labels, predictions = {
        "binary": (np.arange(60) % 2, probabilities[:, 0]),
        "multiclass": (np.arange(60) % 3, probabilities),
        "multilabel": (np.arange(180).reshape(60, 3) % 2, probabilities),
        "regression": (rng.normal(size=60), rng.normal(size=60)),
    }[problem_type]
    written = save_plots(LabeledPredictions(problem_type, labels, predictions), checkpoint, "evaluation")
    assert written
    assert {path.name for path in written} <= set(push.plan_push(checkpoint).uploaded)


def test_weights_of_a_last_epoch_stay_behind_and_stop_nothing(checkpoint):
    (checkpoint / "last").mkdir()
    for name in ("config.json", "model.safetensors"):
        (checkpoint / "last" / name).write_bytes((checkpoint / name).read_bytes())
    plan = push.plan_push(checkpoint)
    assert "last/model.safetensors" in plan.left
    assert "model.safetensors" in plan.uploaded


LEAKED_FILES = {
    "predictions.csv": b"record_id,died\n132539,0.4\n",
    "predictions": b"132539 0.4\n",
    "validation_predictions.json": b"[[0.1, 0.9]]",
    "out.parquet": b"PAR1",
    "records.jsonl": b'{"time": [0]}\n',
    "events.csv.gz": b"\x1f\x8b",
    "attention_132539.png": b"\x89PNG",
    "explanation.html": b"<html></html>",
    "attention.npz": b"PK",
    "event_weights.safetensors": b"\x00",
    "optimizer.bin": b"\x80",
    "optimizer.pt": b"\x80",
    "scheduler.bin": b"\x80",
    "trainer_state.json": b"{}",
    "training_args.bin": b"\x80",
    "rng_state.pth": b"\x80",
    "pytorch_model.bin": b"\x80",
    "cohort.pkl": b"\x80",
    "last/random_states_0.pkl": b"\x80",
    "checkpoint-500/optimizer.pt": b"\x80",
    "notes.txt": b"worst case: record 132539 was missed\n",
    "errors.log": b"subject_id: 10026255\n",
    "list": b"stay_id,error\n30000153,0.9\n",
    ".cache/ids.json": b'{"subject_ids": [1, 2]}',
    "deep/er/a.yaml": b"hadm_id: 2\n",
    "broken.json": b"{",
}


@pytest.mark.parametrize("name", LEAKED_FILES)
def test_leaked_file_stops_the_push(checkpoint, name):
    path = checkpoint / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(LEAKED_FILES[name])
    with pytest.raises(ValueError, match="single patients") as error:
        push.plan_push(checkpoint)
    assert f"  {name}: " in str(error.value)


LEAKED_CONTENT = [
    ("config.json", {"record_id": "132539"}),
    ("config.json", {"record_ids": ["132539", "132540"]}),
    ("config.json", {"task_specific_params": {"cohort": [{"subject_id": 10026255}]}}),
    ("config.json", {"predictions": [0.1, 0.7]}),
    ("config.json", {"extra": {"event_weights": {"HR": [0.1, 0.2]}}}),
    ("config.json", {"note": "false negative: patient 132539"}),
    ("preprocessor_config.json", {"RecordID": 132539}),
    ("preprocessor_config.json", {"variables": ["HR", "subject_id"]}),
    ("preprocessor_config.json", {"static_columns": [{"name": "patientunitstayid", "categories": ["a"]}]}),
    ("preprocessor_config.json", {"labels": [0, 1, 1]}),
]


@pytest.mark.parametrize(("name", "leak"), LEAKED_CONTENT)
def test_leak_inside_a_file_of_the_list_stops_the_push(checkpoint, name, leak):
    path = checkpoint / name
    path.write_text(json.dumps(json.loads(path.read_text()) | leak))
    with pytest.raises(ValueError, match=f"  {name}: "):
        push.plan_push(checkpoint)


@pytest.mark.parametrize(
    "leak",
    [
        "record_id: 132539",
        "| record_id | died |\n|---|---|\n| 132539 | 0.4 |",
        '{"subject_ids": [10026255]}',
        "stay_id = 30000153",
        "The model missed patient 132539.",
        "RecordID,In-hospital_death\n132539,0",
    ],
)
def test_leak_in_the_card_stops_the_push(checkpoint, leak):
    (checkpoint / "README.md").write_text(README + leak + "\n")
    with pytest.raises(ValueError, match=r"  README\.md: line 8 "):
        push.plan_push(checkpoint)


def test_leak_in_the_cards_metadata_stops_the_push(checkpoint):
    (checkpoint / "README.md").write_text(README.replace("library_name", "predictions: [0.1, 0.9]\nlibrary_name"))
    with pytest.raises(ValueError, match=r"  README\.md: 'predictions'"):
        push.plan_push(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json", "events.py"])
def test_half_a_checkpoint_is_refused(checkpoint, name):
    (checkpoint / name).unlink()
    with pytest.raises(ValueError, match=f"lacks .*{name}"):
        push.plan_push(checkpoint)


def test_run_refuses_before_it_talks_to_anyone(checkpoint, monkeypatch):
    monkeypatch.setattr(push, "HfApi", lambda: pytest.fail("the Hub was called"))
    (checkpoint / "optimizer.pt").write_bytes(b"\x80")
    for repo, message in (("org/name", "optimizer.pt"), ("name", "ORG/NAME"), ("a/b/c", "a/b/c")):
        with pytest.raises(ValueError, match=message):
            push.run(arguments(checkpoint, repo))
    with pytest.raises(ValueError, match="is not a folder"):
        push.run(arguments(checkpoint / "absent", "org/name"))


def test_dry_run_shows_and_uploads_nothing(checkpoint, monkeypatch):
    monkeypatch.setattr(push, "push", lambda *_: pytest.fail("uploaded"))
    shown = push.run(arguments(checkpoint, "org/name", "--private", "--dry-run"))
    assert "org/name (private)" in shown
    assert "model.safetensors" in shown
    assert "nothing was uploaded" in shown


def arguments(checkpoint: Path, repo: str, *flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    push.add_arguments(parser)
    return parser.parse_args(["--checkpoint", str(checkpoint), "--repo", repo, *flags])
