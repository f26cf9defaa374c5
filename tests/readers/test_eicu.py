"""eICU: small tables of every kind by hand, what is dropped, broken downloads, leakage, and the real demo."""

import argparse
import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hymate_training.cli import prepare as command
from hymate_training.cli.main import main
from hymate_training.data import tables as tables_in
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import SPLITS
from hymate_training.readers import eicu
from tests.support.leakage import check_leakage
from tests.support.prepared import records

Tables = dict[str, list[dict]]


def make_tables() -> Tables:
    """Stays 1 to 40 of patients 1 to 20; every fifth patient dies; odd stays last 30 hours, even ones 20 to 59."""
    tables: Tables = {name: [] for name in ("patient", "lab", "vitalPeriodic", "vitalAperiodic", "nurseCharting")}
    for stay in range(1, 41):
        person = (stay + 1) // 2
        key = {"patientunitstayid": stay}
        tables["patient"].append(
            key
            | {
                "uniquepid": f"002-{person}",
                "gender": ("Female", "Male", "Unknown")[stay % 3],
                "age": "> 89" if stay % 7 == 0 else str(40 + stay),
                "ethnicity": "Caucasian" if stay % 2 else "Other/Unknown",
                "unittype": "MICU" if stay % 4 else "SICU",
                "admissionheight": 600.0 if stay == 9 else 170.5,
                "admissionweight": None if stay == 9 else 80.0,
                "hospitaldischargestatus": None if stay == 11 else "Expired" if person % 5 == 0 else "Alive",
                "unitdischargeoffset": 1800 if stay % 2 else 1200 + 60 * (stay - 1),
            }
        )
        tables["lab"] += [
            key | lab(-30, "sodium", 140),
            key | lab(61, "sodium", 130 + stay % 10, "mmol/L"),
            key | lab(90, "FiO2", 0.5, "%"),
            key | lab(1441, "sodium", 120),
        ]
        tables["vitalPeriodic"] += [
            key | {"observationoffset": offset, "heartrate": 70.0 + offset, "sao2": None, "temperature": 98.6}
            for offset in (0, 5, 55, 60, 1440, 1445)
        ]
        tables["vitalAperiodic"].append(key | {"observationoffset": 7, "noninvasivemean": 75.0})
        tables["nurseCharting"] += [
            key | chart(58, "Heart Rate", "Heart Rate", "90"),
            key | chart(20, "Temperature", "Temperature (F)", "100.4"),
            key | chart(20, "Glasgow coma score", "GCS Total", "Unable to score"),
            key | chart(20, "Pain Score/Goal", "Pain Score", "3"),
        ]
    for table, columns in (("vitalPeriodic", eicu.PERIODIC), ("vitalAperiodic", eicu.APERIODIC)):
        tables[table] = [dict.fromkeys(columns) | row for row in tables[table]]
    return tables


def lab(offset: int, name: str, value: float | None, unit: str | None = None, revised: int | None = None) -> dict:
    return {
        "labresultoffset": offset,
        "labname": name,
        "labresult": value,
        "labmeasurenamesystem": unit,
        "labresultrevisedoffset": offset + 10 if revised is None else revised,
    }


def chart(offset: int, label: str, name: str, value: str) -> dict:
    return {
        "nursingchartoffset": offset,
        "nursingchartcelltypevallabel": label,
        "nursingchartcelltypevalname": name,
        "nursingchartvalue": value,
    }


def write_tables(raw: Path, tables: Tables, form: str = "csv.gz") -> Path:
    raw.mkdir(parents=True)
    for name, rows in tables.items():
        text = pl.DataFrame(rows, infer_schema_length=None).write_csv().encode()
        (raw / f"{name}.{form}").write_bytes(gzip.compress(text) if form == "csv.gz" else text)
    return raw


def labels(folder: Path, task: str) -> dict[str, dict]:
    return {row["record_id"]: row for split in SPLITS for row in PreparedFolder(folder).task(task, split).to_pylist()}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("eicu")
    eicu.prepare(write_tables(folder / "raw", make_tables()), folder / "out")
    return folder / "out"


