"""The native CPU kernels against float64 references: outputs, every gradient, every build, every data type."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import hymate_native
from hymate_native import library
from modeling_hymate import selective_scan
from tests.support.agreement import TOLERANCE, assert_close, normal, with_gradients

BUILDS = hymate_native.runnable_builds()
OPTIONAL = ("D", "z", "delta_bias", "initial_state")

pytestmark = pytest.mark.skipif(not BUILDS, reason="the native kernels are not built: no C++ compiler")


def scan_inputs(batch, length, inner, state, seed=0, without=()):
    inputs = {
        "u": normal(batch, length, inner, seed=seed),
        "delta": normal(batch, length, inner, seed=seed + 1),
        "A": -8 * torch.rand(inner, state, generator=torch.Generator().manual_seed(seed)),
        "B": normal(batch, length, state, seed=seed + 2),
        "C": normal(batch, length, state, seed=seed + 3),
        "D": normal(inner, seed=seed + 4),
        "z": normal(batch, length, inner, seed=seed + 5),
        "delta_bias": normal(inner, seed=seed + 6),
        "initial_state": normal(batch, inner, state, seed=seed + 7),
    }
    return {name: tensor for name, tensor in inputs.items() if name not in without}


def assert_scan_agrees(inputs, tolerance=TOLERANCE, at_least=0.0, **options):
    found = with_gradients(
        lambda **leaves: hymate_native.selective_scan(**leaves, **options, return_final_state=True), inputs
    )
    expected = with_gradients(
        lambda **leaves: selective_scan(**leaves, **options, return_final_state=True, backend="reference"),
        inputs,
        torch.float64,
    )
    assert_close(found, expected, tolerance, at_least)


# ------------------------------------------------------------------------------------------------- scan


@pytest.mark.parametrize(
    ("batch", "length", "inner", "state"),
    [
        (1, 1, 1, 1),
        (2, 333, 64, 16),
        (3, 37, 19, 7),
        (1, 50, 33, 64),
        (2, 18, 5, 128),
        (5, 16, 16, 8),
        (1, 40, 100, 3),
    ],
)
def test_scan_agrees_with_float64(build, batch, length, inner, state):
    assert_scan_agrees(
        scan_inputs(batch, length, inner, state), lengths=None if batch == 1 else lengths_of(batch, length)
    )


def lengths_of(batch, length):
    """Full, empty, one step, and something between."""
    return torch.tensor([length, 0, 1, length // 2 + 1, length])[:batch]


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 4),
    length=st.integers(1, 40),
    inner=st.integers(1, 40),
    state=st.integers(1, 20),
    without=st.sets(st.sampled_from(OPTIONAL)),
    delta_softplus=st.booleans(),
    padded=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_scan_agrees_whatever_is_absent(batch, length, inner, state, without, delta_softplus, padded, seed):
    inputs = scan_inputs(batch, length, inner, state, seed, without)
    if not delta_softplus:  # a step size of the caller's own
        inputs["delta"] = inputs["delta"].abs()
        inputs["delta_bias"] = inputs.get("delta_bias", torch.zeros(inner)).abs()
    lengths = torch.randint(length + 1, (batch,), generator=torch.Generator().manual_seed(seed)) if padded else None
    # A search for the worst case finds sums whose terms cancel, where plain float32 is no better: one number that is
    # the small difference of larger ones, which are of the inputs' size.
    assert_scan_agrees(inputs, 5e-6, at_least=1.0, lengths=lengths, delta_softplus=delta_softplus)


@pytest.mark.parametrize("scale", [1e-6, 30.0, 1e4, 1e8])
def test_scan_survives_extreme_step_sizes(build, scale):
    inputs = scan_inputs(2, 30, 20, 5)
    inputs["delta"] *= scale
    assert_scan_agrees(inputs)


@pytest.mark.parametrize("shift", [-30.0, 30.0])
def test_scan_keeps_relative_precision_where_all_steps_are_tiny_or_huge(build, shift):
    inputs = scan_inputs(2, 30, 20, 5, without=("D", "initial_state"))
    inputs["delta_bias"] = torch.full((20,), shift)
    assert_scan_agrees(inputs)


def test_scan_stays_exact_over_many_slow_steps(build):
    inputs = scan_inputs(1, 6000, 4, 2)
    inputs["A"] = -torch.tensor([1e-3, 1e-2]).expand(4, 2)
    inputs["delta"] = 0.1 * inputs["delta"] - 3
    assert_scan_agrees(inputs, tolerance=1e-5)  # the float32 recurrence itself rounds 6000 times


def test_growing_states_do_not_turn_into_garbage(build):
    inputs = scan_inputs(1, 20, 4, 2)
    inputs["A"] = torch.full((4, 2), 0.5)
    assert_scan_agrees(inputs)


def test_padding_is_never_read(build):
    """A record's padding may hold anything, NaN included, and its gradient is exactly zero."""
    inputs = scan_inputs(3, 21, 18, 4)
    lengths = torch.tensor([21, 7, 0])
    clean = with_gradients(lambda **leaves: hymate_native.selective_scan(**leaves, lengths=lengths), inputs)
    for name in ("u", "delta", "B", "C", "z"):
        for row, length in enumerate(lengths):
            inputs[name][row, length:] = math.nan
    dirty = with_gradients(lambda **leaves: hymate_native.selective_scan(**leaves, lengths=lengths), inputs)
    for name, tensor in clean.items():
        assert torch.equal(tensor, dirty[name]), name
    assert not dirty["output 0"][1, 7:].any()
    assert not dirty["delta"][1, 7:].any()
    assert not dirty["B"][2].any()


