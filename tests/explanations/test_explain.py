"""Attributions: what each method promises, against predicting again by the plainest route."""

import copy

import numpy as np
import polars as pl
import pytest
import torch

from hymate_training.explanations.attribution import METHODS, Explainer, channel_attentions, explain
from hymate_training.explanations.trajectory import risk_trajectory
from modeling_hymate import HyMaTEFeatureExtractor, HyMaTEForSequenceClassification
from modeling_hymate.running_quantities import HALF_LIFE_QUANTITIES, QUANTITIES
from tests.support.helpers import close, make_model

VARIABLES = ("heart_rate", "lactate", "glucose", "diagnosis")
STATIC = ["age"]


def make_events(records: int = 5, seed: int = 0) -> pl.DataFrame:
    """Records of 6 to 17 events, ties in time and events without a number among them."""
    rng = np.random.default_rng(seed)
    frames = []
    for record in range(records):
        length = rng.integers(6, 18)
        variable = rng.choice(VARIABLES, length)
        value = np.round(rng.gamma(4, 20, length), 1)
        frames.append(
            pl.DataFrame(
                {
                    "record_id": [f"r{record}"] * length,
                    "time": np.sort(rng.integers(0, 40, length) / 2.0),
                    "variable": variable,
                    "value": [None if name == "diagnosis" else x for name, x in zip(variable, value, strict=True)],
                    "age": [50.0 + record] * length,
                }
            )
        )
    return pl.concat(frames)


@pytest.fixture(scope="module")
def events() -> pl.DataFrame:
    return make_events()


@pytest.fixture(scope="module")
def extractor(events) -> HyMaTEFeatureExtractor:
    return HyMaTEFeatureExtractor.fit(events, VARIABLES, numeric_columns=STATIC)


def classifier(**overrides):
    settings = {"num_variables": len(VARIABLES), "num_static_features": 2, "num_labels": 2}
    return make_model(HyMaTEForSequenceClassification, **settings | overrides)


def log_odds(model, extractor, frame: pl.DataFrame) -> np.ndarray:
    with torch.no_grad():
        logits = model(**extractor(frame)).logits
    return (logits[:, 1] - logits[:, 0]).numpy()


def in_order(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.sort("record_id", "time", "variable", "value", nulls_last=True)


@pytest.mark.parametrize("method", METHODS)
def test_frames_hold_every_event_in_clinical_units(method, events, extractor):
    found = explain(classifier(), extractor, events, method=method)
    columns = ["record_id", "time", "variable", "value"]
    assert in_order(found.events).select(columns).equals(in_order(events).select(columns))
    assert found.events["attribution"].is_finite().all()
    assert found.variables["events"].sum() == found.hours["events"].sum() == events.height
    np.testing.assert_allclose(found.records["score"], log_odds(classifier(), extractor, events), atol=1e-5)
    np.testing.assert_allclose(found.records["prediction"], 1 / (1 + np.exp(-found.records["score"])), atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_record_has_one_explanation(method, events, extractor):
    """Alone or among others, and in whatever order its events are handed over."""
    model = classifier()
    together = explain(model, extractor, events, method=method, batch_size=3).events
    shuffled = events.sample(fraction=1, shuffle=True, seed=1)
    for record_id in ("r0", "r3"):
        alone = explain(model, extractor, shuffled.filter(record_id=record_id), method=method, batch_size=1).events
        expected = together.filter(record_id=record_id)
        assert alone.drop("attribution").equals(expected.drop("attribution"))
        np.testing.assert_allclose(alone["attribution"], expected["attribution"], atol=2e-5)


@pytest.mark.parametrize("axis", ["channel", "event"])
def test_attention_is_the_models_own_and_sums_to_one(axis, events, extractor):
    model = classifier(attention_axis=axis)
    found = explain(model, extractor, events)
    assert not found.signed
    sums = found.events.group_by("record_id").agg(pl.col("attribution").sum())["attribution"]
    np.testing.assert_allclose(sums, 1, atol=1e-5)
    record = extractor(events.filter(record_id="r2"))
    with torch.no_grad():
        outputs = model(**record)
    own = found.events.filter(record_id="r2")["attribution"].to_numpy()
    np.testing.assert_allclose(own, outputs.event_weights[0].numpy(), atol=1e-6)
    by_variable = found.variables.filter(record_id="r2")
    shares = dict(zip(by_variable["variable"], by_variable["attribution"], strict=True))
    for index, weight in zip(outputs.channel_ids[0].tolist(), outputs.channel_weights[0].tolist(), strict=True):
        assert shares[VARIABLES[index]] == pytest.approx(weight, abs=1e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"attention_axis": "event"}, {"num_mamba_layers": 0}, {"num_statistic_bins": 2}]
)
def test_integrated_gradients_sum_to_the_difference_of_scores(settings, events, extractor):
    """Completeness, against a model whose embedding is rebuilt to know neither values nor variables."""
    model = classifier(**settings)
    found = explain(model, extractor, events, method="integrated_gradients", steps=100)
    embedding = model.hymate.embedding

    def without_content(module, arguments, output):
        _, times, _, value_mask, _ = arguments
        mean = module.value_embedding(torch.zeros(*times.shape, 1))
        value = torch.where(value_mask.unsqueeze(-1), mean, module.missing_value)
        return module.variable_embedding.weight.mean(0) + value + module.time_embedding(times.unsqueeze(-1))

    handles = [embedding.register_forward_hook(without_content)]
    if settings.get("num_statistic_bins"):
        occurrence = ("count", "since_first", "since_last", "numbers")
        names = [*QUANTITIES, *np.repeat(HALF_LIFE_QUANTITIES, len(model.config.half_lives))]
        kept = torch.tensor([name in (*occurrence, "recent_count") for name in names])
        handles.append(
            model.hymate.channel_tokens.statistics.register_forward_pre_hook(
                lambda _, arguments: (arguments[0] * kept, *arguments[1:])
            )
        )
    baseline = log_odds(model, extractor, events)
    for handle in handles:
        handle.remove()
    difference = log_odds(model, extractor, events) - baseline
    sums = found.events.group_by("record_id", maintain_order=True).agg(pl.col("attribution").sum())["attribution"]
    assert np.abs(difference).max() > 0.1
    np.testing.assert_allclose(sums, difference, atol=0.01 * np.abs(difference).max())


