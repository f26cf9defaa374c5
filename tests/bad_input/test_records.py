"""Records in Python: each item of a record, spoiled in each way that there is, at every entrance that takes records.

Whatever is no number, name or id is refused by the name of its column, with a warning nowhere; what counts as unknown,
or as a number, is answered, and everywhere with the same numbers.
"""

import math
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hymate_training.fitting import estimator
from hymate_training.fitting.estimator import HyMaTEClassifier
from hymate_training.inference.checkpoints import Checkpoint, load_checkpoint
from modeling_hymate import HyMaTEPipeline, Stream

FOLDER = Path(__file__).parents[1] / "checkpoints" / "classification"

UNKNOWN = {
    "None": None,
    "NaN": math.nan,
    "NaN as text": "nan",
    "NaT": pd.NaT,
    "NA": pd.NA,
    "a Decimal": Decimal("nan"),
}
A_NUMBER = {
    "whole": 2,
    "text": "2",
    "text with spaces": " 2.0 ",
    "of NumPy": np.float32(2),
    "a tensor": torch.tensor(2.0),
    "a Decimal": Decimal(2),
}
NOT_FINITE = {"infinite": math.inf, "minus infinity": -math.inf, "infinite text": "inf", "too large": 10**400}
NO_NUMBER = {
    "truth": True,
    "truth of NumPy": np.True_,
    "no text": "",
    "text": "x",
    "underscored": "1_0",
    "half a character": "\ud800",
    "bytes": b"1",
    "a list": [1],
    "an empty list": [],
    "a mapping": {},
    "a set": {1},
    "complex": 1j,
    "a date": datetime(2020, 1, 1, tzinfo=UTC),
    "a date of NumPy": np.datetime64("2020-01-01"),
    "a duration": timedelta(hours=1),
    "two numbers": torch.ones(2),
    "an object": object(),
}
NO_TIME = {"negative": -1, "beyond a life": 1e6, "beyond float32": 1e300, "2 ** 63": 2**63}
NO_NAME = {"a float": 1.0, "unknown": "Hr", "an index too large": 3, "negative": -1}
LISTS = {"a list", "an empty list", "two numbers"}  # of a static column these are one item per event

BAD = [
    *(("time", how, item) for how, item in {**NO_NUMBER, **NOT_FINITE, **NO_TIME, **UNKNOWN}.items()),
    *(("variable", how, item) for how, item in {**NO_NUMBER, **NOT_FINITE, **NO_NAME, **UNKNOWN}.items()),
    *(("value", how, item) for how, item in {**NO_NUMBER, **NOT_FINITE}.items()),
    *(("Age", how, item) for how, item in {**NO_NUMBER, **NOT_FINITE}.items() if how not in {*LISTS, "no text"}),
]
GOOD = [
    *(("time", how, item) for how, item in A_NUMBER.items()),
    *(("value", how, item) for how, item in {**A_NUMBER, **UNKNOWN}.items()),
    *(("Age", how, item) for how, item in {**A_NUMBER, **UNKNOWN}.items()),
]


def record(column: str | None = None, item: Any = None) -> dict[str, Any]:
    """Two events and an age, of which one item is another."""
    made: dict[str, Any] = {"time": [0.5, 2.0], "variable": ["HR", "GCS"], "value": [92.0, 2.0], "Age": 2}
    if column is not None:
        made[column] = item if column == "Age" else [made[column][0], item]
    return made


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return load_checkpoint(FOLDER)


Entrance = Callable[[Checkpoint, dict[str, Any]], list[float]]


def by_pipeline(checkpoint: Checkpoint, given: dict[str, Any]) -> list[float]:
    pipeline = HyMaTEPipeline(model=checkpoint.model, feature_extractor=checkpoint.extractor)
    return list(pipeline(given)["scores"].values())


def by_frame(checkpoint: Checkpoint, given: dict[str, Any]) -> list[float]:
    """The same as a long frame of pandas, whose columns hold whatever they are given."""
    columns = {name: items if isinstance(items, list) else [items, items] for name, items in given.items()}
    frame = pd.DataFrame({name: pd.Series(items, dtype=object) for name, items in columns.items()})
    pipeline = HyMaTEPipeline(model=checkpoint.model, feature_extractor=checkpoint.extractor)
    return list(pipeline(frame.assign(record_id="a"))[0]["scores"].values())


