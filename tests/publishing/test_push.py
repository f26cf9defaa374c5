"""`plan_push` looks before anything is uploaded: what is allowed goes, all else stops the push or stays behind."""

import contextlib
import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from hymate_training.cli.main import main
from hymate_training.evaluation.metrics import SMALLEST_GROUP, report
from hymate_training.evaluation.plots import save_plots
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.inference.checkpoints import checkpoint_name
from hymate_training.publishing import push
from hymate_training.publishing.schemas import text_problem
from hymate_training.readers import READERS

CODE = {*push.package_code(), *push.endpoint_code()}
REQUIRED = {"config.json", "model.safetensors", "preprocessor_config.json"}


def edit_json(path: Path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---------------------------------------------------------------------------------------------------- what is uploaded


def test_plan_takes_the_checkpoint_and_leaves_the_rest(checkpoint):
    for name in (
        "requirements.txt",
        "logs/events.out.tfevents.1.host",
        ".git/config",
        "last/model.safetensors",
        "helper.py",
    ):
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_bytes(b"\x00\xff\xfe")
    plan = push.plan_push(checkpoint)
    evaluation = {
        "evaluation.json",
        *(f"evaluation_{plot}.png" for plot in ("roc", "precision_recall", "reliability", "decision_curve")),
    }
    assert set(plan.uploaded) == {*REQUIRED, *evaluation, "README.md", "training_run.json", *CODE}
    assert set(plan.left) == {
        "logs/events.out.tfevents.1.host",
        ".git/config",
        "last/model.safetensors",
        "helper.py",
    }
    shown = plan.describe("https://hub/org/name")
    for name in (*plan.uploaded, *plan.left):
        assert name in shown


def test_code_comes_from_the_package_as_save_pretrained_copies_it(checkpoint):
    copied = {path.name: path.read_bytes() for path in checkpoint.glob("*.py")}
    assert {name: path.read_bytes() for name, path in push.package_code().items()} == copied
    (checkpoint / "modeling_hymate.py").write_text("import os  # tampered with")
    (checkpoint / "events.py").unlink()
    plan = push.plan_push(checkpoint)
    for name, code in copied.items():
        assert plan.read(name) == code


def test_what_is_written_for_a_repository_of_code_is_pushed_the_same(checkpoint, tmp_path):
    plan = push.plan_push(checkpoint)
    kept = tmp_path / "model_cards" / "checkpoint"
    kept.mkdir(parents=True)
    push.write_without_code(plan, kept)
    assert not list(kept.glob("*.py"))
    again = push.plan_push(kept)
    assert {name: again.read(name) for name in again.uploaded} == {name: plan.read(name) for name in plan.uploaded}
    assert again.left == ()


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
    written = save_plots(LabeledPredictions(problem_type, labels, predictions), checkpoint, "evaluation_test")
    assert written
    evaluation = report(LabeledPredictions(problem_type, labels, predictions), num_samples=20)
    (checkpoint / "evaluation_test.json").write_text(json.dumps(evaluation | {"plots": [p.name for p in written]}))
    (checkpoint / "README.md").unlink()  # which does not know of it
    plan = push.plan_push(checkpoint)
    assert {path.name for path in written} <= set(plan.uploaded)
    assert b"evaluation_test_" in plan.read("README.md")


def test_small_groups_are_taken_out_of_what_is_published(checkpoint):
    evaluation = json.loads((checkpoint / "evaluation.json").read_text())
    assert evaluation["subgroups"]["Sex"]["unknown"]["num_records"] < SMALLEST_GROUP
    published = json.loads(push.plan_push(checkpoint).read("evaluation.json"))
    groups = published["subgroups"]["Sex"]
    assert groups["unknown"] == {"num_records": None}
    assert "positives" not in groups["f"]  # the total less these would give the hidden ones away
    assert groups["f"]["metrics"] == evaluation["subgroups"]["Sex"]["f"]["metrics"]
    compared = published["subgroup_gaps"]["Sex"]["groups"]
    assert compared["unknown"] == {"num_records": None}
    assert "positives" not in compared["f"]
    assert compared["f"]["sensitivity"] == evaluation["subgroup_gaps"]["Sex"]["groups"]["f"]["sensitivity"]


def test_folders_of_the_machine_are_taken_out_of_what_is_published(checkpoint):
    published = json.loads(push.plan_push(checkpoint).read("training_run.json"))
    assert "/home/someone" in (checkpoint / "training_run.json").read_text()
    assert published["command"] == "hymate finetune --data prepared --task mortality --output runs/a"


def test_plots_of_few_positives_stay(checkpoint):
    labels = (np.arange(90) < SMALLEST_GROUP - 1).astype(int)
    evaluation = report(LabeledPredictions("binary", labels, np.random.default_rng(0).random(90)), num_samples=20)
    edit_json(checkpoint / "evaluation.json", **evaluation)
    (checkpoint / "README.md").unlink()
    plan = push.plan_push(checkpoint)
    assert {name for name in plan.left if name.endswith(".png")} == set(
        json.loads((checkpoint / "evaluation.json").read_text())["plots"]
    )
    assert b"![" not in plan.read("README.md")


def test_card_is_rendered_where_there_is_none(checkpoint):
    card = push.plan_push(checkpoint).read("README.md")
    (checkpoint / "README.md").unlink()
    assert push.plan_push(checkpoint).read("README.md") == card


def test_license_and_place_of_a_card_may_be_edited_and_notes_added(checkpoint):
    card = checkpoint / "README.md"
    (checkpoint / "notes.md").write_text(
        "Trained at a hospital; see https://doi.org/10.13026/c2wm1r. Ask us: a@b.org\n"
    )
    card.unlink()
    text = push.plan_push(checkpoint).read("README.md").decode()
    assert "## Notes\n\nTrained at a hospital" in text
    edited = text.replace("license: apache-2.0", "license: other\nlicense_name: ours\nlanguage: en")
    card.write_text(edited.replace('place = "checkpoint"', 'place = "elsewhere"'))
    assert b"license_name: ours" in push.plan_push(checkpoint).read("README.md")


@pytest.mark.parametrize(("given", "named"), [("org/encoder", "org/encoder"), ("runs/encoder", None)])
def test_a_model_that_started_from_one_of_the_hub_names_it(checkpoint, monkeypatch, given, named):
    monkeypatch.chdir(checkpoint.parent)
    Path("runs").mkdir()
    edit_json(checkpoint / "training_run.json", checkpoint=checkpoint_name(given))
    (checkpoint / "README.md").unlink()
    assert ModelCard(push.plan_push(checkpoint).read("README.md").decode()).data.base_model == named


def test_what_readers_say_of_their_sources_may_go():
    citations = {name: reader.CITATION for name, reader in READERS.items() if hasattr(reader, "CITATION")}
    assert len(citations) > 3
    assert {name: text_problem(citation) for name, citation in citations.items()} == dict.fromkeys(citations)


# ------------------------------------------------------------------------------------------------------- planted leaks

STRAY = {
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
    "model-00002-of-00002.safetensors": b"\x00",
    "adapter_model.safetensors": b"\x00",
    "optimizer.bin": b"\x80",
    "trainer_state.json": b"{}",
    "training_args.bin": b"\x80",
    "pytorch_model.bin": b"\x80",
    "cohort.pkl": b"\x80",
    "last/random_states_0.pkl": b"\x80",
    "checkpoint-500/optimizer.pt": b"\x80",
    "state/progress.json": b"{}",
    "notes.txt": b"worst case: record 132539 was missed\n",
    "errors.log": b"subject_id: 10026255\n",
    ".cache/ids.json": b'{"subject_ids": [1, 2]}',
    "deep/er/a.yaml": b"hadm_id: 2\n",
    "evaluation_132539.json": b"{}",
    "evaluation_case_roc.png": b"\x89PNG",
}


@pytest.mark.parametrize("name", STRAY)
def test_stray_file_stops_the_push(checkpoint, name):
    path = checkpoint / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(STRAY[name])
    refused(checkpoint, name)


def refused(checkpoint: Path, name: str, reason: str = "") -> str:
    with pytest.raises(ValueError, match="may tell about single patients") as error:
        push.plan_push(checkpoint)
    lines = [line for line in str(error.value).splitlines() if line.startswith(f"  {name}: ")]
    assert lines, str(error.value)
    assert reason in lines[0]
    return str(error.value)


STUDENTS = "Jörg Müller, Jane Doe"
JSON_LEAKS = {
    "config.json": [
        {"record_id": "132539"},
        {"record_ids": ["132539", "132540"]},
        {"task_specific_params": {"cohort": [{"subject_id": 10026255}]}},
        {"predictions": [0.1, 0.7]},
        {"scores_by_stay": {"a": 0.1}},
        {"note": STUDENTS},
        {"id2label": {"0": "survived", "1": "stay 30000153"}},
        {"id2label": {str(at): f"p{at:05}" for at in range(20_000)}},
        {"hidden_act": "0.71 0.12 0.93"},
        {"architectures": ["Jane"]},
        {"custom_pipelines": {"ehr-classification": {"impl": "evil.Pipeline"}}},
        {"auto_map": {"AutoModel": "other/repo--evil.Model"}},
    ],
    "preprocessor_config.json": [
        {"RecordID": 132539},
        {"variables": ["HR", "subject_id"]},
        {"variables": ["HR", "132539: died\n132540: survived"]},
        {"labels": [0, 1, 1]},
        {"last_batch": [[90.0, 14.0]]},
        {"static_columns": [{"name": "patientunitstayid", "categories": ["a"]}]},
        {"static_columns": [{"name": "id", "categories": ["132539", "132540"]}]},
        {"static_columns": [{"name": "name", "categories": ["a"] * 300}]},
        {"static_columns": [{"name": "x", "examples": [61, 72]}]},
    ],
    "training_run.json": [
        {"predictions": [0.1, 0.9]},
        {"history": [0.1, 0.9]},
        {"history": [{"record_id": 132539}]},
        {"history": [{"epoch": 1, "worst_case": 0.98}]},
        {"data": {"source": "Stays", "description": "patient 132539 died"}},
        {"data": {"source": "Stays", "dropped": {"record_id=132539": 1}}},
        {"task": {"name": "t", "problem_type": "binary", "description": "p10026255 and p10026256 are hard"}},
        {"recipe": {"epochs": 3, "skipped": "132539,132540"}},
        {"recipe": {"stay_id": 3}},
        {"data": {"source": "b9c610cd-28a6-4636-ccb6-c7a0d2a4cb85"}},
        {"preprocessing": {"static_features": ["Age", "id=132539"]}},
        {"command": "hymate explain --record-id 132539"},
    ],
    "evaluation.json": [
        {"predictions": [0.1, 0.9]},
        {"labels": [0, 1]},
        {"record_ids": ["a"]},
        {"subgroups": {"record_id": {"132539": {"num_records": 1}}}},
        {"subgroups": {"Sex": {"f": {"num_records": 60, "predictions": [0.1]}}}},
        {"metrics": {"132539": 0.4}},
        {"confidence_intervals": {"auroc": [0.1, 0.2, 0.9, 0.4]}},
        {"undefined": {"auroc": "record 132539 has no label"}},
        {"num_records": 3, "n": 3},
        {"plots": ["../../records.png"]},
        {"variable_shares": {"132539": 0.4, "132540": 0.9}},
        {"subgroups": {"name": {f"Doe {at}": {"num_records": 1} for at in range(40)}}},
    ],
}


@pytest.mark.parametrize(
    ("name", "leak"),
    [(name, leak) for name, leaks in JSON_LEAKS.items() for leak in leaks],
    ids=lambda item: str(item)[:50],
)
def test_leak_inside_a_json_file_stops_the_push(checkpoint, name, leak):
    edit_json(checkpoint / name, **leak)
    message = refused(checkpoint, name)
    for secret in ("132539", "10026255", "30000153", "b9c610cd", "Doe", "0.93"):
        assert secret not in message  # what is patients' does not go to logs either


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"best_score": NaN}', "[" * 100_000, "\ufeff{}", "null"],
    ids=lambda text: text[:20],
)
def test_what_is_no_plain_json_stops_the_push(checkpoint, text):
    (checkpoint / "training_run.json").write_text(text, encoding="utf-8")
    refused(checkpoint, "training_run.json")


