"""Streams of the service: their answers, their limits, and that they outlive the process."""

import json
import stat

import pytest
import torch
from starlette.testclient import TestClient

from benchmarks.soak import random_records
from hymate_training.serving.guard import ServeLimits
from hymate_training.serving.messages import Event
from hymate_training.serving.reading import BadField
from hymate_training.serving.service import create_app
from hymate_training.serving.streams import HOURS_KEPT, MOST_AT_ONE_TIME, HeldStreams
from modeling_hymate import HyMaTEPipeline
from tests.serving.conftest import FOLDER


class Clock:
    """Seconds that pass when told."""

    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def record() -> dict:
    return max(random_records(FOLDER, 8, seed=5), key=lambda record: len(record["events"]))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def streams(checkpoint, clock) -> HeldStreams:
    return HeldStreams(checkpoint, most=3, hours=2, clock=clock)


def event(time: float, variable: str = "HR", value: float | None = 90) -> Event:
    return Event(time=time, variable=variable, value=value)


def test_the_risk_hour_by_hour_is_that_of_the_pipeline(client, checkpoint, record):
    name = client.post("/streams", json={"static": record["static"]}).json()["id"]
    events = record["events"]
    for at in range(0, len(events), 7):
        answered = client.post(f"/streams/{name}/events", json={"events": events[at : at + 7][::-1]})
        assert answered.status_code == 200, answered.json()
    assert answered.json()["num_events"] == len(events)
    asked = events[-1]["time"] + 1.5
    found = client.get(f"/streams/{name}", params={"time": asked}).json()
    full = [float(hour) for hour in range(1, int(events[-1]["time"]) + 1) if hour >= events[0]["time"]]
    assert [one["prediction_time"] for one in found["hours"]] == full
    columns = {name: [event[name] for event in events] for name in ("time", "variable", "value")}
    pipeline = HyMaTEPipeline(model=checkpoint.model, feature_extractor=checkpoint.extractor)
    expected = pipeline(columns, record["static"], prediction_times=[*full, asked])
    for one, other in zip([*found["hours"], found], expected, strict=True):
        assert one["probabilities"] == pytest.approx(other["scores"], abs=1e-5)
    assert sum(one["weight"] for one in found["variables"]) == pytest.approx(1, abs=1e-5)
    assert client.delete(f"/streams/{name}").status_code == 204
    assert client.get(f"/streams/{name}").status_code == 404


def test_bad_events_are_named_and_change_nothing(client):
    name = client.post("/streams", json={}).json()["id"]
    client.post(f"/streams/{name}/events", json={"events": [{"time": 3, "variable": "HR", "value": 80}]})
    before = client.get(f"/streams/{name}").json()
    for events, status, where in (
        ([{"time": 4, "variable": "HR"}, {"time": 2.5, "variable": "HR"}], 409, ["events", 1, "time"]),
        ([{"time": 4, "variable": "HR"}, {"time": 5, "variable": "SpO2"}], 422, ["events", 1, "variable"]),
        ([], 422, ["events"]),
        ([{"time": 3, "variable": "GCS", "value": 9}] * (MOST_AT_ONE_TIME + 1), 422, ["events"]),
    ):
        answered = client.post(f"/streams/{name}/events", json={"events": events})
        assert answered.status_code == status
        assert answered.json()["detail"][0]["loc"] == ["body", *where]
    assert client.get(f"/streams/{name}", params={"time": 2}).status_code == 422
    assert client.get(f"/streams/{name}", params={"time": "noon"}).status_code == 422
    after = client.get(f"/streams/{name}").json()
    assert after.pop("expires") >= before.pop("expires")
    assert after == before
    assert client.post("/streams", json={"static": {"Weight": 3}}).json()["detail"][0]["loc"] == [
        *("body", "static", "Weight")
    ]


def test_events_of_one_time_may_come_apart(streams):
    one, other = streams.start({})["id"], streams.start({})["id"]
    streams.add(one, [event(1, "GCS", 9), event(1, "HR", 80), event(1, "HR", 120)])
    streams.add(other, [event(1, "HR", 120)])
    streams.add(other, [event(1, "HR", 80), event(1, "GCS", 9)])
    found, expected = streams.look(other, None), streams.look(one, None)
    assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-6)


