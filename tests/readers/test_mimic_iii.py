"""MIMIC-III: a small database of both systems with known answers, how it can be broken, and the real demo."""

import gzip
import re
import zipfile
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from hymate_training.cli.main import main
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import SPLITS
from hymate_training.readers import mimic_iii
from hymate_training.readers.mimic import TASKS
from tests.support.leakage import check_leakage
from tests.support.prepared import labels_frame

Tables = dict[str, list[dict]]
START = datetime(2150, 3, 1, 10)
STAYS = 20


def at(stay: int, hours: float) -> str:
    return f"{START + timedelta(days=40 * stay, hours=hours):%Y-%m-%d %H:%M:%S}"


def make_tables() -> Tables:
    """Stay i of patient i lasts 60 hours; those divisible by 4 die at hour 59. Even stays are CareVue's."""
    tables: Tables = {name: [] for name in (*mimic_iii.STAYS, *mimic_iii.EVENTS)}
    for i in range(STAYS):
        stay, died = {"icustay_id": 500 + i}, i % 4 == 0
        tables["icustays"].append(
            {
                **stay,
                "subject_id": i,
                "hadm_id": 100 + i,
                "first_careunit": "MICU",
                "intime": at(i, 0),
                "outtime": at(i, 60),
            }
        )
        tables["admissions"].append(
            {
                **{"hadm_id": 100 + i, "deathtime": at(i, 59) if died else "", "hospital_expire_flag": int(died)},
                **{"admission_type": "EMERGENCY", "admission_location": "EMERGENCY ROOM ADMIT"},
            }
        )
        born = f"{1850 if i == 3 else 2090}-03-15 00:00:00"
        tables["patients"].append({"subject_id": i, "gender": "F", "dob": born})
        rate, temperature = (211, 678) if i % 2 == 0 else (220045, 223761)
        chart = {**stay, "valueuom": "bpm", "error": 0}
        tables["chartevents"] += [
            {**chart, "charttime": at(i, hour), "storetime": at(i, hour + 0.5), "itemid": rate, "valuenum": 60 + i}
            for hour in range(1, 59, 6)
        ]
        tables["chartevents"] += [
            {
                **chart,
                "charttime": at(i, 2),
                "storetime": "",
                "itemid": temperature,
                "valuenum": 98.6,
                "valueuom": "?F",
            },
            {**chart, "charttime": at(i, 3), "storetime": "", "itemid": rate, "valuenum": 999, "error": 1},
            {**chart, "charttime": at(i, 3), "storetime": "", "itemid": rate, "valuenum": ""},
        ]
        tables["labevents"] += [
            {"subject_id": i, "charttime": at(i, hour), "itemid": 50912, "valuenum": 1.1, "valueuom": "mg/dL"}
            for hour in (-200, 4, 50)
        ]
        dose = {"amount": 240, "amountuom": "mcg", "rate": 2, "rateuom": "mcg/min"}
        if i % 2:
            drug = {**stay, "starttime": at(i, 7), "endtime": at(i, 9), "itemid": 221906, **dose}
            tables["inputevents_mv"] += [drug | {"statusdescription": status} for status in ("Stopped", "Rewritten")]
            tube = {"starttime": at(i, 8), "endtime": at(i, 20), "itemid": 225792, "statusdescription": "Stopped"}
            tables["procedureevents_mv"].append({**stay, **tube, "value": 720, "valueuom": "min"})
        else:
            drug = {**stay, "charttime": at(i, 7), "storetime": at(i, 7.5), "itemid": 30120}
            tables["inputevents_cv"] += [
                drug | dose,
                drug | {**dose, "charttime": at(i, 8), "storetime": "", "amount": ""},
            ]
        output = {**stay, "charttime": at(i, 5), "storetime": at(i, 5), "itemid": 40055, "valueuom": "ml"}
        tables["outputevents"] += [output | {"value": 100, "iserror": ""}, output | {"value": 900, "iserror": 1}]
    labels = {211: "Heart Rate", 220045: "Heart Rate", 678: "Temperature F", 223761: "Temperature Fahrenheit"}
    labels[223762] = "Temperature Celsius"  # which Fahrenheit joins
    labels |= {30120: "Levophed-k", 221906: "Norepinephrine", 225792: "Invasive Ventilation", 40055: "Urine Out Foley"}
    tables["d_items"] = [
        {"itemid": item, "label": label, "category": "Routine" if item > 220000 else "", "unitname": ""}
        for item, label in labels.items()
    ]
    tables["d_labitems"] = [{"itemid": 50912, "label": "Creatinine", "fluid": "Blood", "category": "Chemistry"}]
    return tables