def paths_of(content, prefix=()):
    """Every place in nested objects."""
    for key, value in content.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from paths_of(value, (*prefix, key))


@pytest.mark.parametrize("name", ["training_run.json", "evaluation.json"])
def test_a_file_that_lacks_something_is_refused_or_rendered_without_it(checkpoint, name):
    for path in (*checkpoint.glob("*.png"), checkpoint / "README.md"):
        path.unlink()
    whole = json.loads((checkpoint / name).read_text())
    places = [place for place in paths_of(whole) if len(place) < 3]
    for place in places:
        content = json.loads(json.dumps(whole))
        parent = content
        for key in place[:-1]:
            parent = parent[key]
        del parent[place[-1]]
        (checkpoint / name).write_text(json.dumps(content))
        with contextlib.suppress(ValueError):
            push.plan_push(checkpoint)
    assert len(places) > 10


def test_what_json_hides_is_not_published(checkpoint):
    """A key that comes twice is read once; what is uploaded is what was read."""
    path = checkpoint / "training_run.json"
    path.write_text(path.read_text().replace('"seed": 7', '"seed": 132539, "seed": 7'))
    assert b"132539" not in push.plan_push(checkpoint).read("training_run.json")


def test_other_encodings_stop_the_push(checkpoint):
    for name in ("training_run.json", "README.md"):
        (checkpoint / name).write_text((checkpoint / name).read_text(), encoding="utf-16")
    refused(checkpoint, "training_run.json")


