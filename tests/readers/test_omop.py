"""OMOP: small tables by hand in every form, what is dropped, leaks, broken exports, and two real data sets."""

import gzip
import re
import zipfile
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import SPLITS
from hymate_training.readers import omop, source_tables
from tests.support.leakage import check_leakage

Tables = dict[str, list[dict]]
PERSONS = 40
START = datetime(2150, 3, 1, 10, 0)


def at(person: int, hours: float) -> str:
    """Hours since the start of the first visit of a person."""
    return (START + timedelta(days=person, hours=hours)).strftime("%Y-%m-%d %H:%M:%S")


def row(stem: str, person: int, hours: float, concept: int, when: str | None = None, **cells) -> dict:
    when = when or stem
    return {
        "person_id": person,
        "visit_occurrence_id": 10 * person,
        f"{stem}_concept_id": concept,
        f"{stem}_source_value": "",
        f"{when}_date": at(person, hours)[:10],
        f"{when}_datetime": at(person, hours),
        **cells,
    }


def make_tables() -> Tables:
    """Person p is in hospital for 30 hours (every third for 20); every fifth dies there; every fourth comes back."""
    tables: Tables = {domain.table: [] for domain in omop.DOMAINS} | {
        "person": [],
        "visit_occurrence": [],
        "death": [],
    }
    for person in range(1, PERSONS + 1):
        length = 20 if person % 3 == 0 else 30
        tables["person"].append(
            {"person_id": person, "gender_concept_id": 8507 if person % 2 else 8532, "year_of_birth": 2100}
            | {"month_of_birth": 3, "day_of_birth": 1}
        )
        tables["visit_occurrence"].append(visit(10 * person, person, 0, length))
        if person % 5 == 0:
            tables["death"].append({"person_id": person, "death_date": at(person, length)[:10]})
            tables["death"][-1]["death_datetime"] = at(person, length)
        elif person % 4 == 0:
            tables["visit_occurrence"].append(visit(10 * person + 1, person, length + 100, length + 130))
        tables["measurement"] += [
            row(
                "measurement", person, 1, 3027018, value_as_number=80.5, unit_concept_id=8541, unit_source_value="bpm"
            ),
            row("measurement", person, 2, 3016723, value_as_number=90, unit_concept_id=8749, unit_source_value=""),
            row("measurement", person, 3, 3016723, value_as_number=1.1, unit_concept_id=8840, unit_source_value=""),
            row("measurement", person, 4, 0, value_as_number=None, unit_concept_id=0, unit_source_value="")
            | {"measurement_source_value": "LOCAL"},
            row("measurement", person, -5, 3027018, value_as_number=70, unit_concept_id=8541, unit_source_value="bpm"),
        ]
        tables["observation"].append(
            row("observation", person, 5, 111, value_as_number=2, unit_concept_id=None, unit_source_value=None)
        )
        tables["condition_occurrence"] += [
            row("condition", person, 0, 200, when="condition_start", condition_type_concept_id=32821),
            row("condition", person, 6, 201, when="condition_start", condition_type_concept_id=32817),
        ]
        tables["drug_exposure"].append(row("drug", person, 7, 1321341, when="drug_exposure_start"))
        tables["procedure_occurrence"].append(
            row("procedure", person, 8, 300, procedure_type_concept_id=32817)
            | {"procedure_datetime": None, "visit_occurrence_id": None}
        )
        tables["device_exposure"].append(row("device", person, 9, 400, when="device_exposure_start"))
        tables["visit_detail"].append(row("visit_detail", person, 0.5, 32037, when="visit_detail_start"))
    names = {3027018: "Heart rate", 3016723: "Creatinine", 111: "Mood", 200: "Sepsis", 201: "Cough", 300: "Surgery"}
    names |= {1321341: "norepinephrine", 400: "Tube", 32037: "Intensive Care"}
    tables["concept"] = [{"concept_id": number, "concept_name": name} for number, name in names.items()]
    return tables


def visit(number: int, person: int, start: float, end: float) -> dict:
    cells = {"visit_occurrence_id": number, "person_id": person}
    for edge, hours in (("start", start), ("end", end)):
        cells |= {f"visit_{edge}_date": at(person, hours)[:10], f"visit_{edge}_datetime": at(person, hours)}
    return cells


