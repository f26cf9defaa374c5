"""FHIR: resources by hand as bundles and in bulk, what is left out, leaks, broken files, and simulated patients."""

import gzip
import json
import re
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hymate_training.cli.main import main
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import SPLITS
from hymate_training.readers import fhir
from tests.support.leakage import check_leakage

PATIENTS = 40
START = datetime(2020, 3, 1, 10, 0, tzinfo=UTC)
Resources = list[dict[str, Any]]


def at(patient: int, hours: float) -> str:
    return (START + timedelta(days=patient, hours=hours)).isoformat()


def coded(system: str, code: str, display: str) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code, "display": display}]}


LOINC, SNOMED = "http://loinc.org", "http://snomed.info/sct"


def quantity(value: float, unit: str) -> dict[str, Any]:
    return {"valueQuantity": {"value": value, "unit": unit, "code": unit}}


def make_patient(patient: int) -> Resources:
    """In hospital for 30 hours (every third for 20), every fifth dies there, every fourth comes back."""
    length = 20 if patient % 3 == 0 else 30
    who = {"subject": {"reference": f"Patient/p{patient}"}, "encounter": {"reference": f"Encounter/e{patient}"}}

    def resource(kind: str, status: str = "final", **cells: Any) -> dict[str, Any]:
        return {"resourceType": kind, "status": status, **who, **cells}

    def encounter(name: str, start: float, end: float, **cells: Any) -> dict[str, Any]:
        period = {"start": at(patient, start), "end": at(patient, end)}
        return {
            "resourceType": "Encounter",
            "id": name,
            "status": "finished",
            "period": period,
            "subject": who["subject"],
            **cells,
        }

    expired = {"hospitalization": {"dischargeDisposition": {"coding": [{"code": "exp"}]}}}
    found = [
        {
            "resourceType": "Patient",
            "id": f"p{patient}",
            "gender": "female" if patient % 2 else "other",
            "birthDate": "1970-03",
        },
        encounter(f"e{patient}", 0, length, **(expired if patient % 5 == 0 else {})),
        encounter(f"icu{patient}", 1, 10, partOf={"reference": f"Encounter/e{patient}"}),
        resource(
            "Observation",
            code=coded(LOINC, "8867-4", "Heart rate"),
            effectiveDateTime=at(patient, 1),
            issued=at(patient, 2),
            **quantity(80, "/min"),
        ),
        resource(
            "Observation",
            code=coded(LOINC, "85354-9", "Blood pressure"),
            effectiveDateTime=at(patient, 3),
            component=[
                {"code": coded(LOINC, "8480-6", "Systolic"), **quantity(120, "mm[Hg]")},
                {"code": coded(LOINC, "8462-4", "Diastolic"), **quantity(70, "mm[Hg]")},
            ],
        ),
        resource(
            "Observation",
            code=coded(LOINC, "2160-0", "Creatinine"),
            effectiveInstant=at(patient, 4),
            **quantity(90, "umol/L"),
        ),
        resource(
            "Observation",
            code=coded(LOINC, "2160-0", "Creatinine"),
            effectiveDateTime=at(patient, 5),
            **quantity(1.1, "mg/dL"),
        ),
        resource("Observation", code={"text": "Mood"}, effectivePeriod={"start": at(patient, 6)}, valueString="good"),
        resource("Observation", code={"text": "Asleep"}, effectiveDateTime=at(patient, 7), valueBoolean=True)
        | {"encounter": {"reference": f"Encounter/icu{patient}"}},
        resource(
            "Observation",
            "entered-in-error",
            code=coded(LOINC, "8867-4", "Heart rate"),
            effectiveDateTime=at(patient, 8),
            **quantity(999, "/min"),
        ),
        resource("Condition", code=coded(SNOMED, "91302008", "Sepsis"), onsetDateTime=at(patient, 0.5)),
        resource("Condition", code=coded(SNOMED, "49727002", "Cough"), recordedDate=at(patient, 9)),
        resource(
            "Condition",
            code=coded(SNOMED, "1", "Doubted"),
            recordedDate=at(patient, 9),
            verificationStatus={"coding": [{"code": "refuted"}]},
        ),
        resource(
            "MedicationAdministration",
            "completed",
            medicationReference={"reference": "Medication/m1"},
            effectivePeriod={"start": at(patient, 10)},
        ),
        resource("Procedure", "completed", code=coded(SNOMED, "2", "Surgery"), performedDateTime=at(patient, 11)[:10]),
        resource("MedicationRequest", "active", authoredOn=at(patient, 1)),
    ]
    found[13]["context"] = found[13].pop("encounter")
    if patient % 4 == 0 and patient % 5:
        found.append(encounter(f"again{patient}", length + 100, length + 130))
    return found