def by_stream(checkpoint: Checkpoint, given: dict[str, Any]) -> list[float]:
    stream = Stream(checkpoint.model, checkpoint.extractor, {"Age": given["Age"]})
    for time, variable, value in zip(given["time"], given["variable"], given["value"], strict=True):
        answer = stream.add({"time": time, "variable": variable, "value": value})
    return list(answer["scores"].values())


def by_estimator(checkpoint: Checkpoint, given: dict[str, Any]) -> list[float]:
    classifier = HyMaTEClassifier()
    classifier.checkpoint_, classifier.classes_ = checkpoint, np.array([0, 1])
    return classifier.predict_proba([given])[0].tolist()


def by_call(checkpoint: Checkpoint, given: dict[str, Any]) -> list[float]:
    outputs = checkpoint.model(**checkpoint.extractor([record(), given]))
    return checkpoint.model.predictions(outputs.logits)[1].tolist()


ENTRANCES = (by_pipeline, by_frame, by_stream, by_estimator, by_call)


def ids(cases: list[tuple[str, str, Any]]) -> list:
    return [pytest.param(column, item, id=f"{column} {how}") for column, how, item in cases]


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize(("column", "item"), ids(BAD))
@torch.no_grad()
def test_what_is_none_is_refused_by_its_column(entrance: Entrance, column, item, checkpoint):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=rf"\b{column}|must hold a list"):
            entrance(checkpoint, record(column, item))


