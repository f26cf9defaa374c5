"""The native kernels inside PyTorch and Python: compiling, exporting, forking, threads, missing builds, installing."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch.export import Dim

import hymate_native
from hymate_native import library
from modeling_hymate import scan as scan_module

ROOT = Path(__file__).resolve().parents[2]

needs_kernels = pytest.mark.skipif(not hymate_native.runnable_builds(), reason="no C++ compiler built the kernels")


class Mixer(torch.nn.Module):
    """The three operators in one module."""

    def __init__(self, inner=6, state=3, rank=2):
        super().__init__()
        torch.manual_seed(0)
        parameter = torch.nn.Parameter
        self.conv_weight = parameter(torch.randn(inner, 1, 4))
        self.conv_bias = parameter(torch.randn(inner))
        self.x_proj_weight = parameter(torch.randn(rank + 2 * state, inner) / 3)
        self.dt_proj_weight = parameter(torch.randn(inner, rank))
        self.dt_proj_bias = parameter(torch.randn(inner))
        self.A_log = parameter(torch.randn(inner, state))
        self.D = parameter(torch.randn(inner))

    def forward(self, projected_states, lengths):
        A = -self.A_log.exp()
        block = hymate_native.mamba_mixer(
            *(projected_states, self.conv_weight, self.conv_bias, self.x_proj_weight, self.dt_proj_weight),
            *(self.dt_proj_bias, A, self.D, lengths),
        )
        x, gate = projected_states.chunk(2, -1)
        x = hymate_native.causal_conv1d(x, self.conv_weight.squeeze(1), self.conv_bias, lengths=lengths)
        B, C = x[..., :3], x[..., 3:]
        scan, final = hymate_native.selective_scan(
            x, block, A, B, C, self.D, gate, self.dt_proj_bias, lengths=lengths, return_final_state=True
        )
        return scan + final.sum()


@pytest.fixture
def mixer_and_inputs():
    return Mixer(), (torch.randn(3, 20, 12, generator=torch.Generator().manual_seed(1)), torch.tensor([20, 4, 0]))


@needs_kernels
def test_compiles_without_a_graph_break(mixer_and_inputs):
    mixer, (states, lengths) = mixer_and_inputs
    states.requires_grad_()
    eager = mixer(states, lengths)
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")(states, lengths)
    torch.testing.assert_close(compiled, eager)
    parameters = [states, *mixer.parameters()]
    for found, expected in zip(
        torch.autograd.grad(compiled.sin().sum(), parameters),
        torch.autograd.grad(eager.sin().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


@needs_kernels
def test_exports_with_a_free_batch_and_length(mixer_and_inputs):
    mixer, inputs = mixer_and_inputs
    batch, length = Dim("batch", min=2, max=64), Dim("length", min=2, max=4096)
    program = torch.export.export(mixer, inputs, dynamic_shapes=({0: batch, 1: length}, {0: batch}))
    for other in (inputs, (torch.randn(5, 33, 12), torch.tensor([33, 1, 2, 0, 30]))):
        torch.testing.assert_close(program.module()(*other), mixer(*other))


@needs_kernels
@pytest.mark.parametrize("given", [True, False])
def test_operators_keep_pytorchs_rules(given):
    def normal(*shape):
        return torch.randn(*shape, requires_grad=True)

    optional = {
        "D": normal(5) if given else None,
        "z": normal(2, 7, 5) if given else None,
        "bias": normal(5) if given else None,
        "lengths": torch.tensor([7, 3]) if given else None,
        "initial": normal(2, 5, 3) if given else None,
    }
    A = (-torch.rand(5, 3)).requires_grad_()
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    scan = (normal(2, 7, 5), normal(2, 7, 5), A, normal(2, 7, 3), normal(2, 7, 3), optional["D"], optional["z"])
    scan += (optional["bias"], True, optional["lengths"], optional["initial"], given, True)
    torch.library.opcheck(torch.ops.hymate.scan.default, scan, test_utils=tests)
    convolution = (normal(2, 7, 5), normal(5, 4), optional["bias"], given, optional["lengths"])
    torch.library.opcheck(torch.ops.hymate.causal_conv1d.default, convolution, test_utils=tests)
    into, out = ((normal(10, 6), normal(10)), (normal(6, 5), normal(6))) if given else ((None, None), (None, None))
    mixer = (normal(2, 7, 6 if given else 10), *into, normal(5, 4), optional["bias"], normal(8, 5), normal(5, 2))
    residual = (normal(6), torch.rand(2, 6)) if given else (None, None)
    mixer += (optional["bias"], A, normal(5), *out, *residual, optional["lengths"], 1e-5)
    torch.library.opcheck(torch.ops.hymate.mamba_mixer.default, (*mixer, True), test_utils=tests)
    stream = [tensor.detach() if torch.is_tensor(tensor) else tensor for tensor in mixer]
    stream += [torch.randn(2, 5, 3), torch.randn(2, 5, 3)] if given else [None, None]
    torch.library.opcheck(torch.ops.hymate.mamba_mixer_stream.default, tuple(stream), test_utils=tests)


def channel_operators():
    """An operator and its arguments, for each of those on events, channels and tokens."""

    def normal(*shape):
        return torch.randn(*shape, requires_grad=True)

    def positive(*shape):
        return torch.rand(*shape).sort(-1).values

    lengths, ids = torch.tensor([7, 3]), torch.randint(4, (2, 7))
    numbers = (normal(3), normal(3), normal(6, 3))
    events = (torch.randn(2, 7), positive(2, 7), ids, torch.rand(2, 7) < 0.5, lengths)
    yield "event_embedding", (*events, normal(4, 6), normal(4, 6), *numbers, *numbers, normal(6), torch.rand(2, 6))
    yield (
        "pooling_projection",
        (normal(2, 7, 6), lengths, normal(6), normal(2, 6), normal(6, 6), normal(6), 1e-5, 10.0),
    )
    projection = (torch.randn(2, 7, 6), lengths, torch.randn(6), torch.randn(2, 6), torch.randn(6, 6), torch.randn(6))
    slots = ids.masked_fill(torch.arange(7) >= lengths.unsqueeze(1), -1)
    pooled = (torch.randn(2, 7), positive(2, 7), torch.rand(2, 7) < 0.5, slots, positive(2, 3), 4, [0.5])
    yield "pooled_states", (*projection, 1e-5, 10.0, *pooled)
    yield "arrange_events", (*events[:3], torch.rand(2, 7) < 0.7, events[3], 4)
    running = (normal(2, 7, 6), normal(2, 7, 2), torch.randn(2, 7), positive(2, 7), torch.rand(2, 7) < 0.5, slots)
    yield "running_quantities", (*running, positive(2, 3), 4, [0.5])
    sums = (torch.rand(2, 3, 4), torch.rand(2, 3, 4, 2), torch.randn(2, 7, 2))
    yield "event_weights", (*sums, positive(2, 7), slots, positive(2, 3))
    memory = (torch.zeros(2, 4, 8), torch.zeros(2, 4, 16, dtype=torch.float64))
    further = (torch.randn(2, 7, 6), torch.randn(2, 7, 2), *running[2:5], ids, lengths)
    yield "remember_channels", (*memory, *further, [0.5])
    yield "recall_channels", (*memory, positive(2), torch.randint(-1, 4, (2, 3)), 2, [0.5])
    yield "channel_statistics", (torch.randn(2, 3, 4, 15), 64.0)
    cells = torch.rand(2, 3, 4) < 0.7
    statistics = (torch.randn(2, 3, 4, 5), torch.rand(2, 3, 4, 5) < 0.7, torch.randint(4, (2, 4)))
    yield "channel_tokens", (normal(2, 3, 4, 6), cells, *statistics, normal(4, 6), normal(60, 6), 2)
    tokens, mask = normal(5, 4, 6), torch.rand(5, 4) < 0.7
    projections = [normal(*size) for _ in range(4) for size in ((6, 6), (6,))]
    weights = [normal(6), *projections, normal(6), normal(8, 6), normal(8), normal(6, 8), normal(6)]
    yield "attention_layer", (tokens, mask, weights, 2, 1e-5, 0.1, 0.2, torch.tensor(7))
    yield "fusion_attention", (tokens, mask, normal(6), normal(6, 6), normal(6), normal(6), 1e-5)


@needs_kernels
@pytest.mark.parametrize(
    ("name", "arguments"), list(channel_operators()), ids=lambda item: item if isinstance(item, str) else ""
)
def test_channel_operators_keep_pytorchs_rules(name, arguments):
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(getattr(torch.ops.hymate, name).default, arguments, test_utils=tests)


# ------------------------------------------------------------------------------------- processes, threads


def run_python(code, timeout=120, **environment):
    """Runs `code` in a fresh process; what it prints. A hang fails the test."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=True,
        cwd=ROOT,
        env=os.environ | environment,
    ).stdout


