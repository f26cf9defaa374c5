"""The native kernels on channels and their tokens against float64 references: outputs, gradients, every build."""

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import hymate_native
from modeling_hymate.channel_statistics import channel_statistics, piecewise_linear
from modeling_hymate.running_quantities import empty_running, event_weights, running_quantities_reference
from modeling_hymate.streaming import pack
from tests.support.agreement import TOLERANCE, assert_close, normal, with_gradients

pytestmark = pytest.mark.skipif(
    not hymate_native.runnable_builds(), reason="the native kernels are not built: no C++ compiler"
)


def assert_agrees(function, reference, leaves, others, tolerance=TOLERANCE, at_least=1e-3):
    """`function(**leaves, **others)` in float32 and `reference` in float64, with the gradients of all leaves."""
    found = with_gradients(lambda **inputs: function(**inputs, **others), leaves)
    expected = with_gradients(lambda **inputs: reference(**inputs, **others), leaves, torch.float64)
    assert_close(found, expected, tolerance, at_least)


def random_mask(*shape, share=0.7, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


# ------------------------------------------------------------------------------------ running quantities


def running_inputs(batch, length, predictions, channels, hidden, queries, seed=0, ticks=None):
    """Records of different lengths; with `ticks` times are of that many moments, so that they tie."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, length + 1, (batch,), generator=generator)
    lengths[0] = length
    mask = torch.arange(length) < lengths.unsqueeze(1)
    times = torch.rand(batch, length, generator=generator)
    asked = torch.rand(batch, predictions, generator=generator) * 1.2 - 0.1
    if ticks:
        times, asked = ((tensor * ticks).round() / ticks for tensor in (times, asked))
    value_mask = random_mask(batch, length, share=0.8, seed=seed) & mask
    leaves = {
        "parts": torch.randn(batch, length, hidden, generator=generator),
        "scores": 10 * torch.tanh(torch.randn(batch, length, queries, generator=generator) / 3),
    }
    return leaves, {
        "values": torch.randn(batch, length, generator=generator).masked_fill(~value_mask, 0),
        "times": times.sort(1).values.masked_fill(~mask, 0),
        "value_mask": value_mask,
        "slots": torch.randint(0, channels, (batch, length), generator=generator).masked_fill(~mask, -1),
        "prediction_times": asked.sort(1).values,
        "num_channels": channels,
        "half_lives": [0.05, 0.3],
    }


def sums_and_statistics(function):
    """The outputs that have gradients, then the statistics without one."""

    def run(**inputs):
        pooled, totals, statistics = function(**inputs)
        return pooled, totals, statistics.detach() + 0 * pooled.sum()

    return run


@pytest.mark.parametrize("ticks", [None, 8])
@pytest.mark.parametrize(
    ("batch", "length", "predictions", "channels", "hidden", "queries"),
    [(3, 50, 7, 5, 32, 4), (2, 20, 1, 3, 24, 3), (4, 33, 9, 6, 10, 1), (1, 90, 12, 17, 40, 5), (2, 1, 3, 2, 6, 6)],
)
def test_running_quantities_agree_with_their_definition(
    build, batch, length, predictions, channels, hidden, queries, ticks
):
    leaves, others = running_inputs(batch, length, predictions, channels, hidden, queries, ticks=ticks)
    function, reference = map(sums_and_statistics, (hymate_native.running_quantities, running_quantities_reference))
    assert_agrees(function, reference, leaves, others)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 4),
    length=st.integers(1, 30),
    predictions=st.integers(1, 6),
    channels=st.integers(1, 5),
    queries=st.integers(1, 4),
    width=st.integers(1, 9),
    ticks=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 1000),
)
def test_running_quantities_agree_whatever_the_sizes(
    batch, length, predictions, channels, queries, width, ticks, seed
):
    leaves, others = running_inputs(batch, length, predictions, channels, queries * width, queries, seed, ticks)
    function, reference = map(sums_and_statistics, (hymate_native.running_quantities, running_quantities_reference))
    # a search finds gradients that are small differences of numbers of about one
    assert_agrees(function, reference, leaves, others, tolerance=5e-6, at_least=1.0)


def test_means_stay_exact_over_very_many_events(build):
    leaves, others = running_inputs(1, 60_000, 1, 1, 8, 2)
    others["prediction_times"] = torch.ones(1, 1)
    pooled, _, statistics = hymate_native.running_quantities(**leaves, **others)
    weights = leaves["scores"][0].double().exp()
    parts = leaves["parts"][0].double().view(-1, 2, 4)
    expected = ((parts * weights.unsqueeze(-1)).sum(0) / weights.sum(0).unsqueeze(-1)).flatten()
    assert (pooled.flatten().double() - expected).abs().max() < 2e-6 * expected.abs().max()
    numbers = others["values"][others["value_mask"]].double()
    assert statistics[0, 0, 0, 9].item() == pytest.approx(numbers.var(correction=0).item(), rel=1e-6)


def test_events_that_the_mask_leaves_out_are_never_read(build):
    leaves, others = running_inputs(3, 20, 4, 3, 8, 2)
    clean = with_gradients(
        sums_and_statistics(lambda **leaves: hymate_native.running_quantities(**leaves, **others)), leaves
    )
    masked = others["slots"] < 0
    for tensor in (leaves["parts"], leaves["scores"], others["values"], others["times"]):
        tensor[masked] = torch.nan
    dirty = with_gradients(
        sums_and_statistics(lambda **leaves: hymate_native.running_quantities(**leaves, **others)), leaves
    )
    assert all(torch.equal(tensor, dirty[name]) for name, tensor in clean.items())
    assert not dirty["parts"][masked].any()


@pytest.mark.parametrize(("predictions", "ticks"), [(1, None), (7, 8)])
def test_event_weights_agree_with_pytorch(build, predictions, ticks):
    leaves, others = running_inputs(3, 50, predictions, 5, 32, 4, ticks=ticks)
    _, totals, _ = hymate_native.running_quantities(**leaves, **others)
    places = {name: others[name] for name in ("times", "slots", "prediction_times")}
    channel_weights = torch.rand(3, predictions, 5, generator=torch.Generator().manual_seed(0))
    found = hymate_native.event_weights(channel_weights, totals, leaves["scores"], **places)
    double = (tensor.double() for tensor in (channel_weights, totals, leaves["scores"]))
    assert_close({"weights": found}, {"weights": event_weights(*double, **places)})
    assert not found.masked_select((others["slots"] < 0).unsqueeze(1)).any()


# ----------------------------------------------------------------------------------------- channel memory


def empty_memory(batch, channels, hidden, queries, half_lives):
    """Sums and history of channels without an event."""
    nothing = empty_running((batch, channels), half_lives, torch.device("cpu"))
    return torch.zeros(batch, channels, hidden + queries), pack(nothing)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 4),
    length=st.integers(1, 30),
    channels=st.integers(1, 5),
    queries=st.integers(1, 4),
    width=st.integers(1, 9),
    ticks=st.sampled_from([None, 1, 3]),
    cut=st.integers(0, 30),
    seed=st.integers(0, 1000),
)
def test_a_memory_says_what_its_events_say(batch, length, channels, queries, width, ticks, cut, seed):
    """Fed in two pieces, and asked at the time of each record's last event or later."""
    hidden = queries * width
    leaves, others = running_inputs(batch, length, 1, channels, hidden, queries, seed, ticks)
    slots, half_lives = others.pop("slots"), others["half_lives"]
    now = others["times"].amax(1) + others["prediction_times"][:, 0].abs()
    expected = running_quantities_reference(
        **{name: tensor.double() for name, tensor in leaves.items()},
        **others | {"slots": slots, "prediction_times": now.unsqueeze(1)},
    )
    sums, history = before = empty_memory(batch, channels, hidden, queries, len(half_lives))
    for piece in (slice(0, cut), slice(cut, None)):
        events = [
            tensor[:, piece]
            for tensor in (*leaves.values(), *(others[name] for name in ("values", "times", "value_mask")))
        ]
        variables, lengths = slots[:, piece].clamp(min=0), (slots[:, piece] >= 0).sum(1)
        sums, history = hymate_native.remember_channels(sums, history, *events, variables, lengths, half_lives)
    ids = torch.arange(channels).expand(batch, -1)
    found = hymate_native.recall_channels(sums, history, now, ids, queries, half_lives)
    assert_close(
        {"pooled": found[0], "statistics": found[1]},
        {"pooled": expected[0][:, 0], "statistics": expected[2][:, 0]},
        tolerance=5e-6,
        at_least=1e-3,
    )
    unchanged = empty_memory(batch, channels, hidden, queries, len(half_lives))
    assert all(torch.equal(*pair) for pair in zip(before, unchanged, strict=True))
    of_none = hymate_native.recall_channels(sums, history, now, torch.full((batch, 1), -1), queries, half_lives)
    assert not any(tensor.any() for tensor in of_none)


# ------------------------------------------------------------------------------------- channel statistics


@pytest.mark.parametrize("half_lives", [0, 2, 14])
def test_channel_statistics_agree_with_float64(build, half_lives):
    generator = torch.Generator().manual_seed(0)
    quantities = torch.randn(3, 4, 5, 13 + 2 * half_lives, generator=generator) * 3
    quantities[..., [0, 3, 9, 12]] = quantities[..., [0, 3, 9, 12]].clamp(min=0).round()
    quantities[0, 0] = 0
    quantities[1, 0, :, 1:3] = 1e6
    statistics, present = hymate_native.channel_statistics(quantities, 64.0)
    expected, expected_present = channel_statistics(quantities.double(), 64.0)
    assert (statistics - expected).abs().max() < 2e-6
    assert torch.equal(present, expected_present)


# ---------------------------------------------------------------------------------------- channel tokens


@pytest.mark.parametrize(
    ("batch", "predictions", "channels", "hidden", "statistics", "bins"),
    [(3, 4, 5, 32, 7, 2), (2, 1, 6, 24, 15, 3), (1, 9, 3, 10, 4, 1), (2, 3, 2, 130, 2, 4)],
)
def test_channel_tokens_agree_with_float64(build, batch, predictions, channels, hidden, statistics, bins):
    cells, variables = (batch, predictions, channels), 9
    mask = random_mask(*cells)
    leaves = {
        "pooled": normal(*cells, hidden),
        "embedding": normal(variables, hidden, seed=1),
        "knots": normal(variables * statistics * (bins + 1), hidden, seed=2),
    }
    others = {
        "mask": mask,
        "statistics": (2 * normal(*cells, statistics, seed=3)).clamp(-4, 4),
        "present": random_mask(*cells, statistics, seed=4),
        "channel_ids": torch.randint(variables, (batch, channels), generator=torch.Generator().manual_seed(5)),
        "num_bins": bins,
    }
    others["statistics"][0, 0, 0, :2] = torch.tensor([-2.5, 2.5])  # at the outer knots

    def reference(pooled, embedding, knots, mask, statistics, present, channel_ids, num_bins):
        described = piecewise_linear(statistics.to(knots.dtype), present, channel_ids, knots, num_bins)
        return (pooled + embedding[channel_ids].unsqueeze(1) + described).masked_fill(~mask.unsqueeze(-1), 0)

    assert_agrees(hymate_native.channel_tokens, reference, leaves, others)


# --------------------------------------------------------------------------------------- attention layer

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")


def layer_inputs(groups, tokens, hidden, inside, seed=0):
    sizes = dict.fromkeys(PROJECTIONS, (hidden, hidden)) | {"up_proj": (inside, hidden), "down_proj": (hidden, inside)}
    leaves = {"tokens": normal(groups, tokens, hidden, seed=seed), "attention_norm": normal(hidden, seed=seed + 1)}
    leaves["mlp_norm"] = normal(hidden, seed=seed + 2)
    for i, (name, size) in enumerate(sizes.items()):
        leaves[f"{name}_weight"] = normal(*size, seed=seed + 3 + i) / size[1] ** 0.5
        leaves[f"{name}_bias"] = normal(size[0], seed=seed + 20 + i)
    mask = random_mask(groups, tokens, seed=seed)
    mask[:1] = False  # a group without tokens
    mask[-1:] = True
    return leaves, {"mask": mask, "eps": 1e-5}


def native_layer(tokens, mask, attention_norm, mlp_norm, **options):
    weights = {name: (options.pop(f"{name}_weight"), options.pop(f"{name}_bias")) for name in PROJECTIONS}
    return hymate_native.attention_layer(
        tokens, mask, attention_norm=attention_norm, mlp_norm=mlp_norm, **weights, **options
    )


def rms_norm(states, gain, eps):
    return states * (states.square().mean(-1, keepdim=True) + eps).rsqrt() * gain


def reference_layer(
    tokens, mask, attention_norm, mlp_norm, num_heads, eps, dropout=0.0, attention_dropout=0.0, seed=None, **weights
):
    def project(name, states):
        return F.linear(states, weights[f"{name}_weight"], weights[f"{name}_bias"])

    groups, count, hidden = tokens.shape
    rows = torch.arange(groups * count).view(groups, count, 1)
    kept = [dropout_factors(dropout, seed, stream, rows, torch.arange(hidden)) for stream in (2, 3)]
    pairs = torch.arange(count).unsqueeze(1) * count + torch.arange(count)
    heads = torch.arange(groups * num_heads).view(groups, num_heads, 1, 1)
    weights_kept = dropout_factors(attention_dropout, seed, 1, heads, pairs)

    normed = rms_norm(tokens, attention_norm, eps)
    query, key, value = (
        project(name, normed).unflatten(-1, (num_heads, -1)).transpose(1, 2) for name in ("q_proj", "k_proj", "v_proj")
    )
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1).nan_to_num(0)
    attended = ((scores * weights_kept) @ value).transpose(1, 2).flatten(2)
    middle = tokens + project("o_proj", attended) * kept[0]
    inner = F.gelu(project("up_proj", rms_norm(middle, mlp_norm, eps)))
    return (middle + project("down_proj", inner) * kept[1]).masked_fill(~mask.unsqueeze(-1), 0)


