"""FHIR bundles at the service: the risk is that of the same encounter in a prepared folder, and junk is refused."""

import copy
import json
import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from hymate_training.cli.main import main
from hymate_training.inference.checkpoints import load_checkpoint
from hymate_training.inference.prediction import predict
from hymate_training.serving.guard import ServeLimits
from hymate_training.serving.service import create_app
from tests.readers.test_fhir import make_patient, make_resources, write
from tests.support.runs import event_frame, save_untrained


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """Simulated encounters by concepts."""
    folder = tmp_path_factory.mktemp("fhir")
    raw = write(folder / "raw", make_resources())
    run = ["prepare", "fhir", "--raw", str(raw), "--min-records", "2", "--concepts", "--output", str(folder / "out")]
    assert main(run) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def concepts(prepared, tmp_path_factory) -> Path:
    """A classifier of concepts with random weights."""
    return save_untrained(prepared, tmp_path_factory.mktemp("concepts") / "checkpoint")


@pytest.fixture(scope="module")
def service(concepts):
    with TestClient(create_app(concepts, ServeLimits(requests_per_second=1e6))) as client:
        yield client


def bundle(resources: list[dict[str, Any]]) -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": one} for one in resources]}


def assessments(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [one["resource"] for one in answer["entry"] if one["resource"]["resourceType"] == "RiskAssessment"]


def test_the_risk_of_an_encounter_is_that_of_its_prepared_record(service, prepared, concepts):
    events, static = event_frame(prepared, records=4)
    expected = predict(concepts, events, static).frame
    for row in expected.iter_rows(named=True):
        encounter = row["record_id"]
        patient = int(encounter.strip("ebr"))
        medication = make_resources()[0]
        answered = service.post("/fhir", json=bundle([medication, *make_patient(patient)]))
        assert answered.status_code == 200, answered.json()
        (found,) = [
            one for one in assessments(answered.json()) if one["encounter"]["reference"] == f"Encounter/{encounter}"
        ]
        assert found["subject"] == {"reference": f"Patient/p{patient}"}
        assert found["status"] == "final"
        told = {one["outcome"]["text"]: one["probabilityDecimal"] for one in found["prediction"]}
        assert told == pytest.approx({name: row[name] for name in told}, abs=1e-6)


def without_encounters(resources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The resources without the encounters, and without references to them."""
    kept = [copy.deepcopy(one) for one in resources if one["resourceType"] != "Encounter"]
    for one in kept:
        one.pop("encounter", None)
    return kept


def test_an_encounter_may_go_on_and_a_patient_may_have_none(service):
    resources = copy.deepcopy(make_patient(1))
    (begun, *_) = [one for one in resources if one["resourceType"] == "Encounter"]
    del begun["period"]["end"]
    open_ended = assessments(service.post("/fhir", json=bundle(resources)).json())
    assert begun["id"] in {one["encounter"]["reference"].rpartition("/")[2] for one in open_ended}
    (found,) = assessments(service.post("/fhir", json=bundle(without_encounters(resources))).json())
    assert "encounter" not in found
    assert datetime.fromisoformat(found["occurrenceDateTime"]) > datetime.fromisoformat(begun["period"]["start"])


def test_what_is_not_used_is_counted(service):
    resources = make_patient(1)
    cough = copy.deepcopy(resources[3])
    cough["code"] = {"coding": [{"system": "http://snomed.info/sct", "code": "49727002", "display": "Cough"}]}
    early = copy.deepcopy(resources[3])
    start = datetime.fromisoformat(resources[1]["period"]["start"])
    early |= {"effectiveDateTime": (start - timedelta(days=900)).isoformat(), "issued": None}
    (outcome,) = [
        one["resource"]
        for one in service.post("/fhir", json=bundle([*resources, cough, early])).json()["entry"]
        if one["resource"]["resourceType"] == "OperationOutcome"
    ]
    said = " ".join(issue["diagnostics"] for issue in outcome["issue"])
    assert "49727002" in said
    assert "1 events outside any encounter" in said


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "it has no resourceType"),
        (bundle([]), "the bundle holds no Patient"),
        (bundle([{"resourceType": "Patient"}]), "entry 1: the Patient has no id"),
        (bundle([{"resourceType": "Patient", "id": "p"}]), "no event of a concept that the model knows"),
        (bundle([{"resourceType": "Patient", "id": "p", "birthDate": "soon"}]), "birthDate must be a time such as"),
        (bundle([*make_patient(1), {"resourceType": "Condition", "verificationStatus": {"coding": [1]}}]), "form"),
    ],
)
def test_what_is_no_bundle_is_refused(service, content, message):
    answered = service.post("/fhir", json=content)
    assert answered.status_code == 422
    assert message in answered.json()["detail"][0]["msg"]


def test_no_bundle_makes_the_service_fail(service):
    """Any one place of a bundle replaced by junk, 300 times."""

    def places(content: Any) -> list[tuple[Any, Any]]:
        keys = list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else []
        return [place for key in keys for place in [(content, key), *places(content[key])]]

    junk = [None, True, -1, 1e308, 10**400, "", "x", "\ud800", [], {}, [[1]], {"a": 1}, "2020", "9999-12-31T23:59:59Z"]
    statuses = []
    for seed in range(300):
        rng = random.Random(seed)
        content = copy.deepcopy(bundle(make_patient(1)))
        holder, key = rng.choice(places(content))
        holder[key] = rng.choice(junk)
        headers = {"content-type": "application/fhir+json"}
        statuses.append(service.post("/fhir", content=json.dumps(content), headers=headers).status_code)
    assert set(statuses) == {200, 422}


def test_models_of_other_names_have_no_such_address(client, checkpoint):
    assert client.post("/fhir", json=bundle(make_patient(1))).status_code == 404
    assert load_checkpoint(checkpoint) is checkpoint