def test_events_by_hand(prepared):
    """Minutes become hours, bedside readings hourly means placed at the last one, Fahrenheit Celsius."""
    info, row = PreparedFolder(prepared).info, records(prepared)["3"]
    events = zip(row["time"], (info.variables[index] for index in row["variable"]), row["value"], strict=True)
    expected = [
        (7 / 60, "noninvasivemean", 75.0),
        (55 / 60, "temperature", (3 * 37 + 38) / 4),
        (58 / 60, "heartrate", (70 + 75 + 125 + 90) / 4),
        (1.0, "heartrate", 130.0),
        (1.0, "temperature", 37.0),
        (61 / 60, "sodium", 133.0),
        (1.5, "FiO2", 50.0),
        (24.0, "temperature", 37.0),
    ]
    found = list(events)
    assert [(time, name) for time, name, _ in found] == [(pytest.approx(time), name) for time, name, _ in expected]
    assert [value for *_, value in found] == pytest.approx([value for *_, value in expected])
    assert info.extra["units"]["sodium"] == "mmol/L"
    assert info.variables == ("heartrate", "temperature", "noninvasivemean", "FiO2", "sodium")


def test_static_columns(prepared):
    rows = records(prepared)
    assert {name: rows["1"][name] for name in ("age", "gender", "ethnicity", "unittype", "height", "weight")} == {
        "age": 41,
        "gender": "male",
        "ethnicity": "Caucasian",
        "unittype": "MICU",
        "height": 170.5,
        "weight": 80,
    }
    assert rows["7"]["age"] == 90
    assert rows["2"]["gender"] is None
    assert (rows["9"]["height"], rows["9"]["weight"]) == (None, None)


def test_labels_and_what_is_dropped(prepared):
    """Even stays from the sixth on last for 25 hours or more; stay 11 has no outcome."""
    info = PreparedFolder(prepared).info
    asked = {stay for stay in range(1, 41) if stay % 2 or 1200 + 60 * (stay - 1) >= 1440}
    died, days = labels(prepared, "in_hospital_mortality"), labels(prepared, "length_of_stay")
    assert {int(stay) for stay in days} == asked
    assert {int(stay) for stay in died} == asked - {11}
    assert {int(stay) for stay, row in died.items() if row["boolean_value"]} == {9, 10, 19, 20, 29, 30, 39, 40}
    assert {row["prediction_time"] for row in died.values()} == {24.0}
    assert days["3"]["float_value"] == pytest.approx(1.25)
    assert info.dropped == {
        "implausible heights (made unknown)": 1,
        "lab values from before admission to the unit": 40,
        "lab values after the first 24 hours": 40,
        "vitalPeriodic values after the first 24 hours": 80,
        "vitalPeriodic values that are implausible": 40,  # a heart rate of 1510
        "charted vitals without a number": 40,
        "predictions of stays shorter than 24 hours": 40 - len(asked),
        "predictions of in_hospital_mortality without a known outcome": 1,
    }


