"""The selective scan: every backend against a plain loop, gradients, memory, errors and the choice of the backend."""

import logging
import math
import sys
from itertools import pairwise
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from modeling_hymate import scan as scan_module
from modeling_hymate import selective_scan

OPTIONAL = ("D", "z", "delta_bias", "initial_state")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def free_choice(monkeypatch):
    """The backend is chosen as on a user's machine, whatever the environment of this test run says."""
    monkeypatch.delenv("HYMATE_SCAN_BACKEND", raising=False)


def make_inputs(batch, length, inner, state, dtype=torch.float64, seed=0, without=(), delta_scale=1.0):
    """Random arguments of `selective_scan` that require gradients; A, D, bias and state as modules hold them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, kind=dtype):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(kind)

    kept = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = {
        "u": normal(batch, length, inner),
        "delta": normal(batch, length, inner) * delta_scale,
        "A": -normal(inner, state, kind=kept).exp(),
        "B": normal(batch, length, state),
        "C": normal(batch, length, state),
        "D": normal(inner, kind=kept),
        "z": normal(batch, length, inner),
        "delta_bias": normal(inner, kind=kept),
        "initial_state": normal(batch, inner, state, kind=kept),
    }
    return {name: tensor.requires_grad_() for name, tensor in inputs.items() if name not in without}


def plain_loop(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=True, lengths=None, initial_state=None
):
    """The recurrence as the docstring of `selective_scan` states it, a row, a channel and a step at a time."""
    batch, length, inner = u.shape
    y = torch.zeros(batch, length, inner, dtype=torch.float64)
    final = torch.zeros(batch, inner, A.shape[1], dtype=torch.float64)
    for b in range(batch):
        for d in range(inner):
            h = torch.zeros(A.shape[1], dtype=torch.float64) if initial_state is None else initial_state[b, d].double()
            for t in range(length if lengths is None else int(lengths[b])):
                step = delta[b, t, d].double() + (0 if delta_bias is None else delta_bias[d].double())
                step = step.exp().log1p() if delta_softplus else step
                h = (step * A[d].double()).exp() * h + step * B[b, t].double() * u[b, t, d].double()
                out = C[b, t].double() @ h + (0 if D is None else D[d].double() * u[b, t, d].double())
                y[b, t, d] = out if z is None else out * z[b, t, d].double() * z[b, t, d].double().sigmoid()
            final[b, d] = h
    return y, final


def results(inputs, weights_seed=1, scan=selective_scan, **options):
    """Output, final state and the gradients of all inputs, of a random weighting of both outputs."""
    inputs = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    output, state = scan(**inputs, return_final_state=True, **options)
    generator = torch.Generator().manual_seed(weights_seed)
    weights = [torch.randn(tensor.shape, generator=generator, dtype=torch.float64) for tensor in (output, state)]
    loss = (output.double() * weights[0]).sum() + (state.double() * weights[1]).sum()
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    return {"output": output, "final_state": state} | dict(zip(inputs, gradients, strict=True))


def assert_close(found, expected, tolerance):
    """Largest difference relative to the largest entry of what is expected."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        error = (found[name] - tensor).detach().double().abs().max()
        scale = max(1.0, float(tensor.detach().abs().max()))
        assert error <= tolerance * scale, f"{name}: {error} of {scale}"  # false for NaN as well


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("without", [(), OPTIONAL])
def test_backends_follow_the_formula(backend, softplus, without):
    inputs = make_inputs(3, 5, 2, 3, without=without)
    if not softplus:
        inputs["delta"] = inputs["delta"].detach().abs()
    lengths = torch.tensor([5, 0, 3])
    output, state = selective_scan(
        **inputs, delta_softplus=softplus, lengths=lengths, return_final_state=True, backend=backend
    )
    expected_output, expected_state = plain_loop(**inputs, delta_softplus=softplus, lengths=lengths)
    torch.testing.assert_close(output, expected_output)
    torch.testing.assert_close(state, expected_state)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("without", [(), OPTIONAL])
def test_gradcheck(backend, without, monkeypatch):
    monkeypatch.setattr(scan_module, "CHUNK_SIZE", 2)
    inputs = make_inputs(2, 5, 2, 2, without=without)
    lengths = torch.tensor([5, 3])

    def scan(*tensors):
        named = dict(zip(inputs, tensors, strict=True))
        return selective_scan(**named, lengths=lengths, return_final_state=True, backend=backend)

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()))