def write(raw: Path, tables: Tables, form: str = "csv.gz") -> Path:
    raw.mkdir(parents=True)
    for name, rows in tables.items():
        frame = pl.DataFrame([{key: str(cell) for key, cell in row.items()} for row in rows])
        if form == "lower":
            frame.write_csv(raw / f"{name}.csv", quote_style="necessary")
        else:
            text = frame.rename(str.upper).write_csv(quote_style="necessary").encode()
            (raw / f"{name.upper()}.csv.gz").write_bytes(gzip.compress(text))
    if form == "zip":
        with zipfile.ZipFile(raw / "mimic-iii-1.4.zip", "w") as archive:
            for path in sorted(raw.glob("*.csv.gz")):
                archive.write(path, f"mimic-iii/{path.name}")
                path.unlink()
    return raw


def events(folder: Path, record_id: str) -> list[tuple]:
    prepared = PreparedFolder(folder)
    for split in SPLITS:
        for row in prepared.records(split).to_pylist():
            if row["record_id"] == record_id:
                names = (prepared.info.variables[index] for index in row["variable"])
                return list(zip(row["time"], names, row["value"], strict=True))
    raise AssertionError(record_id)


def all_events(folder: Path) -> dict[str, list[tuple]]:
    return {str(500 + i): events(folder, str(500 + i)) for i in range(STAYS)}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mimic-iii")
    mimic_iii.prepare(write(folder / "raw", make_tables()), folder / "out", min_stays=1)
    return folder / "out"


def test_events_by_hand_of_both_systems(prepared):
    carevue, metavision = events(prepared, "502"), events(prepared, "501")
    rates = [(hour + 0.5, "Heart Rate #211", 62.0) for hour in range(1, 59, 6)]
    assert [event for event in carevue if "Heart" in event[1]] == rates
    assert [event for event in carevue if "Heart" not in event[1]] == [
        (2.0, "Temperature F", pytest.approx(98.6)),
        (4.0, "Creatinine", pytest.approx(1.1)),
        (5.0, "Urine Out Foley", 100.0),
        (7.5, "Levophed-k amount", pytest.approx(0.24)),
        (7.5, "Levophed-k rate", pytest.approx(0.12)),
        (8.0, "Levophed-k rate", pytest.approx(0.12)),
        (50.0, "Creatinine", pytest.approx(1.1)),
    ]
    assert [event for event in metavision if "Heart" not in event[1]] == [
        (2.0, "Temperature Celsius", pytest.approx(37.0)),
        (4.0, "Creatinine", pytest.approx(1.1)),
        (5.0, "Urine Out Foley", 100.0),
        (7.0, "Norepinephrine rate", pytest.approx(0.12)),
        (8.0, "Invasive Ventilation", None),
        (9.0, "Norepinephrine amount", pytest.approx(0.24)),
        (20.0, "Invasive Ventilation duration", 720.0),
        (50.0, "Creatinine", pytest.approx(1.1)),
    ]


def test_static_labels_and_what_is_dropped(prepared):
    folder = PreparedFolder(prepared)
    ages = {row["record_id"]: row["age"] for split in SPLITS for row in folder.records(split).to_pylist()}
    assert ages["503"] == 90  # born 300 years before, as those above 89 are
    assert ages["500"] == 59  # the birthday is yet to come
    died = labels_frame(prepared, "in_hospital_mortality")
    assert set(died.filter("boolean_value")["record_id"]) == {str(500 + i) for i in range(0, STAYS, 4)}
    assert folder.info.dropped == {
        "chartevents: rows marked as an error": STAYS,
        "chartevents: rows without a number": STAYS,
        "labevents: rows outside an ICU stay": STAYS,
        "outputevents: rows marked as an error": STAYS,
    }


@pytest.mark.parametrize("form", ["lower", "zip"])
def test_form_changes_nothing(form, prepared, tmp_path):
    mimic_iii.prepare(write(tmp_path / "raw", make_tables(), form), tmp_path / "out", min_stays=1)
    assert all_events(tmp_path / "out") == all_events(prepared)


