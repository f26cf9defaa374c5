"""The native kernels on events against float64 references: outputs, gradients, every build."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import hymate_native
from modeling_hymate.channel_tokens import ChannelIndex
from modeling_hymate.inputs import sort_events
from modeling_hymate.running_quantities import running_quantities_reference
from tests.native.test_channel_operators import assert_agrees, random_mask, rms_norm, running_inputs
from tests.native.test_operators import mixer_inputs, reference_mixer
from tests.support.agreement import assert_close, normal, with_gradients

pytestmark = pytest.mark.skipif(
    not hymate_native.runnable_builds(), reason="the native kernels are not built: no C++ compiler"
)


def valid(lengths, length):
    return (torch.arange(length) < lengths.unsqueeze(1)).unsqueeze(-1)


# ------------------------------------------------------------------------------------------- embedding

NUMBERS = ("value", "time")


def embedding_inputs(batch, length, hidden, inside, variables=7):
    leaves = {"variable": normal(variables, hidden), "vectors": normal(variables, hidden, seed=1)}
    leaves["missing"] = normal(hidden, seed=2)
    for i, name in enumerate(NUMBERS):
        leaves[f"{name}_weight"] = normal(inside, seed=3 + i)
        leaves[f"{name}_bias"] = normal(inside, seed=5 + i)
        leaves[f"{name}_out"] = normal(hidden, inside, seed=7 + i)
    generator = torch.Generator().manual_seed(0)
    others = {
        "values": normal(batch, length, seed=9),
        "times": torch.rand(batch, length, generator=generator),
        "variable_ids": torch.randint(variables, (batch, length), generator=generator),
        "value_mask": random_mask(batch, length, share=0.8),
        "lengths": torch.tensor([length, 0, length // 2, 1])[:batch],
        "factors": random_mask(batch, hidden) / 0.7,
    }
    return leaves, others


def native_embedding(value_mask, **options):
    numbers = {name: tuple(options.pop(f"{name}_{part}") for part in ("weight", "bias", "out")) for name in NUMBERS}
    return hymate_native.event_embedding(value_mask=value_mask, **numbers, **options)


def reference_embedding(
    values, times, variable_ids, value_mask, lengths, variable, missing, vectors=None, factors=None, **weights
):
    def embed(name, numbers):
        inner = torch.tanh(numbers.unsqueeze(-1) * weights[f"{name}_weight"] + weights[f"{name}_bias"])
        return inner @ weights[f"{name}_out"].T

    values, times = values.to(missing), times.to(missing)
    of_value = embed("value", values)
    if vectors is not None:
        of_value = of_value + values.unsqueeze(-1) * vectors[variable_ids]
    of_value = torch.where(value_mask.unsqueeze(-1), of_value, missing)
    whole = variable[variable_ids] + of_value + embed("time", times)
    whole = whole if factors is None else whole * factors.unsqueeze(1)
    return whole.masked_fill(~valid(lengths, values.shape[1]), 0)


@pytest.mark.parametrize("without", [(), ("vectors",), ("factors",)])
@pytest.mark.parametrize(
    ("batch", "length", "hidden", "inside"), [(3, 150, 32, 6), (4, 33, 24, 5), (2, 9, 6, 3), (1, 70, 130, 12)]
)
def test_event_embedding_agrees_with_float64(build, batch, length, hidden, inside, without):
    leaves, others = embedding_inputs(batch, length, hidden, inside)
    for name in without:
        leaves.pop(name, None)
        others.pop(name, None)
    options = {"vectors": None} if "vectors" in without else {}
    assert_agrees(functools.partial(native_embedding, **options), reference_embedding, leaves, others, at_least=1.0)


def test_values_without_a_number_and_padding_are_never_read(build):
    leaves, others = embedding_inputs(3, 20, 8, 3)
    clean = with_gradients(functools.partial(native_embedding, **others), leaves)
    others["values"][~others["value_mask"]] = torch.nan
    padding = ~valid(others["lengths"], 20).squeeze(-1)
    others["values"][padding] = others["times"][padding] = torch.nan
    dirty = with_gradients(functools.partial(native_embedding, **others), leaves)
    assert all(torch.equal(tensor, dirty[name]) for name, tensor in clean.items())


# ------------------------------------------------------------------------------------ pooling projection


@pytest.mark.parametrize(
    ("batch", "length", "hidden", "queries"), [(3, 150, 32, 4), (4, 33, 24, 3), (2, 9, 6, 1), (1, 70, 130, 26)]
)
def test_pooling_projection_agrees_with_float64(build, batch, length, hidden, queries):
    leaves = {
        "states": normal(batch, length, hidden),
        "norm": normal(hidden, seed=1),
        "query_weight": 3 * normal(queries, hidden, seed=2) / hidden**0.5,
        "value_weight": normal(hidden, hidden, seed=3) / hidden**0.5,
        "value_bias": normal(hidden, seed=4),
    }
    others = {"lengths": torch.tensor([length, 0, length // 2, 1])[:batch], "eps": 1e-5, "bound": 10.0}

    def reference(states, lengths, norm, query_weight, value_weight, value_bias, eps, bound):
        normed = rms_norm(states, norm, eps)
        scores = bound * torch.tanh(F.linear(normed, query_weight) / bound)
        real = valid(lengths, states.shape[1])
        return F.linear(normed, value_weight, value_bias) * real, scores * real

    assert_agrees(hymate_native.pooling_projection, reference, leaves, others, at_least=1.0)


# ------------------------------------------------------------------------------------------ pooled states


def pooled_inputs(*sizes, seed=0, ticks=None):
    """Weights of a pooling projection, and the events that it pools; `sizes` as of `running_inputs`."""
    batch, length, _, _, hidden, queries = sizes
    _, events = running_inputs(*sizes, seed=seed, ticks=ticks)
    weights = {
        "norm": normal(hidden, seed=1),
        "query_weight": 3 * normal(queries, hidden, seed=2) / hidden**0.5,
        "value_weight": normal(hidden, hidden, seed=3) / hidden**0.5,
        "value_bias": normal(hidden, seed=4),
    }
    states = {"states": normal(batch, length, hidden, seed=seed), "lengths": (events["slots"] >= 0).sum(1)}
    return states, events, weights | {"eps": 1e-5, "bound": 10.0}


def pooled_as_before(states, lengths, norm, query_weight, value_weight, value_bias, eps, bound, **events):
    """The events projected, and then pooled, in float64."""
    floats = (states, norm, query_weight, value_weight, value_bias)
    states, norm, query_weight, value_weight, value_bias = (tensor.double() for tensor in floats)
    normed = rms_norm(states, norm, eps)
    scores = bound * torch.tanh(F.linear(normed, query_weight) / bound) * valid(lengths, states.shape[1])
    parts = F.linear(normed, value_weight, value_bias)
    return *running_quantities_reference(parts, scores, **events), scores


@pytest.mark.parametrize("ticks", [None, 4])
@pytest.mark.parametrize(
    ("batch", "length", "predictions", "channels", "hidden", "queries"),
    [(3, 150, 1, 5, 32, 4), (2, 70, 5, 3, 24, 3), (4, 33, 9, 6, 10, 1), (1, 200, 1, 1, 40, 5), (2, 1, 3, 2, 6, 6)],
)
def test_pooled_states_agree_with_float64(build, batch, length, predictions, channels, hidden, queries, ticks):
    states, events, weights = pooled_inputs(batch, length, predictions, channels, hidden, queries, ticks=ticks)
    names = ("pooled", "totals", "statistics", "scores")
    found = dict(zip(names, hymate_native.pooled_states(**states, **events, **weights), strict=True))
    expected = dict(zip(names, pooled_as_before(**states, **weights, **events), strict=True))
    matters = (events["times"] <= events["prediction_times"][:, -1:]) | (events["slots"] < 0)
    for tensors in (found, expected):
        tensors["scores"] = tensors["scores"][matters]
    assert_close(found, expected, at_least=1.0)


def test_means_of_states_stay_exact_over_very_many_events(build):
    states, events, weights = pooled_inputs(1, 60_000, 1, 1, 8, 2)
    events["prediction_times"] = torch.ones(1, 1)
    pooled, *_ = hymate_native.pooled_states(**states, **events, **weights)
    parts, scores = hymate_native.pooling_projection(**states, **weights)
    shares = scores[0].double().softmax(0)
    expected = (parts[0].double().view(-1, 2, 4) * shares.unsqueeze(-1)).sum(0).flatten()
    assert (pooled.flatten().double() - expected).abs().max() < 2e-6 * expected.abs().max()


def test_padding_is_never_pooled(build):
    states, events, weights = pooled_inputs(3, 80, 2, 3, 8, 2)
    clean = hymate_native.pooled_states(**states, **events, **weights)
    masked = events["slots"] < 0
    for tensor in (states["states"], events["values"], events["times"]):
        tensor[masked] = torch.nan
    dirty = hymate_native.pooled_states(**states, **events, **weights)
    assert all(torch.equal(one, other) for one, other in zip(clean, dirty, strict=True))


# ---------------------------------------------------------------------------------- residual Mamba layer


def layer_inputs(**sizes):
    inputs = mixer_inputs(hidden=10, **sizes)
    inputs["norm"] = normal(10, seed=12)
    return inputs


def reference_layer(states, norm, eps, factors=None, lengths=None, **weights):
    mixed = reference_mixer(rms_norm(states, norm, eps), lengths=lengths, **weights)
    whole = states + (mixed if factors is None else mixed * factors.to(mixed).unsqueeze(1))
    return whole if lengths is None else whole * valid(lengths, states.shape[1])


@pytest.mark.parametrize("factors", [None, random_mask(3, 10) / 0.7])
@pytest.mark.parametrize("lengths", [None, torch.tensor([45, 0, 20])])
@pytest.mark.parametrize("threads", [1, 3])
def test_the_mixer_inside_a_residual_layer_agrees_with_float64(build, monkeypatch, threads, lengths, factors):
    monkeypatch.setattr(hymate_native.library, "threads", lambda: threads)
    others = {"eps": 1e-5, "factors": factors, "lengths": lengths}
    assert_agrees(hymate_native.mamba_mixer, reference_layer, layer_inputs(), others)


def test_the_mixer_inside_a_residual_layer_where_threads_share_a_long_record(build, monkeypatch):
    monkeypatch.setattr(hymate_native.library, "threads", lambda: 3)
    assert_agrees(hymate_native.mamba_mixer, reference_layer, layer_inputs(batch=1, length=700), {"eps": 1e-5}, 4e-6)


@pytest.mark.parametrize("pieces", [(1,) * 45, (3, 1, 20, 5, 16)])
def test_the_mixer_inside_a_residual_layer_carries_records_on(build, pieces):
    inputs, lengths = layer_inputs(), torch.tensor([45, 0, 20])
    double = {name: tensor.double() for name, tensor in inputs.items()}
    expected = reference_layer(**double, eps=1e-5, lengths=lengths)
    states, outputs, final = inputs.pop("states"), [], None
    for rows in states.split(pieces, 1):
        output, final = hymate_native.mamba_mixer(
            rows, **inputs, eps=1e-5, lengths=lengths, initial_state=final, return_final_state=True
        )
        outputs.append(output)
        lengths = (lengths - rows.shape[1]).clamp(min=0)
    assert_close({"output": torch.cat(outputs, 1)}, {"output": expected})


def test_a_norm_without_projections_is_refused():
    inputs = layer_inputs()
    inputs.pop("out_proj_weight"), inputs.pop("out_proj_bias")
    with pytest.raises(ValueError, match="norm needs float32 states, in_proj_weight and an out_proj_weight of 10"):
        hymate_native.mamba_mixer(**inputs, eps=1e-5)


# ------------------------------------------------------------------------------------------------ order


def unsorted_events(batch, length, variables, seed, ticks=5):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, length, generator=generator) < 0.8
    value_mask = torch.rand(batch, length, generator=generator) < 0.7
    values = torch.randint(-2, 3, (batch, length), generator=generator) / 2
    times = torch.randint(-ticks, ticks, (batch, length), generator=generator) / ticks
    ids = torch.randint(variables, (batch, length), generator=generator)
    values, times = values.masked_fill(~value_mask, torch.nan), times.masked_fill(~mask, torch.inf)
    return values, times, ids.masked_fill(~mask, 99), mask, value_mask


@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 4), length=st.integers(1, 40), variables=st.integers(1, 9), seed=st.integers(0, 1000))
def test_events_are_arranged_as_in_pytorch(batch, length, variables, seed):
    events = unsorted_events(batch, length, variables, seed)
    found = hymate_native.arrange_events(*events, variables)
    expected = sort_events(*events)
    channels = ChannelIndex.of_events(expected.variable_ids, expected.mask, variables)
    for name in ("values", "times", "variable_ids", "mask"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.equal(found.value_mask, expected.has_value)
    assert torch.equal(found.lengths, expected.lengths)
    assert torch.equal(found.slots, channels.slots)
    assert torch.equal(found.channel_ids, channels.channel_ids)
    given_order = torch.arange(length).expand(batch, length)
    orders = [given_order if events.order is None else events.order for events in (found, expected)]
    assert torch.equal(orders[0][expected.mask], orders[1][expected.mask])
    assert torch.equal(orders[0].sort(1).values, given_order)


def test_events_in_order_are_left_in_place(build):
    events = unsorted_events(3, 20, 4, 0)
    again = hymate_native.arrange_events(*hymate_native.arrange_events(*events, 4)[:5], 4)
    assert again.order is None


@pytest.mark.parametrize(("position", "wrong"), [(0, torch.nan), (1, torch.inf), (2, -1), (2, 4)])
def test_events_that_are_wrong_are_not_arranged(build, position, wrong):
    whole = torch.ones(2, 5, dtype=torch.bool)
    events = [normal(2, 5), torch.rand(2, 5), whole.long(), whole, whole]
    assert hymate_native.arrange_events(*events, 4) is not None
    events[position][1, 2] = wrong
    assert hymate_native.arrange_events(*events, 4) is None
    events[3] = whole.clone()
    events[3][1, 2] = False
    assert hymate_native.arrange_events(*events, 4) is not None  # what the mask leaves out does not matter