def test_reference_has_second_derivatives():
    inputs = make_inputs(1, 3, 2, 2)
    names = ("u", "delta", "B")

    def scan(*tensors):
        return selective_scan(**inputs | dict(zip(names, tensors, strict=True)), backend="reference")

    assert torch.autograd.gradgradcheck(scan, tuple(inputs[name] for name in names))


@settings(max_examples=25, deadline=None)
@given(
    length=st.sampled_from([1, 2, 31, 32, 33, 64, 70]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4)),
    dtype=st.sampled_from(list(TOLERANCE)),
    softplus=st.booleans(),
    without=st.sets(st.sampled_from(OPTIONAL)),
    padded=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_chunked_equals_reference(length, shape, dtype, softplus, without, padded, seed):
    batch, inner, state = shape
    inputs = make_inputs(batch, length, inner, state, dtype, seed, without)
    if not softplus:
        inputs["delta"] = inputs["delta"].detach().abs() / 4
        inputs |= {"delta_bias": inputs["delta_bias"].detach().abs()} if "delta_bias" in inputs else {}
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, length + 1, (batch,), generator=generator) if padded else None
    options = {"delta_softplus": softplus, "lengths": lengths}
    found, expected = (results(inputs, **options, backend=backend) for backend in ("chunked", "reference"))
    assert_close(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("scale", [1e-30, 1e3])
def test_extreme_step_sizes_stay_finite(backend, scale):
    inputs = make_inputs(2, 40, 3, 4, torch.float32, delta_scale=scale)
    for name, tensor in results(inputs, backend=backend).items():
        assert tensor.isfinite().all(), name


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_padded_steps_change_nothing_whatever_they_hold(backend):
    lengths = torch.tensor([3, 0, 37])
    inputs = make_inputs(3, 37, 4, 2)
    padding = torch.arange(37) >= lengths[:, None]
    dirty = {
        name: tensor.detach().masked_fill(padding[..., None], math.nan)
        if name in ("u", "delta", "B", "C", "z")
        else tensor
        for name, tensor in inputs.items()
    }
    clean, found = (results(kind, lengths=lengths, backend=backend) for kind in (inputs, dirty))
    assert_close(found, clean, 0)
    for name in ("output", "u", "delta", "B", "C", "z"):
        assert not found[name][padding].any(), name
    alone = {name: tensor[:1, :3] if tensor.dim() == 3 else tensor for name, tensor in inputs.items()}
    alone["initial_state"] = inputs["initial_state"][:1]
    output, state = selective_scan(**alone, return_final_state=True, backend=backend)
    torch.testing.assert_close(output, clean["output"][:1, :3])
    torch.testing.assert_close(state, clean["final_state"][:1])
    torch.testing.assert_close(clean["final_state"][1], inputs["initial_state"][1])


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("length", [0, 45])
def test_state_carries_over(backend, length):
    inputs = make_inputs(2, 45, 3, 2)
    whole, final = selective_scan(**inputs, return_final_state=True, backend=backend)
    parts, state = [], inputs["initial_state"]
    for part in (slice(0, length // 3), slice(length // 3, 45)):
        timed = {name: inputs[name][:, part] for name in ("u", "delta", "B", "C", "z")}
        output, state = selective_scan(
            **inputs | timed | {"initial_state": state}, return_final_state=True, backend=backend
        )
        parts.append(output)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(state, final)


@pytest.mark.parametrize("backend", ["reference", "chunked", "native"])
@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(1, 70),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4)),
    places=st.lists(st.integers(0, 70), max_size=4),
    without=st.sets(st.sampled_from(OPTIONAL)),
    padded=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_pieces_say_what_the_whole_says(backend, length, shape, places, without, padded, seed):
    """Cut anywhere, also into nothing and within padding: outputs, the state and all gradients. As no piece knows of
    a later one, each output rests on what comes before it alone."""
    dtype = torch.float64
    if backend == "native":
        pytest.importorskip("hymate_native", reason="needs the native kernels")
        dtype = torch.float32
    batch, inner, state_size = shape
    inputs = make_inputs(batch, length, inner, state_size, dtype, seed, without)
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, length + 1, (batch,), generator=generator) if padded else None
    ends = [0, *sorted(min(place, length) for place in places), length]

    def in_pieces(initial_state=None, lengths=None, **given):
        outputs, state = [], initial_state
        for start, stop in pairwise(ends):
            timed = {name: given[name][:, start:stop] for name in ("u", "delta", "B", "C", "z") if name in given}
            left = None if lengths is None else (lengths - start).clamp(0, stop - start)
            output, state = selective_scan(**given | timed, lengths=left, initial_state=state)
            outputs.append(output)
        return torch.cat(outputs, 1), state

    whole, found = (
        results(inputs, scan=scan, lengths=lengths, backend=backend) for scan in (selective_scan, in_pieces)
    )
    assert_close(found, whole, TOLERANCE[dtype])


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_strided_inputs(backend):
    inputs = make_inputs(2, 9, 4, 2)
    strided = {
        name: tensor.detach().transpose(0, 1).contiguous().transpose(0, 1) if tensor.dim() == 3 else tensor
        for name, tensor in inputs.items()
    }
    assert_close(results(strided, backend=backend), results(inputs, backend=backend), 1e-12)