CARD_LEAKS = [
    "record_id: 132539",
    "| record_id | died |\n|---|---|\n| 132539 | 0.4 |",
    "| case | risk |\n|---|---|\n| A | 0.4 |\n| B | 0.9 |",
    "<table><tr><td>132539</td><td>0.4</td></tr></table>",
    "<!-- 132539 0.4 -->",
    "![x](data:image/png;base64,iVBORw0KGgo=)",
    "Jane Doe was missed.",
]


@pytest.mark.parametrize("leak", CARD_LEAKS)
def test_leak_in_the_card_stops_the_push(checkpoint, leak):
    card = checkpoint / "README.md"
    lines = card.read_text().splitlines()
    card.write_text("\n".join([*lines[:50], leak, *lines[50:]]) + "\n")
    refused(checkpoint, "README.md", "line 51 is not what the files beside it say")
    card.write_text("\n".join([*lines, leak]) + "\n")
    refused(checkpoint, "README.md", f"line {len(lines) + 1} ")


def test_leak_in_the_cards_header_stops_the_push(checkpoint):
    card = checkpoint / "README.md"
    for header in (
        "predictions: [0.1, 0.9]",
        "license: Jane Doe 0.93",
        "language: 'p1: 0.4'",
        "base_model: org/132539",
    ):
        text = card.read_text()
        card.write_text(text.replace("library_name:", f"{header}\nlibrary_name:"))
        refused(checkpoint, "README.md", "line 2 ")
        card.write_text(text)


