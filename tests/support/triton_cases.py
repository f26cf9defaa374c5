"""The Triton kernels against the plain paths.

tests/modeling/test_triton.py runs this file in a process of its own, under Triton's interpreter on a CPU
(TRITON_INTERPRET=1); benchmarks/gpu_check.py runs it on a GPU (HYMATE_TEST_DEVICE=cuda).
"""

import math
import os

import pytest
import torch
import torch.nn.functional as F

from modeling_hymate import HyMaTEForSequenceClassification, selective_scan, triton_launch, triton_operators
from modeling_hymate.mamba import HyMaTEMixer
from tests.support.helpers import gradients_of, perturbed, random_batch, tiny_config

DEVICE = os.environ.get("HYMATE_TEST_DEVICE", "cpu")
ROWS = ("u", "delta", "B", "C", "z")
OPTIONAL = ("D", "z", "delta_bias", "initial_state")
# a GPU's own powers of two and reciprocals are a little less exact than the interpreter's
TOLERANCE = {torch.float32: 3e-6 if DEVICE == "cpu" else 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
SHAPES = [(2, 21, 5, 3), (1, 34, 33, 16), (3, 1, 2, 1), (2, 18, 9, 20)]
if DEVICE != "cpu":
    SHAPES += [(4, 517, 96, 16), (2, 2048, 160, 64), (1, 9000, 64, 16), (64, 130, 256, 8), (2, 100, 40, 256)]


torch.backends.cudnn.allow_tf32 = False  # what the kernels are compared with computes in float32


def make_inputs(batch, length, inner, state, dtype=torch.float32, seed=0, without=()) -> dict[str, torch.Tensor]:
    """Random arguments of `selective_scan`; A, D, bias and state in float32, as modules hold them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, kind=torch.float32):
        return torch.randn(*shape, generator=generator).to(DEVICE, kind)

    inputs = {
        "u": normal(batch, length, inner, kind=dtype),
        "delta": normal(batch, length, inner, kind=dtype),
        "A": -normal(inner, state).exp(),
        "B": normal(batch, length, state, kind=dtype),
        "C": normal(batch, length, state, kind=dtype),
        "D": normal(inner),
        "z": normal(batch, length, inner, kind=dtype),
        "delta_bias": normal(inner),
        "initial_state": normal(batch, inner, state),
    }
    return {name: tensor for name, tensor in inputs.items() if name not in without}


def results(function, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `function(**inputs)` returns, one tensor or several, and the gradients of all inputs of a random weighting
    of it."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    outputs = function(**leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (output.double() * torch.randn(output.shape, generator=generator, dtype=torch.float64).to(DEVICE)).sum()
        for output in outputs
    )
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    return {f"output {index}": output.detach() for index, output in enumerate(outputs)} | gradients


def scan_results(inputs, backend="triton", **options):
    def scan(**leaves):
        return selective_scan(**leaves, **options, return_final_state=True, backend=backend)

    return results(scan, inputs)


def exact(inputs, **options):
    """What the scan gives in float64."""
    return scan_results({name: tensor.double() for name, tensor in inputs.items()}, "chunked", **options)


def assert_close(found, expected, tolerance):
    """Largest difference relative to the largest entry of what is expected."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (found[name].double() - tensor.double()).abs().max()
        scale = max(1.0, float(tensor.abs().max()))
        assert error <= tolerance * scale, f"{name}: {error} of {scale}"  # false for NaN as well


@pytest.fixture(params=[0, 1], ids=["wide", "narrow"])
def tile(request, monkeypatch):
    """Each of the two tiles in turn, whatever the shape and the device ask for."""
    monkeypatch.setattr(triton_launch, "choose_tile", lambda tiles, *_: tiles[request.param])


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("shape", SHAPES)
def test_scan_equals_float64(shape):
    batch, length, *_ = shape
    inputs = make_inputs(*shape)
    lengths = torch.tensor([length, 0, length // 2 + 1, *[length] * batch])[:batch].to(DEVICE)
    assert_close(scan_results(inputs, lengths=lengths), exact(inputs, lengths=lengths), TOLERANCE[torch.float32])


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("without", [OPTIONAL, ("z",), ("D",), ("delta_bias", "initial_state")])
def test_scan_without_optional_inputs(without, softplus):
    inputs = make_inputs(2, 17, 5, 3, without=without)
    if not softplus:
        inputs |= {name: inputs[name].abs() / 4 for name in ("delta", "delta_bias") if name in inputs}
    options = {"delta_softplus": softplus}
    assert_close(scan_results(inputs, **options), exact(inputs, **options), TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scan_in_half_precision(dtype):
    inputs = make_inputs(2, 21, 5, 3, dtype)
    found = scan_results(inputs)
    assert_close(found, exact(inputs), TOLERANCE[dtype])
    assert found["output 0"].dtype == found["u"].dtype == found["B"].dtype == dtype
    assert found["output 1"].dtype == found["A"].dtype == torch.float32


def cut_time(monkeypatch) -> list[int]:
    """Lets time be cut into segments of 16 steps; returns the list that takes each number of segments."""
    counts = []
    choose = triton_launch.choose_segments

    def watch(*arguments):
        counts.append(choose(*arguments)[0])
        return choose(*arguments)

    monkeypatch.setattr(triton_launch, "SHORTEST_SEGMENT", 16)
    monkeypatch.setattr(triton_launch, "WARPS_PER_MULTIPROCESSOR", 64)
    monkeypatch.setattr(triton_launch, "choose_segments", watch)
    return counts


@pytest.mark.parametrize(("without", "lengths"), [((), [20, 48]), (("initial_state", "z"), None)])
def test_cut_time_equals_float64(without, lengths, monkeypatch):
    counts = cut_time(monkeypatch)
    inputs = make_inputs(2, 48, 5, 3, without=without)
    lengths = None if lengths is None else torch.tensor(lengths, device=DEVICE)
    assert_close(scan_results(inputs, lengths=lengths), exact(inputs, lengths=lengths), TOLERANCE[torch.float32])
    assert set(counts) == {3}


@pytest.mark.parametrize("cut", [False, True])
def test_padding_moves_nothing_whatever_it_holds(cut, monkeypatch):
    if cut:
        cut_time(monkeypatch)
    lengths = torch.tensor([19, 0], device=DEVICE)
    inputs = make_inputs(2, 48, 4, 2)
    padding = torch.arange(48, device=DEVICE) >= lengths[:, None]
    dirty = {
        name: tensor.masked_fill(padding[..., None], math.nan) if name in ROWS else tensor
        for name, tensor in inputs.items()
    }
    clean, found = (scan_results(kind, lengths=lengths) for kind in (inputs, dirty))
    for name, tensor in clean.items():
        assert torch.equal(found[name], tensor), name
    for name in ("output 0", *ROWS):
        assert not found[name][padding].any(), name
    assert torch.equal(clean["output 1"][1], inputs["initial_state"][1])


def test_state_carries_over():
    inputs = make_inputs(1, 30, 3, 2)
    whole, final = selective_scan(**inputs, return_final_state=True, backend="triton")
    outputs, state = [], inputs["initial_state"]
    for part in (slice(0, 0), slice(0, 13), slice(13, 30)):
        timed = {name: inputs[name][:, part] for name in ROWS}
        arguments = inputs | timed | {"initial_state": state}
        output, state = selective_scan(**arguments, return_final_state=True, backend="triton")
        outputs.append(output)
    assert_close({"y": torch.cat(outputs, 1), "state": state}, {"y": whole, "state": final}, 1e-6)


def test_repeated_runs_give_the_same_bits_and_strides_change_nothing():
    inputs = make_inputs(2, 19, 6, 4)
    wide = torch.cat([inputs["u"], inputs["z"]], -1)
    rows = torch.cat([inputs["B"], inputs["C"]], -1).transpose(0, 1).contiguous().transpose(0, 1)
    strided = inputs | dict(zip(("u", "z"), wide.chunk(2, -1), strict=True))
    strided |= dict(zip(("B", "C"), rows.chunk(2, -1), strict=True))
    strided["delta"] = inputs["delta"].transpose(1, 2).contiguous().transpose(1, 2)
    first, second, third = scan_results(inputs), scan_results(inputs), scan_results(strided)
    for name, tensor in first.items():
        assert torch.equal(second[name], tensor), name
    assert_close(third, first, 1e-6)


def test_extreme_step_sizes_stay_finite():
    for scale in (1e-30, 1e3):
        inputs = make_inputs(1, 20, 3, 4)
        inputs["delta"] = inputs["delta"] * scale
        for name, tensor in scan_results(inputs).items():
            assert tensor.isfinite().all(), (scale, name)


def plain_convolution(x, weight, bias=None, silu=True, lengths=None):
    if lengths is not None:
        valid = (torch.arange(x.shape[1], device=DEVICE) < lengths[:, None])[..., None]
        x = x.where(valid, 0)
    padded = F.pad(x.double().transpose(1, 2), (weight.shape[1] - 1, 0))
    out = F.conv1d(padded, weight.double()[:, None], None if bias is None else bias.double(), groups=len(weight))
    out = (F.silu(out) if silu else out).transpose(1, 2)
    return out if lengths is None else out.where(valid, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "silu", "bias"), [(4, True, True), (1, False, False), (5, True, False)])
def test_convolution_equals_pytorch(kernel, silu, bias, dtype):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(DEVICE)

    inputs = {"x": normal(3, 40, 20)[..., :10].to(dtype), "weight": normal(10, kernel)}
    inputs |= {"bias": normal(10)} if bias else {}
    for lengths in (None, torch.tensor([40, 0, 21], device=DEVICE)):

        def ours(lengths=lengths, **leaves):
            activation = "silu" if silu else None
            return triton_operators.causal_conv1d(**leaves, activation=activation, lengths=lengths)

        def plain(lengths=lengths, **leaves):
            return plain_convolution(**leaves, silu=silu, lengths=lengths)

        assert_close(results(ours, inputs), results(plain, inputs), TOLERANCE[dtype])


def test_a_record_longer_than_one_axis_of_the_grid_is_convolved(monkeypatch):
    """As of two million events; here as if an axis took two programs."""
    inputs = {"x": torch.randn(2, 150, 5, generator=torch.Generator().manual_seed(0)).to(DEVICE)}
    inputs |= {"weight": torch.arange(20, device=DEVICE).view(5, 4) / 20, "bias": torch.ones(5, device=DEVICE)}
    expected = results(triton_operators.causal_conv1d, inputs)
    monkeypatch.setattr(triton_launch, "MOST_PARTS", 2)
    assert triton_launch._convolution_grid(inputs["x"])[1:] == (2, 3)
    found = results(triton_operators.causal_conv1d, inputs)
    for name in ("output 0", "x"):
        assert torch.equal(found[name], expected[name]), name
    assert_close(found, expected, TOLERANCE[torch.float32])


def test_tiles_fit_a_gpu():
    for state in (1, 16, 64, 256, 1024):
        for tile in (*triton_launch.forward_tiles(state), triton_launch.backward_tile(state)):
            assert 1 <= tile.warps <= 32
            assert triton_launch.CHUNK % tile.steps == 0


def make_mixer(config) -> HyMaTEMixer:
    mixer = HyMaTEMixer(config)
    mixer.init_weights()
    return perturbed(mixer).to(DEVICE)


def mixer_results(mixer, hidden_states, lengths):
    """Output and gradients; those of padding are left out, since the paths differ there and nobody looks."""
    real = (torch.arange(hidden_states.shape[1], device=DEVICE) < lengths[:, None])[..., None]
    leaf = hidden_states.clone().requires_grad_()
    output = mixer(leaf, lengths).where(real, 0)
    gradients = gradients_of(mixer, output.square().sum())
    return {"output": output.detach(), "hidden_states": leaf.grad.where(real, 0)} | gradients


@pytest.mark.parametrize(("hidden_act", "biases"), [("silu", False), ("silu", True), ("gelu", True)])
def test_mixer_equals_plain_path(hidden_act, biases, monkeypatch):
    config = tiny_config(hidden_act=hidden_act, use_bias=biases, use_conv_bias=biases)
    mixer = make_mixer(config)
    inputs = torch.randn(2, 19, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    lengths = torch.tensor([19, 7], device=DEVICE)
    found = {}
    for backend in ("triton", "chunked"):
        monkeypatch.setenv("HYMATE_SCAN_BACKEND", backend)
        found[backend] = mixer_results(mixer, inputs, lengths)
    assert_close(found["triton"], found["chunked"], 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_equals_plain_path(dtype, monkeypatch):
    config = tiny_config(num_labels=2)
    model = perturbed(HyMaTEForSequenceClassification(config)).to(DEVICE)
    batch = {name: tensor.to(DEVICE) for name, tensor in random_batch(config).items()}
    labels = torch.tensor([0, 1, 1], device=DEVICE)
    found = {}
    for backend in ("triton", "chunked"):
        monkeypatch.setenv("HYMATE_SCAN_BACKEND", backend)
        with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
            output = model(**batch, labels=labels)
        logits = {"logits": output.logits.detach()}
        found[backend] = logits | gradients_of(model, output.loss)
    assert_close(found["triton"], found["chunked"], {torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype])


def test_operators_keep_their_contracts():
    inputs = {name: tensor.requires_grad_() for name, tensor in make_inputs(2, 9, 3, 2).items()}
    order = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    lengths = torch.tensor([9, 4], device=DEVICE)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    arguments = [inputs[name] for name in order]
    torch.library.opcheck(
        torch.ops.hymate.triton_scan,
        (*arguments, True, lengths, inputs["initial_state"], True, True),
        test_utils=tests,
    )
    weight = torch.randn(3, 4, device=DEVICE, requires_grad=True)
    torch.library.opcheck(
        torch.ops.hymate.triton_causal_conv1d, (inputs["u"], weight, None, True, lengths), test_utils=tests
    )
    projected, x_weight = torch.randn(2, 9, 6, device=DEVICE), torch.randn(7, 3, device=DEVICE)
    mixer = (projected, weight, None, x_weight, torch.randn(3, 3, device=DEVICE), None, inputs["A"], inputs["D"])
    torch.library.opcheck(torch.ops.hymate.triton_mixer, (*mixer, lengths, True), test_utils=tests)


def test_a_compiled_and_an_exported_mixer_equal_the_eager_one(monkeypatch):
    monkeypatch.setenv("HYMATE_SCAN_BACKEND", "triton")
    mixer = make_mixer(tiny_config())
    inputs = torch.randn(2, 9, 16, device=DEVICE), torch.tensor([9, 4], device=DEVICE)
    expected = mixer(*inputs)
    compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), expected)
    found = gradients_of(mixer, compiled(*inputs).square().sum())
    assert_close(found, gradients_of(mixer, expected.square().sum()), 1e-6)
    exported = torch.export.export(mixer.eval(), inputs)
    torch.testing.assert_close(exported.module()(*inputs), expected)


def test_what_the_kernels_refuse():
    with pytest.raises(ValueError, match=r"float32, bfloat16 or float16, got torch.float64"):
        selective_scan(**{k: v.double() for k, v in make_inputs(1, 2, 2, 2).items()}, backend="triton")
    inputs = {name: tensor.requires_grad_() for name, tensor in make_inputs(1, 3, 2, 2).items()}
    output = selective_scan(**inputs, backend="triton").square().sum()
    (gradient,) = torch.autograd.grad(output, inputs["u"], create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*HYMATE_SCAN_BACKEND=reference"):
        gradient.sum().backward()


if DEVICE == "cuda":  # what an interpreter cannot tell

    @pytest.fixture
    def step():
        """A classifier with its batch, in padded shapes that no data decide; run once, since compiling waits."""
        config = tiny_config(num_labels=2, num_statistic_bins=2, pos_weight=2.0)
        model = perturbed(HyMaTEForSequenceClassification(config)).to(DEVICE)
        batch = {name: tensor.to(DEVICE) for name, tensor in random_batch(config).items()}
        batch |= {"labels": torch.tensor([0, 1, 1], device=DEVICE), "max_channels": config.num_variables}
        model(**batch).loss.backward()
        return model, batch

    def test_a_training_step_never_waits_for_the_gpu(step):
        model, batch = step
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(**batch).loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @torch.no_grad()
    def test_a_recorded_pass_equals_an_eager_one(step):
        model, batch = step
        model.eval()
        others = random_batch(model.config, seed=1)
        model(**batch)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = model(**batch).logits
        for name, tensor in others.items():
            batch[name].copy_(tensor)
        graph.replay()
        assert_close({"logits": logits}, {"logits": model(**batch).logits}, 1e-6)