def test_only_real_inputs_get_gradients():
    inputs = {name: tensor.detach() for name, tensor in make_inputs(2, 5, 3, 2).items()}
    inputs["A"].requires_grad_()
    output = selective_scan(**inputs, backend="chunked")
    output.sum().backward()
    assert inputs["A"].grad.isfinite().all()
    assert not selective_scan(**{name: tensor.detach() for name, tensor in inputs.items()}).requires_grad


def saved_bytes(function) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward pass of `function()`."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = function()
    assert kept.requires_grad
    return sum(storages.values())


def test_chunked_memory_is_linear_and_free_of_the_state():
    batch, length, inner, state = 2, 256, 8, 64

    def held(length):
        inputs = make_inputs(batch, length, inner, state, torch.float32)
        return saved_bytes(lambda: selective_scan(**inputs, backend="chunked"))

    everything = batch * length * inner * state * 4
    assert held(length) < everything / 2
    assert (
        saved_bytes(
            lambda: selective_scan(**make_inputs(batch, length, inner, state, torch.float32), backend="reference")
        )
        > everything
    )  # the measure sees what the reference holds
    assert held(2 * length) < 2.05 * held(length)


def test_large_intermediates_are_never_made(monkeypatch):
    batch, length, inner, state = 2, 256, 8, 64
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **kwargs or {})
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    inputs = make_inputs(batch, length, inner, state, torch.float32)
    with Watch():
        selective_scan(**inputs, backend="chunked").sum().backward()
    assert batch * length * inner <= largest <= batch * length * state


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("u", (2, 5)),
        ("A", (3,)),
        ("A", (4, 2)),
        ("delta", (2, 4, 3)),
        ("B", (2, 5, 3)),
        ("C", (1, 5, 2)),
        ("D", (2,)),
        ("z", (2, 5, 6)),
        ("delta_bias", (3, 1)),
        ("initial_state", (2, 2, 3)),
        ("lengths", (3,)),
    ],
)
def test_errors_name_the_argument_and_the_shape(name, shape):
    inputs = make_inputs(2, 5, 3, 2)
    inputs[name] = torch.zeros(shape, dtype=torch.long if name == "lengths" else torch.float64)
    with pytest.raises(ValueError, match=rf"^{name} must .*\({shape[0]},"):
        selective_scan(**inputs)


def test_lengths_must_be_whole_numbers():
    with pytest.raises(ValueError, match="lengths must be integers"):
        selective_scan(**make_inputs(2, 5, 3, 2), lengths=torch.tensor([5.0, 2.0]))


def test_backend_names(monkeypatch):
    inputs = make_inputs(1, 2, 2, 2)
    with pytest.raises(ValueError, match=r"backend must be one of reference, chunked, .* got 'fast'"):
        selective_scan(**inputs, backend="fast")
    monkeypatch.setenv("HYMATE_SCAN_BACKEND", "wrong")
    with pytest.raises(ValueError, match="got 'wrong'"):
        selective_scan(**inputs)
    selective_scan(**inputs, backend="chunked")  # the argument wins over the environment
    monkeypatch.setenv("HYMATE_SCAN_BACKEND", "")
    assert scan_module.resolve_backend(inputs["u"]) == "chunked"  # float64 has no compiled kernel
    monkeypatch.setenv("HYMATE_SCAN_BACKEND", "reference")
    assert scan_module.resolve_backend(inputs["u"]) == "reference"


@pytest.fixture
def no_native(monkeypatch):
    monkeypatch.setattr(scan_module, "hymate_native", None)
    scan_module._find_native.cache_clear()
    yield
    scan_module._find_native.cache_clear()


@pytest.mark.usefixtures("no_native")
def test_missing_native_kernels_are_said_once(caplog):
    inputs = make_inputs(1, 2, 2, 2, torch.float32)
    with caplog.at_level(logging.WARNING):
        selective_scan(**inputs)
        selective_scan(**inputs)
    assert [record.getMessage() for record in caplog.records if "pip install hymate" in record.getMessage()]
    assert len(caplog.records) == 1
    with pytest.raises(ValueError, match=r"backend 'native' is not available: .*pip install hymate"):
        selective_scan(**inputs, backend="native")