def test_a_record_gives_the_same_bits_alone_and_in_any_batch(build):
    inputs = scan_inputs(3, 50, 24, 16, without=("initial_state",))
    lengths = torch.tensor([50, 23, 9])
    together = hymate_native.selective_scan(**inputs, lengths=lengths)
    for row, length in enumerate(lengths):
        alone = {name: t[row : row + 1, :length] if t.dim() == 3 else t for name, t in inputs.items()}
        assert torch.equal(hymate_native.selective_scan(**alone)[0], together[row, :length])


def test_the_final_state_carries_a_sequence_on(build):
    inputs = scan_inputs(2, 40, 20, 6)
    whole, final = hymate_native.selective_scan(**inputs, return_final_state=True)
    first = {name: t[:, :17] if name in ("u", "delta", "B", "C", "z") else t for name, t in inputs.items()}
    second = {name: t[:, 17:] if name in ("u", "delta", "B", "C", "z") else t for name, t in inputs.items()}
    start, second["initial_state"] = hymate_native.selective_scan(**first, return_final_state=True)
    end, last = hymate_native.selective_scan(**second, return_final_state=True)
    torch.testing.assert_close(torch.cat([start, end], 1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last, final, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_arithmetic_between_rounded_rows(build, dtype):
    """With the state in float32, nothing but the rounding of inputs and outputs may differ: not by one bit."""
    inputs = scan_inputs(2, 37, 21, 7)
    rows = ("u", "delta", "B", "C", "z")
    half = {name: tensor.to(dtype) if name in rows else tensor for name, tensor in inputs.items()}
    rounded = {name: tensor.float() for name, tensor in half.items()}
    weights = normal(2, 37, 21, seed=5).to(dtype)

    def run(leaves, weights):
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in leaves.items()}
        output = hymate_native.selective_scan(**leaves)
        return output, *torch.autograd.grad(output, list(leaves.values()), weights)

    for low, full in zip(run(half, weights), run(rounded, weights.float()), strict=True):
        assert torch.equal(low, full.to(low.dtype))


def test_strides_are_read_in_place_and_give_the_same_bits(build):
    inputs = scan_inputs(2, 30, 20, 6)
    wide = torch.cat([inputs["u"], inputs["z"], inputs["B"], inputs["C"]], dim=-1)
    u, z, B, C = wide.split([20, 20, 6, 6], dim=-1)
    delta = inputs["delta"].transpose(0, 1).contiguous().transpose(0, 1)
    strided = inputs | {"u": u, "z": z, "B": B, "C": C, "delta": delta}
    assert not any(strided[name].is_contiguous() for name in ("u", "z", "B", "C", "delta"))
    dense = with_gradients(hymate_native.selective_scan, inputs)
    for name, tensor in with_gradients(hymate_native.selective_scan, strided).items():
        assert torch.equal(tensor, dense[name]), name
    transposed = inputs | {"B": inputs["B"].transpose(1, 2).contiguous().transpose(1, 2)}  # its last stride is not 1
    assert torch.equal(hymate_native.selective_scan(**transposed), hymate_native.selective_scan(**inputs))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_repeat_bit_for_bit_and_hold_for_any_number_of_threads(threads, batch):
    inputs = scan_inputs(batch, 70, 70, 9)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        first, second = (with_gradients(hymate_native.selective_scan, inputs) for _ in range(2))
        for name, tensor in first.items():
            assert torch.equal(tensor, second[name]), name
        assert_scan_agrees(inputs)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0)])