def test_order_and_pieces_change_nothing(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("hymate_training.data.tables.PIECE_BYTES", 2048)
    monkeypatch.setattr("hymate_training.readers.store.RECORDS_A_BLOCK", 3)
    tables = {name: rows[::-1] for name, rows in make_tables().items()}
    mimic_iii.prepare(write(tmp_path / "raw", tables), tmp_path / "out", min_stays=1)
    assert all_events(tmp_path / "out") == all_events(prepared)


def test_charted_times(tmp_path):
    raw = write(tmp_path / "raw", make_tables())
    mimic_iii.prepare(raw, tmp_path / "out", min_stays=1, event_time="charted")
    assert (1.0, "Heart Rate #211", 62.0) in events(tmp_path / "out", "502")


@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_nothing_after_the_prediction_is_seen(task, prepared):
    assert check_leakage(prepared, task) > 0 or task == "readmission_30d"  # asked at the end of the stay


def test_what_is_stored_later_is_not_seen_earlier(prepared, tmp_path):
    """Rows stored after 24 hours leave what was seen by then as it is, whenever they were charted."""
    tables = make_tables()
    for i in range(STAYS):
        row = dict(tables["chartevents"][0], icustay_id=500 + i, charttime=at(i, 1), storetime=at(i, 30), valuenum=150)
        tables["chartevents"].append(row)
    mimic_iii.prepare(write(tmp_path / "raw", tables), tmp_path / "out", min_stays=1)
    for record, found in all_events(prepared).items():
        assert [event for event in events(tmp_path / "out", record) if event[0] <= 24] == [
            event for event in found if event[0] <= 24
        ]


def test_both_systems_by_concepts(tmp_path):
    raw = write(tmp_path / "raw", make_tables())
    run = [
        "prepare",
        "mimic-iii",
        "--raw",
        str(raw),
        "--min-stays",
        "1",
        "--concepts",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(run) == 0
    names = {"heart_rate", "body_temperature", "creatinine", "urine_output", "norepinephrine"}
    for record in ("501", "502"):
        found = events(tmp_path / "out", record)
        assert {name for _, name, _ in found} - {"mechanical_ventilation"} == names
        assert [value for _, name, value in found if name == "body_temperature"] == [pytest.approx(37, abs=1e-3)]


def without(table: str, column: str) -> Callable[[Tables], None]:
    def change(tables: Tables) -> None:
        for row in tables[table]:
            row.pop(column, None)

    return change


def edited(table: str, **cells) -> Callable[[Tables], None]:
    def change(tables: Tables) -> None:
        tables[table][3] |= cells

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tables: tables.pop("icustays"), "lacks the table(s) ICUSTAYS"),
        (lambda tables: tables.pop("chartevents"), "lacks the table(s) CHARTEVENTS"),
        (without("chartevents", "itemid"), "CHARTEVENTS.csv.gz lacks the column(s) itemid"),
        (edited("icustays", icustay_id=500), "icustay_id 500 occurs more than once"),
        (edited("icustays", hadm_id=999), "has no row for hadm_id 999"),
        (edited("admissions", hospital_expire_flag=2), "hospital_expire_flag must be 0 or 1"),
        (edited("chartevents", valuenum="warm"), "CHARTEVENTS.csv.gz is not readable"),
        (edited("labevents", charttime="soon"), "LABEVENTS.csv.gz is not readable"),
        (edited("d_items", itemid=211), "itemid 211 occurs more than once"),
    ],
)
def test_a_broken_download_is_named_and_leaves_nothing(change, message, tmp_path):
    tables = make_tables()
    change(tables)
    write(tmp_path / "raw", tables)
    with pytest.raises(ValueError, match=re.escape(message)):
        mimic_iii.prepare(tmp_path / "raw", tmp_path / "out", min_stays=1)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_an_extract_without_marks_of_errors_is_read(tmp_path):
    tables = make_tables()
    without("chartevents", "error")(tables)
    tables["chartevents"] = [row for row in tables["chartevents"] if row["valuenum"] != 999]
    info = mimic_iii.prepare(write(tmp_path / "raw", tables), tmp_path / "out", min_stays=1)
    assert "chartevents: rows marked as an error" not in info.dropped


def test_damaged_files_and_wrong_arguments_are_named(tmp_path):
    raw = write(tmp_path / "raw", make_tables())
    path = raw / "LABEVENTS.csv.gz"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"LABEVENTS\.csv\.gz is damaged or incomplete"):
        mimic_iii.prepare(raw, tmp_path / "out", min_stays=1)
    with pytest.raises(ValueError, match="--min-stays must be at least 1"):
        mimic_iii.prepare(raw, tmp_path / "out", min_stays=0)
    with pytest.raises(ValueError, match=r"no such folder or \.zip"):
        mimic_iii.prepare(tmp_path / "nowhere", tmp_path / "out")


def test_the_real_demo(shared_data, tmp_path):
    raw = shared_data("mimic-iii-demo-1.4")
    info = mimic_iii.prepare(raw, tmp_path / "out")
    assert info.source == "MIMIC-III demo"
    assert info.extra["version"] == "1.4"
    stays = pl.read_csv(raw / "ICUSTAYS.csv.gz", try_parse_dates=True)
    folder = PreparedFolder(tmp_path / "out")
    records = pl.concat(pl.DataFrame(pl.from_arrow(folder.records(split))) for split in SPLITS)
    assert set(records["record_id"]) <= set(stays["icustay_id"].cast(pl.String))
    assert records.height == 135
    days = dict(stays.select(pl.col("icustay_id").cast(pl.String), "los").iter_rows())
    for split in SPLITS:
        for row in folder.task("length_of_stay", split).to_pylist():
            assert row["float_value"] == pytest.approx(days[row["record_id"]], abs=1e-4)
    assert check_leakage(tmp_path / "out", "decompensation_24h", max_examples=100) > 0