class StandIn:
    """mamba-ssm's scan, with its signature, layout and checks, computed by our reference."""

    def __init__(self, error: Exception | None = None):
        self.error = error
        self.calls = []

    def selective_scan_fn(
        self, u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
    ):
        if self.error is not None:
            raise self.error
        self.calls.append(SimpleNamespace(u=u, delta_bias=delta_bias, delta=delta))
        batch, dim, length = u.shape
        state = A.shape[1]
        # what csrc/selective_scan.cpp asks for
        for tensor, shape in ((delta, (batch, dim, length)), (B, (batch, state, length)), (C, (batch, state, length))):
            assert tensor.shape == shape
            assert tensor.dtype == u.dtype
            assert tensor.stride(-1) == 1
        assert u.stride(-1) == 1
        assert z is None or (z.shape == u.shape and z.dtype == u.dtype and z.stride(-1) == 1)
        assert A.dtype == torch.float32
        assert all(tensor is None or tensor.dtype == torch.float32 for tensor in (D, delta_bias))
        step_first = (None if tensor is None else tensor.transpose(1, 2) for tensor in (u, delta, B, C, z))
        u, delta, B, C, z = step_first
        y, last_state = selective_scan(
            *(u, delta, A, B, C, D, z, delta_bias, delta_softplus), return_final_state=True, backend="reference"
        )
        y = y.transpose(1, 2)
        return (y, last_state.detach()) if return_last_state else y  # its last state carries no gradient


def forget_probes():
    for cached in (scan_module._find_triton, scan_module._problem, scan_module._mamba_ssm_scan):
        cached.cache_clear()


@pytest.fixture
def install(monkeypatch):
    """Puts a stand-in where `import mamba_ssm` finds it."""

    def put(stand_in):
        interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
        interface.selective_scan_fn = stand_in.selective_scan_fn
        ops = ModuleType("mamba_ssm.ops")
        ops.selective_scan_interface = interface
        for module in (ModuleType("mamba_ssm"), ops, interface):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        return stand_in

    forget_probes()
    yield put
    forget_probes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("without", [("initial_state",), OPTIONAL])
@pytest.mark.parametrize("padded", [True, False])
def test_mamba_ssm_equals_reference(install, dtype, softplus, without, padded):
    stand_in = install(StandIn())
    inputs = make_inputs(3, 6, 4, 2, dtype, without=without)
    if not softplus:
        inputs["delta"] = inputs["delta"].detach().abs() / 4
    options = {"delta_softplus": softplus, "lengths": torch.tensor([6, 0, 4]) if padded else None}

    def gradients(backend):
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
        output = selective_scan(**leaves, **options, backend=backend)
        found = torch.autograd.grad((output.double() * torch.arange(24).view(6, 4)).sum(), list(leaves.values()))
        return {"output": output} | dict(zip(leaves, found, strict=True))

    assert_close(gradients("mamba_ssm"), gradients("reference"), TOLERANCE[dtype])
    assert stand_in.calls[-1].u.shape == (3, 4, 6)  # (batch, inner, length)


def test_states_have_gradients_under_mamba_ssm(install):
    install(StandIn())
    inputs = make_inputs(2, 6, 4, 2, torch.float32)
    assert_close(results(inputs, backend="mamba_ssm"), results(inputs, backend="reference"), 2e-5)
    del inputs["initial_state"]
    assert_close(results(inputs, backend="mamba_ssm"), results(inputs, backend="reference"), 2e-5)


def on_device(device, dtype=torch.float32):
    return SimpleNamespace(device=torch.device(device), dtype=dtype)


@pytest.fixture
def triton_probe(monkeypatch):
    """Stands in for the probe of Triton; what it raises is `triton_probe.error`."""
    probe = SimpleNamespace(error=None, devices=[])

    def run(device):
        probe.devices.append(device.type)
        if probe.error is not None:
            raise probe.error

    monkeypatch.setitem(scan_module._PROBES, "triton", run)
    forget_probes()
    yield probe
    forget_probes()