MEDICATION = {
    "resourceType": "Medication",
    "id": "m1",
    "code": coded("http://www.nlm.nih.gov/research/umls/rxnorm", "7512", "norepinephrine"),
}


def make_resources() -> Resources:
    return [MEDICATION, *(resource for patient in range(1, PATIENTS + 1) for resource in make_patient(patient))]


def write(raw: Path, resources: Resources, form: str = "bundles") -> Path:
    raw.mkdir(parents=True)
    if form.startswith("ndjson"):
        kinds = sorted({resource["resourceType"] for resource in resources})
        for kind in kinds:
            lines = [json.dumps(resource) for resource in resources if resource["resourceType"] == kind]
            text = ("\n".join(lines) + "\n\n").encode()
            packed = form == "ndjson.gz"
            (raw / f"{kind}.000.ndjson{'.gz' if packed else ''}").write_bytes(gzip.compress(text) if packed else text)
    else:
        for number in range(0, len(resources), 37):
            entries = [
                {"fullUrl": f"http://server/{one['resourceType']}/{one.get('id', '')}", "resource": one}
                for one in resources[number : number + 37]
            ]
            bundle = {"resourceType": "Bundle", "type": "collection", "entry": entries}
            (raw / f"b{number:05d}.json").write_text(json.dumps(bundle), encoding="utf-8")
    if form == "zip":
        with zipfile.ZipFile(raw / "all.zip", "w") as archive:
            for path in sorted(raw.glob("*.json")):
                archive.write(path, f"R4/{path.name}")
                path.unlink()
    return raw


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
    folder = tmp_path_factory.mktemp("fhir")
    fhir.prepare(write(folder / "raw", make_resources()), folder / "out", min_records=2)
    return folder / "out"


def test_events_by_hand(prepared):
    assert events(prepared, "e1") == [
        (2.0, "Heart rate", 80.0),  # issued an hour after it was measured
        (3.0, "Diastolic", 70.0),
        (3.0, "Systolic", 120.0),
        (4.0, "Creatinine [umol/L]", 90.0),
        (5.0, "Creatinine [mg/dL]", pytest.approx(1.1)),
        (6.0, "Mood", None),
        (7.0, "Asleep", 1.0),  # of an encounter that is part of this one
        (9.0, "Cough", None),
        (10.0, "norepinephrine", None),
        (pytest.approx(14 - 1 / 3600), "Surgery", None),  # a date alone: the end of the day
        (30.0, "Sepsis", None),  # recorded nobody knows when: the end
    ]
    row = records(prepared)["e1"]
    assert row["gender"] == "female"
    assert row["age"] == pytest.approx(50, abs=0.1)
    assert records(prepared)["e2"]["gender"] is None
    info = PreparedFolder(prepared).info
    assert info.extra["codes"]["Heart rate"] == "LOINC//8867-4"
    assert info.extra["codes"]["norepinephrine"] == "medication//7512//norepinephrine"
    assert info.extra["units"]["Systolic"] == "mm[Hg]"


def test_labels_and_what_is_dropped(prepared):
    long = [patient for patient in range(1, PATIENTS + 1) if patient % 3]
    died = labels(prepared, "in_hospital_mortality")
    assert set(died) == {(f"e{patient}", 24.0) for patient in long}
    assert {name for (name, _), label in died.items() if label} == {f"e{p}" for p in long if p % 5 == 0}
    assert set(labels(prepared, "length_of_stay").values()) == {1.25}
    again = labels(prepared, "readmission_30d")
    assert {name for (name, _), label in again.items() if label} == {f"e{p}" for p in long if p % 4 == 0 and p % 5}
    second = sum(1 for patient in range(1, PATIENTS + 1) if patient % 4 == 0 and patient % 5)
    assert PreparedFolder(prepared).info.dropped == {
        "resources of the type MedicationRequest, which is not read": PATIENTS,
        "Observation: entered in error, cancelled, refuted or not done": PATIENTS,
        "Condition: entered in error, cancelled, refuted or not done": PATIENTS,
        "records without an event": second,
        "predictions of in_hospital_mortality before the record's first event": second,
        "predictions of length_of_stay before the record's first event": second,
        "predictions of readmission_30d before the record's first event": second,
        "predictions of time_to_death before the record's first event": second,
    }


