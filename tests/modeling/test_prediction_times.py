"""The Prefix contract: what is said at a prediction time is what is said of the record cut there."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_hymate import HyMaTEForPreTraining, HyMaTEForSequenceClassification, HyMaTEModel, modeling_hymate
from tests.support.helpers import close, gradients_of, make_model, random_batch

SHAPES = [
    {"num_pooling_queries": 4},
    {"num_statistic_bins": 3},
    {"num_mamba_layers": 0},
    {"num_attention_layers": 0, "num_statistic_bins": 1},
    {"num_mamba_layers": 0, "num_attention_layers": 0, "num_static_features": 0},
]
EVERYTHING = {"output_event_weights": True, "output_channel_hidden_state": True}
shapes = pytest.mark.parametrize("shape", SHAPES, ids="-".join)


def random_times(batch: int, predictions: int, seed: int) -> torch.Tensor:
    """Prediction times in no order, some before the first event, some after the last, some at events."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 9, (batch, predictions), generator=generator) / 4


def cut(inputs: dict, times: torch.Tensor) -> dict:
    """The records without what comes after `times (batch,)`, asked there."""
    seen = inputs["attention_mask"] & (inputs["times"] <= times.unsqueeze(1))
    return inputs | {"attention_mask": seen, "prediction_times": times.unsqueeze(1)}


def assert_same_prediction(found, place, expected):
    """Prediction `place` of `found` is the only one of `expected`, which may know fewer channels."""
    close(found.pooler_output[:, place], expected.pooler_output[:, 0])
    close(found.event_weights[:, place], expected.event_weights[:, 0])
    for row, (ids, expected_ids) in enumerate(zip(found.channel_ids, expected.channel_ids, strict=True)):
        seen = found.channel_counts[row, place] > 0
        expected_seen = expected.channel_counts[row, 0] > 0
        assert ids[seen].tolist() == expected_ids[expected_seen].tolist()
        for name in ("channel_hidden_state", "channel_weights", "channel_counts", "channel_last_values"):
            close(found[name][row, place][seen], expected[name][row, 0][expected_seen])
            assert not found[name][row, place][~seen].any(), name


