"""ACES, in an environment of its own: how it is called, what is said where it fails, and the real one on the demo."""

import os
import shutil
import sys
from pathlib import Path

import polars as pl
import pytest

from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.readers import aces, meds
from tests.readers.test_meds import NUM_SUBJECTS, make

# as aces-cli with data=sharded: a file per shard, named after it, in the folder of the cohort
STAND_IN = """#!{python}
import datetime, pathlib, re, sys
given = dict(part.split("=", 1) for part in sys.argv[1:] if "=" in part)
values = {{name: [text.replace("\\\\'", "'") for text in re.findall(r"'((?:[^'\\\\]|\\\\.)*)'", value)]
          for name, value in given.items()}}
assert pathlib.Path(values["config_path"][0]).read_text() == "task"
import polars as pl
for shard in values["data.shard"]:
    rows = pl.read_parquet(pathlib.Path(values["data.root"][0]) / f"{{shard}}.parquet")
    rows = rows.filter(pl.col("code") == "ICD//I10").select(
        "subject_id", prediction_time="time", boolean_value=pl.col("subject_id") % 2 == 0,
        float_value=pl.lit(None, pl.Float32),
    )
    path = pathlib.Path(values["cohort_dir"][0], values["cohort_name"][0], f"{{shard}}.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.write_parquet(path)
"""
PREDICATES = """predicates:
  admission: {code: {regex: "^HOSPITAL_ADMISSION//.*"}}
  discharge: {code: {regex: "^HOSPITAL_DISCHARGE//.*"}}
  death: {code: MEDS_DEATH}
  discharge_or_death: {expr: "or(discharge, death)"}
"""
MORTALITY = """trigger: admission
windows:
  input: {start: null, end: trigger + 24h, start_inclusive: true, end_inclusive: true, index_timestamp: end}
  gap:
    start: trigger
    end: start + 24h
    start_inclusive: false
    end_inclusive: true
    has: {admission: "(None, 0)", discharge_or_death: "(None, 0)"}
  target:
    start: gap.end
    end: start -> discharge_or_death
    start_inclusive: false
    end_inclusive: true
    label: death
"""


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    (tmp_path / "it's ill.yaml").write_text("task")
    (tmp_path / "predicates.yaml").write_text("predicates")
    return {"task": tmp_path / "it's ill.yaml", "predicates": tmp_path / "predicates.yaml"}


def program(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(os.name == "nt", reason="needs scripts that run by their first line")
@pytest.mark.parametrize("shards_a_call", [1, 4, 200])
def test_labels_of_all_shards(files, tmp_path, monkeypatch, shards_a_call):
    monkeypatch.setattr(aces, "SHARDS_A_CALL", shards_a_call)
    raw = make(tmp_path / "a, b=c")
    cli = program(tmp_path / "aces-cli", STAND_IN.format(python=sys.executable))
    labels = aces.extract_labels(raw, files["task"], files["predicates"], tmp_path / "out", cli)
    assert labels.name == "it's ill"
    found = pl.concat(pl.read_parquet(path) for path in labels.rglob("*.parquet"))
    assert sorted(found["subject_id"]) == list(range(NUM_SUBJECTS))


@pytest.mark.skipif(os.name == "nt", reason="needs scripts that run by their first line")
def test_the_task_is_in_the_prepared_folder(files, tmp_path):
    task = files["task"].rename(tmp_path / "ill.yaml")
    cli = program(tmp_path / "aces-cli", STAND_IN.format(python=sys.executable))
    raw, output = make(tmp_path / "raw"), tmp_path / "prepared"
    arguments = {"aces": [task], "predicates": files["predicates"], "aces_cli": cli, "min_subjects": 2}
    meds.prepare(raw, output, **arguments, shard="1/2")  # events alone: no label is looked for
    info = meds.prepare(raw, output, **arguments)
    assert [(one.name, one.problem_type) for one in info.tasks] == [("ill", "binary")]
    train = PreparedFolder(output).task("ill", "train")
    assert train["record_id"].to_pylist() == sorted(map(str, range(16)), key=int)
    assert set(train["prediction_time"].to_pylist()) == {5.0}


def test_what_is_missing_is_named(files, tmp_path):
    raw = make(tmp_path / "raw")
    with pytest.raises(
        ValueError, match=r"nowhere is not there: ACES needs another polars.*--aces-cli ENV/bin/aces-cli"
    ):
        aces.extract_labels(raw, files["task"], files["predicates"], tmp_path / "out", "nowhere")
    with pytest.raises(ValueError, match="--aces needs --predicates"):
        meds.prepare(raw, tmp_path / "prepared", aces=[files["task"]])
    cli = program(
        tmp_path / "aces-cli", "#!/bin/sh\necho 'Traceback' >&2\necho 'ValueError: no such predicate' >&2\nexit 1\n"
    )
    with pytest.raises(ValueError, match=r"other\.yaml does not exist"):
        aces.extract_labels(raw, tmp_path / "other.yaml", files["predicates"], tmp_path / "out", cli)
    with pytest.raises(ValueError, match="ACES failed: ValueError: no such predicate"):
        aces.extract_labels(raw, files["task"], files["predicates"], tmp_path / "out", cli)
    silent = program(tmp_path / "silent", "#!/bin/sh\nexit 0\n")
    with pytest.raises(ValueError, match="ACES found no label"):
        aces.extract_labels(raw, files["task"], files["predicates"], tmp_path / "out", silent)


@pytest.mark.skipif(shutil.which("aces-cli") is None, reason="needs aces-cli of es-aces, in an environment of its own")
def test_mortality_of_the_demo(shared_data, tmp_path):
    """Deaths in hospital after the first day, of patients who were there that long."""
    (tmp_path / "mortality.yaml").write_text(MORTALITY)
    (tmp_path / "predicates.yaml").write_text(PREDICATES)
    raw = shared_data("mimic-iv-demo-meds")
    labels = aces.extract_labels(raw, tmp_path / "mortality.yaml", tmp_path / "predicates.yaml", tmp_path / "out")
    found = pl.concat(
        pl.read_parquet(path, columns=["subject_id", "prediction_time", "boolean_value"])
        for path in labels.rglob("*.parquet")
    )
    events = pl.concat(pl.read_parquet(path) for path in (raw / "data").rglob("*.parquet"))
    deaths = events.filter(pl.col("code") == "MEDS_DEATH").select("subject_id", died="time")
    assert found.height > 200
    assert 5 <= found["boolean_value"].sum() <= deaths.height
    dying = found.filter("boolean_value").join(deaths, on="subject_id")
    assert dying.height == found["boolean_value"].sum()
    assert (dying["died"] > dying["prediction_time"]).all()