@pytest.mark.parametrize("form", ["ndjson", "ndjson.gz", "zip", "reversed", "pieces"])
def test_form_order_and_pieces_change_nothing(form, prepared, tmp_path, monkeypatch):
    resources = make_resources()
    if form == "pieces":
        monkeypatch.setattr(fhir, "ROWS_AT_ONCE", 30)
    raw = write(tmp_path / "raw", resources[::-1] if form == "reversed" else resources, form)
    fhir.prepare(raw, tmp_path / "out", min_records=2)
    found, expected = PreparedFolder(tmp_path / "out").info, PreparedFolder(prepared).info
    assert found.dropped == expected.dropped
    assert {name: events(tmp_path / "out", name) for name in records(tmp_path / "out")} == {
        name: events(prepared, name) for name in records(prepared)
    }
    assert labels(tmp_path / "out", "readmission_30d") == labels(prepared, "readmission_30d")


def test_records_of_patients_and_effective_times(tmp_path):
    raw = write(tmp_path / "raw", make_resources(), "ndjson")
    fhir.prepare(raw, tmp_path / "out", records="person", event_time="effective", min_records=2)
    assert events(tmp_path / "out", "p4")[0] == (0.0, "Heart rate", 80.0)
    assert [time for name, time in labels(tmp_path / "out", "in_hospital_mortality") if name == "p4"] == [23.0, 153.0]
    assert check_leakage(tmp_path / "out", "in_hospital_mortality") > 0


def west(value: Any) -> Any:
    """The same hours of the day by a clock five hours behind UTC."""
    if isinstance(value, dict):
        return {name: west(item) for name, item in value.items()}
    if isinstance(value, list):
        return [west(item) for item in value]
    return value.replace("+00:00", "-05:00") if isinstance(value, str) else value


def test_a_date_ends_with_the_day_of_the_hospital(prepared, tmp_path):
    raw = write(tmp_path / "raw", [west(resource) for resource in make_resources()])
    fhir.prepare(raw, tmp_path / "out", min_records=2)
    for name in records(prepared):
        assert events(tmp_path / "out", name) == events(prepared, name)
    assert labels(tmp_path / "out", "in_hospital_mortality") == labels(prepared, "in_hospital_mortality")


@pytest.mark.parametrize("change", [list, lambda resources: [west(resource) for resource in resources]])
def test_dates_of_death_and_dispositions_are_decided_and_counted(change, tmp_path):
    resources = make_resources()
    patients = {resource["id"]: resource for resource in resources if resource["resourceType"] == "Patient"}
    stays = {resource["id"]: resource for resource in resources if resource["resourceType"] == "Encounter"}
    home = {"hospitalization": {"dischargeDisposition": {"coding": [{"code": "home"}]}}}
    patients["p1"]["deceasedDateTime"] = at(1, 30)[:10]  # some time on the day that the stay ends
    patients["p2"]["deceasedDateTime"] = at(2, 30)[:10]
    stays["e2"] |= home  # and went home before
    patients["p5"]["deceasedDateTime"] = at(5, 80)
    patients["p7"]["deceasedDateTime"] = at(7, 29)
    stays["e7"] |= home
    info = fhir.prepare(write(tmp_path / "raw", change(resources)), tmp_path / "out", min_records=2)
    died = labels(tmp_path / "out", "in_hospital_mortality")
    expected = {"e1": True, "e2": False, "e5": True, "e7": True, "e10": True, "e11": False}
    assert {name: died[name, 24.0] for name in expected} == expected
    assert info.dropped["discharges as alive of visits with a death (taken as deaths)"] == 1
    assert info.dropped["discharges as dead without a death by then (taken as deaths)"] == 1


def test_nothing_after_the_prediction_enters(prepared, tmp_path):
    assert check_leakage(prepared, "in_hospital_mortality") > 0
    resources = make_resources()
    for patient in range(1, PATIENTS + 1):
        late = dict(
            make_patient(patient)[3], effectiveDateTime=at(patient, 1), issued=at(patient, 25), **quantity(200, "/min")
        )
        unknown = dict(make_patient(patient)[10], code=coded(SNOMED, "49727002", "Cough"))
        resources += [late, unknown]
    fhir.prepare(write(tmp_path / "raw", resources), tmp_path / "out", min_records=2)
    for record, time in labels(prepared, "in_hospital_mortality"):
        seen = [event for event in events(tmp_path / "out", record) if event[0] <= time]
        assert seen == [event for event in events(prepared, record) if event[0] <= time]


def test_by_concepts(tmp_path, capsys):
    raw = write(tmp_path / "raw", make_resources())
    run = ["prepare", "fhir", "--raw", str(raw), "--min-records", "2", "--concepts", "--output", str(tmp_path / "out")]
    assert main(run) == 0
    found = events(tmp_path / "out", "e1")
    assert (4.0, "creatinine", pytest.approx(90 * 0.011312)) in found
    assert (5.0, "creatinine", pytest.approx(1.1)) in found
    assert (10.0, "norepinephrine", None) in found
    assert "Sepsis" in capsys.readouterr().out