@pytest.mark.timeout(20)
def test_a_bomb_of_aliases_in_the_card_is_no_more_than_another_line(checkpoint):
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 9)}]" for at in range(1, 12)]
    (checkpoint / "README.md").write_text("\n".join(["---", *bomb, "---", "# A model"]))
    refused(checkpoint, "README.md", "line 2 ")


NOTES_LEAKS = {
    "a table of ids": "| case | risk |\n|---|---|\n" + "\n".join(f"| 1325{at:02} | 0.4 |" for at in range(20)),
    "predictions": " ".join(f"0.{at:03}" for at in range(300)),
    "HTML": "<b>bold</b>",
    "a comment": "<!-- hidden -->",
    "a picture": "![x](https://example.org/x.png)",
    "encoded": "aGVsbG8gd29ybGQ" * 20,
    "invisible": "a\u200bb",
    "named": "We missed patient 132539.",
    "long": "word " * 10_000,
}


@pytest.mark.parametrize("kind", NOTES_LEAKS)
@pytest.mark.parametrize("name", ["notes.md", "LICENSE"])
def test_leak_in_the_authors_own_text_stops_the_push(checkpoint, kind, name):
    (checkpoint / name).write_text(NOTES_LEAKS[kind])
    refused(checkpoint, name)


def test_the_license_of_this_project_may_go(checkpoint):
    shutil.copy(Path(__file__).parents[2] / "LICENSE", checkpoint / "LICENSE")
    assert "LICENSE" in push.plan_push(checkpoint).uploaded