def test_nothing_in_gives_nothing_out(batch, length):
    inputs = scan_inputs(batch, length, 5, 3, without=("initial_state",))
    results = with_gradients(hymate_native.selective_scan, inputs)
    assert results["output 0"].shape == (batch, length, 5)
    assert not any(tensor.any() for tensor in results.values())


# ------------------------------------------------------------------------------------------ convolution


def reference_convolution(x, weight, bias=None, activation="silu", lengths=None):
    y = F.conv1d(F.pad(x.transpose(1, 2), (weight.shape[1] - 1, 0)), weight.unsqueeze(1), bias, groups=x.shape[2])
    y = y.transpose(1, 2) if activation is None else F.silu(y).transpose(1, 2)
    if lengths is None:
        return y
    return y * (torch.arange(x.shape[1]) < lengths.unsqueeze(1)).unsqueeze(-1)


@pytest.mark.parametrize("activation", ["silu", None])
@pytest.mark.parametrize(
    ("batch", "length", "inner", "kernel"),
    [(2, 333, 64, 4), (1, 1, 1, 1), (3, 21, 19, 8), (4, 3, 40, 4), (2, 40, 7, 2)],
)
def test_convolution_agrees_with_float64(build, batch, length, inner, kernel, activation):
    inputs = {
        "x": normal(batch, length, inner),
        "weight": normal(inner, kernel, seed=1),
        "bias": normal(inner, seed=2),
    }
    if activation is None:
        del inputs["bias"]
    options = {"activation": activation, "lengths": lengths_of(batch, length)}
    found = with_gradients(lambda **leaves: hymate_native.causal_conv1d(**leaves, **options), inputs)
    expected = with_gradients(lambda **leaves: reference_convolution(**leaves, **options), inputs, torch.float64)
    assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_half_number_survives_reading_and_writing(build, dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    back = hymate_native.causal_conv1d(every.reshape(-1, 1, 32), torch.ones(32, 1), activation=None)
    if dtype == torch.bfloat16:  # its subnormals are subnormal in float32 too, and count as zero
        every = torch.where(every.abs() < torch.finfo(dtype).tiny, torch.zeros_like(every), every)
    torch.testing.assert_close(back.flatten(), every, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_writing_half_numbers_rounds_as_pytorch_does(build, dtype):
    x = torch.cat([normal(4000) * 10.0**exponent for exponent in range(-8, 6)])
    weight = (1 + 2**-9) * torch.ones(32, 1)
    half = x.to(dtype).reshape(-1, 1, 32)
    found = hymate_native.causal_conv1d(half, weight, activation=None)
    assert torch.equal(found, (half.float() * weight.flatten()).to(dtype))


# ------------------------------------------------------------------------------------------- the whole


def mixer_inputs(batch=3, length=45, hidden=10, inner=24, state=5, rank=3, kernel=4):
    return {
        "states": normal(batch, length, hidden),
        "in_proj_weight": normal(2 * inner, hidden, seed=8) / hidden**0.5,
        "in_proj_bias": normal(2 * inner, seed=9),
        "conv_weight": normal(inner, 1, kernel, seed=1),
        "conv_bias": normal(inner, seed=2),
        "x_proj_weight": normal(rank + 2 * state, inner, seed=3) / inner**0.5,
        "dt_proj_weight": normal(inner, rank, seed=4),
        "dt_proj_bias": normal(inner, seed=5),
        "A": -1 - 7 * torch.rand(inner, state, generator=torch.Generator().manual_seed(6)),
        "D": normal(inner, seed=7),
        "out_proj_weight": normal(hidden, inner, seed=10) / (4 * inner**0.5),
        "out_proj_bias": normal(hidden, seed=11),
    }


def reference_mixer(
    states,
    conv_weight,
    conv_bias,
    x_proj_weight,
    dt_proj_weight,
    dt_proj_bias,
    A,
    D,
    lengths=None,
    in_proj_weight=None,
    in_proj_bias=None,
    out_proj_weight=None,
    out_proj_bias=None,
):
    (_inner, state), rank = A.shape, dt_proj_weight.shape[1]
    projected = states if in_proj_weight is None else F.linear(states, in_proj_weight, in_proj_bias)
    x, gate = projected.chunk(2, -1)
    x = reference_convolution(x, conv_weight.squeeze(1), conv_bias, lengths=lengths)
    time_step, B, C = (x @ x_proj_weight.T).split([rank, state, state], -1)
    delta = time_step @ dt_proj_weight.T
    y = selective_scan(x, delta, A, B, C, D, gate, dt_proj_bias, lengths=lengths, backend="reference")
    return y if out_proj_weight is None else F.linear(y, out_proj_weight, out_proj_bias)


BIASES = ("in_proj_bias", "conv_bias", "dt_proj_bias", "out_proj_bias")


@pytest.mark.parametrize("lengths", [None, (45, 0, 20)])
@pytest.mark.parametrize(
    "without", [(), BIASES, ("out_proj_weight", "out_proj_bias"), ("in_proj_weight", "in_proj_bias")]
)
def test_the_mixer_agrees_with_float64(build, lengths, without):
    sizes = {"hidden": 48} if "in_proj_weight" in without else {}
    inputs = {name: tensor for name, tensor in mixer_inputs(**sizes).items() if name not in without}
    options = {"lengths": lengths and torch.tensor(lengths)} | dict.fromkeys(without)
    found = with_gradients(lambda **leaves: hymate_native.mamba_mixer(**leaves, **options), inputs)
    expected = with_gradients(lambda **leaves: reference_mixer(**leaves, **options), inputs, torch.float64)
    assert_close(found, expected)


@pytest.mark.parametrize(
    "without", [(), BIASES, ("out_proj_weight", "out_proj_bias"), ("in_proj_weight", "in_proj_bias")]
)
@pytest.mark.parametrize("kernel", [1, 4, 7])
@pytest.mark.parametrize("pieces", [(1,) * 45, (45,), (3, 1, 20, 5, 16), (0, 45, 0)])
def test_the_mixer_carries_records_on_from_piece_to_piece(build, pieces, kernel, without):
    sizes = {"hidden": 48} if "in_proj_weight" in without else {}
    inputs = mixer_inputs(kernel=kernel, **sizes) | dict.fromkeys(without)
    lengths = torch.tensor([45, 0, 20])
    double = {name: None if tensor is None else tensor.double() for name, tensor in inputs.items()}
    expected = reference_mixer(**double, lengths=lengths)
    _, (window, state) = hymate_native.mamba_mixer(**inputs, lengths=lengths, return_final_state=True)
    states, outputs, final = inputs.pop("states"), [], None
    for rows in states.split(pieces, 1):
        output, final = hymate_native.mamba_mixer(
            rows, **inputs, lengths=lengths, initial_state=final, return_final_state=True
        )
        outputs.append(output)
        lengths = (lengths - rows.shape[1]).clamp(min=0)
    found = {"output": torch.cat(outputs, 1), "window": final[0], "state": final[1]}
    assert_close(found, {"output": expected, "window": window.double(), "state": state.double()})


def test_a_mixer_that_carries_a_state_has_no_gradient_and_says_so():
    inputs = mixer_inputs()
    inputs["D"].requires_grad_()
    with pytest.raises(RuntimeError, match=r"has no gradient: use torch.no_grad\(\)"):
        hymate_native.mamba_mixer(**inputs, return_final_state=True)
    with torch.no_grad():
        _, state = hymate_native.mamba_mixer(**inputs, return_final_state=True)
        wrong = (state[0][..., 1:], state[1])
        with pytest.raises(ValueError, match=r"conv_state must have the shape \(3, 24, 3\), got \(3, 24, 2\)"):
            hymate_native.mamba_mixer(**inputs, initial_state=wrong)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("batch", "length", "sizes"),
    [
        (4, 300, {"hidden": 64, "inner": 128, "state": 16, "rank": 4}),  # several stretches of time
        (1, 700, {"hidden": 7, "inner": 40, "state": 3, "kernel": 8}),  # channels of one record divided among threads
        (3, 130, {"hidden": 100, "inner": 200, "rank": 6, "kernel": 1}),
        (11, 17, {"hidden": 130, "inner": 5, "rank": 1, "state": 1, "kernel": 2}),
    ],
)
def test_the_mixer_agrees_however_it_is_divided(build, monkeypatch, batch, length, sizes, threads):
    monkeypatch.setattr(library, "threads", lambda: threads)
    options = {"lengths": lengths_of(batch, length) if 1 < batch < 6 else None}
    inputs = mixer_inputs(batch, length, **sizes)
    run = functools.partial(hymate_native.mamba_mixer, **options)
    found = with_gradients(run, inputs)
    expected = with_gradients(lambda **leaves: reference_mixer(**leaves, **options), inputs, torch.float64)
    assert_close(found, expected)
    again = with_gradients(run, inputs)
    assert all(torch.equal(found[name], again[name]) for name in found)
    with torch.no_grad():
        torch.testing.assert_close(run(**inputs), found["output 0"], rtol=0, atol=0)


@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0)])
def test_the_mixer_makes_nothing_of_nothing(batch, length):
    found = with_gradients(hymate_native.mamba_mixer, mixer_inputs(batch=batch, length=length))
    assert found["output 0"].shape == (batch, length, 10)
    assert not any(found[name].any() for name in found)


