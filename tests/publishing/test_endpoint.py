"""A pushed classifier as an Inference Endpoint: it answers what the service answers, and names what is wrong."""

import configparser
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from benchmarks.soak import random_records
from hymate_training.publishing.handler import EndpointHandler
from hymate_training.publishing.push import REQUIREMENTS, plan_push
from hymate_training.serving.service import create_app

ROOT = Path(__file__).resolve().parents[2]
MORTALITY = ROOT / "model_cards" / "hymate-physionet2012-mortality"
PRETRAINED = ROOT / "model_cards" / "hymate-physionet2012-pretrained"


def test_it_answers_as_the_service_without_our_packages(tmp_path):
    folder = tmp_path / "pushed"
    folder.mkdir()
    for name, content in plan_push(MORTALITY).uploaded.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    records = random_records(MORTALITY, 5, seed=1)
    bodies = [{"records": records}, {"records": records[:2], "prediction_times": [40, 12], "untrained_hours": True}]
    bad = records[0] | {"events": [{"time": 1, "variable": "Pulse", "value": 3}]}
    (tmp_path / "requests.json").write_text(json.dumps([*({"inputs": body} for body in bodies), {"records": [bad]}]))
    client = ROOT / "tests" / "support" / "endpoint_client.py"
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            str(client),
            str(folder),
            *(str(tmp_path / f"{n}.json") for n in ("requests", "answers")),
        ],
        env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *answers, message = json.loads((tmp_path / "answers.json").read_text())
    assert "Pulse" in message
    with TestClient(create_app(MORTALITY)) as service:
        for body, answer in zip(bodies, answers, strict=True):
            expected = service.post("/predict", json=body).json()["predictions"]
            assert [one.keys() for one in answer["predictions"]] == [one.keys() for one in expected]
            for one, other in zip(answer["predictions"], expected, strict=True):
                assert one["record_id"] == other["record_id"]
                assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)


@pytest.fixture(scope="module")
def endpoint() -> EndpointHandler:
    return EndpointHandler(str(ROOT / "tests" / "checkpoints" / "classification"))


RECORD = {"record_id": "1", "events": [{"time": 0.5, "variable": "HR", "value": 92}], "static": {"Age": 71}}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "inputs lacks records"),
        ({"records": []}, "records must be a list of at least one"),
        ({"records": [RECORD], "hours": [1]}, r"inputs\.hours is unknown"),
        ({"records": [3]}, r"records\[0\] must be an object"),
        ({"records": [RECORD | {"record_id": 1}]}, r"records\[0\]\.record_id must be text"),
        ({"records": [RECORD, RECORD | {"events": None}]}, r"records\[1\]\.events must be a list"),
        ({"records": [RECORD | {"events": [{"time": 1}]}]}, r"records\[0\]\.events\[0\] lacks variable"),
        ({"records": [RECORD | {"static": {"Sex": "f"}}]}, r"records\[0\]\.static\.Sex is unknown"),
        ({"records": [RECORD | {"events": []}]}, "no events"),
        ({"records": [RECORD], "prediction_times": [1]}, "trained at the end of each record alone"),
        ({"records": [RECORD], "prediction_times": 1, "untrained_hours": True}, "must be a list of hours"),
    ],
)
def test_what_is_wrong_is_named(endpoint, body, message):
    with pytest.raises(ValueError, match=message):
        endpoint({"inputs": body})


def test_encoders_are_no_endpoints_and_what_endpoints_need_is_what_the_package_needs():
    assert not {"handler.py", "requirements.txt"} & set(plan_push(PRETRAINED).uploaded)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options"]["install_requires"].split() == list(REQUIREMENTS)