def test_splits_are_by_patient_and_deaths_in_each(prepared):
    members = [{(int(stay) + 1) // 2 for stay in records(prepared, split)} for split in SPLITS]
    assert not members[0] & members[1] | members[0] & members[2] | members[1] & members[2]
    assert [len(found) for found in members] == [15, 2, 3]  # of 4 with a death 2, 1, 1; of 16 without 13, 1, 2
    for split in SPLITS:
        assert any(PreparedFolder(prepared).task("in_hospital_mortality", split)["boolean_value"].to_pylist())


@pytest.mark.parametrize("change", ["csv", "shuffled", "pieces"])
def test_form_order_and_pieces_change_nothing(change, prepared, tmp_path, monkeypatch):
    tables = make_tables()
    if change == "shuffled":
        generator = np.random.default_rng(0)
        tables = {name: [rows[at] for at in generator.permutation(len(rows))] for name, rows in tables.items()}
    if change == "pieces":
        monkeypatch.setattr(eicu, "COMPACT_AT", 50)
        monkeypatch.setattr(tables_in, "PIECE_BYTES", 2000)
    eicu.prepare(write_tables(tmp_path / "raw", tables, "csv" if change == "csv" else "csv.gz"), tmp_path / "out")
    for split in SPLITS:
        one, other = (
            pl.DataFrame(pl.from_arrow(PreparedFolder(at).records(split))) for at in (tmp_path / "out", prepared)
        )
        assert one.drop("value").equals(other.drop("value"))
        assert np.allclose(one["value"].explode(), other["value"].explode())
        for task in ("in_hospital_mortality", "length_of_stay"):
            assert (
                PreparedFolder(tmp_path / "out").task(task, split).equals(PreparedFolder(prepared).task(task, split))
            )


def test_rows_without_a_stay_and_values_revised_later_are_dropped(tmp_path):
    tables = make_tables()
    tables["patient"] += [dict.fromkeys(tables["patient"][0])] * 2
    tables["lab"] += [
        {"patientunitstayid": 3} | lab(100, "lactate", 2.0, revised=1500),
        {"patientunitstayid": 99} | lab(100, "lactate", 2.0),
        {"patientunitstayid": 3} | lab(100, "lactate", None),
        {"patientunitstayid": 3} | lab(100, "pH", 74.0),
        {"patientunitstayid": 3} | lab(100, "Temperature", 98.6),
    ]
    info = eicu.prepare(write_tables(tmp_path / "raw", tables), tmp_path / "out")
    for reason in (
        "lab values revised after the first 24 hours",
        "lab values of a stay that is not in patient",
        "lab rows without a name or a number",
        "lab values that are implausible",
    ):
        assert info.dropped[reason] == 1
    assert info.dropped["rows of patient.csv.gz without a patientunitstayid"] == 2
    assert "lactate" not in info.variables
    row = records(tmp_path / "out")["3"]
    assert row["value"][row["variable"].index(info.variables.index("Temperature"))] == pytest.approx(37)


def test_nothing_after_the_prediction_enters(prepared, tmp_path):
    """Whatever happens after the observed hours, the records, labels aside, are the same; nor does a tensor change."""
    generator = np.random.default_rng(0)
    tables = make_tables()
    for name, offset in (
        ("lab", "labresultoffset"),
        ("vitalPeriodic", "observationoffset"),
        ("vitalAperiodic", "observationoffset"),
        ("nurseCharting", "nursingchartoffset"),
    ):
        kept = [row for row in tables[name] if row[offset] <= 1440]
        late = [row | {offset: int(generator.integers(1441, 3000))} for row in kept]
        tables[name] = kept + [
            {key: cell * generator.uniform(0.5, 1.5) if isinstance(cell, float) else cell for key, cell in row.items()}
            for row in late
        ]
    eicu.prepare(write_tables(tmp_path / "raw", tables), tmp_path / "out")
    assert records(tmp_path / "out") == records(prepared)
    for task in ("in_hospital_mortality", "length_of_stay"):
        assert check_leakage(prepared, task) == 0  # records end with the observed hours


def test_outcomes_of_apache(prepared, tmp_path):
    """They add deaths in the unit, and the outcome in the hospital where `patient` has none; where both differ, ..."""
    tables = make_tables()
    tables["apachePatientResult"] = [
        {
            "patientunitstayid": stay,
            "apacheversion": version,
            "actualicumortality": "EXPIRED" if stay % 10 == 9 or stay == 13 else "ALIVE",
            "actualhospitalmortality": "EXPIRED" if stay in (11, 13) else "ALIVE",
        }
        for stay in range(1, 40, 2)
        for version in ("IV", "IVa")
    ]
    info = eicu.prepare(write_tables(tmp_path / "raw", tables), tmp_path / "out")
    died = labels(tmp_path / "out", "in_hospital_mortality")
    assert died["11"]["boolean_value"] is True  # unknown to patient
    assert died["13"]["boolean_value"] is False  # contradicted by patient
    assert info.dropped["outcomes of apachePatientResult that patient contradicts"] == 1 + 4
    in_unit = labels(tmp_path / "out", "icu_mortality")
    assert {int(stay) for stay in in_unit} == set(range(1, 40, 2)) - {13}  # died in the unit, and left alive
    assert info.dropped["deaths in a unit that were discharged alive (made unknown)"] == 1
    assert {int(stay) for stay, row in in_unit.items() if row["boolean_value"]} == {9, 19, 29, 39}
    assert check_leakage(tmp_path / "out", "icu_mortality") == 0
    until = labels(tmp_path / "out", "time_to_death")
    assert {stay: row["event_observed"] for stay, row in until.items()} == {
        stay: row["boolean_value"] for stay, row in in_unit.items()
    }
    assert all(row["event_time"] > row["prediction_time"] for row in until.values())
    assert [task.name for task in PreparedFolder(prepared).info.tasks] == ["in_hospital_mortality", "length_of_stay"]
    tables["apachePatientResult"][0]["actualicumortality"] = "EXPIRED"
    with pytest.raises(ValueError, match=r"apachePatientResult\.csv\.gz: stay 1 has two outcomes"):
        eicu.prepare(write_tables(tmp_path / "two", tables), tmp_path / "none")


def test_the_whole_demo(shared_data, tmp_path):
    """Cuffs and outcomes of 2,520 stays; the two tables of outcomes agree."""
    info = eicu.prepare(shared_data("eicu-demo-2.0.1"), tmp_path / "out")
    assert "noninvasivemean" in info.variables
    assert "outcomes of apachePatientResult that patient contradicts" not in info.dropped
    rows, in_unit = records(tmp_path / "out"), labels(tmp_path / "out", "icu_mortality")
    assert len(rows) == 2314
    assert 0.03 < sum(row["boolean_value"] for row in in_unit.values()) / len(in_unit) < 0.07


def edited(table: str, **cells) -> Callable[[Path], None]:
    def change(raw: Path) -> None:
        rows = make_tables()[table]
        rows[4] |= cells
        (raw / f"{table}.csv.gz").write_bytes(
            gzip.compress(pl.DataFrame(rows, strict=False, infer_schema_length=None).write_csv().encode())
        )

    return change


def rewritten(table: str, edit: Callable[[bytes], bytes], packed: bool = False) -> Callable[[Path], None]:
    def change(raw: Path) -> None:
        path = raw / f"{table}.csv.gz"
        path.write_bytes(
            edit(path.read_bytes()) if packed else gzip.compress(edit(gzip.decompress(path.read_bytes())))
        )

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rewritten("lab", lambda file: file[:-30], packed=True), r"lab\.csv\.gz is damaged or incomplete"),
        (rewritten("patient", lambda file: file[:200], packed=True), r"patient\.csv\.gz is damaged or incomplete"),
        (rewritten("lab", lambda _: b"not a gzip", packed=True), r"lab\.csv\.gz is damaged or incomplete"),
        (rewritten("lab", lambda _: b""), r"lab\.csv\.gz is empty"),
        (rewritten("lab", lambda text: text.split(b"\n")[0] + b"\n"), r"lab\.csv\.gz has no rows"),
        (rewritten("patient", lambda text: text.split(b"\n")[0] + b"\n"), r"patient\.csv\.gz has no rows"),
        (rewritten("lab", lambda text: text.replace(b"labresult,", b"result,")), r"lab\.csv\.gz lacks .*labresult"),
        (rewritten("lab", lambda text: text.replace(b"sodium", b"sod\xefum")), r"lab\.csv\.gz is not readable.*UTF8"),
        (
            rewritten("patient", lambda text: text.decode().encode("utf-16")),
            r"patient\.csv\.gz is not a table in UTF-8",
        ),
        (edited("patient", patientunitstayid=4), r"patient\.csv\.gz: stay 4 occurs twice"),
        (edited("patient", age="old"), r"patient\.csv\.gz: stay 5: age must be a number or '> 89', found 'old'"),
        (edited("patient", uniquepid=None), r"patient\.csv\.gz: stay 5 has no uniquepid"),
        (edited("patient", unitdischargeoffset=None), r"patient\.csv\.gz: stay 5 has no unitdischargeoffset"),
        (edited("lab", labresult="high"), r"lab\.csv\.gz is not readable.*'high'"),
        (lambda raw: (raw / "patient.csv.gz").unlink(), r"is not a folder of eICU: it holds no patient"),
        (lambda raw: [path.unlink() for path in raw.iterdir() if path.name != "patient.csv.gz"], "holds no events"),
    ],
)
def test_a_broken_download_is_one_clear_message_and_no_output(change, message, tmp_path):
    raw = write_tables(tmp_path / "raw", make_tables())
    change(raw)
    with pytest.raises(ValueError, match=message):
        eicu.prepare(raw, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        eicu.prepare(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ValueError, match="--observed-hours must be positive"):
        eicu.prepare(tmp_path, tmp_path / "out", observed_hours=0)


def test_the_real_demo_from_download_to_figures(shared_data, tmp_path):
    raw = shared_data("eicu-demo")
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args = parser.parse_args(["eicu", "--raw", str(raw), "--output", str(tmp_path / "out")])
    printed = command.run(args)
    assert "rows of patient.csv.gz without a patientunitstayid" not in printed  # blank lines are no rows
    assert "6,410" in printed
    patient = pl.read_csv(raw / "patient.csv.gz", infer_schema_length=None).drop_nulls("patientunitstayid")
    long = patient.filter(pl.col("unitdischargeoffset") >= 1440)
    rows, died = records(tmp_path / "out"), labels(tmp_path / "out", "in_hospital_mortality")
    expected = long.filter(pl.col("patientunitstayid").cast(pl.String).is_in(list(rows)))
    assert (
        sum(row["boolean_value"] for row in died.values()) == (expected["hospitaldischargestatus"] == "Expired").sum()
    )
    assert len(labels(tmp_path / "out", "length_of_stay")) == expected.height
    model = ["--model", "hidden_size=8", "num_mamba_layers=1", "num_attention_heads=2", "num_pooling_queries=2"]
    run = ["finetune", "--data", tmp_path / "out", "--task", "in_hospital_mortality", "--output", tmp_path / "run"]
    assert main([*map(str, run), "--epochs", "1", *model, "state_size=4"]) == 0
