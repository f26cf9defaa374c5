"""What `benchmarks.gpu_check` measures on a GPU: each function yields the rows of one table as they are measured."""

import contextlib
import importlib.util
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer, MambaModel
from transformers.utils import ModelOutput

from benchmarks.kernels import scan_inputs
from hymate_training.data.device import on_device
from hymate_training.fitting.graphs import GraphedPasses
from modeling_hymate import HyMaTEConfig, HyMaTEForSequenceClassification, selective_scan
from modeling_hymate.mamba import HyMaTEMixer

Row = dict[str, object]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NUM_VARIABLES = 40

# batch, length, inner size, states
SCAN_SHAPES = {
    "large": (16, 4096, 1024, 16),
    "hospital": (32, 880, 128, 16),
    "one long record": (1, 65536, 128, 16),
    "many states": (16, 880, 128, 64),
}
TUNED_SHAPES = ("large", "hospital")
# steps, lanes, warps, stages
CANDIDATES = {
    "forward_tiles": (
        *((8, 16, 1, 2), (8, 16, 1, 3), (8, 16, 1, 4), (8, 8, 1, 3), (8, 8, 1, 4)),
        *((4, 16, 1, 4), (4, 32, 1, 3), (8, 32, 1, 3)),
    ),
    "backward_tile": (
        *((8, 8, 1, 1), (8, 8, 1, 2), (8, 8, 1, 3), (8, 8, 1, 4), (8, 8, 2, 2), (8, 16, 1, 2)),
        *((8, 16, 2, 3), (8, 32, 2, 2), (8, 32, 4, 3)),
    ),
}
# warps a multiprocessor is given, shortest segment
CUTS = ((8, 256), (16, 256), (16, 128), (16, 64), (32, 128), (32, 64))
# hidden size, length, batch, in the order of how much is learned from each
MODEL_SHAPES = (
    *((64, 880, 32), (64, 880, 512), (256, 2048, 32), (1024, 4096, 8), (32, 512, 8), (64, 65536, 8), (64, 4096, 128)),
    *((1024, 512, 64), (256, 16384, 8), (256, 65536, 8), (32, 512, 512), (1024, 16384, 8)),
)
TINY = {"scan": {"tiny": (1, 18, 5, 2)}, "mixer": (8, 18, 2), "models": ((8, 18, 2),), "losses": (8, 2, 2, 12)}


def seconds(call: Callable[[], object], device: torch.device, budget: float = 0.3) -> float:
    """Median of one call: device time between two events on a GPU, where the second-level cache is cleared before
    each, after two calls for what is compiled and allocated once; wall time of one call elsewhere."""
    if device.type == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    cache = torch.empty(2**28, dtype=torch.int8, device=device)  # larger than any second-level cache
    for _ in range(2):
        call()
    times: list[float] = []
    started = time.monotonic()
    while len(times) < 3 or (time.monotonic() - started < budget and len(times) < 100):
        cache.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