def scramble(bits):
    """The finalizer `lowbias32` of 32-bit numbers in int64."""
    bits = bits ^ bits >> 16
    bits = bits * 0x7FEB352D & 0xFFFFFFFF
    bits = bits ^ bits >> 15
    bits = bits * 0x846CA68B & 0xFFFFFFFF
    return bits ^ bits >> 16


def dropout_factors(probability, seed, stream, row, column):
    """What the kernels multiply with: `struct Dropout` in csrc/token_rows.h, which this follows line by line."""
    if not probability:
        return 1.0
    low = scramble(torch.tensor((seed.item() & 0xFFFFFFFF) ^ (stream * 0x9E3779B9 & 0xFFFFFFFF)))
    salt = scramble(torch.tensor((seed.item() >> 32) + stream & 0xFFFFFFFF))
    key = scramble(low + row & 0xFFFFFFFF)
    bits = column + key & 0xFFFFFFFF
    bits = bits ^ bits >> 16
    bits = bits * 0x7FEB352D & 0xFFFFFFFF
    bits = bits ^ scramble(key ^ salt)
    bits = bits ^ bits >> 15
    bits = bits * 0x846CA68B & 0xFFFFFFFF
    bits = bits ^ bits >> 16
    return (bits >> 1 >= int(probability * 2**31)) / (1 - probability)