@pytest.mark.parametrize("without", [(), ("in_proj_weight", "in_proj_bias", "out_proj_weight", "out_proj_bias")])
@pytest.mark.parametrize(("batch", "length"), [(3, 45), (1, 300)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("multiplies", [True, False])
def test_the_mixer_in_half_precision(build, monkeypatch, multiplies, dtype, batch, length, without):
    monkeypatch.setattr(library, "multiplies", lambda dtype: multiplies)
    sizes = {"hidden": 48} if without else {}
    inputs = {name: value for name, value in mixer_inputs(batch, length, **sizes).items() if name not in without}
    half = {name: tensor if name in ("A", "D") else tensor.to(dtype) for name, tensor in inputs.items()}
    lengths = torch.tensor([length, 0, length // 3][:batch])
    found = with_gradients(lambda **leaves: hymate_native.mamba_mixer(**leaves, lengths=lengths), half)
    assert all(found[name].dtype == tensor.dtype for name, tensor in half.items())
    expected = with_gradients(lambda **leaves: reference_mixer(**leaves, lengths=lengths), half, torch.float64)
    for name, wanted in expected.items():
        error = (found[name].double() - wanted).norm() / wanted.norm()
        assert error < (0.015 if dtype == torch.bfloat16 else 0.002), name


def test_autocast_runs_the_mixer_in_its_data_type_and_returns_float32_gradients():
    inputs = mixer_inputs()

    def under_autocast(**leaves):
        with torch.autocast("cpu", torch.bfloat16):
            output = hymate_native.mamba_mixer(**leaves)
        assert output.dtype == torch.bfloat16
        return output.float()

    found = with_gradients(under_autocast, inputs)
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    for name, wanted in with_gradients(reference_mixer, inputs, torch.float64).items():
        assert (found[name] - wanted).norm() / wanted.norm() < 0.04, name


# --------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("delta", torch.zeros(2, 9, 8), r"delta must have the shape \(2, 10, 8\), got \(2, 9, 8\)"),
        ("A", torch.zeros(7, 3), r"A must have the shape \(8, 3\)"),
        ("B", torch.zeros(2, 10, 4), r"B must have the shape \(2, 10, 3\)"),
        ("initial_state", torch.zeros(2, 3, 8), r"initial_state must have the shape \(2, 8, 3\)"),
        ("u", torch.zeros(2, 10, 8).double(), "float32, bfloat16 or float16, got torch.float64"),
        ("z", torch.zeros(2, 10, 8, device="meta"), "z must be on the CPU, got meta"),
        ("lengths", torch.tensor([1.0, 2.0]), "lengths must be integers, got torch.float32"),
        ("lengths", torch.tensor([1]), r"lengths must have the shape \(2,\), got \(1,\)"),
    ],
)
def test_wrong_arguments_are_named(name, wrong, message):
    inputs = scan_inputs(2, 10, 8, 3)
    if name == "A":
        inputs["initial_state"] = torch.zeros(2, 8, 3)
    with pytest.raises(ValueError, match=message):
        hymate_native.selective_scan(**inputs | {name: wrong})


def test_wrong_convolutions_are_named():
    with pytest.raises(ValueError, match="weight must have 1 to 8 columns, got 9"):
        hymate_native.causal_conv1d(torch.zeros(1, 5, 4), torch.zeros(4, 9))
    with pytest.raises(ValueError, match='activation must be "silu" or None'):
        hymate_native.causal_conv1d(torch.zeros(1, 5, 4), torch.zeros(4, 3), activation="gelu")


def test_no_channels_at_all_are_refused():
    with pytest.raises(ValueError, match=r"u must have channels, got \(2, 5, 0\)"):
        hymate_native.selective_scan(**scan_inputs(2, 5, 0, 3))
    with pytest.raises(ValueError, match=r"x must have channels, got \(1, 5, 0\)"):
        hymate_native.causal_conv1d(torch.zeros(1, 5, 0), torch.zeros(0, 3))
    with pytest.raises(ValueError, match="must have channels"):
        hymate_native.mamba_mixer(**mixer_inputs() | {"states": torch.zeros(3, 45, 0)})


def test_a_second_derivative_is_refused():
    inputs = {name: tensor.requires_grad_() for name, tensor in scan_inputs(1, 5, 4, 2).items()}
    (gradient,) = torch.autograd.grad(hymate_native.selective_scan(**inputs).sum(), inputs["u"], create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*HYMATE_SCAN_BACKEND=reference"):
        gradient.sum().backward()


def test_subnormal_numbers_mean_the_same_after_a_kernel_as_before():
    hymate_native.selective_scan(**scan_inputs(2, 10, 8, 3))
    assert (torch.tensor([1e-40]) * 0.5).item() > 0
