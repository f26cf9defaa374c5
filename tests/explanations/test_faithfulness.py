"""Faithfulness figures: against direct computation, and on a model that has learned a planted driver."""

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import spearmanr

from hymate_training.explanations.attribution import METHODS, Explainer, explain
from hymate_training.explanations.faithfulness import (
    FRACTIONS,
    RANDOM,
    agreement,
    driver_precision,
    mean_with_interval,
    perturbation_curves,
    randomization_check,
    randomized,
    rank_correlations,
    rank_events,
    summarize_curves,
    variable_shares,
    verdict,
)
from modeling_hymate import HyMaTEFeatureExtractor, HyMaTEForSequenceClassification
from tests.support.helpers import tiny_config

VARIABLES = tuple("abcdef")
DRIVERS = ("b", "e")


def make_records(records: int, seed: int):
    """Events whose label is the sign of the mean of `b` less that of `e`; the other variables are noise."""
    rng = np.random.default_rng(seed)
    size = records * 18
    frame = pl.DataFrame(
        {
            "record_id": np.repeat([f"r{index:04}" for index in range(records)], 18),
            "time": np.tile(np.arange(18) * 1.0, records),
            "variable": np.tile(list(VARIABLES * 3), records),
            "value": rng.normal(size=size),
        }
    )
    level = np.repeat(rng.normal(size=(records, len(VARIABLES))), 3, axis=0).reshape(records, 3, -1).reshape(-1)
    frame = frame.with_columns(value=pl.col("value") * 0.3 + pl.Series(level))
    means = frame.group_by("record_id", "variable", maintain_order=True).agg(pl.col("value").mean())
    wide = means.pivot("variable", index="record_id", values="value").sort("record_id")
    labels = torch.from_numpy(((wide["b"] - wide["e"]) > 0).to_numpy().astype(np.int64))
    # a third of the events is missing, so that the model knows records with holes
    kept = rng.random(size) < 2 / 3
    kept[::18] = True
    return frame.filter(pl.Series(kept)), labels