@pytest.mark.parametrize(
    "dropout", [{}, {"dropout": 0.3, "attention_dropout": 0.2, "seed": torch.tensor(2**61 + 12345)}]
)
@pytest.mark.parametrize(
    ("groups", "tokens", "hidden", "heads", "inside"),
    [
        (7, 25, 32, 4, 64),
        (3, 200, 24, 3, 50),
        (5, 1, 8, 2, 16),
        (40, 9, 64, 4, 128),
        (2, 33, 40, 5, 7),
        (3, 5, 6, 2, 3),
    ],
)
def test_attention_layer_agrees_with_float64(build, groups, tokens, hidden, heads, inside, dropout):
    leaves, others = layer_inputs(groups, tokens, hidden, inside)
    others |= {"num_heads": heads} | dropout
    found = with_gradients(functools.partial(native_layer, **others), leaves)
    expected = with_gradients(functools.partial(reference_layer, **others), leaves, torch.float64)
    # The bias of the keys has no gradient, since softmax does not see it: its terms cancel, but for their rounding.
    rounding = found.pop("k_proj_bias").abs().max()
    assert rounding <= 1e-5 * max(1.0, expected["k_proj_weight"].abs().max())
    assert expected.pop("k_proj_bias").abs().max() < 1e-10
    assert_close(found, expected, 3e-6, at_least=5.0)  # those of a lone token cancel, too


