"""The selective scan and the Mamba layer against their peers, and against the machine's own limits."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from benchmarks.measure import extra_megabytes, median_seconds
from modeling_hymate import HyMaTEConfig, selective_scan
from modeling_hymate.mamba import HyMaTEMixer

# batch, length, inner size, states
SHAPES = {
    "S1": (16, 880, 64, 16),
    "S2": (16, 880, 128, 16),
    "S3": (4, 4096, 128, 16),
    "S4": (1, 32768, 128, 16),
    "S5": (16, 880, 64, 64),
}


def machine_limits() -> dict[str, float] | None:
    """Exponentials and bytes per second that this machine reaches at most, on as many threads as PyTorch uses; None
    without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "limits")
        source = str(Path(__file__).with_name("limits.c"))
        flags = ["-O3", "-march=native", "-ffast-math", "-mprefer-vector-width=512", "-fopenmp"]
        built = subprocess.run([compiler, *flags, source, "-o", program, "-lm"], capture_output=True, check=False)
        if built.returncode:
            return None
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        printed = subprocess.run([program], capture_output=True, text=True, check=True, env=environment).stdout
    exponentials, moved = map(float, printed.split())
    return {"exponentials_per_second": exponentials, "bytes_per_second": moved}


def scan_inputs(shape: tuple[int, int, int, int]) -> dict[str, Tensor]:
    batch, length, inner, state = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    return {
        "u": normal(batch, length, inner),
        "delta": normal(batch, length, inner) - 2,
        "A": -torch.rand(inner, state, generator=generator) * 8,
        "B": normal(batch, length, state),
        "C": normal(batch, length, state),
        "D": normal(inner),
        "z": normal(batch, length, inner),
        "delta_bias": normal(inner) * 0.1,
    }


def mambapy_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, delta_bias: Tensor
) -> Tensor:
    """mambapy's parallel scan with softplus, bias, skip and gate, as its Mamba block calls it."""
    from mambapy.pscan import pscan  # noqa: PLC0415 - a peer, which not every machine has that measures our kernels

    delta = F.softplus(delta + delta_bias)
    decay = torch.exp(delta.unsqueeze(-1) * A)
    entered = (delta * u).unsqueeze(-1) * B.unsqueeze(2)
    states = pscan(decay, entered)
    return ((states @ C.unsqueeze(-1)).squeeze(-1) + D * u) * F.silu(z)


def ours(backend: str) -> Callable[..., Tensor]:
    def scan(**inputs: Tensor) -> Tensor:
        return selective_scan(**inputs, backend=backend)  # type: ignore[return-value]  # no final state is asked for

    return scan


def measure(
    run: Callable[..., Tensor], inputs: dict[str, Tensor], full: bool, budget: float
) -> dict[str, float | None]:
    """Median seconds forward and forward+backward, and the extra megabytes of the latter.

    Without `full`, the backward pass of what is known to take a minute, transformers' loop, is left out.
    """
    with torch.no_grad():
        forward = median_seconds(lambda: run(**inputs), budget)
    if getattr(run, "slow_backward", False) and not full:
        return {"forward": forward, "both": None, "megabytes": None}
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    weight = torch.randn_like(inputs[next(iter(inputs))])
    parameters = list(run.parameters()) if isinstance(run, torch.nn.Module) else []

    def both():
        torch.autograd.grad(run(**leaves), [*leaves.values(), *parameters], weight)

    megabytes = extra_megabytes(both)
    return {"forward": forward, "both": median_seconds(both, budget), "megabytes": megabytes}


def scan_table(shapes: dict, full: bool, budget: float) -> list[dict]:
    """One row per shape and contestant; seconds, megabytes."""
    contestants = {
        "mambapy": mambapy_scan,
        "reference": ours("reference"),
        "chunked": ours("chunked"),
        "native": ours("native"),
    }
    rows = []
    for name, shape in shapes.items():
        inputs = scan_inputs(shape)
        for contestant, run in contestants.items():
            rows.append({"shape": name, "scan": contestant, **measure(run, inputs, full, budget)})
    return rows


class MixerCase(torch.nn.Module):
    """A Mamba layer called with hidden states alone."""

    def __init__(self, mixer: torch.nn.Module, backend: str | None = None, slow_backward: bool = False):
        super().__init__()
        self.mixer = mixer
        self.backend = backend
        self.slow_backward = slow_backward

    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.backend is None:
            return self.mixer(hidden_states)
        before = os.environ.get("HYMATE_SCAN_BACKEND", "")
        os.environ["HYMATE_SCAN_BACKEND"] = self.backend
        try:
            lengths = torch.full((len(hidden_states),), hidden_states.shape[1])
            return self.mixer(hidden_states, lengths)
        finally:
            os.environ["HYMATE_SCAN_BACKEND"] = before


def mixer_table(full: bool, budget: float) -> list[dict]:
    """The layer around the scan: hidden 64, inner 128, state 16, batch 16, length 880."""
    torch.manual_seed(0)
    mixer = HyMaTEMixer(HyMaTEConfig(hidden_size=64))
    mixer.init_weights()
    peer = {"hidden_size": 64, "num_hidden_layers": 1, "state_size": 16, "use_associative_scan": False}
    cases = {
        "transformers": MixerCase(MambaMixer(MambaConfig(**peer), 0), slow_backward=True),
        "transformers with mambapy": MixerCase(MambaMixer(MambaConfig(**peer, use_mambapy=True), 0).train()),
        "chunked": MixerCase(mixer, "chunked"),
        "native": MixerCase(mixer, "native"),
    }
    inputs = {"hidden_states": torch.randn(16, 880, 64)}
    return [{"mixer": name, **measure(case, inputs, full, budget)} for name, case in cases.items()]
