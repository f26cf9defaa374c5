"""The walk-throughs of CONTRIBUTING.md work as they stand: a reader and a task, from nothing to a model."""

import sys
from types import ModuleType

import numpy as np
import polars as pl
import pytest

from hymate_training import readers
from hymate_training.cli.main import main
from hymate_training.data.prepared_folder import PreparedFolder
from tests.docs.pages import ROOT, blocks
from tests.support.leakage import check_leakage

READER, TASK = [content for language, content in blocks(ROOT / "CONTRIBUTING.md") if language == "python"]
PATIENTS = 60


@pytest.fixture
def ward(monkeypatch) -> ModuleType:
    """The module of the walk-through, registered as it says."""
    module = ModuleType("hymate_training.readers.ward")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(READER, "CONTRIBUTING.md, reader", "exec"), module.__dict__)
    exec(compile(TASK, "CONTRIBUTING.md, task", "exec"), module.__dict__)
    monkeypatch.setitem(readers.READERS, "ward", module)
    return module


@pytest.fixture
def raw(tmp_path):
    """The two tables: hourly vital signs over two days, one patient without any and one who is measured late."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "raw"
    folder.mkdir()
    patients = pl.DataFrame(
        {
            "patient": np.arange(PATIENTS),
            "age": [None, *generator.integers(18, 90, PATIENTS - 1)],
            "transferred": generator.integers(0, 2, PATIENTS),
        }
    )
    hours = np.arange(0, 48, 3)
    measured = np.arange(1, PATIENTS)  # patient 0 has no measurement
    vitals = pl.DataFrame(
        {
            "patient": np.repeat(measured, len(hours)),
            "hour": np.tile(hours, len(measured)),
            "pulse": generator.normal(80, 10, len(measured) * len(hours)).round(),
            "temperature": np.where(generator.random(len(measured) * len(hours)) < 0.5, 37.2, np.nan),
        }
    ).with_columns(pl.col("temperature").fill_nan(None))
    vitals = vitals.filter((pl.col("patient") != 1) | (pl.col("hour") > 30))
    patients.write_csv(folder / "patients.csv")
    vitals.write_csv(folder / "vitals.csv")
    return folder


def test_the_reader_prepares_and_trains(ward, raw, tmp_path):
    data = tmp_path / "data"
    assert main(["prepare", "ward", "--raw", str(raw), "--output", str(data)]) == 0
    folder = PreparedFolder(data)
    assert list(folder.info.dropped.values()) == [1, 1]
    rows = pl.concat([pl.from_arrow(folder.records(split)) for split in ("train", "validation", "test")])
    vitals = pl.read_csv(raw / "vitals.csv")
    assert rows["time"].list.len().sum() == vitals["pulse"].count() + vitals["temperature"].count()
    check_leakage(data, "transfer")
    finetune = ["finetune", "--data", str(data), "--task", "transfer", "--output", str(tmp_path / "model")]
    assert main([*finetune, "--epochs", "1", "--model", "hidden_size=8", "num_mamba_layers=1"]) == 0


def test_the_task_has_rows_that_the_writer_takes(ward, raw):
    vitals = pl.read_csv(raw / "vitals.csv", schema_overrides={"patient": pl.String})
    asked = pl.DataFrame({"record_id": [str(patient) for patient in range(2, PATIENTS)]})
    rows = ward.next_day_pulse(vitals, asked)
    assert rows.columns == ward.MEAN_PULSE.schema.names
    assert rows.height == PATIENTS - 2
    first = vitals.filter((pl.col("patient") == rows["record_id"][0]) & (pl.col("hour") > 24))
    assert rows["float_value"][0] == pytest.approx(first["pulse"].mean())