def peak_megabytes(call: Callable[[], object], device: torch.device) -> float | None:
    """Memory that `call` allocates at most beyond what is allocated before it; None on a CPU."""
    if device.type == "cpu":
        return None
    call()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def limits(device: torch.device, tiny: bool) -> Iterator[Row]:
    """Bytes per second of a copy, read and written, and the machine in words."""
    source = torch.rand(2**10 if tiny else 2**28, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.nbytes
    name = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    yield {
        "device": name,
        "terabytes_per_second": moved / seconds(lambda: target.copy_(source), device) / 1e12,
        **{package: _version(package) for package in ("torch", "triton", "transformers", "mamba_ssm")},
    }


def _version(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return None
    return importlib.import_module(package).__version__


def _dtypes(tiny: bool) -> list[tuple[str, torch.dtype]]:
    return list(DTYPES.items())[: 1 if tiny else None]


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Runs what is inside with one backend of the scan, by name."""
    before = os.environ.get("HYMATE_SCAN_BACKEND", "")
    os.environ["HYMATE_SCAN_BACKEND"] = name
    try:
        yield
    finally:
        os.environ["HYMATE_SCAN_BACKEND"] = before


def moved_bytes(shape: tuple[int, int, int, int], element: int) -> tuple[int, int]:
    """Bytes that a scan reads and writes at least: forward alone, and the two passes of training."""
    batch, length, inner, state = shape
    rows, weights = batch * length * inner * element, batch * length * state * element
    kept = batch * length * inner * state * 4 // 16
    forward = 4 * rows + 2 * weights
    return forward, forward + kept + (7 * rows + 4 * weights + kept)


def inputs_on(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    kept = ("A", "D", "delta_bias")
    return {
        name: tensor.to(device, torch.float32 if name in kept else dtype)
        for name, tensor in scan_inputs(shape).items()
    }


def both_passes(run: Callable[..., Tensor], inputs: dict[str, Tensor]) -> Callable[[], object]:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    weight = torch.randn_like(inputs["u"])
    return lambda: torch.autograd.grad(run(**leaves), list(leaves.values()), weight)


def scans(device: torch.device, tiny: bool, bandwidth: float) -> Iterator[Row]:
    """The scan against the memory's limit, and against its peers where they can be run."""
    names = ["triton"] + (["mamba_ssm"] if importlib.util.find_spec("mamba_ssm") else [])
    for shape_name, shape in (TINY["scan"] if tiny else SCAN_SHAPES).items():
        for dtype_name, dtype in _dtypes(tiny):
            inputs = inputs_on(shape, dtype, device)
            limit = [moved / bandwidth for moved in moved_bytes(shape, dtype.itemsize)]
            for name in names + (["chunked"] if shape_name in ("hospital", "tiny") else []):

                def run(name=name, **arguments: Tensor) -> Tensor:
                    return selective_scan(**arguments, backend=name)  # type: ignore[return-value]  # no final state is asked for

                with torch.no_grad():
                    forward = seconds(lambda run=run, inputs=inputs: run(**inputs), device)
                training = both_passes(run, inputs)
                both = seconds(training, device)
                yield {
                    **{"shape": shape_name, "dtype": dtype_name, "scan": name},
                    **{"forward_ms": 1e3 * forward, "both_ms": 1e3 * both},
                    **{"forward_share_of_limit": limit[0] / forward, "both_share_of_limit": limit[1] / both},
                    "exponentials_per_second": math.prod(shape) / forward,
                    "peak_megabytes": peak_megabytes(training, device),
                }


@contextlib.contextmanager
def tile(choice: str, option: tuple[int, ...]) -> Iterator[None]:
    """Runs what is inside with one tile in place of the one that would be chosen."""
    from modeling_hymate import triton_launch  # noqa: PLC0415 - needs Triton

    before, chosen = getattr(triton_launch, choice), triton_launch.Tile(*option)
    setattr(triton_launch, choice, lambda _: (chosen, chosen) if choice == "forward_tiles" else chosen)
    try:
        yield
    finally:
        setattr(triton_launch, choice, before)


def compile_kernels(device: torch.device, part: int, parts: int) -> None:
    """Has Triton compile one of `parts` shares of what `scans` and `tiles` run: what it keeps on disk serves the
    processes after this one. The batch is small, and inner size and states are theirs, for which kernels are
    compiled."""
    cases = [(shape, dtype, None) for shape in SCAN_SHAPES.values() for dtype in DTYPES.values()]
    for choice, options in CANDIDATES.items():
        for shape in (SCAN_SHAPES[name] for name in TUNED_SHAPES):
            cases += [(shape, dtype, (choice, option)) for dtype in DTYPES.values() for option in options]
    for (batch, length, inner, state), dtype, chosen in cases[part::parts]:
        training = both_passes(
            lambda **leaves: selective_scan(**leaves, backend="triton"),
            inputs_on((batch, min(length, 1024), inner, state), dtype, device),
        )
        with tile(*chosen) if chosen else contextlib.nullcontext():
            training()


def tiles(device: torch.device, tiny: bool) -> Iterator[Row]:
    """Every tile in place of the one that is chosen: what to choose on this card."""
    shapes = TINY["scan"] if tiny else {name: SCAN_SHAPES[name] for name in TUNED_SHAPES}
    for shape_name, shape in shapes.items():
        for dtype_name, dtype in _dtypes(tiny):
            inputs = inputs_on(shape, dtype, device)

            def forward(inputs=inputs):
                with torch.no_grad():
                    selective_scan(**inputs, backend="triton")

            training = both_passes(lambda **leaves: selective_scan(**leaves, backend="triton"), inputs)
            for choice, options in CANDIDATES.items():
                call = forward if choice == "forward_tiles" else training
                for option in options[:1] if tiny else options:
                    with tile(choice, option):
                        spent = seconds(call, device, budget=0.1)
                    measured = "forward" if call is forward else "forward and backward"
                    place = {"shape": shape_name, "dtype": dtype_name, "pass": measured}
                    yield {**place, "steps, lanes, warps, stages": str(option), "ms": 1e3 * spent}


def cuts(device: torch.device, tiny: bool) -> Iterator[Row]:
    """Into how many segments to cut time, for shapes with few channels: the tiles as they are chosen."""
    from modeling_hymate import triton_launch  # noqa: PLC0415 - needs Triton

    dtype = torch.float32
    for shape_name, shape in (TINY["scan"] if tiny else SCAN_SHAPES).items():
        inputs = inputs_on(shape, dtype, device)

        def forward(inputs=inputs):
            with torch.no_grad():
                selective_scan(**inputs, backend="triton")

        training = both_passes(lambda **leaves: selective_scan(**leaves, backend="triton"), inputs)
        before = triton_launch.WARPS_PER_MULTIPROCESSOR, triton_launch.SHORTEST_SEGMENT
        for warps, shortest in CUTS[: 1 if tiny else None]:
            triton_launch.WARPS_PER_MULTIPROCESSOR, triton_launch.SHORTEST_SEGMENT = warps, shortest
            spent = [seconds(call, device, budget=0.1) for call in (forward, training)]
            place = {"shape": shape_name, "warps": warps, "shortest": shortest}
            yield place | {"forward_ms": 1e3 * spent[0], "both_ms": 1e3 * spent[1]}
        triton_launch.WARPS_PER_MULTIPROCESSOR, triton_launch.SHORTEST_SEGMENT = before


def mixers(device: torch.device, tiny: bool) -> Iterator[Row]:
    """The layer around the scan, against transformers' in plain PyTorch."""
    hidden, length, batch = TINY["mixer"] if tiny else (64, 880, 32)
    torch.manual_seed(0)
    ours = HyMaTEMixer(HyMaTEConfig(num_variables=NUM_VARIABLES, hidden_size=hidden)).to(device)
    ours.init_weights()
    theirs = MambaMixer(MambaConfig(hidden_size=hidden, num_hidden_layers=1, use_associative_scan=False), 0).to(device)
    lengths = torch.full((batch,), length, device=device)
    cases = {
        "triton": lambda rows: ours(rows, lengths),
        "chunked": lambda rows: ours(rows, lengths),
        "transformers": theirs,
    }
    for name, run in cases.items():
        for dtype_name, dtype in _dtypes(tiny):
            rows = torch.randn(batch, length, hidden, device=device).requires_grad_()

            def both(run=run, rows=rows, dtype=dtype):
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    run(rows).float().square().sum().backward()

            with backend(name if name != "transformers" else "chunked"):
                spent = seconds(both, device)
                peak = peak_megabytes(both, device)
            yield {"layer": name, "dtype": dtype_name, "both_ms": 1e3 * spent, "peak_megabytes": peak}


class TransformersCase(torch.nn.Module):
    """transformers' MambaModel, as many layers as a HyMaTE of the defaults, on embedded events. In plain PyTorch,
    unless causal_conv1d and mamba_ssm are installed."""

    def __init__(self, hidden: int):
        super().__init__()
        config = MambaConfig(
            vocab_size=NUM_VARIABLES, hidden_size=hidden, num_hidden_layers=3, use_associative_scan=False
        )
        self.model = MambaModel(config)
        self.hidden = hidden

    def forward(self, values: Tensor, **others: Tensor) -> ModelOutput:
        states = self.model(inputs_embeds=values.unsqueeze(-1).expand(-1, -1, self.hidden), use_cache=False)
        return ModelOutput(loss=states.last_hidden_state[:, -1].float().square().mean())


def classifier(hidden: int) -> HyMaTEForSequenceClassification:
    """A classifier of the defaults."""
    return HyMaTEForSequenceClassification(HyMaTEConfig(num_variables=NUM_VARIABLES, hidden_size=hidden, num_labels=2))


def random_events(batch: int, length: int, device: torch.device) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    events = {
        "values": torch.randn(batch, length, generator=generator),
        "times": torch.rand(batch, length, generator=generator),
        "variable_ids": torch.randint(NUM_VARIABLES, (batch, length), generator=generator),
        "labels": torch.randint(2, (batch,), generator=generator),
    }
    return on_device(events, device) | {"max_channels": NUM_VARIABLES}


def models(device: torch.device, tiny: bool) -> Iterator[Row]:
    """Training steps of whole models under bfloat16 autocast, optimizer included."""
    shapes = TINY["models"] if tiny else MODEL_SHAPES
    cases = [("HyMaTE", shape) for shape in shapes]
    cases[1:1] = (
        [("transformers", shapes[0])] if tiny else [("transformers", shapes[0]), ("HyMaTE, CUDA graph", shapes[0])]
    )
    for name, (hidden, length, batch) in cases:
        place = {"model": name, "hidden": hidden, "length": length, "batch": batch}
        try:
            model = (TransformersCase if name == "transformers" else classifier)(hidden).to(device)
            yield place | _training_speed(model, batch, length, device, graphed="graph" in name)
        except torch.OutOfMemoryError:
            yield place | {"note": "out of memory"}
        if device.type != "cpu":
            torch.cuda.empty_cache()


def _training_speed(
    model: torch.nn.Module, batch: int, length: int, device: torch.device, graphed: bool = False
) -> Row:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=device.type != "cpu")
    run = training_pass(model, device, torch.bfloat16)
    events = random_events(batch, length, torch.device("cpu") if graphed else device)
    run = GraphedPasses(run, device) if graphed else run

    def step():
        run(events, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=not graphed)

    spent = seconds(step, device, budget=1.0)
    return {
        "steps_per_second": 1 / spent,
        "events_per_second": batch * length / spent,
        "peak_megabytes": peak_megabytes(step, device),
    }


def losses(device: torch.device, tiny: bool) -> Iterator[Row]:
    """Loss curves from equal starts: on the CPU in float32, and here in float32 and bfloat16."""
    hidden, steps, batch, length = TINY["losses"] if tiny else (32, 40, 16, 200)
    torch.backends.cudnn.allow_tf32 = False
    curves: dict[str, list[float]] = {}
    for name, where, dtype in (
        ("CPU float32", torch.device("cpu"), torch.float32),
        ("float32", device, torch.float32),
        ("float32, CUDA graph", device, torch.float32),
        ("bfloat16", device, torch.bfloat16),
    ):
        if "graph" in name and device.type == "cpu":
            continue
        torch.manual_seed(0)
        config = HyMaTEConfig(
            num_variables=NUM_VARIABLES, num_labels=2, hidden_size=hidden, hidden_dropout=0.0, attention_dropout=0.0
        )
        model = HyMaTEForSequenceClassification(config).to(where)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        run = training_pass(model, where, dtype)
        events = random_events(batch, length, torch.device("cpu") if "graph" in name else where)
        run = GraphedPasses(run, where) if "graph" in name else run
        curve = []
        with backend("triton" if name != "CPU float32" else "chunked"):
            for _ in range(steps):
                curve.append(float(run(events, 1.0)))
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)
        curves[name] = curve
        furthest = max(abs(a - b) for a, b in zip(curve, curves["CPU float32"], strict=True))
        allowed = {"CPU float32": 0.0, "bfloat16": 5e-2}.get(name, 1e-3)
        yield {
            **{"run": name, "first_loss": curve[0], "last_loss": curve[-1]},
            **{"largest_difference": furthest, "allowed": allowed, "passed": furthest <= allowed},
        }


def training_pass(model: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    """Forward and backward in the data type, as `GraphedPasses` wants them."""

    def run(arguments, weight):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = model(**arguments).loss * weight
        loss.backward()
        return loss.detach()

    return run
