"""Heads: every loss against one written by hand, weights of positives, predictions, errors about labels."""

import math

import pytest
import torch

from modeling_hymate import HyMaTEForPreTraining, HyMaTEForSequenceClassification
from tests.support.helpers import close, gradients_of, make_model, random_batch


def head_and_inputs(**overrides):
    model = make_model(HyMaTEForSequenceClassification, **overrides)
    return model, random_batch(model.config, batch=4)


@pytest.mark.parametrize("weight", [None, 3.0, [0.5, 3.0]])
@pytest.mark.parametrize("problem_type", [None, "single_label_classification"])
def test_binary_loss(weight, problem_type):
    model, inputs = head_and_inputs(num_labels=2, pos_weight=weight, problem_type=problem_type)
    labels = torch.tensor([0, 1, 1, 0])
    outputs = model(**inputs, labels=labels)
    negative, positive = {None: (1.0, 1.0), 3.0: (1.0, 3.0)}.get(
        weight if not isinstance(weight, list) else 0, (0.5, 3)
    )
    chances = outputs.logits.double().softmax(-1)
    shares = torch.where(labels == 1, positive * chances[:, 1].log(), negative * chances[:, 0].log())
    close(outputs.loss, -shares.mean().float())
    close(model.predictions(outputs.logits), chances.float())


def test_multiclass_loss():
    weights = [1.0, 2.0, 0.25]
    model, inputs = head_and_inputs(num_labels=3, pos_weight=weights, problem_type="single_label_classification")
    labels = torch.tensor([0, 1, 2, 1])
    outputs = model(**inputs, labels=labels)
    logs = outputs.logits.double().log_softmax(-1)
    by_hand = -sum(weights[y] * logs[row, y] for row, y in enumerate(labels)) / 4
    close(outputs.loss, by_hand.float())


@pytest.mark.parametrize(
    ("weight", "problem_type"),
    [
        (None, None),
        ([0.5, 3.0, 1.0], None),
        (None, "multi_label_classification"),
        (3.0, "multi_label_classification"),
        ([0.5, 3.0, 1.0], "multi_label_classification"),
    ],
)
def test_multilabel_loss(weight, problem_type):
    model, inputs = head_and_inputs(num_labels=3, pos_weight=weight, problem_type=problem_type)
    labels = torch.tensor([[0, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 1.0]])
    outputs = model(**inputs, labels=labels)
    chances = outputs.logits.double().sigmoid()
    weights = torch.tensor([1.0] * 3 if weight is None else [3.0] * 3 if weight == 3.0 else weight)
    by_hand = -(weights * labels * chances.log() + (1 - labels) * (1 - chances).log()).mean()
    close(outputs.loss, by_hand.float())


def test_two_labels_of_one_weight():
    # two independent labels, not two classes: the weight holds for both
    settings = {"num_labels": 2, "pos_weight": 3.0}
    labels = torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0.0]])
    losses = []
    for problem_type in (None, "multi_label_classification"):
        model, inputs = head_and_inputs(**settings, problem_type=problem_type)
        losses.append(model(**inputs, labels=labels).loss)
    close(losses[0], losses[1], 0)


@pytest.mark.parametrize("problem_type", [None, "regression"])
def test_regression_loss(problem_type):
    model, inputs = head_and_inputs(num_labels=1, problem_type=problem_type, label_mean=5.0, label_deviation=2.0)
    labels = torch.tensor([4.0, 7.5, 1.0, 6.0])
    outputs = model(**inputs, labels=labels)
    standardized = model.classifier(outputs.pooler_output).squeeze(-1)
    close(outputs.logits.squeeze(-1), standardized * 2 + 5)
    close(outputs.loss, (standardized - (labels - 5) / 2).square().mean())
    close(outputs.loss, model(**inputs, labels=labels.unsqueeze(-1)).loss, 0)
    close(model.predictions(outputs.logits), outputs.logits, 0)


def test_predictions_of_one_label():
    model, inputs = head_and_inputs(num_labels=1, problem_type="multi_label_classification")
    logits = model(**inputs).logits
    close(model.predictions(logits), logits.sigmoid())