def write(raw: Path, tables: Tables, form: str = "csv") -> Path:
    raw.mkdir(parents=True)
    folder = raw / "tables" if form == "zip" else raw
    folder.mkdir(exist_ok=True)
    for name, rows in tables.items():
        frame = pl.DataFrame(rows, infer_schema_length=None, strict=False)
        if form == "parquet":
            times = [column for column in frame.columns if column.endswith("_datetime")]
            frame = frame.with_columns(pl.col(times).cast(pl.String).str.to_datetime("%Y-%m-%d %H:%M:%S"))
            (raw / name).mkdir()
            for part, piece in enumerate(frame.iter_slices(50)):
                piece.write_parquet(raw / name / f"part-{part}.parquet")
        elif form == "csv.gz":
            (folder / f"2b_{name.upper()}.csv.gz").write_bytes(gzip.compress(frame.write_csv().encode()))
        elif form == "capitals":
            frame.rename(str.upper).write_csv(folder / f"{name.upper()}.csv")
        else:
            frame.write_csv(folder / f"{name}.csv")
    if form == "zip":
        with zipfile.ZipFile(raw / "cdm.zip", "w") as archive:
            for path in folder.iterdir():
                archive.write(path, f"export/{path.name}")
                path.unlink()
        folder.rmdir()
    return raw


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}


def records(folder: Path) -> dict[str, dict]:
    prepared = PreparedFolder(folder)
    return {row["record_id"]: row for split in SPLITS for row in prepared.records(split).to_pylist()}


def events(folder: Path, record_id: str) -> list[tuple]:
    variables = PreparedFolder(folder).info.variables
    row = records(folder)[record_id]
    return [(t, variables[v], x) for t, v, x in zip(row["time"], row["variable"], row["value"], strict=True)]


def labels(folder: Path, task: str) -> dict[tuple[str, float], object]:
    prepared = PreparedFolder(folder)
    rows = [row for split in SPLITS for row in prepared.task(task, split).to_pylist()]
    return {(row.pop("record_id"), row.pop("prediction_time")): next(iter(row.values())) for row in rows}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("omop")
    omop.prepare(write(folder / "raw", make_tables()), folder / "out", min_records=2)
    return folder / "out"


def test_events_by_hand(prepared):
    assert events(prepared, "10") == [
        (0.5, "Intensive Care", None),
        (1.0, "Heart rate", 80.5),
        (2.0, "Creatinine [umol/L]", 90.0),
        (3.0, "Creatinine [mg/dL]", pytest.approx(1.1)),
        (4.0, "LOCAL", None),
        (5.0, "Mood", 2.0),
        (6.0, "Cough", None),
        (7.0, "norepinephrine", None),
        (9.0, "Tube", None),
        (pytest.approx(14 - 1 / 3600), "Surgery", None),  # a date alone: the end of the day
        (30.0, "Sepsis", None),  # billed: known once the visit is over
    ]
    row = records(prepared)["10"]
    assert (row["age"], row["gender"]) == (pytest.approx(50, abs=0.02), "male")
    info = PreparedFolder(prepared).info
    assert info.extra["units"]["Heart rate"] == "/min"
    assert info.extra["codes"]["Heart rate"] == "measurement//3027018"
    assert info.extra["codes"]["norepinephrine"] == "drug//1321341//norepinephrine"


def test_labels_and_what_is_dropped(prepared):
    """Stays of 30 hours are asked; a second visit has no events, and its stay is a readmission all the same."""
    long = [person for person in range(1, PERSONS + 1) if person % 3]
    died = labels(prepared, "in_hospital_mortality")
    assert {key for key in died if died[key]} == {(str(10 * person), 24.0) for person in long if person % 5 == 0}
    assert set(died) == {(str(10 * person), 24.0) for person in long}
    assert set(labels(prepared, "length_of_stay").values()) == {1.25}
    again = labels(prepared, "readmission_30d")
    assert set(again) == {(str(10 * person), 30.0) for person in long if person % 5}
    assert {key[0] for key in again if again[key]} == {str(10 * p) for p in long if p % 4 == 0 and p % 5}
    second = sum(1 for person in range(1, PERSONS + 1) if person % 4 == 0 and person % 5)
    dropped = PreparedFolder(prepared).info.dropped
    assert dropped == {
        "measurement: rows outside any visit": PERSONS,
        "records without an event": second,
        "predictions of in_hospital_mortality before the record's first event": second,
        "predictions of length_of_stay before the record's first event": second,
        "predictions of readmission_30d before the record's first event": second,
        "predictions of time_to_death before the record's first event": second,
    }


def test_records_of_persons(tmp_path):
    """A person's record begins with the first event, spans visits, and is asked once for each admission."""
    omop.prepare(write(tmp_path / "raw", make_tables()), tmp_path / "out", records="person", min_records=2)
    found = events(tmp_path / "out", "4")
    assert found[0] == (0.0, "Heart rate", 70.0)
    assert (5.5, "Intensive Care", None) in found
    died = labels(tmp_path / "out", "in_hospital_mortality")
    assert [time for record, time in died if record == "4"] == [29.0, 159.0]
    assert sum(bool(label) for label in died.values()) == len([p for p in range(5, 41, 5) if p % 3])
    assert check_leakage(tmp_path / "out", "in_hospital_mortality") > 0