@needs_kernels
def test_a_forked_data_loader_worker_neither_hangs_nor_crashes():
    printed = run_python(
        """
        import torch
        from torch.utils.data import DataLoader, Dataset
        import hymate_native

        torch.set_num_threads(2)
        row = torch.randn(4, 40, 32, generator=torch.Generator().manual_seed(0))
        A = -torch.rand(32, 4)

        def scan():
            return hymate_native.selective_scan(row, row, A, row[..., :4], row[..., 4:8])

        class Scans(Dataset):
            def __len__(self):
                return 4

            def __getitem__(self, index):
                torch.set_num_threads(2)  # as a careless data set might
                return scan()

        expected = scan()  # the parent's OpenMP threads now exist
        for batch in DataLoader(Scans(), num_workers=2, multiprocessing_context="fork", timeout=60):
            assert torch.equal(batch[0], expected)
        print("done")
        """
    )
    assert printed == "done\n"


@needs_kernels
def test_only_pytorchs_openmp_is_in_the_process():
    printed = run_python(
        """
        import hymate_native, torch
        assert hymate_native.is_available()
        mapped = {line.split()[-1] for line in open("/proc/self/maps") if "gomp" in line or "libomp" in line}
        print(*mapped, sep="\\n")
        """
    )
    assert len(printed.split()) == 1