# ------------------------------------------------------------------------------------------- weights, extractor, files


def save_weights(checkpoint: Path, change, metadata: dict | None = None):
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=metadata if metadata is not None else {"format": "pt"})


def _with_nan(tensors):
    tensors["classifier.bias"][0] = torch.nan


SPOILED_WEIGHTS = {
    "a tensor too many": lambda tensors: tensors.update(patients=torch.zeros(3, 9)),
    "a tensor too few": lambda tensors: tensors.pop("classifier.bias"),
    "another shape": lambda tensors: tensors.update({"classifier.bias": torch.zeros(7)}),
    "no numbers": _with_nan,
}


@pytest.mark.parametrize("kind", SPOILED_WEIGHTS)
def test_weights_that_are_not_the_models_stop_the_push(checkpoint, kind):
    save_weights(checkpoint, SPOILED_WEIGHTS[kind])
    refused(checkpoint, "model.safetensors")


def test_metadata_in_the_weights_stops_the_push(checkpoint):
    save_weights(checkpoint, lambda _: None, {"format": "pt", "cohort": "132539"})
    refused(checkpoint, "model.safetensors", "metadata")


def test_what_the_header_of_the_weights_hides_stops_the_push(checkpoint):
    path = checkpoint / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    head = (
        content[8 : 8 + length].rstrip().replace(b'{"__metadata__"', b'{"__metadata__":{"id":"132539"},"__metadata__"')
    )
    path.write_bytes(struct.pack("<Q", len(head)) + head + content[8 + length :])
    refused(checkpoint, "model.safetensors")


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"version https://git-lfs.github.com/spec/v1\n", None])
def test_damaged_weights_stop_the_push(checkpoint, content):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    refused(checkpoint, "model.safetensors", "damaged")


@pytest.mark.parametrize(
    "change",
    [
        {"variables": ["HR", "GCS", "Temp"]},
        {"value_means": [1.0]},
        {"value_deviations": [1.0, -1.0]},
        {"value_ranges": [[1.0, 0.0], [0.0, 1.0]]},
        {"static_columns": []},
        {"time_scale": 0},
        {"time_scale": 3.5},
    ],
    ids=str,
)
def test_an_extractor_that_does_not_fit_stops_the_push(checkpoint, change):
    edit_json(checkpoint / "preprocessor_config.json", **change)
    refused(checkpoint, "preprocessor_config.json")