def test_splits_are_by_person_and_deaths_in_each(prepared):
    folder = PreparedFolder(prepared)
    members = [{row["record_id"][:-1] for row in folder.records(split).to_pylist()} for split in SPLITS]
    assert not members[0] & members[1] | members[0] & members[2] | members[1] & members[2]
    assert all(any(int(person) % 5 == 0 for person in persons) for persons in members)


@pytest.mark.parametrize("form", ["csv.gz", "capitals", "parquet", "zip", "shuffled", "pieces", "brackets"])
def test_form_order_and_pieces_change_nothing(form, prepared, tmp_path, monkeypatch):
    tables = make_tables()
    if form == "shuffled":
        generator = np.random.default_rng(0)
        tables = {name: [rows[at] for at in generator.permutation(len(rows))] for name, rows in tables.items()}
    if form == "pieces":
        monkeypatch.setattr(source_tables, "PIECE_BYTES", 2000, raising=False)
        monkeypatch.setattr("hymate_training.readers.store.RECORDS_A_BLOCK", 1000)
    folder = tmp_path / ("a [1]" if form == "brackets" else "a")
    omop.prepare(write(folder / "raw", tables, form), folder / "out", min_records=2)
    assert records(folder / "out") == records(prepared)
    for task in ("in_hospital_mortality", "length_of_stay", "readmission_30d"):
        assert labels(folder / "out", task) == labels(prepared, task)