def test_threads_follow_pytorch_except_in_a_forked_child(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert library.threads() == 3
        monkeypatch.setattr(library, "_process", os.getpid() + 1)
        assert library.threads() == 1
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------ missing builds


@pytest.fixture
def builds_in(monkeypatch):
    """`builds_in(folder)` looks for the builds in that folder only."""

    def clear():
        for cached in (library._open, library._choose, library.runnable_builds):
            cached.cache_clear()

    def look(folder):
        monkeypatch.setattr(library, "_path", lambda build: folder / f"kernels-{build}.so")
        monkeypatch.delenv("HYMATE_NATIVE_ISA", raising=False)
        clear()

    yield look
    monkeypatch.undo()
    clear()


def test_without_builds_the_reason_says_how_to_get_them(builds_in, tmp_path):
    builds_in(tmp_path)
    assert not hymate_native.is_available()
    assert "C++ compiler" in hymate_native.unavailable_reason()
    assert "Install hymate again" in hymate_native.unavailable_reason()
    rows = torch.zeros(1, 2, 3)
    with pytest.raises(RuntimeError, match="Install a C\\+\\+ compiler"):
        hymate_native.selective_scan(rows, rows, torch.zeros(3, 1), rows[..., :1], rows[..., :1])


def test_a_build_for_another_machine_is_named(builds_in, tmp_path):
    (tmp_path / "kernels-portable.so").write_text("not a library")
    builds_in(tmp_path)
    assert not hymate_native.is_available()
    assert "do not load" in hymate_native.unavailable_reason()


def doctored(build, old, new):
    content = library._path(build).read_bytes()
    assert content.count(old)
    return content.replace(old, new)


@needs_kernels
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"ScanArguments.initial", b"ScanArguments.iritial", "ScanArguments.initial is absent there, 208 here"),
        (b"hymate_interface", b"hymate_unterface", "it has no function hymate_interface"),
    ],
)
def test_a_library_of_another_version_is_refused(builds_in, tmp_path, old, new, message):
    """One whose structures or functions are others than Python's would read wrong memory."""
    (tmp_path / "kernels-portable.so").write_bytes(doctored("portable", old, new))
    builds_in(tmp_path)
    assert hymate_native.runnable_builds() == ()
    assert message in hymate_native.unavailable_reason()
    assert "Install hymate again" in hymate_native.unavailable_reason()
    assert "\n" not in hymate_native.unavailable_reason()