def altered(index: int, **cells: Any) -> Callable[[Resources], Resources]:
    """All resources, the one at `index` of the first patient with other cells."""

    def change(resources: Resources) -> Resources:
        resources[index + 1] = resources[index + 1] | cells
        return resources

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (altered(3, effectiveDateTime="yesterday"), "effectiveDateTime must be a time such as"),
        (altered(3, issued="2020-13-01"), "issued must be a time such as"),
        (altered(0, birthDate=1970), "birthDate must be a time such as"),
        (altered(1, period={"start": "2020-02-30"}), "period.start must be a time such as"),
        (altered(3, valueQuantity={"value": "80"}), "a value must be a number, found '80'"),
        (altered(0, id=None), "the Patient has no id"),
        (lambda resources: [*resources, resources[1]], "patient p1 occurs twice"),
        (lambda resources: [*resources, resources[2]], "encounter e1 occurs twice"),
        (lambda resources: [one for one in resources if one["resourceType"] != "Patient"], "holds no Patient"),
        (lambda resources: [one for one in resources if one["resourceType"] != "Encounter"], "no encounter has a"),
        (lambda resources: [*resources, {"id": "x"}], "is not a FHIR resource"),
    ],
)
def test_broken_resources_are_one_clear_message_and_no_output(change, message, tmp_path):
    form = "bundles" if message == "is not a FHIR resource" else "ndjson"
    resources = change(make_resources())
    if form == "bundles":
        write(tmp_path / "raw", resources[:-1])
        (tmp_path / "raw" / "z.json").write_text(json.dumps(resources[-1]), encoding="utf-8")
    else:
        write(
            tmp_path / "raw", [{key: cell for key, cell in one.items() if cell is not None} for one in resources], form
        )
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        fhir.prepare(tmp_path / "raw", tmp_path / "out", min_records=2)
    assert str(tmp_path / "raw") in str(raised.value) or message == "no encounter has a"
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_damaged_files_are_named(tmp_path):
    write(tmp_path / "raw", make_resources(), "ndjson")
    path = tmp_path / "raw" / "Observation.000.ndjson"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"Observation\.000\.ndjson: line 280 is not JSON"):
        fhir.prepare(tmp_path / "raw", tmp_path / "out")
    write(tmp_path / "packed", make_resources(), "ndjson.gz")
    path = tmp_path / "packed" / "Observation.000.ndjson.gz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"Observation\.000\.ndjson\.gz is damaged or incomplete"):
        fhir.prepare(tmp_path / "packed", tmp_path / "out")
    write(tmp_path / "zip", make_resources(), "zip")
    path = tmp_path / "zip" / "all.zip"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"all\.zip is damaged or incomplete"):
        fhir.prepare(tmp_path / "zip", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no file of FHIR"):
        fhir.prepare(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ValueError, match=r"no such folder or \.zip"):
        fhir.prepare(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ValueError, match="--event-time must be 'issued' or 'effective'"):
        fhir.prepare(tmp_path / "empty", tmp_path / "out", event_time="charted")


@pytest.mark.parametrize(
    ("text", "end", "expected"),
    [
        ("2020-03-01T10:00:00Z", True, "2020-03-01T10:00:00+00:00"),
        ("2020-03-01T10:00:00.5+02:00", True, "2020-03-01T08:00:00.500000+00:00"),
        ("2020-03-01", True, "2020-03-01T23:59:59+00:00"),
        ("2020-03-01", False, "2020-03-01T00:00:00+00:00"),
        ("2020-12", True, "2020-12-31T23:59:59+00:00"),
        ("2020", True, "2020-12-31T23:59:59+00:00"),
        ("2020", False, "2020-01-01T00:00:00+00:00"),
    ],
)
def test_times(text, end, expected):
    assert fhir._seconds(text, "here", end=end) == datetime.fromisoformat(expected).timestamp()


def test_simulated_patients_as_downloaded(shared_data, tmp_path):
    info = fhir.prepare(shared_data("synthea-fhir-r4"), tmp_path / "out", records="person", min_records=2)
    assert len(records(tmp_path / "out")) == 24
    assert {"Systolic Blood Pressure", "Body Weight"} <= set(info.variables)
    assert info.dropped["resources of the type MedicationRequest, which is not read"] == 87
    assert check_leakage(tmp_path / "out", "in_hospital_mortality") > 0