@pytest.mark.parametrize("layers", [1, 2])  # versions of records share work where there is one
def test_occlusion_is_the_prediction_without(layers, events, extractor):
    model = classifier(num_mamba_layers=layers)
    found = explain(model, extractor, events, method="occlusion", window_hours=5)
    whole = log_odds(model, extractor, events.filter(record_id="r1"))[0]
    record = events.filter(record_id="r1").with_columns(hour=(pl.col("time") / 5).floor() * 5)

    def effect(left_out: pl.Expr) -> float:
        return whole - log_odds(model, extractor, record.filter(~left_out))[0]

    for row in found.variables.filter(record_id="r1").iter_rows(named=True):
        assert row["attribution"] == pytest.approx(effect(pl.col("variable") == row["variable"]), abs=2e-5)
    for row in found.hours.filter(record_id="r1").iter_rows(named=True):
        assert row["hours"] == 5
        assert row["attribution"] == pytest.approx(effect(pl.col("hour") == row["hour"]), abs=2e-5)
    cells = found.events.filter(record_id="r1").with_columns(hour=(pl.col("time") / 5).floor() * 5)
    for (hour, variable), cell in cells.group_by("hour", "variable"):
        left_out = (pl.col("variable") == variable) & (pl.col("hour") == hour)
        assert cell["attribution"].n_unique() == 1
        assert cell["attribution"].sum() == pytest.approx(effect(left_out), abs=2e-5)


def test_a_record_of_one_variable_is_compared_with_an_empty_one(extractor):
    frame = pl.DataFrame({"time": [1.0, 2.0], "variable": ["lactate"] * 2, "value": [50.0, 90.0], "age": [60.0] * 2})
    found = explain(classifier(), extractor, frame, method="occlusion")
    explainer = Explainer(classifier(), extractor)
    parsed = extractor.parse(frame)
    empty = explainer.scores(parsed.select(np.zeros(2, dtype=bool)))[0]
    assert np.isfinite(empty)
    assert found.variables["attribution"][0] == pytest.approx(found.records["score"][0] - empty, abs=1e-5)


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification", "regression"])
def test_score_of_the_label_becomes_its_prediction(problem_type, events, extractor):
    names = {0: "a", 1: "b", 2: "c"}
    model = classifier(num_labels=3, problem_type=problem_type, id2label=names)
    with torch.no_grad():
        expected = model.predictions(model(**extractor(events)).logits)
    for index, name in names.items():
        found = explain(model, extractor, events, label=name)
        close(torch.tensor(found.records["prediction"].to_numpy()).float(), expected[:, index])


def test_mistakes_are_named(events, extractor):
    model = classifier()
    with pytest.raises(ValueError, match="method must be one of attention, integrated_gradients, occlusion"):
        explain(model, extractor, events, method="lime")
    with pytest.raises(ValueError, match="does not predict 'death'"):
        explain(model, extractor, events, label="death")
    with pytest.raises(ValueError, match="name the label"):
        explain(classifier(num_labels=3), extractor, events)
    with pytest.raises(ValueError, match="window_hours must be positive"):
        explain(model, extractor, events, method="occlusion", window_hours=0)
    parsed = extractor.parse(events)
    with pytest.raises(ValueError, match="record 'r0' has no events to explain"):
        explain(model, extractor, parsed.select(parsed.rows > 0))
    with pytest.raises(ValueError, match="record_id 'r1' appears more than once"):
        explain(model, extractor, parsed.take(np.array([0, 1, 1])))