def test_one_class_is_a_class():
    model, inputs = head_and_inputs(num_labels=1)
    model.config.problem_type = "single_label_classification"  # refused on construction alone
    close(model(**inputs, labels=torch.zeros(4, dtype=torch.long)).loss, torch.tensor(0.0))


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({"num_labels": 2, "pos_weight": 4.0}, torch.tensor([0, 1, 1, 0])),
        ({"num_labels": 3}, torch.tensor([0, 2, 1, 0])),
        ({"num_labels": 2, "problem_type": "multi_label_classification", "pos_weight": 2.0}, torch.eye(4)[:, :2]),
        ({"num_labels": 1}, torch.tensor([0.5, -1.0, 2.0, 0.0])),
    ],
)
def test_loss_is_the_mean_over_equal_parts(settings, labels):
    model, inputs = head_and_inputs(**settings)
    whole = model(**inputs, labels=labels).loss
    parts = [
        model(**{name: tensor[rows] for name, tensor in inputs.items()}, labels=labels[rows]).loss
        for rows in (slice(0, 2), slice(2, 4))
    ]
    close(whole, sum(parts) / 2)


@pytest.mark.parametrize(
    ("settings", "labels", "message"),
    [
        ({"num_labels": 2}, torch.tensor([0, 1, 2, 0]), r"whole numbers in \[0, 2\), got 2"),
        ({"num_labels": 2}, torch.tensor([0, -100, 1, 0]), "got -100"),
        ({"num_labels": 2}, torch.tensor([[0], [1], [1], [0]]), r"must have shape \(4,\), got \(4, 1\)"),
        ({"num_labels": 2}, torch.tensor([0, 1, 1]), r"must have shape \(4,\), got \(3,\)"),
        ({"num_labels": 3}, torch.zeros(4), r"multi_label_classification must have shape \(4, 3\), got \(4,\)"),
        ({"num_labels": 3}, torch.full((4, 3), 2.0), "numbers from 0 to 1, got 2"),
        ({"num_labels": 1}, torch.tensor([0.0, math.nan, 1, 1]), "regression must be finite numbers, got nan"),
        (
            {"num_labels": 2, "problem_type": "single_label_classification"},
            torch.tensor([0, 0.5, 1, 1]),
            "whole numbers in .*, got 0.5",
        ),
    ],
)
def test_bad_labels_are_named(settings, labels, message):
    model, inputs = head_and_inputs(**settings)
    with pytest.raises(ValueError, match=f"^labels for .*{message}"):
        model(**inputs, labels=labels)


def test_labels_of_other_kinds():
    model, inputs = head_and_inputs(num_labels=2, problem_type="single_label_classification")
    expected = model(**inputs, labels=torch.tensor([0, 1, 1, 0])).loss
    for kind in (torch.bool, torch.int32, torch.float32):
        close(model(**inputs, labels=torch.tensor([0, 1, 1, 0]).to(kind)).loss, expected, 0)


def test_pretraining_loss():
    model = make_model(HyMaTEForPreTraining, forecast_horizons=[2, 24], measured_weight=0.5)
    inputs = random_batch(model.config)
    values = torch.randn(3, 2, 6)
    mask = torch.zeros(3, 2, 6)
    measured = [(0, 0, 1), (0, 1, 5), (2, 0, 3)]
    for place in measured:
        mask[place] = 1
    values[1] = math.nan  # nothing was measured there
    outputs = model(**inputs, forecast_values=values, forecast_mask=mask)
    assert outputs.logits.shape == outputs.measured_logits.shape == (3, 2, 6)
    by_hand = sum((outputs.logits[place] - values[place]) ** 2 for place in measured) / 3
    chances = outputs.measured_logits.sigmoid()
    by_hand = by_hand - 0.5 * (mask * chances.log() + (1 - mask) * (1 - chances).log()).mean()
    close(outputs.loss, by_hand)
    everything = model(**inputs, forecast_values=values, forecast_mask=mask, measured_mask=torch.ones(3, 2, 6)).loss
    close(everything - outputs.loss, -0.5 * ((1 - mask) * (chances / (1 - chances)).log()).mean())
    for name, gradient in gradients_of(model, outputs.loss).items():
        assert gradient.isfinite().all(), name
    nothing = model(**inputs, forecast_values=values, forecast_mask=torch.zeros(3, 2, 6)).loss
    close(nothing, -0.5 * (1 - chances).log().mean())
    nothing.backward()
    with pytest.raises(ValueError, match="forecast_values and forecast_mask must be given together"):
        model(**inputs, forecast_values=values)
    with pytest.raises(ValueError, match=r"forecast_mask must have shape \(3, 2, 6\), got \(3, 1, 6\)"):
        model(**inputs, forecast_values=values, forecast_mask=mask[:, :1])
    with pytest.raises(ValueError, match="forecast_values must be finite"):
        model(**inputs, forecast_values=values, forecast_mask=torch.ones(3, 2, 6))
    with pytest.raises(ValueError, match="measured_mask was given without"):
        model(**inputs, measured_mask=mask)
