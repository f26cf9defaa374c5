"""`pipeline("ehr-classification")`: answers, weights in clinical units, all shapes of input and kinds of problem."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from torch.utils.data import Dataset
from transformers import pipeline

from modeling_hymate import HyMaTEFeatureExtractor, HyMaTEForPreTraining, HyMaTEForSequenceClassification
from tests.support.helpers import perturbed, tiny_config

VARIABLES = ["HR", "GCS", "Ward"]
FRAME = pd.DataFrame(
    {
        "record_id": ["b", "b", "a", "b", "c", "a", "a", "b"],
        "time": [5.0, 1.0, 0.5, 1.0, 2.0, 9.0, 9.0, 30.0],
        "variable": ["HR", "GCS", "HR", "HR", "Ward", "GCS", "HR", "Ward"],
        "value": [90.0, 14.0, 400.0, 85.0, None, 3.0, 61.0, None],
    }
)
STATIC = pd.DataFrame({"record_id": ["a", "b", "c"], "Age": [40.0, None, 71.0]})


@pytest.fixture(scope="module")
def extractor() -> HyMaTEFeatureExtractor:
    return HyMaTEFeatureExtractor.fit(FRAME, VARIABLES, STATIC, numeric_columns=["Age"])


@pytest.fixture(scope="module")
def make(extractor):
    def make_pipeline(**config):
        settings = {"num_variables": 3, "num_static_features": 2, "problem_type": "single_label_classification"}
        settings["time_scale"] = extractor.time_scale
        model = perturbed(HyMaTEForSequenceClassification(tiny_config(**settings | config)))
        return pipeline("ehr-classification", model=model, feature_extractor=extractor, device="cpu")

    return make_pipeline


@pytest.fixture(scope="module")
def classify(make):
    return make(id2label={0: "survived", 1: "died"})


def records_of(frame: pd.DataFrame) -> list[dict]:
    ages = dict(zip(STATIC["record_id"], STATIC["Age"], strict=True))
    return [
        {"record_id": name, **group[["time", "variable", "value"]].to_dict("list"), "Age": ages[name]}
        for name, group in frame.groupby("record_id", sort=False)
    ]


def test_answers_are_the_models(classify, extractor):
    """Scores, and each weight beside the event it belongs to, in the units that came in: 400 is not clipped."""
    results = classify(FRAME, STATIC, top_k=None)
    assert [result["record_id"] for result in results] == ["b", "a", "c"]
    events = extractor.parse(FRAME, STATIC)
    with torch.no_grad():
        outputs = classify.model(**extractor.encode(events))
    for row, result in enumerate(results):
        probabilities = outputs.logits[row].softmax(-1)
        assert list(result["scores"]) == ["survived", "died"]
        np.testing.assert_allclose(list(result["scores"].values()), probabilities, atol=1e-5)
        assert result["score"] == max(result["scores"].values())
        assert result["scores"][result["label"]] == result["score"]

        record = events.take(np.array([row]))
        expected = {
            (time, VARIABLES[variable], None if np.isnan(value) else value): weight
            for time, variable, value, weight in zip(
                record.times, record.variable_ids, record.values, outputs.event_weights[row].tolist(), strict=False
            )
        }
        found = {(event["time"], event["variable"], event["value"]): event["weight"] for event in result["top_events"]}
        assert found == pytest.approx(expected, abs=1e-5)
        assert sum(found.values()) == pytest.approx(1, abs=1e-5)
        for ranked in (result["top_events"], result["top_variables"]):
            weights = [entry["weight"] for entry in ranked]
            assert weights == sorted(weights, reverse=True)
        for entry in result["top_variables"]:
            own = [event["weight"] for event in result["top_events"] if event["variable"] == entry["variable"]]
            assert entry["num_events"] == len(own)
            assert entry["weight"] == pytest.approx(sum(own), abs=1e-5)
    assert 400.0 in [event["value"] for event in results[1]["top_events"]]


def test_every_shape_of_input_gives_the_same_answers(classify):
    expected = classify(FRAME, STATIC)
    records = records_of(FRAME)

    class Stays(Dataset):
        def __len__(self):
            return len(records)

        def __getitem__(self, index):
            return records[index % len(records)]  # it knows its length, and needs no IndexError to end

    assert_same(classify(pl.from_pandas(FRAME), pl.from_pandas(STATIC)), expected)
    assert_same(classify(records), expected)
    assert_same(classify(FRAME.sample(frac=1, random_state=1), STATIC), expected)
    for lazy in (classify(record for record in records), classify(Stays()), classify(iter(records))):
        assert not isinstance(lazy, list)
        assert_same(list(lazy), expected)
    for record, answer in zip(records, expected, strict=True):
        single = classify(record)
        assert isinstance(single, dict)
        assert_same([single], [answer])
    one = FRAME[FRAME["record_id"] == "b"]
    alone = classify(one.drop(columns="record_id"), {"Age": None})
    assert_same([{**alone, "record_id": "b"}], expected[:1])
    assert isinstance(classify(one, STATIC), list)
    for several in (
        {name: FRAME[name].tolist() for name in FRAME.columns},
        dict(FRAME),
        FRAME.to_dict("series"),
        pl.from_pandas(FRAME).to_dict(),
        FRAME.set_index("record_id"),
        FRAME.astype({"record_id": "category"}),
        {**FRAME.to_dict("list"), "record_id": pd.Index(FRAME["record_id"])},
    ):
        assert_same(classify(several, STATIC), expected)
    numbered = {name: FRAME[name].tolist() for name in FRAME.columns}
    numbered |= {"record_id": torch.tensor([ord(name) for name in FRAME["record_id"]])}
    static = STATIC.assign(record_id=[ord(name) for name in STATIC["record_id"]])
    named = [{**answer, "record_id": str(ord(answer["record_id"]))} for answer in expected]
    assert_same(classify(numbered, static), named)


def test_generators_are_read_as_results_are_asked_for(classify):
    read = []

    def stays():
        for record in 3 * records_of(FRAME):
            read.append(record["record_id"])
            yield record

    results = iter(classify(stays(), batch_size=2))
    assert read == []
    assert next(results)["record_id"] == "b"
    assert read == ["b", "a"]
    assert [result["record_id"] for result in results] == ["a", "c", *"bac", *"bac"]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_batches_change_nothing(classify, batch_size):
    assert_same(classify(FRAME, STATIC, batch_size=batch_size), classify(FRAME, STATIC))


def test_top_k_and_max_events(classify):
    for result in classify(FRAME, STATIC, top_k=1):
        assert len(result["top_events"]) == len(result["top_variables"]) == 1
    latest = classify(FRAME, STATIC, max_events=1, top_k=None)
    assert [result["top_events"][0]["time"] for result in latest] == [30.0, 9.0, 2.0]
    assert all(len(result["top_events"]) == 1 for result in latest)


def test_multiclass(make):
    for result in make(num_labels=3)(FRAME, STATIC):
        assert sum(result["scores"].values()) == pytest.approx(1)
        assert result["score"] == max(result["scores"].values())


def test_multilabel(make, extractor):
    labels = {0: "shock", 1: "sepsis", 2: "delirium"}
    classify = make(problem_type="multi_label_classification", id2label=labels)
    with torch.no_grad():
        expected = classify.model(**extractor(FRAME, STATIC)).logits.sigmoid()
    for result, row in zip(classify(FRAME, STATIC), expected, strict=True):
        assert list(result["scores"]) == ["shock", "sepsis", "delirium"]
        np.testing.assert_allclose(list(result["scores"].values()), row, atol=1e-5)
        assert result["scores"][result["label"]] == result["score"]


def test_regression_answers_in_the_labels_unit(make, extractor):
    predict = make(problem_type="regression", id2label={0: "days"}, label_mean=7.0, label_deviation=3.0)
    with torch.no_grad():
        expected = predict.model(**extractor(FRAME, STATIC)).logits
    for result, row in zip(predict(FRAME, STATIC), expected, strict=True):
        assert result["label"] == "days"
        assert result["score"] == pytest.approx(row.item(), abs=1e-4)
    several = make(problem_type="regression", id2label={0: "days", 1: "cost"})(FRAME, STATIC)[0]
    assert set(several["scores"]) == {"days", "cost"}
    assert "label" not in several


def test_saved_pipeline_opens_again(classify, tmp_path):
    classify.save_pretrained(tmp_path / "saved")
    again = pipeline("ehr-classification", model=str(tmp_path / "saved"), device="cpu")
    assert_same(again(FRAME, STATIC), classify(FRAME, STATIC))


def test_mistakes_are_named(classify, extractor):
    with pytest.raises(ValueError, match="'Pulse' is not one of"):
        classify({"time": [0.0], "variable": ["Pulse"], "value": [1.0], "Age": 3.0})
    with pytest.raises(ValueError, match="lacks the column 'value'"):
        classify(FRAME.drop(columns="value"), STATIC)
    with pytest.raises(ValueError, match="hand over at least one record"):
        classify([])
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        classify(FRAME, STATIC, top_k=0)
    with pytest.raises(ValueError, match="no parameter 'topk'"):
        classify(FRAME, STATIC, topk=3)
    with pytest.raises(ValueError, match="put it into the records"):
        classify(iter(records_of(FRAME)), STATIC)
    with pytest.raises(ValueError, match="record 0 must be a mapping or a frame"):
        list(classify(iter([3])))
    pretrained = HyMaTEForPreTraining(tiny_config())
    with pytest.raises(ValueError, match="needs a HyMaTEForSequenceClassification"):
        pipeline("ehr-classification", model=pretrained, feature_extractor=extractor, device="cpu")


def assert_same(found: list[dict], expected: list[dict]):
    """Equal up to rounding: padding and batches reorder sums."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one["record_id"] == other["record_id"]
        assert one["label"] == other["label"]
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)
        for name in ("top_events", "top_variables"):
            weights = [[entry["weight"] for entry in result[name]] for result in (one, other)]
            assert weights[0] == pytest.approx(weights[1], abs=1e-5)
            keys = [
                [{key: value for key, value in entry.items() if key != "weight"} for entry in result[name]]
                for result in (one, other)
            ]
            assert keys[0] == keys[1]


