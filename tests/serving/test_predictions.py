"""`POST /predict`: the answers are those of `hymate predict`, and what is wrong is named."""

import asyncio
import dataclasses
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from benchmarks.soak import random_records
from hymate_training.inference.prediction import predict
from hymate_training.serving.messages import PredictRequest
from hymate_training.serving.reading import Question, Reader
from hymate_training.serving.scoring import BATCH, MOST_WAITING, Batcher, Busy, answer
from hymate_training.serving.service import create_app
from modeling_hymate import HyMaTEForSequenceClassification, HyMaTEPipeline
from tests.serving.conftest import FOLDER
from tests.support.helpers import make_model

RECORD = {"record_id": "1", "events": [{"time": 0.5, "variable": "HR", "value": 92}], "static": {"Age": 71}}


def tables(records: list[dict]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events and static columns, as `hymate predict` takes them."""
    rows = [{"record_id": record["record_id"], **event} for record in records for event in record["events"]]
    static = [{"record_id": record["record_id"], **record["static"]} for record in records]
    return pl.DataFrame(rows), pl.DataFrame(static)


def test_the_documented_request_is_answered(client):
    answered = client.post("/predict", json={"records": [RECORD]})
    assert answered.status_code == 200
    (prediction,) = answered.json()["predictions"]
    assert set(prediction) == {"record_id", "probabilities"}
    assert prediction["record_id"] == "1"
    assert sum(prediction["probabilities"].values()) == pytest.approx(1, abs=1e-6)


def test_answers_are_those_of_predict_and_come_in_order(client, checkpoint):
    records = random_records(FOLDER, 30, seed=1)
    expected = predict(checkpoint, *tables(records)).frame
    random.Random(0).shuffle(records)
    found = client.post("/predict", json={"records": records}).json()["predictions"]
    assert [one["record_id"] for one in found] == [record["record_id"] for record in records]
    for one in found:
        row = expected.row(by_predicate=pl.col("record_id") == one["record_id"], named=True)
        assert one["probabilities"] == pytest.approx({name: row[name] for name in one["probabilities"]}, abs=1e-6)


def test_requests_at_once_are_joined_and_get_their_own_answers(checkpoint):
    records = random_records(FOLDER, 24, seed=2)
    with TestClient(create_app(checkpoint)) as client:
        alone = [client.post("/predict", json={"records": [record]}).json()["predictions"] for record in records]
        with ThreadPoolExecutor(12) as threads:
            together = list(
                threads.map(lambda record: client.post("/predict", json={"records": [record]}).json(), records)
            )
    for one, other in zip(alone, together, strict=True):
        assert other["predictions"][0]["record_id"] == one[0]["record_id"]
        assert other["predictions"][0]["probabilities"] == pytest.approx(one[0]["probabilities"], abs=1e-6)


def test_hours_are_answered_as_of_then(client, checkpoint):
    records = random_records(FOLDER, 3, seed=3)
    hours = [30.0, 4.0]
    refused = client.post("/predict", json={"records": records, "prediction_times": hours})
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["loc"] == ["body", "prediction_times", 0]
    asked = {"records": records, "prediction_times": hours, "untrained_hours": True}
    found = client.post("/predict", json=asked).json()["predictions"]
    assert [(one["record_id"], one["prediction_time"]) for one in found] == [
        (record["record_id"], hour) for record in records for hour in hours
    ]
    pipeline = HyMaTEPipeline(model=checkpoint.model, feature_extractor=checkpoint.extractor)
    for number, record in enumerate(records):
        columns = {name: [event[name] for event in record["events"]] for name in ("time", "variable", "value")}
        expected = pipeline(columns, record["static"], prediction_times=hours)
        for place, one in enumerate(expected):
            assert found[2 * number + place]["probabilities"] == pytest.approx(one["scores"], abs=1e-6)


def test_a_record_without_events_is_answered_at_an_hour_alone(client):
    record = RECORD | {"events": []}
    refused = client.post("/predict", json={"records": [record]})
    assert refused.json()["detail"][0]["loc"] == ["body", "records", 0, "events"]
    asked = {"records": [record], "prediction_times": [2], "untrained_hours": True}
    assert client.post("/predict", json=asked).status_code == 200


def test_regressions_answer_values(checkpoint):
    overrides = {"problem_type": "regression", "num_labels": 1, "id2label": {0: "days"}}
    model = make_model(
        HyMaTEForSequenceClassification, num_variables=3, num_static_features=2, time_scale=32.0, **overrides
    )
    regression = dataclasses.replace(checkpoint, model=model)
    with TestClient(create_app(regression)) as client:
        (prediction,) = client.post("/predict", json={"records": [RECORD]}).json()["predictions"]
    assert set(prediction) == {"record_id", "values"}
    assert set(prediction["values"]) == {"days"}


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"events": [{"time": 0.5, "variable": "Hr", "value": 92}]}, ["events", 0, "variable"]),
        ({"events": [{"time": -1, "variable": "HR", "value": 92}]}, ["events", 0, "time"]),
        ({"events": [{"time": 1e9, "variable": "HR", "value": 92}]}, ["events", 0, "time"]),
        ({"events": [{"time": "0.5", "variable": "HR", "value": 92}]}, ["events", 0, "time"]),
        ({"events": [{"variable": "HR", "value": 92}]}, ["events", 0, "time"]),
        ({"events": [{"time": True, "variable": "HR", "value": 92}]}, ["events", 0, "time"]),
        ({"events": [{"time": 0.5, "variable": 0, "value": 92}]}, ["events", 0, "variable"]),
        ({"events": [{"time": 0.5, "variable": "HR", "value": "high"}]}, ["events", 0, "value"]),
        ({"events": [{"time": 0.5, "variable": "HR", "value": float("inf")}]}, ["events", 0, "value"]),
        ({"events": [{"time": 0.5, "variable": "HR", "value": float("nan")}]}, ["events", 0, "value"]),
        ({"events": [{"time": 0.5, "variable": "HR", "unit": "bpm"}]}, ["events", 0, "unit"]),
        ({"events": {"time": 0.5}}, ["events"]),
        ({"static": {"Weight": 80}}, ["static", "Weight"]),
        ({"static": {"Age": "old"}}, ["static", "Age"]),
        ({"static": {"\ud800": 3}}, ["static"]),
        ({"static": {"Age": ""}}, ["static", "Age"]),
        ({"static": {"Age": 10**400}}, ["static", "Age"]),
        ({"static": {"Age": [71]}}, ["static", "Age"]),
        ({"record_id": 1}, ["record_id"]),
        ({"record_id": ""}, ["record_id"]),
    ],
)
def test_a_bad_field_is_named(client, change, where):
    body = json.dumps({"records": [RECORD, RECORD | {"record_id": "2"} | change]})
    answered = client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert answered.status_code == 422
    assert answered.json()["detail"][0]["loc"][: 3 + len(where)] == ["body", "records", 1, *where]
    assert answered.json()["detail"][0]["msg"]


def test_records_of_one_name_and_shortened_names_are_refused(client):
    twice = client.post("/predict", json={"records": [RECORD, RECORD]})
    assert twice.json()["detail"][0]["loc"] == ["body", "records", 1, "record_id"]
    shortened = client.post("/predict", json={"records": [RECORD | {"record_id": "1.33E+10"}]})
    assert shortened.status_code == 422
    assert "shortened" in shortened.json()["detail"][0]["msg"]


NASTY = [
    None,
    True,
    0,
    -1,
    1e308,
    10**30,
    float("nan"),
    float("-inf"),
    "",
    "HR",
    "\ud800",
    "1e5",
    [],
    {},
    [[]],
    {"a": 1},
]


def mutated(seed: int) -> bytes:
    """A request in which something is wrong, by one of many ways."""
    rng = random.Random(seed)
    body = {"records": json.loads(json.dumps([RECORD])), "prediction_times": None}
    if seed % 5 == 0:
        text = json.dumps(body).encode()
        at = rng.randrange(len(text))
        cuts = [text[:at], b"\xff" + text, b"[" * 100_000, b"", b"null", b'"' + text, text.replace(b"0.5", b"1e999")]
        return rng.choice(cuts)
    places = [
        (body, "records"),
        (body["records"], 0),
        (body["records"][0], "events"),
        (body["records"][0], "record_id"),
    ]
    event = body["records"][0]["events"][0]
    places += [(body["records"][0]["events"], 0), (event, "time"), (event, "variable"), (event, "value")]
    places += [(body["records"][0], "static"), (body["records"][0]["static"], "Age"), (body, "unknown"), (event, "x")]
    holder, key = rng.choice(places)
    holder[key] = rng.choice(NASTY)
    return json.dumps(body).encode()


def test_malformed_bodies_are_refused_and_never_fail(client):
    """500 of them; a change that happens to be valid, such as an age of 0, must be answered."""
    statuses = [
        client.post("/predict", content=mutated(seed), headers={"content-type": "application/json"}).status_code
        for seed in range(500)
    ]
    assert set(statuses) <= {200, 400, 422}
    assert sum(status >= 400 for status in statuses) > 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
EVENT = st.fixed_dictionaries(
    {"time": st.floats() | JSON, "variable": st.sampled_from(["HR", "GCS"]) | JSON},
    optional={"value": st.floats() | JSON, "other": JSON},
)
RECORDS = st.lists(
    st.fixed_dictionaries(
        {"record_id": st.text() | JSON, "events": st.lists(EVENT, max_size=3) | JSON},
        optional={"static": st.dictionaries(st.sampled_from(["Age", "Sex"]), JSON) | JSON},
    ),
    max_size=2,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.fixed_dictionaries({"records": RECORDS | JSON}, optional={"prediction_times": JSON, "x": JSON}))
def test_no_body_makes_the_service_fail(client, body):
    answered = client.post("/predict", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answered.status_code in (200, 422)
    if answered.status_code == 200:
        numbers = [number for one in answered.json()["predictions"] for number in one["probabilities"].values()]
        assert np.isfinite(numbers).all()


# ----------------------------------------------------------------------------------------------------------- batching


@pytest.fixture
def questions(checkpoint) -> list[Question]:
    reader = Reader(checkpoint)
    records = random_records(FOLDER, 12, seed=4)
    return [reader.question(PredictRequest(records=[record])) for record in records]


def test_what_waits_is_one_batch_and_one_that_fails_does_not_answer_for_the_others(checkpoint, questions):
    sizes: list[int] = []
    go = threading.Event()
    bad = questions[5]

    def answering(batch):
        go.wait(10)
        sizes.append(len(batch))
        if bad in batch:
            raise RuntimeError("bad")
        return answer(checkpoint, batch)

    async def ask_all():
        with ThreadPoolExecutor(1) as engine:
            batcher = Batcher(answering, engine, lambda *_: None)
            task = asyncio.create_task(batcher.run())
            asked = [asyncio.create_task(batcher.ask(question)) for question in questions]
            await asyncio.sleep(0.05)
            go.set()
            found = await asyncio.gather(*asked, return_exceptions=True)
            task.cancel()
        return found

    found = asyncio.run(ask_all())
    assert max(sizes) > 4
    assert isinstance(found.pop(5), RuntimeError)
    names = [question.events.record_ids[0] for question in questions if question is not bad]
    assert [one[0]["record_id"] for one in found] == names


def test_too_much_at_once_is_refused(questions, monkeypatch):
    async def ask_two():
        with ThreadPoolExecutor(1) as engine:
            batcher = Batcher(lambda batch: [], engine, lambda *_: None)  # which nobody runs
            first = asyncio.create_task(batcher.ask(questions[0]))
            await asyncio.sleep(0)
            assert batcher.waiting == 1
            with pytest.raises(Busy):
                await batcher.ask(questions[1])
            first.cancel()

    assert MOST_WAITING > BATCH
    monkeypatch.setattr("hymate_training.serving.scoring.MOST_WAITING", questions[0].size)
    asyncio.run(ask_two())