@pytest.fixture(scope="module")
def trained():
    frame, labels = make_records(2048, seed=0)
    extractor = HyMaTEFeatureExtractor.fit(frame, VARIABLES)
    torch.manual_seed(0)
    model = HyMaTEForSequenceClassification(
        tiny_config(
            num_static_features=0, num_labels=2, num_mamba_layers=1, problem_type="single_label_classification"
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    inputs = extractor(frame)
    for step in range(120):
        rows = torch.arange(64) + 64 * (step % 32)
        loss = model(**{name: tensor[rows] for name, tensor in inputs.items()}, labels=labels[rows]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.4
    return Explainer(model, extractor), extractor.parse(make_records(24, seed=1)[0])


@pytest.fixture(scope="module")
def explanations(trained):
    explainer, events = trained
    return {
        method: explain(explainer.model, explainer.extractor, events, method=method, window_hours=6)
        for method in METHODS
    }


@pytest.fixture(scope="module")
def curves(trained, explanations):
    return perturbation_curves(*trained, explanations)


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
def test_planted_drivers_come_first(method, explanations):
    found = driver_precision(variable_shares(explanations[method], VARIABLES), VARIABLES, DRIVERS)
    assert found["precision_at_k"] == 1
    assert set(found["ranks"].values()) == {1, 2}
    assert found["precision_at_k_by_record"]["interval"][0] > found["precision_by_chance"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion"])
def test_faithful_rankings_are_found_faithful_and_their_reverse_is_not(method, trained, explanations, curves):
    assert verdict(summarize_curves(curves), method) == "faithful"
    explanation = explanations[method]
    reverse = explanation.events.with_columns(attribution=-pl.col("attribution"))
    backwards = {method: type(explanation)(**{**vars(explanation), "events": reverse})}
    assert verdict(summarize_curves(perturbation_curves(*trained, backwards)), method) == "unfaithful"


def test_curves_are_the_predictions_of_what_is_left(trained, explanations, curves):
    explainer, events = trained
    row, at = 5, FRACTIONS.index(0.3)
    record = explanations["integrated_gradients"].events.filter(record_id=events.record_ids[row])

    def predict(frame: pl.DataFrame) -> float:
        with torch.no_grad():
            logits = explainer.model(**explainer.extractor(frame.drop("attribution"))).logits
        return logits.softmax(-1)[0, 1].item()

    whole = predict(record)
    empty = events.select(np.zeros(len(events.times), dtype=bool))
    none = explainer.predictions(explainer.scores(empty))[row]
    direction = 1 if whole >= none else -1
    ranked = record.sort(direction * pl.col("attribution"), descending=True)
    count = int(np.ceil(0.3 * record.height))
    removed = direction * (whole - predict(ranked.tail(record.height - count)))
    handed_over = direction * (predict(ranked.head(count)) - none)
    assert curves["deletion"]["integrated_gradients"][row, at] == pytest.approx(removed, abs=1e-5)
    assert curves["insertion"]["integrated_gradients"][row, at] == pytest.approx(handed_over, abs=1e-5)
    for by_name in curves.values():
        for curve in by_name.values():
            assert (curve[:, 0] == 0).all()
            np.testing.assert_allclose(curve[row, -1], abs(whole - none), atol=1e-5)


def test_areas_and_their_intervals(curves):
    summary = summarize_curves(curves)
    for kind, by_name in curves.items():
        for name, curve in by_name.items():
            found = summary[kind][name]["area"]
            steps = np.diff(FRACTIONS)
            areas = ((curve[:, 1:] + curve[:, :-1]) / 2 * steps).sum(1)
            assert found["mean"] == pytest.approx(areas.mean())
            assert found["interval"][0] < found["mean"] < found["interval"][1]
        assert summary[kind][RANDOM]["over_random"] is None
    assert summarize_curves(curves) == summary


def test_ranking_events(trained):
    _, events = trained
    importance = np.random.default_rng(0).integers(0, 3, len(events.times)).astype(float)
    places = rank_events(events, importance)
    for row in range(len(events)):
        own = slice(events.offsets[row], events.offsets[row + 1])
        assert sorted(places[own]) == list(range(events.lengths[row]))
        assert (np.diff(importance[own][np.argsort(places[own])]) <= 0).all()
    ties = np.zeros(len(events.times))
    assert (rank_events(events, ties, seed=1) == rank_events(events, ties, seed=1)).all()
    assert (rank_events(events, ties, seed=1) != rank_events(events, ties, seed=2)).any()


def test_rank_correlation_is_spearmans(explanations):
    first, second = explanations["attention"].events, explanations["occlusion"].events
    found = rank_correlations(first, second)
    for index, (record_id,) in enumerate(explanations["attention"].records.select("record_id").iter_rows()):
        pair = (frame.filter(record_id=record_id)["attribution"].abs() for frame in (first, second))
        assert found[index] == pytest.approx(spearmanr(*pair).statistic)
    assert np.isnan(rank_correlations(first.head(2), second.head(2))).all()
    with pytest.raises(ValueError, match="same records"):
        rank_correlations(first, second.reverse())
    pairs = agreement(explanations)
    assert pairs[0]["methods"] == ["attention", "integrated_gradients"]
    assert len(pairs) == 3


def test_randomized_weights_leave_the_model_and_the_random_state_alone(trained, explanations):
    explainer, events = trained
    before = {name: tensor.clone() for name, tensor in explainer.model.state_dict().items()}
    state = torch.random.get_rng_state()
    other = randomized(explainer.model)
    found = randomization_check(explainer, events, explanations, window_hours=6)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, tensor in explainer.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert any(not torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    for method in METHODS:
        low, high = found[method]["variables"]["interval"]
        assert -1 <= low <= found[method]["variables"]["mean"] <= high < 0.8


def test_means_with_intervals():
    values = np.random.default_rng(0).normal(3, 1, 400)
    found = mean_with_interval(values)
    low, high = found["interval"]
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    with_gaps = mean_with_interval(np.concatenate([values, [np.nan] * 5]))
    assert with_gaps == found
    assert mean_with_interval(np.array([np.nan])) == {"mean": None, "interval": None, "records": 0}
    assert mean_with_interval(np.array([2.0])) == {"mean": 2.0, "interval": None, "records": 1}


def test_precision_of_hand_set_shares():
    shares = np.array([[0.5, 0.3, 0.2, 0.0], [0.1, 0.6, 0.3, 0.0]])
    found = driver_precision(shares, ["w", "x", "y", "z"], ["x", "y"])
    assert found["ranks"] == {"x": 1, "y": 3}
    assert found["precision_at_k"] == 0.5
    assert found["precision_at_k_by_record"]["mean"] == 0.75
    assert found["precision_by_chance"] == 0.5