@pytest.mark.usefixtures("no_native")
def test_backend_is_chosen_by_the_device_of_each_call(triton_probe):
    assert scan_module.resolve_backend(on_device("cuda")) == "triton"
    assert scan_module.resolve_backend(on_device("cpu")) == "chunked"
    assert scan_module.resolve_backend(on_device("cuda", torch.bfloat16)) == "triton"
    assert scan_module.resolve_backend(on_device("cuda", torch.float64)) == "chunked"
    assert scan_module.resolve_backend(on_device("xpu")) == "triton"
    assert scan_module.resolve_backend(on_device("mps")) == "chunked"
    assert triton_probe.devices == ["cuda", "xpu"]  # once each


@pytest.mark.usefixtures("no_native")
def test_triton_is_probed_by_a_call_and_its_failure_said_once(triton_probe, caplog):
    triton_probe.error = RuntimeError("Failed to find C compiler")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert scan_module.resolve_backend(on_device("cuda")) == "chunked"
    (message,) = [record.getMessage() for record in caplog.records]
    assert "RuntimeError: Failed to find C compiler" in message
    with pytest.raises(ValueError, match=r"backend 'triton' is not available on cuda: .*C compiler"):
        scan_module.resolve_backend(on_device("cuda"), "triton")


def test_triton_asked_for_on_a_cpu_says_why_not():
    forget_probes()
    with pytest.raises(ValueError, match=r"backend 'triton' is not available on cpu: \w+"):
        selective_scan(**make_inputs(1, 2, 2, 2, torch.float32), backend="triton")


def test_mamba_ssm_is_probed_by_a_call(install):
    # mamba-ssm's main branch: imports well, raises at the first call
    install(StandIn(RuntimeError("selective_scan_cuda is not built")))
    with pytest.raises(ValueError, match=r"backend 'mamba_ssm' is not available .*selective_scan_cuda is not built"):
        selective_scan(**make_inputs(1, 2, 2, 2, torch.float32), backend="mamba_ssm")


def test_mamba_ssm_comes_from_the_hub_where_the_package_is_missing(monkeypatch):
    """Through the package `kernels`, a stand-in here, whose kernel has the modules of mamba-ssm."""
    stand_in = StandIn()
    kernels = ModuleType("kernels")
    asked = []

    def get_kernel(repository, version):
        asked.append((repository, version))
        return SimpleNamespace(ops=SimpleNamespace(selective_scan_interface=stand_in))

    kernels.get_kernel = get_kernel
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    monkeypatch.setitem(sys.modules, "kernels", kernels)
    forget_probes()
    inputs = make_inputs(2, 6, 4, 2, torch.float32, without=("initial_state",))
    torch.testing.assert_close(
        selective_scan(**inputs, backend="mamba_ssm"), selective_scan(**inputs, backend="reference")
    )
    assert asked == [("kernels-community/mamba-ssm", 4)]
    assert stand_in.calls
    forget_probes()
    monkeypatch.setitem(sys.modules, "kernels", None)
    with pytest.raises(ValueError, match=r"backend 'mamba_ssm' is not available on cpu: .*kernels"):
        selective_scan(**inputs, backend="mamba_ssm")
    forget_probes()


def test_semantics_are_those_of_transformers_mamba():
    """Against the scan inside their mixer: what goes into it and comes out is caught in the layers around it."""
    torch.manual_seed(0)
    config = MambaConfig(hidden_size=20, state_size=4, num_hidden_layers=1)
    mixer = MambaMixer(config, layer_idx=0).requires_grad_(False)
    for parameter in mixer.parameters():
        parameter.normal_(std=0.3)
    caught = {}
    for name in ("in_proj", "x_proj", "out_proj"):
        mixer.get_submodule(name).register_forward_hook(
            lambda layer, inputs, output, name=name: caught.update({name: (inputs[0], output)})
        )
    cache = DynamicCache(config=config)
    cache.update_recurrent_state = lambda state, *index: caught.update(state=state)
    mixer(torch.randn(2, 10, 20), cache_params=cache)
    steps, B, C = caught["x_proj"][1].split([mixer.time_step_rank, 4, 4], dim=-1)
    ours, our_state = selective_scan(
        u=caught["x_proj"][0],
        delta=steps @ mixer.dt_proj.weight.T,
        A=-mixer.A_log.exp(),
        B=B,
        C=C,
        D=mixer.D,
        z=caught["in_proj"][1].chunk(2, dim=-1)[1],
        delta_bias=mixer.dt_proj.bias,
        return_final_state=True,
        backend="chunked",
    )
    torch.testing.assert_close(ours, caught["out_proj"][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(our_state, caught["state"], rtol=1e-5, atol=1e-5)
    assert F.softplus(torch.tensor(30.0)) == 30.0  # both leave large steps to the identity
