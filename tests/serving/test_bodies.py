"""Bodies of /streams, field by field: what is wrong is refused with its name, and never an error of ours."""

import json
from collections.abc import Callable

import pytest

HUGE = "1" + "0" * 400  # a whole number beyond double precision
NUMBERS = {
    "text": '"3"',
    "true": "true",
    "a list": "[3]",
    "an object": '{"number": 3}',
    "NaN": "NaN",
    "infinite": "Infinity",
    "minus infinite": "-Infinity",
    "huge": "1e400",
    "huge and whole": HUGE,
    "minus huge and whole": f"-{HUGE}",
}
TEXTS = {
    "a number": "5",
    "true": "true",
    "null": "null",
    "a list": '["HR"]',
    "empty": '""',
    "long": json.dumps("x" * 501),
    "unknown": '"SpO2"',
    "another case": '"hr"',
    "with a space": '"HR "',
    "half a character": r'"\ud800"',
    "a null character": r'"HR\u0000"',
}
EVENT = {"time": "3", "variable": '"HR"', "value": "80"}


def event(**fields: str | None) -> str:
    """A body with one good event and one of which some fields are other JSON, or absent."""
    changed = {name: text for name, text in {**EVENT, **fields}.items() if text is not None}
    good, bad = ("{" + ", ".join(f'"{name}": {text}' for name, text in one.items()) + "}" for one in (EVENT, changed))
    return f'{{"events": [{good}, {bad}]}}'


EVENTS: dict[str, tuple[str, list[str | int]]] = {
    **{f"time, {name}": (event(time=text), ["events", 1, "time"]) for name, text in NUMBERS.items()},
    "time, absent": (event(time=None), ["events", 1, "time"]),
    "time, null": (event(time="null"), ["events", 1, "time"]),
    "time, negative": (event(time="-0.5"), ["events", 1, "time"]),
    "time, since 1970": (event(time="1700000000"), ["events", 1, "time"]),
    **{f"variable, {name}": (event(variable=text), ["events", 1, "variable"]) for name, text in TEXTS.items()},
    "variable, absent": (event(variable=None), ["events", 1, "variable"]),
    **{f"value, {name}": (event(value=text), ["events", 1, "value"]) for name, text in NUMBERS.items()},
    "another field": (event(unit='"bpm"'), ["events", 1, "unit"]),
    "an event of null": ('{"events": [null]}', ["events", 0]),
    "an event of a number": ('{"events": [3]}', ["events", 0]),
    "an event of a list": ('{"events": [[3, "HR", 80]]}', ["events", 0]),
    "events, absent": ("{}", ["events"]),
    "events, null": ('{"events": null}', ["events"]),
    "events, an object": ('{"events": {}}', ["events"]),
    "events, text": ('{"events": "x"}', ["events"]),
    "events, none": ('{"events": []}', ["events"]),
    "events, too many": (f'{{"events": [{",".join(["0"] * 100_001)}]}}', ["events"]),
    "beside the events": (event().replace("}]}", '}], "static": {}}'), ["static"]),
}
STATIC: dict[str, tuple[str, list[str | int]]] = {
    **{f"Age, {name}": (f'{{"static": {{"Age": {text}}}}}', ["static", "Age"]) for name, text in NUMBERS.items()},
    "Ward, a number": ('{"static": {"Ward": 3}}', ["static", "Ward"]),
    "Ward, unknown": ('{"static": {"Ward": "Moon"}}', ["static", "Ward"]),
    "another column": ('{"static": {"Weight": 80}}', ["static", "Weight"]),
    "static, null": ('{"static": null}', ["static"]),
    "static, a list": ('{"static": []}', ["static"]),
    "static, text": ('{"static": "x"}', ["static"]),
    "beside static": ('{"events": []}', ["events"]),
}
WHATEVER: dict[str, tuple[str, list[str | int]]] = {
    "nothing": ("", []),
    "no JSON": ("{", []),
    "no text": ("\udcff", []),
    "null": ("null", []),
    "a list": ("[]", []),
    "a number": ("3", []),
    "text": ('"x"', []),
    "deep": ("[" * 20_000, []),
}


@pytest.fixture
def refused(client) -> Callable[[str, str], list[str | int]]:
    """Sends a body, and returns the place that the refusal names."""

    def send(path: str, body: str) -> list[str | int]:
        content = body.encode("utf-8", "surrogateescape")
        answered = client.post(path, content=content, headers={"content-type": "application/json"})
        assert 400 <= answered.status_code < 500, answered.text
        first = answered.json()["detail"][0]
        assert first["msg"]
        return first["loc"]

    return send


@pytest.mark.parametrize("case", EVENTS | WHATEVER)
def test_events(case, client, refused):
    body, place = (EVENTS | WHATEVER)[case]
    name = client.post("/streams", json={}).json()["id"]
    found = refused(f"/streams/{name}/events", body)
    assert found[: 1 + len(place)] == ["body", *place]
    assert client.get(f"/streams/{name}").json()["num_events"] == 0
    client.delete(f"/streams/{name}")


@pytest.mark.parametrize("case", STATIC | WHATEVER)
def test_static_columns(case, refused):
    body, place = (STATIC | WHATEVER)[case]
    assert refused("/streams", body)[: 1 + len(place)] == ["body", *place]


@pytest.mark.parametrize("text", ["noon", "", "nan", "inf", "-1", "1e7", "1" + "0" * 400, "true"])
def test_the_time_that_is_asked(text, client):
    name = client.post("/streams", json={}).json()["id"]
    answered = client.get(f"/streams/{name}", params={"time": text})
    assert answered.status_code == 422, answered.text
    assert answered.json()["detail"][0]["loc"][-1] == "time"
    client.delete(f"/streams/{name}")
