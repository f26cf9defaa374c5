"""What stands before the service: the token, the limits, the counts, and what is not logged."""

import json
import logging
import threading

import pytest
from starlette.testclient import TestClient

from hymate_training.serving import service as service_module
from hymate_training.serving.guard import Rates, ServeLimits
from hymate_training.serving.service import TOKEN, create_app, serve

BODY = {"records": [{"record_id": "patient-4711", "events": [{"time": 1, "variable": "HR", "value": 80}]}]}


def test_without_the_token_nobody_is_answered(checkpoint):
    with TestClient(create_app(checkpoint, token="secret")) as client:
        for given in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            for path in ("/model", "/metrics", "/streams/x", "/nowhere"):
                refused = client.get(path, headers=given)
                assert refused.status_code == 401
                assert refused.headers["www-authenticate"] == "Bearer"
            assert client.post("/predict", json=BODY, headers=given).status_code == 401
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/model", headers={"authorization": "Bearer secret"}).status_code == 200
        assert "HTTPBearer" in client.get("/openapi.json").text


def test_other_machines_are_served_with_a_token_alone(checkpoint, monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(ValueError, match="set HYMATE_TOKEN"):
            serve(checkpoint, host)


def test_large_bodies_are_refused_whether_or_not_they_say_so(checkpoint):
    with TestClient(create_app(checkpoint, ServeLimits(body_megabytes=0.001))) as client:
        body = json.dumps(BODY | {"x": "a" * 2000}).encode()
        headers = {"content-type": "application/json"}
        assert client.post("/predict", content=body, headers=headers).status_code == 413
        parts = (body[at : at + 100] for at in range(0, len(body), 100))
        assert client.post("/predict", content=parts, headers=headers).status_code == 413
        odd = client.post("/predict", content=body, headers=headers | {"content-length": "-5"})
        assert odd.status_code == 413
        assert client.post("/predict", json=BODY).status_code == 200


def test_a_client_has_so_many_requests_per_second(checkpoint):
    with TestClient(create_app(checkpoint, ServeLimits(requests_per_second=2))) as client:
        statuses = [client.get("/model").status_code for _ in range(8)]
        assert statuses[:4] == [200] * 4
        assert 429 in statuses[4:]
        assert client.get("/health").status_code == 200


def test_rates_recover_and_belong_to_one_client():
    now = [0.0]
    rates = Rates(2.0, clock=lambda: now[0])
    assert [rates.allow("a") for _ in range(5)] == [True] * 4 + [False]
    assert rates.allow("b")
    now[0] = 0.5
    assert [rates.allow("a") for _ in range(2)] == [True, False]
    now[0] = 1000.0
    assert [rates.allow("a") for _ in range(5)] == [True] * 4 + [False]


def test_slow_answers_end_with_the_time_limit(checkpoint, monkeypatch):
    go = threading.Event()
    monkeypatch.setattr(service_module, "answer", lambda *_: go.wait(10) and [])
    with TestClient(create_app(checkpoint, ServeLimits(seconds=0.2))) as client:
        slow = client.post("/predict", json=BODY)
        go.set()
    assert slow.status_code == 503
    assert slow.headers["retry-after"] == "1"


def test_failures_and_ids_are_not_logged(checkpoint, monkeypatch, caplog):
    def failing(*_):
        raise RuntimeError("patient-4711 has a secret")

    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(service_module, "answer", failing)
    with TestClient(create_app(checkpoint), raise_server_exceptions=False) as client:
        failed = client.post("/predict", json=BODY)
        client.post("/predict", json={"records": [BODY["records"][0] | {"static": {"patient-4711": 1}}]})
        client.get("/streams/patient-4711")
        counts = client.get("/metrics").text
    assert failed.status_code == 500
    assert "4711" not in failed.text
    ours = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("httpx"))
    assert "RuntimeError in" in ours
    assert "4711" not in ours + counts


def test_counts_are_for_prometheus(client):
    client.post("/predict", json=BODY)
    client.post("/predict", json={})
    answered = client.get("/metrics")
    assert answered.headers["content-type"].startswith("text/plain")
    assert 'hymate_requests_total{endpoint="/predict",method="POST",status="200"} 1.0' in answered.text
    assert 'hymate_requests_total{endpoint="/predict",method="POST",status="422"} 1.0' in answered.text
    assert "hymate_predicted_records_total 1.0" in answered.text
    assert "hymate_streams 0.0" in answered.text


def test_the_page_needs_no_network_and_shows_every_address(client):
    page = client.get("/docs")
    assert "//cdn" not in page.text
    for path in ("/static-offline-docs/swagger-ui-bundle.js", "/static-offline-docs/swagger-ui.css"):
        assert path in page.text
        assert client.get(path).status_code == 200
    shown = client.get("/openapi.json").json()["paths"]
    assert {"/predict", "/streams", "/streams/{id}/events", "/streams/{id}", "/health", "/metrics"} <= set(shown)
    for address in (address for methods in shown.values() for address in methods.values()):
        assert address["tags"]  # or else it stands under "default"
        assert " " in address["summary"]  # words, not the name of a function
