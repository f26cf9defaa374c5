"""Opening checkpoints: one object, one clear line for whatever is damaged or does not fit."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hymate_training.cli.main import main
from hymate_training.data.exports import Layout
from hymate_training.inference import checkpoints
from hymate_training.inference.checkpoints import checkpoint_folder, load_checkpoint, read_kept
from hymate_training.inference.prediction import kept_export
from tests.support.runs import TASK, event_frame

MORTALITY = Path(__file__).parents[2] / "model_cards" / "hymate-physionet2012-mortality"


def test_a_checkpoint_is_opened_once_and_handed_on(finetuned):
    checkpoint = load_checkpoint(finetuned)
    assert load_checkpoint(checkpoint) is checkpoint
    assert checkpoint.path == finetuned
    assert checkpoint.label_names == ("survived", "died")
    assert not checkpoint.model.training
    assert checkpoint.evaluation["task"] == TASK
    assert checkpoint.threshold("another task") is None


def test_a_checkpoint_goes_where_accelerate_says(finetuned, monkeypatch):
    monkeypatch.setattr(checkpoints, "PartialState", lambda: SimpleNamespace(device=torch.device("meta")))
    assert load_checkpoint(finetuned).model.device.type == "meta"


def test_loading_is_silent(pretrained, finetuned, capfd, caplog):
    with caplog.at_level(logging.WARNING, logger="transformers"):
        load_checkpoint(finetuned)
        with pytest.raises(ValueError, match="holds no classifier: run `hymate finetune --checkpoint"):
            load_checkpoint(pretrained)  # whose head is unexpected, and the classifier's missing
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def change_json(name: str, **fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | fields))

    return change


def change_extractor(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def change_file(folder: Path) -> None:
        path = folder / "preprocessor_config.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return change_file


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def change_weights(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def change_file(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return change_file


def widen(content: dict) -> None:
    for name in ("value_ranges", "value_medians", "value_means", "value_deviations"):
        content[name] = [*content[name], content[name][-1]]
    content["variables"] = [*content["variables"], "one more"]


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 100\n"
DAMAGES = {
    "whole numbers": (
        change_weights(lambda tensors: tensors.update({"classifier.weight": tensors["classifier.weight"].int()})),
        "the weights classifier.weight are of type I32, not one of F64, F32, F16, BF16",
    ),
    "truncated weights": (truncate, "model.safetensors is damaged: "),
    "empty weights": (write("model.safetensors", b""), "model.safetensors is damaged: it is empty"),
    "pointer": (write("model.safetensors", LFS), "is a pointer of Git LFS, not the weights: run `git lfs pull`"),
    "no weights": (write("model.safetensors", b"\x10\0\0\0\0\0\0\0{}"), "model.safetensors is damaged: "),
    "NaN": (
        change_weights(lambda tensors: tensors["classifier.weight"].fill_(torch.nan)),
        "the weights classifier.weight are not all finite numbers",
    ),
    "infinite": (
        change_weights(lambda tensors: tensors["hymate.mamba_layers.0.mixer.A_log"].view(-1)[:1].fill_(torch.inf)),
        "A_log are not all finite numbers",
    ),
    "half of the encoder": (
        change_weights(lambda tensors: tensors.pop("hymate.mamba_layers.0.mixer.A_log")),
        r"is not complete: it lacks hymate\.mamba_layers\.0\.mixer\.A_log",
    ),
    "another size": (change_json("config.json", state_size=7), "does not fit the configuration: "),
    "broken config": (write("config.json", b'{"model_type": "hy'), "config.json is damaged: it is not JSON"),
    "list": (write("config.json", b"[]"), "config.json is damaged: it must hold an object, not a list"),
    "binary": (write("config.json", b"\xff\xfe\0"), "config.json is damaged: it is not JSON"),
    "foreign": (change_json("config.json", model_type="bert"), "describes a model of type 'bert', not a HyMaTE model"),
    "wrong type": (change_json("config.json", hidden_size="wide"), "config.json is not a configuration of HyMaTE"),
    "temperature": (change_json("config.json", temperature=float("nan")), "config.json.*temperature"),
    "broken extractor": (write("preprocessor_config.json", b"{"), "preprocessor_config.json is damaged"),
    "unequal": (
        change_extractor(lambda content: content["value_means"].pop()),
        "does not hold a feature extractor of HyMaTE: value_means",
    ),
    "a mean that is none": (
        change_extractor(lambda content: content["value_means"].__setitem__(0, "high")),
        "does not hold a feature extractor of HyMaTE",
    ),
    "more variables": (change_extractor(widen), r"does not fit its model: the number of variables is \d+, but in"),
    "another time scale": (
        change_extractor(lambda content: content.__setitem__("time_scale", 3.0)),
        r"does not fit its model: time_scale is 3.0, but in .*config.json",
    ),
    "no static columns": (
        change_extractor(lambda content: content.update(static_columns=[], units={})),
        r"does not fit its model: the number of static features is 0, but in",
    ),
    "NaN mean": (
        change_extractor(lambda content: content["value_means"].__setitem__(0, float("nan"))),
        "does not hold a feature extractor of HyMaTE: value_means of '[^']*' must be a finite number, got nan",
    ),
    "negative deviation": (
        change_extractor(lambda content: content["value_deviations"].__setitem__(0, -1.0)),
        "does not hold a feature extractor of HyMaTE: value_deviations of '[^']*' must be a positive number, got -1.0",
    ),
    "another extractor": (
        change_json("preprocessor_config.json", feature_extractor_type="ViTFeatureExtractor"),
        "does not hold a feature extractor of HyMaTE, but of type 'ViTFeatureExtractor'",
    ),
    "one name for two labels": (
        change_json("config.json", id2label={"0": "died", "1": "died"}, label2id={"died": 1}),
        r"id2label must give each label a name of its own, got \['died', 'died'\]",
    ),
    "labels from 1 on": (
        change_json("config.json", id2label={"1": "survived", "2": "died"}),
        "id2label must number its labels from 0 on, got 1, 2",
    ),
    "unknown activation": (change_json("config.json", hidden_act="silo"), "hidden_act must be one of .*, got 'silo'"),
    "evaluation": (write("evaluation.json", b"{"), "evaluation.json is damaged"),
    "no evaluation": (write("evaluation.json", b"{}"), "evaluation.json is damaged: 'problem_type' is a required"),
    "gone": (lambda folder: (folder / "preprocessor_config.json").unlink(), "it lacks preprocessor_config.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_said_in_one_line(damage, finetuned, tmp_path, capsys):
    spoil, message = DAMAGES[damage]
    folder = tmp_path / "run"
    shutil.copytree(finetuned, folder)
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(folder)
    assert str(folder) in str(caught.value)


KEPT_DAMAGES: list[tuple[str, tuple[str, ...], Any, str]] = [
    ("evaluation.json", ("n",), 0, "n: 0 is less than the minimum of 1"),
    ("evaluation.json", ("positives",), 10**6, "the numbers of positives and n do not fit each other"),
    ("evaluation.json", ("metrics", "auroc"), "high", "metrics.auroc: 'high' is not of type 'number', 'null'"),
    ("evaluation.json", ("metrics", "auroc"), float("nan"), "it holds a number that is not finite"),
    ("evaluation.json", ("confidence_intervals", "auroc"), [1], r"confidence_intervals.auroc: \[1\] is too short"),
    ("evaluation.json", ("decision_threshold",), 1.5, "decision_threshold: 1.5 is greater than the maximum of 1"),
    ("evaluation.json", ("threshold",), {}, "threshold: 'value' is a required property"),
    ("evaluation.json", ("conformal", "levels"), [0.9], "the numbers of conformal do not fit each other"),
    ("evaluation.json", ("conformal", "thresholds"), {"all": [1]}, "conformal.thresholds.all: .* is not of type"),
    ("evaluation.json", ("calibration", "curve", "observed"), [0.5], "the numbers of calibration.curve do not fit"),
    ("evaluation.json", ("per_label",), {"died": 3}, "per_label.died: 3 is not of type 'object'"),
    ("evaluation.json", ("horizons",), [24], "horizons.0: 24 is not of type 'object'"),
    ("training_run.json", ("task",), "mortality", "task: 'mortality' is not of type 'object'"),
    ("training_run.json", ("split_fingerprints", "train"), 7, "split_fingerprints.train: 7 is not of type 'string'"),
]


@pytest.mark.parametrize(("name", "place", "value", "message"), KEPT_DAMAGES)
def test_what_is_kept_beside_the_weights_is_checked(name, place, value, message, tmp_path):
    content = json.loads((MORTALITY / name).read_text())
    (tmp_path / name).write_text(json.dumps(content))
    assert read_kept(tmp_path, name) == content
    held = content
    for key in place[:-1]:
        held = held[key]
    held[place[-1]] = value
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{name} is damaged: {message}"):
        read_kept(tmp_path, name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"layout": 3}, "layout: 3 is not of type 'object'"),
        ({"layout": {"colums": {}}}, "unexpected keyword argument 'colums'"),
        ({"layout": {"time_zone": "Berlin"}}, "layout: 'Berlin' is not a time zone"),
        ({"concepts": {}}, "concepts: 'map' is a required property"),
        ({"concepts": {"map": [3]}}, "concepts.map.0: 3 is not of type 'object'"),
    ],
)
def test_a_damaged_export_is_refused(content, message, tmp_path):
    opened = SimpleNamespace(path=tmp_path)
    assert kept_export(opened) == (Layout(), None)
    (tmp_path / "export.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"export\.json is damaged: .*{message}"):
        kept_export(opened)


@pytest.mark.parametrize("command", ["evaluate", "predict", "finetune"])
def test_commands_say_it_too(command, synthetic_folder, finetuned, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finetuned, folder)
    truncate(folder)
    events, _ = event_frame(synthetic_folder)
    events.write_parquet(tmp_path / "events.parquet")
    data = ["--data", synthetic_folder, "--task", TASK]
    arguments = {
        "evaluate": [*data, "--output", tmp_path / "out.json"],
        "predict": ["--events", tmp_path / "events.parquet", "--output", tmp_path / "out.csv"],
        "finetune": [*data, "--output", tmp_path / "out"],
    }[command]
    assert main([command, "--checkpoint", str(folder), *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"hymate {command}: {folder}/model.safetensors is damaged: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["here/gone", "./org/gone", "../org/gone", "/org/gone", "here/org/gone", "gone"])
def test_a_path_never_becomes_a_name_on_the_hub(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    asked = []
    monkeypatch.setattr(checkpoints, "snapshot_download", lambda name, **options: asked.append(name))
    with pytest.raises(ValueError, match="is not a folder"):
        checkpoint_folder(place)
    with pytest.raises(ValueError, match="is not a folder"):
        checkpoint_folder(Path("org/gone"))
    assert not asked


def test_a_name_on_the_hub_is_downloaded(finetuned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "snapshot_download", lambda name, **options: finetuned)
    assert checkpoint_folder("org/name") == finetuned