def test_blocks_change_nothing_but_shards(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("hymate_training.readers.store.RECORDS_A_BLOCK", 7)
    omop.prepare(write(tmp_path / "raw", make_tables()), tmp_path / "out", min_records=2)
    assert len(list((tmp_path / "out" / "records").glob("train-*.parquet"))) > 3
    assert records(tmp_path / "out") == records(prepared)


def test_nothing_after_the_prediction_enters(prepared, tmp_path):
    """Whatever happens or is billed later changes neither what was seen at 24 hours nor a tensor."""
    assert check_leakage(prepared, "in_hospital_mortality") > 0
    tables = make_tables()
    generator = np.random.default_rng(0)
    for person in range(1, PERSONS + 1):
        tables["measurement"] += [
            row(
                "measurement",
                person,
                float(generator.uniform(24.01, 29)),
                3027018,
                value_as_number=200,
                unit_concept_id=8541,
                unit_source_value="",
            )
        ]
        tables["condition_occurrence"].append(
            row("condition", person, 1, 202, when="condition_start", condition_type_concept_id=32821)
        )
    omop.prepare(write(tmp_path / "raw", tables), tmp_path / "out", min_records=2)
    for record, time in labels(prepared, "in_hospital_mortality"):
        seen = [event for event in events(tmp_path / "out", record) if event[0] <= time]
        assert seen == [event for event in events(prepared, record) if event[0] <= time]


def test_where_all_times_are_dates_an_event_counts_from_the_end_of_its_day(tmp_path):
    tables = make_tables()
    for rows in tables.values():
        for cells in rows:
            for name in [name for name in cells if name.endswith("_datetime") and cells[name]]:
                cells[name] = cells[name][:10] + " 00:00:00"
    omop.prepare(write(tmp_path / "raw", tables), tmp_path / "out", min_records=2)
    *first, billed = (time for time, *_ in events(tmp_path / "out", "10"))
    assert first == [pytest.approx(24 - 1 / 3600, abs=1e-4)] * 11  # and what was measured earlier on the first day
    assert billed == pytest.approx(48 - 1 / 3600, abs=1e-4)
    assert set(labels(tmp_path / "out", "length_of_stay").values()) == {1.0}


def discharged(row: dict, concept: int) -> dict:
    return row | {"discharged_to_concept_id": concept}


def test_deaths_and_discharges_that_contradict_each_other_are_decided_and_counted(tmp_path):
    """Of persons who stay from 10:00 for 30 hours, to 16:00 on the next day."""
    tables = make_tables()
    home, dead = 8536, omop.DIED
    said = {1: dead, 2: home, 4: home, 7: dead, 5: dead, 10: home}
    tables["visit_occurrence"] = [
        discharged(row, said.get(row["person_id"], 0)) for row in tables["visit_occurrence"] if row["person_id"] != 8
    ]
    # moved within the hospital on the day of the death
    tables["visit_occurrence"] += [visit(80, 8, 0, 28), visit(81, 8, 28, 30)]
    tables["death"] += [
        {"person_id": 2, "death_date": at(2, 30)[:10], "death_datetime": None},  # at home, that evening
        {"person_id": 7, "death_date": at(7, 90)[:10], "death_datetime": at(7, 90)},
        {"person_id": 8, "death_date": at(8, 30)[:10], "death_datetime": None},
        {"person_id": 11, "death_date": at(11, 30)[:10], "death_datetime": at(11, 30)[:10] + " 00:00:00"},
    ]
    info = omop.prepare(write(tmp_path / "raw", tables), tmp_path / "out", min_records=2)
    died = labels(tmp_path / "out", "in_hospital_mortality")
    expected = {"10": True, "20": False, "40": False, "70": True, "50": True, "100": True, "80": False, "110": True}
    assert {record: died[record, 24.0] for record in expected} == expected
    until = {
        row["record_id"]: row
        for split in SPLITS
        for row in PreparedFolder(tmp_path / "out").task("time_to_death", split).to_pylist()
    }
    assert {record: row["event_observed"] for record, row in until.items()} == {
        record: label for (record, _), label in died.items()
    }
    assert (until["110"]["event_time"], until["70"]["event_time"]) == (30.0, 30.0)  # and not 14 hours, at midnight
    assert info.dropped["discharges as alive of visits with a death (taken as deaths)"] == 1  # of person 10
    assert info.dropped["discharges as dead without a death by then (taken as deaths)"] == 1  # of person 7


def test_overlapping_visits_are_no_readmission(tmp_path):
    tables = make_tables()
    tables["visit_occurrence"].append(visit(999, 1, 10, 40))  # begins while the first still lasts
    omop.prepare(write(tmp_path / "raw", tables), tmp_path / "out", min_records=2)
    assert labels(tmp_path / "out", "readmission_30d")["10", 30.0] is False


def edited(table: str, **cells) -> Callable[[Tables], None]:
    def change(tables: Tables) -> None:
        tables[table][4] |= cells

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tables: tables.pop("person"), "lacks the table(s) person"),
        (lambda tables: tables.pop("visit_occurrence"), "lacks the table(s) visit_occurrence"),
        (lambda tables: [tables.pop(domain.table) for domain in omop.DOMAINS], "holds no events"),
        (edited("person", person_id=4), "person 4 occurs twice"),
        (edited("visit_occurrence", visit_occurrence_id=40), "visit 40 occurs twice"),
        (edited("measurement", value_as_number="high"), "measurement.csv is not readable"),
        (edited("measurement", measurement_datetime="soon"), "measurement_datetime must be a time such as"),
        (edited("measurement", measurement_concept_id="HR"), "measurement.csv is not readable"),
        (lambda tables: tables.update(measurement=[{"person": 1}]), "measurement.csv lacks the column(s) person_id"),
        (lambda tables: tables.update(death=[{"person_id": 5, "death_date": "never"}]), "death_date must be a time"),
    ],
)
def test_a_broken_export_is_one_clear_message_and_no_output(change, message, tmp_path):
    tables = make_tables()
    change(tables)
    write(tmp_path / "raw", tables)
    with pytest.raises(ValueError, match=re.escape(message)):
        omop.prepare(tmp_path / "raw", tmp_path / "out", min_records=2)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_damaged_files_are_named(tmp_path):
    write(tmp_path / "raw", make_tables(), "parquet")
    part = tmp_path / "raw" / "measurement" / "part-1.parquet"
    part.write_bytes(part.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"part-1\.parquet is damaged or incomplete"):
        omop.prepare(tmp_path / "raw", tmp_path / "out")
    write(tmp_path / "packed", make_tables(), "zip")
    archive = tmp_path / "packed" / "cdm.zip"
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cdm\.zip is damaged or incomplete"):
        omop.prepare(tmp_path / "packed", tmp_path / "out")


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no such folder or \.zip"):
        omop.prepare(tmp_path / "nowhere", tmp_path / "out")
    for arguments, message in (
        ({"records": "ward"}, "--records must be 'visit' or 'person'"),
        ({"observed_hours": 0}, "--observed-hours must be positive"),
        ({"min_records": 0}, "--min-records must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            omop.prepare(tmp_path, tmp_path / "out", **arguments)
    write(tmp_path / "raw", make_tables())
    with pytest.raises(ValueError, match="no variable occurs in 100 training records"):
        omop.prepare(tmp_path / "raw", tmp_path / "out", min_records=100)


def test_parquet_as_downloaded(shared_data, tmp_path):
    """Synthea in CDM 5.4, in its archive: dates without times, names of concepts."""
    info = omop.prepare(shared_data("synthea27nj-omop-5.4"), tmp_path / "out", min_records=3)
    assert info.source == "NJ (OMOP)"
    assert "Heart rate" in info.variables
    assert len(records(tmp_path / "out")) == 1791
    assert check_leakage(tmp_path / "out", "in_hospital_mortality") > 0