@shapes
@torch.no_grad()
def test_a_prediction_is_that_of_the_record_cut_there(shape):
    model = make_model(**shape)

    @settings(max_examples=25, deadline=None)
    @given(seed=st.integers(0, 10**6), length=st.integers(1, 25), predictions=st.integers(1, 6))
    def check(seed, length, predictions):
        inputs = random_batch(model.config, batch=3, length=length, seed=seed)
        inputs["attention_mask"][0, 0] = bool(seed % 2)  # now and then a record without events
        inputs["values"][:, length // 2 :] = inputs["values"][:, : length - length // 2]  # twins
        times = random_times(3, predictions, seed)
        found = model(**inputs, prediction_times=times, **EVERYTHING)
        assert found.pooler_output.shape == (3, predictions, model.config.pooler_size)
        for place in range(predictions):
            assert_same_prediction(found, place, model(**cut(inputs, times[:, place]), **EVERYTHING))

    check()


@shapes
@torch.no_grad()
def test_without_times_a_record_is_asked_at_its_last_event(shape):
    model = make_model(HyMaTEForSequenceClassification, **shape)
    inputs = random_batch(model.config)
    last = inputs["times"].masked_fill(~inputs["attention_mask"], -math.inf).amax(1, keepdim=True)
    found, expected = model(**inputs), model(**inputs, prediction_times=last)
    assert found.logits.shape == (3, 2)
    close(found.logits, expected.logits[:, 0])
    assert expected.event_weights is None
    assert expected.channel_hidden_state is None
    close(found.channel_weights, expected.channel_weights[:, 0])


@torch.no_grad()
def test_the_time_itself_is_an_input():
    model = make_model(HyMaTEForSequenceClassification)
    inputs = random_batch(model.config)
    inputs["attention_mask"][0] = False
    logits = model(**inputs, prediction_times=torch.tensor([[2.0, 3.0]] * 3)).logits
    assert ((logits[:, 0] - logits[:, 1]).abs().amax(1) > 1e-4).all()


@torch.no_grad()
def test_padded_predictions_and_their_order_change_nothing():
    model = make_model(HyMaTEForSequenceClassification, num_statistic_bins=2)
    inputs = random_batch(model.config)
    times = torch.tensor([[0.5, -1.0, 1.0], [1.0, 0.25, 0.25], [0.0, 0.75, 2.0]])
    expected = model(**inputs, prediction_times=times).logits
    for order in ([2, 0, 1], [1, 0, 2]):
        close(model(**inputs, prediction_times=times[:, order]).logits, expected[:, order])
    for filler in (math.nan, -9.0, math.inf, 0.3):
        padded = torch.cat([torch.full((3, 1), filler), times, torch.full((3, 2), filler)], 1)
        mask = torch.tensor([[0, 1, 1, 1, 0, 0]]).expand(3, -1)
        found = model(**inputs, prediction_times=padded, prediction_mask=mask)
        assert found.logits.isfinite().all()
        close(found.logits[:, 1:4], expected)
        assert not found.channel_weights[~mask.bool()].any()  # padding has no tokens, which would only take time


@pytest.mark.parametrize("budget", [1, 700])
def test_parts_of_the_prediction_times_are_the_whole(budget, monkeypatch):
    """Outputs and gradients do not depend on how many prediction times are made at a time."""
    model = make_model(HyMaTEForSequenceClassification, num_statistic_bins=2).train()
    inputs = random_batch(model.config) | {"prediction_times": random_times(3, 7, 0)}
    labels = torch.arange(21).view(3, 7) % 2
    expected = model(**inputs, labels=labels)
    expected_gradients = gradients_of(model, expected.loss)
    monkeypatch.setattr(modeling_hymate, "TOKEN_BUDGET", budget)
    found = model(**inputs, labels=labels)
    close(found.logits, expected.logits)
    for name, gradient in gradients_of(model, found.loss).items():
        close(gradient, expected_gradients[name], 1e-4)


@pytest.mark.parametrize("head", [HyMaTEForPreTraining, HyMaTEForSequenceClassification])
def test_losses_are_means_over_real_predictions(head):
    """And their gradients those of the cut records."""
    model = make_model(head, num_statistic_bins=2, forecast_horizons=[2, 24])
    inputs = random_batch(model.config)
    times = random_times(3, 4, 1)
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
    if head is HyMaTEForPreTraining:
        labels = {"forecast_values": torch.randn(3, 4, 2, 6), "forecast_mask": torch.ones(3, 4, 2, 6)}
        garbage = {"forecast_values": math.nan, "forecast_mask": 1.0}
    else:
        labels, garbage = {"labels": torch.arange(12).view(3, 4) % 2}, {"labels": -100}
    dirty = {
        name: tensor.masked_fill(~mask.view(3, 4, *(1,) * (tensor.dim() - 2)), garbage[name])
        for name, tensor in labels.items()
    }
    loss = model(**inputs, prediction_times=times, prediction_mask=mask, **dirty).loss
    found = gradients_of(model, loss)
    losses = []
    for row, place in mask.nonzero().tolist():
        one = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
        target = {name: tensor[row : row + 1, place : place + 1] for name, tensor in labels.items()}
        losses.append(model(**cut(one, times[row : row + 1, place]), **target).loss)
    close(loss, torch.stack(losses).mean())
    for name, gradient in gradients_of(model, torch.stack(losses).mean()).items():
        close(found[name], gradient, 1e-4)


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({"num_labels": 3}, torch.arange(12).view(3, 4) % 3),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, torch.ones(3, 4, 3)),
        ({"num_labels": 1, "problem_type": "regression"}, torch.arange(12.0).view(3, 4)),
        ({"num_labels": 2, "problem_type": "regression"}, torch.ones(3, 4, 2)),
        ({"num_labels": 2, "pos_weight": 3.0}, torch.arange(12).view(3, 4) % 2),
    ],
)
@torch.no_grad()
def test_problem_types_at_many_times(settings, labels):
    model = make_model(HyMaTEForSequenceClassification, **settings)
    inputs, times = random_batch(model.config), random_times(3, 4, 0)
    outputs = model(**inputs, prediction_times=times, labels=labels)
    alone = [model(**inputs, prediction_times=times[:, [place]], labels=labels[:, [place]]).loss for place in range(4)]
    close(outputs.loss, torch.stack(alone).mean())
    assert model.predictions(outputs.logits).shape == outputs.logits.shape == (3, 4, model.num_labels)
    with pytest.raises(ValueError, match=r"labels for .* must have shape"):
        model(**inputs, prediction_times=times, labels=labels[:, 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(dtype, tmp_path):
    make_model(HyMaTEForSequenceClassification, num_statistic_bins=2).save_pretrained(tmp_path)
    full, half = (
        HyMaTEForSequenceClassification.from_pretrained(tmp_path, dtype=kind) for kind in (torch.float32, dtype)
    )
    inputs = random_batch(full.config, length=40) | {"prediction_times": random_times(3, 5, 0)}
    expected, found = full(**inputs).logits, half(**inputs).logits
    assert (found.float() - expected).abs().max() < 0.1 * expected.abs().max()


@torch.no_grad()
def test_compiled_and_exported():
    model = make_model(HyMaTEForSequenceClassification, num_statistic_bins=2)
    inputs = random_batch(model.config, batch=3, length=7) | {"prediction_times": random_times(3, 5, 0)}
    expected = model(**inputs).logits
    torch.compiler.reset()
    close(torch.compile(model, fullgraph=True, backend="eager")(**inputs).logits, expected)
    torch.compiler.reset()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        model, (), kwargs=inputs, dynamic_shapes={name: {0: batch} for name in inputs}, strict=False
    )
    for size in (3, 5):
        inputs = random_batch(model.config, batch=size, length=7, seed=size)
        inputs |= {"prediction_times": random_times(size, 5, size)}
        close(program.module()(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
def test_a_bound_to_the_channels_changes_nothing(monkeypatch):
    model = make_model(HyMaTEForSequenceClassification)
    inputs = random_batch(model.config) | {"prediction_times": random_times(3, 5, 0)}
    expected = model(**inputs)
    assert model(**inputs, max_channels=6).channel_ids.shape == expected.channel_ids.shape  # counted on a CPU
    monkeypatch.setattr("modeling_hymate.inputs.is_readable", lambda tensor: False)  # as on a GPU
    found = model(**inputs, max_channels=6)
    assert found.channel_ids.shape == (3, 6)
    close(found.logits, expected.logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention_mask": torch.zeros(3, 9).fill_diagonal_(-math.inf)}, "attention_mask must hold booleans"),
        ({"prediction_times": torch.zeros(3)}, r"prediction_times must be \(3, predictions\)"),
        ({"prediction_times": torch.zeros(3, 0)}, "prediction_times must be"),
        ({"prediction_times": torch.zeros(2, 4)}, "prediction_times must be"),
        ({"prediction_times": torch.full((3, 2), math.nan)}, "prediction_times must be finite"),
        ({"prediction_times": torch.full((3, 2), math.inf)}, "prediction_times must be finite"),
        ({"prediction_mask": torch.ones(3, 2)}, "prediction_mask was given without prediction_times"),
        (
            {"prediction_times": torch.zeros(3, 2), "prediction_mask": torch.ones(3, 3)},
            "prediction_mask must have the shape of prediction_times",
        ),
        (
            {"prediction_times": torch.zeros(3, 2), "prediction_mask": torch.full((3, 2), -1)},
            "prediction_mask must hold booleans",
        ),
        (
            {"attention_mask": torch.zeros(3, 9).masked_fill(torch.eye(3, 9) > 0, -math.inf)},
            "attention_mask must hold",
        ),
        ({"value_mask": torch.full((3, 9), 2)}, "value_mask must hold booleans"),
    ],
)
def test_bad_inputs_are_named(change, message):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        model(**random_batch(model.config) | change)


def test_misspelt_arguments_are_refused():
    for head in (HyMaTEModel, HyMaTEForSequenceClassification, HyMaTEForPreTraining):
        model = make_model(head)
        with pytest.raises(TypeError, match=r"'atention_mask'.*attention_mask"):
            model(**random_batch(model.config), atention_mask=torch.ones(3, 9))


def test_event_tokens_cannot_be_asked_at_many_times():
    model = make_model(attention_axis="event")
    with pytest.raises(ValueError, match="prediction_times needs attention_axis='channel'"):
        model(**random_batch(model.config), prediction_times=torch.zeros(3, 2))
    with pytest.raises(ValueError, match="a stream needs attention_axis='channel'"):
        model.start_stream(torch.zeros(1, 3))


@pytest.mark.parametrize("head", [HyMaTEForSequenceClassification, HyMaTEForPreTraining])
def test_nothing_is_read_back_to_the_host(head):
    """Tensors on the meta device have no content, so that this fails where a GPU would have to be waited for."""
    model = make_model(head, num_statistic_bins=2).to("meta").train()
    inputs = random_batch(model.config, batch=3, length=7) | {"prediction_times": random_times(3, 5, 0)}
    inputs = {name: tensor.to("meta") for name, tensor in inputs.items()}
    if head is HyMaTEForSequenceClassification:
        inputs["labels"] = torch.zeros(3, 5, dtype=torch.int64, device="meta")
    else:
        shape = (3, 5, len(model.config.forecast_horizons), model.config.num_variables)
        inputs["forecast_values"] = torch.zeros(shape, device="meta")
        inputs["forecast_mask"] = inputs["measured_mask"] = torch.zeros(shape, dtype=torch.bool, device="meta")
    outputs = model(**inputs, max_channels=4)
    outputs.loss.backward()
    assert outputs.channel_ids.shape == (3, 4)
    assert all(parameter.grad is not None for parameter in model.parameters())


@torch.no_grad()
def test_replicas_of_data_parallel_give_outputs_of_one_width(monkeypatch):
    monkeypatch.setattr("modeling_hymate.inputs.is_readable", lambda tensor: False)  # as on a GPU
    model = make_model()
    inputs = random_batch(model.config, batch=2, length=3)
    expected = model(**inputs)
    model._is_replica = True  # as torch.nn.parallel.replicate marks its copies
    found = model(**inputs)
    assert found.channel_ids.shape[1] == model.config.num_variables > expected.channel_ids.shape[1]
    close(found.pooler_output, expected.pooler_output)