def test_attention_layer_drops_the_share_it_is_told_to_and_no_two_seeds_drop_the_same():
    factors = [
        dropout_factors(0.2, torch.tensor(seed), 2, torch.arange(500).unsqueeze(1), torch.arange(64))
        for seed in (1, 2)
    ]
    assert (factors[0] == 0).double().mean().item() == pytest.approx(0.2, abs=0.01)
    both = ((factors[0] == 0) & (factors[1] == 0)).double().mean().item()
    assert both == pytest.approx(0.04, abs=0.005)
    rows = (factors[0] == 0).double()
    neighbors = (rows[1:] * rows[:-1]).mean().item()
    assert neighbors == pytest.approx(0.04, abs=0.005)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_attention_and_fusion_repeat_bit_for_bit(threads):
    leaves, others = layer_inputs(30, 12, 32, 64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        cases = [
            (native_layer, leaves, others | {"num_heads": 4}),
            (hymate_native.fusion_attention, *fusion_inputs(30, 12, 32)),
        ]
        for function, inputs, options in cases:
            run = functools.partial(function, **options)
            first, second = (with_gradients(run, inputs) for _ in range(2))
            assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    finally:
        torch.set_num_threads(before)


def test_tokens_that_the_mask_leaves_out_are_never_read(build):
    leaves, others = layer_inputs(6, 9, 16, 32)
    others["num_heads"] = 2
    clean = with_gradients(lambda **leaves: native_layer(**leaves, **others), leaves)
    leaves["tokens"][~others["mask"]] = torch.nan
    dirty = with_gradients(lambda **leaves: native_layer(**leaves, **others), leaves)
    assert all(torch.equal(tensor, dirty[name]) for name, tensor in clean.items())


# -------------------------------------------------------------------------------------- fusion attention


def fusion_inputs(groups, tokens, hidden):
    leaves = {
        "tokens": normal(groups, tokens, hidden),
        "norm": normal(hidden, seed=1),
        "weight": normal(hidden, hidden, seed=2) / hidden**0.5,
        "bias": normal(hidden, seed=3),
        "score": normal(hidden, seed=4) / 2,
    }
    mask = random_mask(groups, tokens)
    mask[:1] = False
    return leaves, {"mask": mask, "eps": 1e-5}


def reference_fusion(tokens, mask, norm, weight, bias, score, eps):
    normed = rms_norm(tokens, norm, eps)
    scores = torch.tanh(F.linear(normed, weight, bias)) @ score
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0)
    return (weights.unsqueeze(1) @ normed).squeeze(1), weights


