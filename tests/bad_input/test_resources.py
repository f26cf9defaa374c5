"""What is small on disk and large in memory or without an end: refused, or read at no more than it is worth."""

import gzip
import os
import shutil
import tracemalloc
import zipfile

import numpy as np
import pytest
import yaml

from hymate_training.cli.main import main
from hymate_training.readers import fhir, source_tables
from modeling_hymate.events import parse_events
from tests.support.runs import TASK

# nine levels of nine aliases each: a billion words, were they written out
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.timeout(60)
def test_a_card_of_aliases_does_not_keep_a_push_busy(classifier, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(classifier, folder)
    (folder / "README.md").write_text(f"---\n{BOMB}---\n# A card\n")
    assert main(["push", "--checkpoint", str(folder), "--repo", "org/name", "--dry-run"]) == 2
    assert len(capsys.readouterr().err) < 5000


@pytest.mark.timeout(60)
@pytest.mark.parametrize("option", ["--recipe", "--layout"])
def test_a_file_of_aliases_is_no_recipe_and_no_layout(
    option, classifier, synthetic_folder, events, tmp_path, complaint
):
    path = tmp_path / "bomb.yaml"
    path.write_text(BOMB)
    arguments = {
        "--recipe": ["finetune", "--data", synthetic_folder, "--task", TASK],
        "--layout": ["predict", "--checkpoint", classifier, "--events", events],
    }[option]
    assert len(complaint(*arguments, "--output", "out.csv", option, path)) < 2000


def test_a_field_of_the_model_that_is_not_yaml(synthetic_folder, complaint):
    line = complaint(
        *("finetune", "--data", synthetic_folder, "--task", TASK, "--output", "out", "--model", "hidden_size=[8")
    )
    assert "hidden_size" in line


@pytest.mark.timeout(60)
@pytest.mark.parametrize("source", ["physionet2012", "physionet2019"])
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_among_raw_files_is_not_waited_for(source, tmp_path, complaint):
    raw = tmp_path / "raw"
    for name in ("set-a", "set-b", "set-c", "training_setA", "training_setB", "training", "training_setA/training"):
        (raw / name).mkdir(parents=True, exist_ok=True)
        for patient in ("132539.txt", "p000001.psv"):
            os.mkfifo(raw / name / patient)
    complaint("prepare", source, "--raw", raw, "--output", "out")


def test_a_member_that_unpacks_to_gigabytes_is_refused_unread(tmp_path, complaint):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("set-a", "set-b", "set-c"):
        with zipfile.ZipFile(raw / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{name}/132539.txt", b"0" * (65 << 20))
        with gzip.open(raw / f"Outcomes-{name[-1]}.txt", "wt") as outcomes:
            outcomes.write("RecordID\n")
    line = complaint("prepare", "physionet2012", "--raw", raw, "--output", "out")
    assert len(line) < 1000


def test_one_long_id_does_not_widen_all_others():
    rows = 100_000
    ids = ["x" * 20_000, *map(str, range(rows - 1))]
    columns = {"record_id": ids, "time": np.zeros(rows), "variable": ["HR"] * rows, "value": np.ones(rows)}
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"record_id.* more than 256 characters"):
            parse_events(columns, ["HR"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 << 20


def test_the_bomb_is_one():
    assert len(BOMB) < 1000
    assert len(yaml.safe_load(BOMB)["a"]) == 9


MIMIC_III = "ICUSTAYS ADMISSIONS PATIENTS D_ITEMS D_LABITEMS CHARTEVENTS LABEVENTS INPUTEVENTS_MV INPUTEVENTS_CV"
PIPES = {
    "eicu": ["patient.csv", "lab.csv"],
    "mimic-iii": [f"{table}.csv" for table in MIMIC_III.split()],
    "omop": ["person.csv", "visit_occurrence.csv", "measurement.csv"],
    "omop in parquet": ["person/0.parquet", "visit_occurrence/0.parquet", "measurement/0.parquet"],
    "fhir": ["bundle.json"],
    "meds": ["data/0.parquet"],
    "physionet2019": ["training_setA.zip"],
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("source", PIPES)
def test_no_reader_waits_for_a_pipe(source, tmp_path, complaint):
    for name in PIPES[source]:
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(tmp_path / "raw" / name)
    line = complaint("prepare", source.split()[0], "--raw", tmp_path / "raw", "--output", "out")
    assert "is not a regular file" in line


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
@pytest.mark.timeout(120)
def test_no_prepared_folder_waits_for_a_pipe(synthetic_folder, classifier, tmp_path, complaint):
    shutil.copytree(synthetic_folder, tmp_path / "data")
    os.mkfifo(tmp_path / "data" / "records" / "test-00009.parquet")
    arguments = ["--data", tmp_path / "data", "--task", TASK, "--split", "test", "--output", "out.json"]
    assert "test-00009.parquet is not a regular file" in complaint("evaluate", "--checkpoint", classifier, *arguments)


def test_an_archive_larger_than_the_disk_is_not_unpacked(tmp_path, monkeypatch, complaint):
    with zipfile.ZipFile(tmp_path / "cdm.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("person.csv", bytes(1 << 20))
    left = shutil.disk_usage(tmp_path)._replace(free=1 << 19)
    monkeypatch.setattr(source_tables.shutil, "disk_usage", lambda _: left)
    line = complaint("prepare", "omop", "--raw", tmp_path / "cdm.zip", "--output", "out")
    assert "cdm.zip unpacks to 0.0 GiB" in line


@pytest.mark.parametrize("name", ["bundle.json", "all.ndjson", "all.ndjson.gz"])
def test_a_resource_that_is_too_large_is_refused(name, tmp_path, monkeypatch, complaint):
    monkeypatch.setattr(fhir, "MOST_BYTES", 1000)
    text = b'{"resourceType": "Patient", "id": "' + b"x" * 1000 + b'"}'
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert f"{name} holds more than" in complaint("prepare", "fhir", "--raw", tmp_path, "--output", "out")


def test_a_resource_that_is_too_deep_is_refused(tmp_path, complaint):
    (tmp_path / "bundle.json").write_text("[" * 100_000)
    assert "bundle.json is not JSON" in complaint("prepare", "fhir", "--raw", tmp_path, "--output", "out")