@needs_kernels
def test_with_kernels_of_another_version_the_model_runs_on_pytorch_and_says_so_once(builds_in, tmp_path, caplog):
    stale = doctored("portable", b"MixerArguments.states", b"MixerArguments.stages")
    (tmp_path / "kernels-portable.so").write_bytes(stale)
    builds_in(tmp_path)
    scan_module._find_native.cache_clear()
    with caplog.at_level("WARNING"):
        assert [scan_module.resolve_backend(torch.zeros(1, 2, 3)) for _ in range(2)] == ["chunked", "chunked"]
    scan_module._find_native.cache_clear()
    (record,) = caplog.records
    assert "MixerArguments.states is absent there" in record.getMessage()
    assert "\n" not in record.getMessage()


@needs_kernels
def test_a_stale_build_among_fresh_ones_is_left_aside_with_a_warning(builds_in, tmp_path, caplog):
    best, *others = (build for build in hymate_native.runnable_builds())
    if not others:
        pytest.skip("only one build runs here")
    for build in others:
        (tmp_path / f"kernels-{build}.so").write_bytes(library._path(build).read_bytes())
    stale = doctored(best, b"ConvolutionArguments.silu", b"ConvolutionArguments.tanh")
    (tmp_path / f"kernels-{best}.so").write_bytes(stale)
    builds_in(tmp_path)
    with caplog.at_level("WARNING", logger="hymate_native"):
        assert hymate_native.runnable_builds() == tuple(others)
    (record,) = caplog.records
    assert f"kernels-{best}.so" in record.getMessage()
    assert "ConvolutionArguments.silu is absent there" in record.getMessage()


@needs_kernels
def test_a_build_that_does_not_exist_cannot_be_asked_for(monkeypatch):
    monkeypatch.setenv("HYMATE_NATIVE_ISA", "z80")
    with pytest.raises(ValueError, match=r"HYMATE_NATIVE_ISA is 'z80', but the builds that run here are: .*portable"):
        hymate_native.is_available()


@needs_kernels
def test_there_is_nothing_to_explain_where_the_kernels_run():
    assert hymate_native.unavailable_reason() is None
    assert hymate_native.selected_build() == hymate_native.runnable_builds()[0]


# ------------------------------------------------------------------------------------------------ installing


def test_without_a_compiler_the_wheel_builds_pure_and_says_so(tmp_path):
    built = subprocess.run(
        [
            *(
                sys.executable,
                "setup.py",
                "egg_info",
                "--egg-base",
                tmp_path,
                "build",
                "--build-base",
                tmp_path / "build",
            ),
            *("bdist_wheel", "--bdist-dir", tmp_path / "wheel", "--dist-dir", tmp_path / "dist"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=ROOT,
        env=os.environ | {"CC": "no-such-compiler", "CXX": "no-such-compiler"},
    )
    assert "install a C++ compiler and install hymate again" in built.stdout + built.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