@pytest.mark.parametrize("change", [{"temperature": -1}, {"hidden_act": "none"}, {"num_mamba_layers": "two"}], ids=str)
def test_a_configuration_of_no_model_stops_the_push(checkpoint, change):
    edit_json(checkpoint / "config.json", **change)
    refused(checkpoint, "config.json", "does not describe a model")


def with_chunk(content: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with a chunk more, ahead of its last one."""
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return content[:-12] + chunk + content[-12:]


SPOILED_PNG = {
    "text": lambda png: with_chunk(png, b"tEXt", b"cohort\x00132539"),
    "compressed text": lambda png: with_chunk(png, b"zTXt", b"cohort\x00\x00" + zlib.compress(b"132539")),
    "exif": lambda png: with_chunk(png, b"eXIf", b"MM\x00*132539"),
    "a tail": lambda png: png + b"record_id,died\n132539,1\n",
    "no picture": lambda _: b"record_id,died\n132539,1\n",
    "no picture after the signature": lambda png: png[:8] + b"132539",
    "half a picture": lambda png: png[: len(png) // 2],
    "a flipped bit": lambda png: png[:-20] + bytes([png[-20] ^ 1]) + png[-19:],
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("kind", SPOILED_PNG)
def test_a_plot_that_is_more_or_less_than_a_picture_stops_the_push(checkpoint, kind):
    path = checkpoint / "evaluation_roc.png"
    path.write_bytes(SPOILED_PNG[kind](path.read_bytes()))
    refused(checkpoint, "evaluation_roc.png")


@pytest.mark.parametrize("name", ["README.md", "training_run.json", "evaluation_roc.png", "model.safetensors"])
def test_links_out_of_the_folder_stop_the_push(checkpoint, tmp_path, name):
    (checkpoint / name).rename(tmp_path / name)
    (checkpoint / name).symlink_to(tmp_path / name)
    refused(checkpoint, name, "leads out of the folder")


def test_linked_folders_and_other_things_stop_the_push(checkpoint, tmp_path):
    (tmp_path / "patients").mkdir()
    (checkpoint / "patients").symlink_to(tmp_path / "patients")
    refused(checkpoint, "patients")
    (checkpoint / "patients").unlink()
    (checkpoint / "training_run.json").unlink()
    (checkpoint / "training_run.json").symlink_to(checkpoint / "absent")
    refused(checkpoint, "training_run.json", "leads nowhere")


def test_very_large_files_stop_the_push_unread(checkpoint):
    for name in ("training_run.json", "evaluation_roc.png", "README.md", "LICENSE"):
        with (checkpoint / name).open("ab") as file:
            file.truncate(30_000_000_000)  # sparse
        refused(checkpoint, name, "larger than such a file can be")
        (checkpoint / name).unlink()


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_half_a_checkpoint_is_refused(checkpoint, name):
    (checkpoint / name).unlink()
    with pytest.raises(ValueError, match=f"lacks .*{name}"):
        push.plan_push(checkpoint)


# --------------------------------------------------------------------------------------------------------- the command


def test_push_refuses_before_it_talks_to_anyone(checkpoint, monkeypatch):
    monkeypatch.setattr(push, "HfApi", lambda: pytest.fail("the Hub was called"))
    (checkpoint / "optimizer.pt").write_bytes(b"\x80")
    for repo, message in (("org/name", "optimizer.pt"), ("name", "ORG/NAME"), ("a/b/c", "a/b/c")):
        with pytest.raises(ValueError, match=message):
            push.push(repo, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="is not a folder"):
        push.push("org/name", checkpoint=checkpoint / "absent")
    with pytest.raises(ValueError, match="either checkpoint or data"):
        push.push("org/name")


def test_dry_run_shows_and_uploads_nothing(checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(push, "upload", lambda *_: pytest.fail("uploaded"))
    assert main(["push", "--checkpoint", str(checkpoint), "--repo", "org/name", "--private", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "org/name (private)" in shown
    assert "model.safetensors" in shown
    assert "nothing was uploaded" in shown