def test_records_are_asked_at_many_times(classify):
    """Each answer is that for the record cut at its time, also where that has no events."""
    times = [[0.5, 6.0, 40.0], [1.0], [30.0, 2.0]]
    found = classify(FRAME, STATIC, prediction_times=times, top_k=None)
    ids = FRAME["record_id"].unique().tolist()
    for record_id, hours, answers in zip(ids, times, found, strict=True):
        assert [answer["prediction_time"] for answer in answers] == hours
        for hour, answer in zip(hours, answers, strict=True):
            assert answer["record_id"] == record_id
            seen = FRAME[(FRAME["record_id"] == record_id) & (FRAME["time"] <= hour)]
            assert len(answer["top_events"]) == len(seen)
            assert sum(event["weight"] for event in answer["top_events"]) == pytest.approx(float(len(seen) > 0))
            counts = {found["variable"]: found["num_events"] for found in answer["top_variables"]}
            assert counts == seen["variable"].value_counts().to_dict()
            if len(seen):
                static = STATIC[STATIC["record_id"] == record_id]
                (alone,) = classify(seen, static, prediction_times=[hour], top_k=None)
                assert_same(alone, [answer])
    for batch_size in (1, 3):
        again = classify(FRAME, STATIC, prediction_times=times, top_k=None, batch_size=batch_size)
        for answers, expected in zip(again, found, strict=True):
            assert_same(answers, expected)
    (nothing,) = classify({"time": [], "variable": [], "value": []}, {"Age": 50.0}, prediction_times=[3.0])
    assert nothing["top_events"] == nothing["top_variables"] == []
    with pytest.raises(ValueError, match=r"prediction_times of record '.': -1.0 is not a finite number of hours"):
        classify(FRAME, STATIC, prediction_times=[-1])


def test_a_patient_is_followed(classify):
    record = FRAME[FRAME["record_id"] == "a"].sort_values("time")
    stream = classify.stream(static={"Age": 40.0})
    for event in record[["time", "variable", "value"]].to_dict("records"):
        answer = stream.add(event)
    (expected,) = classify(record, STATIC[:1])
    assert answer["scores"] == pytest.approx(expected["scores"], abs=1e-5)


def test_a_model_that_predicts_no_number_says_so(make):
    """Its weights are finite, and what they come to is not; asked once, at times, and event by event."""
    classify = make()
    classify.model.classifier.weight.data.fill_(3e38)
    stream = classify.stream(static={"Age": 71.0})
    for ask in (
        lambda: classify(FRAME, STATIC),
        lambda: classify(FRAME, STATIC, prediction_times=[4.0]),
        lambda: stream.add({"time": 1.0, "variable": VARIABLES[0], "value": 2.0}),
    ):
        with pytest.raises(ValueError, match="the model predicts no finite number; its weights are damaged"):
            ask()