@pytest.mark.parametrize(("column", "item"), ids(GOOD))
@torch.no_grad()
def test_what_is_one_has_the_same_answer_everywhere(column, item, checkpoint):
    plain = record(column, None if item is None or str(item).lower() in ("nan", "nat", "<na>") else 2.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = by_pipeline(checkpoint, plain)
        for entrance in ENTRANCES:
            assert entrance(checkpoint, record(column, item)) == pytest.approx(expected, abs=1e-5)


class ReachedTrainingError(Exception):
    """Nothing was found to be wrong."""


def fit(records: Any, y: Any) -> None:
    HyMaTEClassifier().fit(records, y)


@pytest.fixture
def untrained(monkeypatch):
    def finetune(*_):
        raise ReachedTrainingError

    monkeypatch.setattr(estimator, "finetune", finetune)
    with pytest.raises(ReachedTrainingError):
        fit([record() for _ in range(10)], [0, 1] * 5)


# any text is a name, and nothing else is: an index, which a known variable may be told by, is that of none
TO_FIT = [
    *(case for case in BAD if case[0] != "variable" or not isinstance(case[2], str)),
    *(("variable", how, item) for how, item in {"no text": "", "spaces": " ", "half": "\ud800", "index": 1}.items()),
]


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(("column", "item"), ids(TO_FIT))
def test_the_estimator_learns_from_no_such_record(column, item):
    records = [record() for _ in range(10)]
    records[3] = record(column, item)
    with pytest.raises(ValueError, match=column):
        fit(records, [0, 1] * 5)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("label", [pytest.param(item, id=how) for how, item in {**UNKNOWN, **NO_NUMBER}.items()])
def test_the_estimator_learns_no_such_label(label):
    records, others = [record() for _ in range(10)], ["0", "1"] if not isinstance(label, str) else [0, 1]
    with pytest.raises(ValueError, match=r"\by must hold"):
        fit(records, [*(others * 5)[:-1], label])


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("given", [pytest.param(item, id=how) for how, item in {**UNKNOWN, **NO_NUMBER}.items()])
def test_the_estimator_takes_sequences_of_records(given, checkpoint):
    records = [record() for _ in range(10)]
    for call in (
        lambda: fit(given, [0, 1] * 5),
        lambda: fit(records, given),
        lambda: fit([*records[:-1], given], [0, 1] * 5),
        lambda: HyMaTEClassifier(validation_fraction=given).fit(records, [0, 1] * 5),
        lambda: by_estimator(checkpoint, given),
    ):
        with pytest.raises(ValueError, match=r"record|\by must|validation_fraction"):
            call()


RECORD_IDS = {how: item for how, item in {**UNKNOWN, **NO_NUMBER}.items() if not isinstance(item, str) or not item}


@pytest.mark.parametrize("item", [pytest.param(item, id=how) for how, item in RECORD_IDS.items() if how != "a list"])
def test_ids_that_are_none(item, checkpoint):
    with pytest.raises(ValueError, match=r"record_id|record id"):
        checkpoint.extractor.parse([record() | {"record_id": item}])
    with pytest.raises(ValueError, match=r"record_id|record id"):
        checkpoint.extractor.parse(record() | {"record_id": ["a", item], "Age": [2, 2]})


HOURS = {**UNKNOWN, **NO_NUMBER, **NOT_FINITE, **NO_TIME}


@pytest.mark.parametrize("item", [pytest.param(item, id=how) for how, item in HOURS.items()])
def test_hours_at_which_nobody_can_be_asked(item, checkpoint):
    pipeline = HyMaTEPipeline(model=checkpoint.model, feature_extractor=checkpoint.extractor)
    with pytest.raises(ValueError, match="prediction_times"):
        pipeline(record(), prediction_times=[3.0, item])
    with pytest.raises(ValueError, match="time"):
        Stream(checkpoint.model, checkpoint.extractor).ask(item)
    if item is not None and not isinstance(item, list | torch.Tensor):
        with pytest.raises(ValueError, match="prediction_times"):
            pipeline(record(), prediction_times=item)


@pytest.mark.parametrize("name", ["top_k", "max_events"])
@pytest.mark.parametrize(
    "item", [pytest.param(item, id=how) for how, item in {**UNKNOWN, **NO_NUMBER, "zero": 0, "2.5": 2.5}.items()]
)
def test_counts_that_are_none(name, item, checkpoint):
    if item is None:
        pytest.skip("stands for all")
    pipeline = HyMaTEPipeline(model=checkpoint.model, feature_extractor=checkpoint.extractor)
    with pytest.raises(ValueError, match=f"{name} must be"):
        pipeline(record(), **{name: item})


@pytest.mark.parametrize("item", [pytest.param(item, id=how) for how, item in {**UNKNOWN, **NO_NUMBER}.items()])
def test_what_no_stream_starts_from(item, checkpoint):
    for name in ("static", "state"):
        if item is None or (name == "static" and isinstance(item, dict)):
            continue
        with pytest.raises(ValueError, match=f"{name} must be"):
            Stream(checkpoint.model, checkpoint.extractor, **{name: item})
    for call in (Stream(checkpoint.model, checkpoint.extractor).add, checkpoint.extractor.parse):
        with pytest.raises(ValueError, match=r"records?\b|lacks"):
            call(item)


ITEMS = st.one_of(
    *(st.sampled_from(list(items.values())) for items in (UNKNOWN, A_NUMBER, NOT_FINITE, NO_NUMBER, NO_TIME)),
    st.floats(),
    st.integers(),
    st.text(max_size=3),
    st.sampled_from(["HR", "GCS", "Ward"]),
)
ANY_RECORD = st.fixed_dictionaries(
    {name: st.lists(ITEMS, max_size=4) | ITEMS for name in ("time", "variable", "value")},
    optional={"Age": ITEMS, "record_id": ITEMS, "other": ITEMS},
)
LIKELY_RECORD = st.integers(0, 4).flatmap(
    lambda length: st.fixed_dictionaries(
        {
            "time": st.lists(st.floats(0, 1e5, width=32), min_size=length, max_size=length),
            "variable": st.lists(st.sampled_from(["HR", "GCS", "Ward"]), min_size=length, max_size=length),
            "value": st.lists(st.none() | st.floats(allow_infinity=False), min_size=length, max_size=length),
        },
        optional={"Age": st.floats(allow_infinity=False) | st.none(), "record_id": st.text(min_size=1, max_size=3)},
    )
)


@settings(max_examples=300, deadline=None)
@given(records=st.lists(ANY_RECORD | LIKELY_RECORD, max_size=3) | ANY_RECORD | LIKELY_RECORD)
@torch.no_grad()
def test_whatever_is_handed_over_is_refused_or_answered_in_numbers(checkpoint, records):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            features = checkpoint.extractor(records)
        except ValueError:
            return
        assert checkpoint.model(**features).logits.isfinite().all()