@pytest.mark.parametrize(("groups", "tokens", "hidden"), [(7, 25, 32), (3, 200, 24), (40, 9, 64), (3, 5, 6)])
def test_fusion_attention_agrees_with_float64(build, groups, tokens, hidden):
    leaves, others = fusion_inputs(groups, tokens, hidden)
    assert_agrees(hymate_native.fusion_attention, reference_fusion, leaves, others, tolerance=5e-6)


def test_either_output_of_fusion_attention_alone_has_a_gradient():
    leaves, others = fusion_inputs(4, 6, 8)
    for which in (0, 1):
        assert_agrees(
            lambda **inputs: hymate_native.fusion_attention(**inputs)[which],  # noqa: B023
            lambda **inputs: reference_fusion(**inputs)[which],  # noqa: B023
            leaves,
            others,
            tolerance=5e-6,
        )


# ---------------------------------------------------------------------------------------------- mistakes


def test_wrong_arguments_are_named():
    leaves, others = layer_inputs(2, 3, 8, 16)
    with pytest.raises(ValueError, match="num_heads must divide the hidden size 8, got 3"):
        native_layer(**leaves, **others, num_heads=3)
    with pytest.raises(ValueError, match="dropout needs a seed"):
        native_layer(**leaves, **others, num_heads=2, dropout=0.1)
    with pytest.raises(ValueError, match=r"tokens must be float32, got torch\.bfloat16"):
        native_layer(**leaves | {"tokens": leaves["tokens"].bfloat16()}, **others, num_heads=2)
    with pytest.raises(ValueError, match=r"q_proj weight must have the shape \(8, 8\), got \(8, 7\)"):
        native_layer(**leaves | {"q_proj_weight": torch.zeros(8, 7)}, **others, num_heads=2)
    leaves, others = running_inputs(2, 5, 2, 3, 8, 3)
    with pytest.raises(ValueError, match="the columns of parts must divide among the queries, got 8 and 3"):
        hymate_native.running_quantities(**leaves, **others)
    leaves, others = fusion_inputs(2, 3, 8)
    with pytest.raises(ValueError, match=r"score must have the shape \(8,\), got \(7,\)"):
        hymate_native.fusion_attention(**leaves | {"score": torch.zeros(7)}, **others)


def test_a_second_derivative_is_refused():
    leaves, others = fusion_inputs(2, 3, 8)
    leaves = {name: tensor.requires_grad_() for name, tensor in leaves.items()}
    pooled, _ = hymate_native.fusion_attention(**leaves, **others)
    (gradient,) = torch.autograd.grad(pooled.sum(), leaves["tokens"], create_graph=True)
    with pytest.raises(RuntimeError, match="native fusion attention has no second derivative"):
        gradient.sum().backward()