@pytest.mark.parametrize("axis", ["channel", "event"])
def test_attention_between_variables(axis, events, extractor):
    explainer = Explainer(classifier(attention_axis=axis, num_attention_layers=2), extractor)
    usual = explainer.model.config._attn_implementation
    parsed = extractor.parse(events)
    record = parsed.take(np.array([1]))
    found = channel_attentions(explainer, record)
    assert explainer.model.config._attn_implementation == usual
    sums = found.group_by("variable").agg(pl.col("weight").sum())["weight"]
    np.testing.assert_allclose(sums, 1, atol=1e-5)  # each variable spreads its attention over those of the record
    shares = np.bincount(record.variable_ids, minlength=len(VARIABLES)) / len(record.times)
    if axis == "channel":
        shares = (shares > 0) / (shares > 0).sum()
    even = {name: share for name, share in zip(VARIABLES, shares, strict=True) if share}
    expected = [row["weight"] / even[row["attended"]] for row in found.iter_rows(named=True)]
    np.testing.assert_allclose(found["ratio"], expected, rtol=1e-4)

    together = channel_attentions(explainer, parsed)
    pair = (pl.col("variable") == "lactate") & (pl.col("attended") == "glucose")
    alone = [channel_attentions(explainer, parsed.take(np.array([row]))).filter(pair) for row in range(len(parsed))]
    weights = [frame["weight"][0] for frame in alone if frame.height]
    assert together.filter(pair)["records"][0] == len(weights)
    assert together.filter(pair)["weight"][0] == pytest.approx(np.mean(weights), abs=1e-5)
    assert channel_attentions(Explainer(classifier(num_attention_layers=0), extractor), parsed) is None


@pytest.mark.parametrize("axis", ["channel", "event"])
def test_trajectory_is_the_prediction_from_the_events_until_then(axis, events, extractor):
    model = classifier(attention_axis=axis)
    explainer = Explainer(model, extractor)
    trajectory = risk_trajectory(explainer, extractor.parse(events), num_steps=3)
    record = events.filter(record_id="r3")
    predictions = trajectory.predictions.filter(record_id="r3")
    assert predictions["time"].to_list() == sorted(set(record["time"]))

    def predict(frame: pl.DataFrame, hour: float | None = None) -> float:
        asked = {} if hour is None or axis == "event" else {"prediction_times": [hour]}
        with torch.no_grad():
            return float(model.predictions(model(**extractor(frame, **asked)).logits).flatten()[1])

    for row in predictions.iter_rows(named=True):
        until = record.filter(pl.col("time") <= row["time"])
        assert row["prediction"] == pytest.approx(predict(until), abs=1e-5)
    changes = predictions["change"].drop_nulls()
    np.testing.assert_allclose(changes, np.diff(predictions["prediction"]), atol=1e-12)

    movers = trajectory.movers.filter(record_id="r3")
    largest = predictions.sort(pl.col("change").abs(), descending=True, nulls_last=True)["time"].head(3)
    assert set(movers["time"]) == set(largest)
    assert movers["change"].abs().is_sorted(descending=True)
    row = movers.row(0, named=True)
    until = record.filter(pl.col("time") <= row["time"]).with_row_index()
    same = (pl.col("time") == row["time"]) & (pl.col("variable") == row["variable"])
    same &= pl.col("value").eq_missing(row["value"])
    without = until.filter(pl.col("index") != until.filter(same)["index"][0])
    assert row["change"] == pytest.approx(predict(until) - predict(without, row["time"]), abs=1e-5)

    assert predictions["trained"].to_list() == [False] * (predictions.height - 1) + [True]
    until_ten = copy.copy(extractor)
    until_ten.trained_hours = [2.0, 10.0]
    marked = risk_trajectory(Explainer(model, until_ten), extractor.parse(record)).predictions
    assert marked["trained"].to_list() == [2 <= time <= 10 for time in marked["time"]]

    thinned = risk_trajectory(explainer, extractor.parse(record), max_times=4).predictions
    assert thinned.height == 4
    assert thinned["time"][-1] == record["time"].max()


def test_an_explanation_shows_itself_in_a_notebook(events, extractor):
    many = explain(classifier(), extractor, events)._repr_html_()
    assert many.startswith('<div class="scroll"')
    assert "5 records, by attention" in many
    assert many.count("<tr>") == 1 + len(VARIABLES)
    record = events.filter(record_id="r0")
    one = explain(classifier(), extractor, record, method="occlusion")._repr_html_()
    assert "record r0, by occlusion" in one
    assert one.count("<tr>") == 1 + 8 < 1 + record.height
    hostile = events.filter(record_id="r1").with_columns(record_id=pl.lit("<script>"))
    assert "<script>" not in explain(classifier(), extractor, hostile)._repr_html_()


def test_progress_bars_are_quiet_where_the_output_is_no_terminal(events, extractor, capfd):
    explain(classifier(), extractor, events, method="occlusion", progress=True)
    assert capfd.readouterr().err == ""


def test_a_single_label_is_a_probability_at_the_models_temperature(events, extractor):
    model = classifier(
        num_labels=1, problem_type="multi_label_classification", id2label={0: "sepsis"}, temperature=3.0
    )
    with torch.no_grad():
        expected = model.predictions(model(**extractor(events)).logits)[:, 0]
    found = explain(model, extractor, events).records
    close(torch.tensor(found["prediction"].to_numpy()).float(), expected)
