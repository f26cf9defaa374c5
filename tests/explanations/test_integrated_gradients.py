"""Integrated gradients: what is shared among the points of the line, against the model run at each of them."""

import numpy as np
import pytest
import torch

from hymate_training.explanations.attribution import in_model_order
from hymate_training.explanations.integrated_gradients import (
    BEND,
    fixed_weights,
    integrated_gradients,
    line_points,
    replaced,
)
from modeling_hymate import HyMaTEForSequenceClassification
from tests.support.helpers import close, make_model, random_batch

SETTINGS = [{}, {"num_statistic_bins": 2}, {"attention_axis": "event"}, {"num_mamba_layers": 0}]


def score(logits: torch.Tensor) -> torch.Tensor:
    return logits[..., 1] - logits[..., 0]


def ends(model, features: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Embedded events and those that the line starts from, by the embedding's parts."""
    embedding, (values, ids) = model.hymate.embedding, (features[name] for name in ("values", "variable_ids"))
    others = (features["times"], ids, features["value_mask"], features["attention_mask"].sum(1))
    difference = embedding.variable_embedding.weight.mean(0) - embedding.variable_embedding(ids)
    return embedding(values, *others), embedding(torch.zeros_like(values), *others) + difference


def scores_between(model, features: dict, embeds: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    with replaced(model.hymate.embedding, embeds):
        return score(model(**features | {"values": values}).logits)


def reference(model, features: dict, steps: int) -> torch.Tensor:
    """What `integrated_gradients` computes, one point after the other and through the whole model."""
    features, order = in_model_order(features)
    values, mask = features["values"].masked_fill(~features["value_mask"], 0), features["attention_mask"]
    with torch.no_grad():
        embeds, baseline = ends(model, features)
    found = torch.zeros_like(values)
    for point, weight in zip(*line_points(steps), strict=True):
        inputs = (baseline + point * (embeds - baseline)).float(), (point * values).float()
        inputs = tuple(tensor.requires_grad_() for tensor in inputs)
        grads = torch.autograd.grad(scores_between(model, features, *inputs).sum(), inputs, allow_unused=True)
        found += weight * (grads[0] * (embeds - baseline)).sum(-1)
        found += 0 if grads[1] is None else weight * grads[1] * values
    return torch.zeros_like(found).scatter(1, order, found.masked_fill(~mask, 0))


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_shared_work_gives_what_the_model_gives_at_each_point(settings, asked):
    if asked and "attention_axis" in settings:
        pytest.skip("is asked at the last event alone")
    model = make_model(HyMaTEForSequenceClassification, **settings)
    features = random_batch(model.config, batch=3, length=40, seed=3)
    if asked:
        features["prediction_times"] = features["times"].max(1, keepdim=True).values + 0.1
    expected = reference(model, features, 5)
    for events_at_once in (1, 10**6):
        found = integrated_gradients(model, score, features, 5, events_at_once)
        close(found, expected, 1e-4 * float(expected.abs().max()))
    assert all(weight.requires_grad for weight in model.parameters())


def test_agree_with_captum():
    captum = pytest.importorskip("captum.attr")
    model = make_model(HyMaTEForSequenceClassification, num_statistic_bins=2)
    features, _ = in_model_order(random_batch(model.config, batch=2, length=12, seed=5))
    features["values"] = features["values"].masked_fill(~features["value_mask"], 0)
    with torch.no_grad():
        embeds, baseline = ends(model, features)

    def score_of(embeds, values, *tensors):
        names = [name for name in features if name != "values"]
        return scores_between(model, dict(zip(names, tensors, strict=True)), embeds, values)

    ways = (embeds, features["values"]), (baseline, torch.zeros_like(features["values"]))
    others = tuple(tensor for name, tensor in features.items() if name != "values")
    with fixed_weights(model):
        parts = captum.IntegratedGradients(score_of).attribute(*ways, additional_forward_args=others, n_steps=200)
    expected = (parts[0].sum(-1) + parts[1]).masked_fill(~features["attention_mask"], 0)
    found = integrated_gradients(model, score, features, 200, 10**6)
    close(found, expected, 2e-3 * float(expected.abs().max()))


def test_points_integrate_what_is_steep_near_the_baseline():
    points, weights = line_points(16)
    assert (np.diff([0, *points, 1]) > 0).all()
    for function, integral in (
        (np.ones_like, 1.0),
        (np.square, 1 / 3),
        (lambda x: 1 / np.hypot(x, BEND), np.arcsinh(1 / BEND)),
        (lambda x: 1 / (x**2 + BEND**2), np.arctan(1 / BEND) / BEND),
    ):
        assert weights @ function(points) == pytest.approx(integral, rel=1e-7)