def test_a_long_gap_costs_no_more_than_the_hours_that_are_kept(streams):
    name = streams.start({})["id"]
    streams.add(name, [event(1)])
    streams.add(name, [event(900_000)])
    hours = [one["prediction_time"] for one in streams.look(name, None)["hours"]]
    assert hours == [float(hour) for hour in range(900_000 - HOURS_KEPT, 900_000)]


def test_no_more_streams_than_the_limit_and_unused_ones_are_forgotten(streams, clock):
    names = [streams.start({})["id"] for _ in range(3)]
    assert len(set(names)) == 3
    assert min(map(len, names)) >= 20
    with pytest.raises(BadField, match="3 streams are held") as refused:
        streams.start({})
    assert refused.value.status == 429
    clock.now += 3600
    streams.add(names[0], [event(1)])
    clock.now += 3601
    with pytest.raises(BadField, match="may have expired"):
        streams.look(names[1], None)
    assert streams.look(names[0], None)["num_events"] == 1
    streams.start({})
    assert len(streams) == 2


def test_saved_streams_go_on_as_if_nothing_had_happened(streams, checkpoint, clock, tmp_path, record):
    events = [Event(**one) for one in record["events"]]
    name, empty = streams.start(record["static"])["id"], streams.start({})["id"]
    streams.add(name, events[: len(events) // 2])
    path = tmp_path / "streams.safetensors"
    streams.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not streams.changed
    restored = HeldStreams(checkpoint, most=3, hours=2, clock=clock)
    restored.restore(path)
    assert restored.look(name, None) == streams.look(name, None)
    assert restored.add(name, events[len(events) // 2 :]) == streams.add(name, events[len(events) // 2 :])
    assert restored.look(name, None)["hours"] == streams.look(name, None)["hours"]
    assert restored.add(empty, events[:3]) == streams.add(empty, events[:3])


def test_an_empty_file_of_streams_and_damaged_ones(streams, checkpoint, tmp_path):
    path = tmp_path / "streams.safetensors"
    streams.save(path)
    streams.restore(path)
    assert len(streams) == 0
    name = streams.start({})["id"]
    streams.save(path)
    content = path.read_bytes()
    for damaged in (b"", content[:50], content[:-3], content.replace(b"hymate_streams", b"hymate_strands")):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"streams\.safetensors is damaged"):
            HeldStreams(checkpoint, 3, 2).restore(path)
    path.write_bytes(content.replace(json.dumps(name).encode()[1:-1], b"x" * len(name), 1))
    with pytest.raises(ValueError, match="damaged"):
        HeldStreams(checkpoint, 3, 2).restore(path)


def test_streams_of_another_model_are_refused(streams, checkpoint, tmp_path):
    path = tmp_path / "streams.safetensors"
    streams.start({})
    streams.save(path)
    other = tmp_path / "other"
    other.mkdir()
    for file in FOLDER.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    text = (other / "preprocessor_config.json").read_text()
    (other / "preprocessor_config.json").write_text(text.replace("52.5", "52.25"))
    with pytest.raises(ValueError, match="streams of another model"):
        create_app(other, state=path)


def test_the_service_saves_at_its_end_and_one_process_holds_the_file(checkpoint, tmp_path):
    path = tmp_path / "held" / "streams.safetensors"
    with TestClient(create_app(checkpoint, state=path)) as client:
        name = client.post("/streams", json={"static": {"Age": 60}}).json()["id"]
        client.post(f"/streams/{name}/events", json={"events": [{"time": 1, "variable": "HR", "value": 80}]})
        before = client.get(f"/streams/{name}").json()
        with pytest.raises(ValueError, match="another process is writing"):
            create_app(checkpoint, state=path)
    with TestClient(create_app(checkpoint, state=path)) as client:
        after = client.get(f"/streams/{name}").json()
    assert after["probabilities"] == before["probabilities"]


def test_the_state_does_not_grow_with_the_events(streams):
    name = streams.start({})["id"]
    held = streams._held[name]

    def size() -> int:
        return sum(
            tensor.numel() for tensor in held.stream.state.to_dict().values() if isinstance(tensor, torch.Tensor)
        )

    streams.add(name, [event(0.25), event(0.5)])
    small = size()
    streams.add(name, [event(1 + at / 50) for at in range(500)])
    assert size() == small


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="stream_hours must be a positive number, got 0"):
        ServeLimits(stream_hours=0)
