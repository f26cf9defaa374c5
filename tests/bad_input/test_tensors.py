"""Tensors: each argument of each model and of a stream, spoiled in each way that there is, is refused by its name."""

import math
from collections.abc import Callable

import pytest
import torch

from modeling_hymate import HyMaTEForPreTraining, HyMaTEForSequenceClassification, HyMaTEModel
from tests.support.helpers import make_model, random_batch

Spoil = Callable[[torch.Tensor], torch.Tensor | None]


def put(number: float) -> Spoil:
    """Writes a number to the first event, which no mask of `random_batch` leaves out."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed[0, 0] = number
        return changed

    return change


SHAPES: dict[str, Spoil] = {
    "one record fewer": lambda tensor: tensor[:-1],
    "one place fewer": lambda tensor: tensor[:, :-1],
    "a dimension more": lambda tensor: tensor.unsqueeze(-1),
    "a dimension fewer": lambda tensor: tensor[0],
}
NOT_FINITE = {"NaN": put(math.nan), "infinite": put(math.inf)}
EVENTS = {
    "values": {**SHAPES, "infinite": put(math.inf)},
    "times": {**SHAPES, **NOT_FINITE},
    "variable_ids": {
        **SHAPES,
        "negative": put(-1),
        "too large": put(6),
        "floats": lambda tensor: tensor.float(),
    },
    "attention_mask": {**SHAPES, "additive": lambda tensor: tensor.float().log(), "twos": lambda tensor: tensor * 2},
    "value_mask": {**SHAPES, "additive": lambda tensor: tensor.float().log()},
    "static_values": {**SHAPES, **NOT_FINITE, "absent": lambda tensor: None},
}
PREDICTIONS = {
    "prediction_times": {
        **NOT_FINITE,
        "one record fewer": SHAPES["one record fewer"],
        "a dimension more": SHAPES["a dimension more"],
        "a dimension fewer": SHAPES["a dimension fewer"],
        "none": lambda tensor: tensor[:, :0],
    },
    "prediction_mask": {**SHAPES, "additive": lambda tensor: tensor.float().log()},
}
# what is said of another argument, whose shape is the one that all others must have
ALSO_NAMED = {"values": "times|static_values|attention_mask|value_mask|variable_ids|values"}
HEADS = (HyMaTEModel, HyMaTEForPreTraining, HyMaTEForSequenceClassification)


def cases(table: dict[str, dict[str, Spoil]]) -> list:
    return [
        pytest.param(name, spoil, id=f"{name}-{how}") for name, ways in table.items() for how, spoil in ways.items()
    ]


def spoiled(inputs: dict[str, torch.Tensor], name: str, spoil: Spoil) -> dict[str, torch.Tensor | None]:
    return {**inputs, name: spoil(inputs[name])}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("axis", ["channel", "event"])
@pytest.mark.parametrize(("name", "spoil"), cases(EVENTS))
@torch.no_grad()
def test_events_of_a_model(head, axis, name, spoil):
    model = make_model(head, attention_axis=axis)
    inputs = random_batch(model.config)
    inputs["value_mask"][0, 0] = True
    with pytest.raises(ValueError, match=ALSO_NAMED.get(name, name)):
        model(**spoiled(inputs, name, spoil))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("name", "spoil"), cases(PREDICTIONS))
@torch.no_grad()
def test_prediction_times_of_a_model(head, name, spoil):
    model = make_model(head)
    inputs = random_batch(model.config)
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    inputs |= {"prediction_times": torch.tensor([[0.5, 1.0, 2.0]] * 3), "prediction_mask": mask}
    with pytest.raises(ValueError, match=name):
        model(**spoiled(inputs, name, spoil))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["atention_mask", "label", "prediction_time", "inputs_embeds"])
def test_an_argument_that_nobody_reads(head, name):
    model = make_model(head)
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        model(**random_batch(model.config), **{name: torch.zeros(3)})


LABELS = {
    "classes": (
        {"num_labels": 3, "problem_type": "single_label_classification"},
        torch.tensor([0, 1, 2]),
        {"too large": put(3), "negative": put(-1), "one fewer": lambda found: found[:-1], "wide": torch.atleast_2d},
    ),
    "labels": (
        {"num_labels": 3, "problem_type": "multi_label_classification"},
        torch.eye(3),
        {"NaN": put(math.nan), "two": put(2.0), "negative": put(-1.0), "narrow": lambda found: found[:, :1]},
    ),
    "numbers": (
        {"num_labels": 2, "problem_type": "regression"},
        torch.rand(3, 2),
        {**NOT_FINITE, "one fewer": lambda found: found[:-1], "narrow": lambda found: found[:, :1]},
    ),
}


@pytest.mark.parametrize(
    ("settings", "labels", "spoil"),
    [
        pytest.param(settings, labels, spoil, id=f"{kind}-{how}")
        for kind, (settings, labels, ways) in LABELS.items()
        for how, spoil in ways.items()
    ],
)
def test_labels(settings, labels, spoil):
    model = make_model(HyMaTEForSequenceClassification, **settings)
    wide = labels if labels.dim() == 2 else labels.unsqueeze(1)
    changed = spoil(wide) if labels.dim() == 2 else spoil(wide).squeeze(1) if spoil is not torch.atleast_2d else wide
    with pytest.raises(ValueError, match="label"):
        model(**random_batch(model.config), labels=changed)


FORECAST = ("forecast_values", "forecast_mask", "measured_mask")


@pytest.mark.parametrize("name", FORECAST)
@pytest.mark.parametrize("spoil", [pytest.param(spoil, id=how) for how, spoil in SHAPES.items()])
def test_forecast_targets_of_another_shape(name, spoil):
    model = make_model(HyMaTEForPreTraining)
    shape = (3, len(model.config.forecast_horizons), model.config.num_variables)
    targets = {"forecast_values": torch.zeros(shape), "forecast_mask": torch.ones(shape, dtype=torch.bool)}
    targets["measured_mask"] = targets["forecast_mask"]
    model(**random_batch(model.config), **targets)
    with pytest.raises(ValueError, match=r"forecast_values|forecast_mask|measured_mask"):
        model(**random_batch(model.config), **spoiled(targets, name, spoil))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("name", "spoil"), cases({name: ways for name, ways in EVENTS.items() if name != "static_values"})
)
def test_events_of_a_stream(head, name, spoil):
    model = make_model(head)
    inputs = random_batch(model.config)
    inputs["value_mask"][0, 0] = True
    state = model.start_stream(inputs.pop("static_values"))
    with pytest.raises(ValueError, match=ALSO_NAMED.get(name, name)):
        model.stream(state, **spoiled(inputs, name, spoil))
