"""The selective scan of Mamba (Gu and Dao, arXiv 2312.00752, algorithm 2): one signature, several backends.

`selective_scan` picks a backend for every call by the device and data type of its tensors:

- `"reference"`: plain PyTorch, any floating data type, any order of derivatives. What the others are tested against.
- `"chunked"`: PyTorch with its own backward pass; holds the state of one chunk of time steps at a time.
- `"native"`: compiled CPU kernels, where the package `hymate_native` is there and built.
- `"triton"`: our GPU kernels in Triton, where it works: GPUs of NVIDIA's; untested on AMD's and Intel's.
- `"mamba_ssm"`: the CUDA kernels of mamba-ssm, by name only: from that package or, through `kernels`, from the Hub.
"""

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from transformers.utils import logging

try:
    import hymate_native
except ImportError:
    hymate_native = None  # type: ignore[assignment]  # an optional package

logger = logging.get_logger(__name__)

CHUNK_SIZE = 32
GPUS = ("cuda", "xpu")  # "cuda" is also what PyTorch calls AMD's
NATIVE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def selective_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    delta_bias: torch.Tensor | None = None,
    delta_softplus: bool = True,
    lengths: torch.Tensor | None = None,
    initial_state: torch.Tensor | None = None,
    return_final_state: bool = False,
    backend: str | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    r"""Runs the input-dependent linear recurrence of a Mamba layer over time.

    With `delta' = softplus(delta + delta_bias)`, for every batch row, inner channel and time step t:
    `h_t = exp(delta'_t A) h_{t-1} + delta'_t B_t u_t`, `y_t = (C_t · h_t + D u_t) silu(z_t)`.
    What varies over time is `u`, `delta`, `B`, `C` and `z`; `A` and `D` do not depend on the input. The state is kept
    in float32 (float64 for float64 inputs), whatever the data type of `u`.

    Args:
        u: input, `(batch, length, inner)`.
        delta: step sizes before bias and softplus, `(batch, length, inner)`.
        A: decay rates, negative, `(inner, state)`.
        B: input weights, `(batch, length, state)`.
        C: output weights, `(batch, length, state)`.
        D: skip weights, `(inner,)`.
        z: gate before SiLU, `(batch, length, inner)`.
        delta_bias: bias of the step sizes, `(inner,)`.
        delta_softplus: whether softplus makes the step sizes positive.
        lengths: number of real time steps of each row, `(batch,)`, integer. Later steps give 0 and move nothing.
        initial_state: state before the first step, `(batch, inner, state)`; zeros where absent.
        return_final_state: also return the state after the last real step.
        backend: name of the backend to use; `None` chooses (the environment variable `HYMATE_SCAN_BACKEND`
            overrides the choice, for debugging, but not in an exported program).

    Returns:
        `(batch, length, inner)` in the data type of `u`, and with `return_final_state` the pair of it and the final
        state, `(batch, inner, state)`.

    Raises:
        ValueError: for shapes that do not fit, or a backend that is unknown or not available.
    """
    if not torch.compiler.is_compiling():
        _check_shapes(u, delta, A, B, C, D, z, delta_bias, lengths, initial_state)
    backend = resolve_backend(u, backend)
    if backend == "mamba_ssm" and (initial_state is not None or return_final_state):
        backend = "chunked"  # mamba-ssm's kernel starts from zero and gives its last state no gradient
    output, final_state = _BACKENDS[backend](
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths, initial_state
    )
    return (output, final_state) if return_final_state else output


def resolve_backend(u: torch.Tensor, backend: str | None = None) -> str:
    """Name of the backend that `selective_scan` uses for the input `u`.

    Raises:
        ValueError: if `backend`, or the environment variable `HYMATE_SCAN_BACKEND`, names one that does not exist or
            cannot be used here.
    """
    if backend is None and torch.compiler.is_exporting():
        return "exported"  # the program needs nothing but PyTorch's own operators
    backend = backend or os.environ.get("HYMATE_SCAN_BACKEND") or None
    if backend is not None and backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, got {backend!r}")
    if backend == "native" and not native_available():
        raise ValueError(f"backend 'native' is not available: {_native_problem()}")
    if backend in _PROBES and (problem := _gpu_problem(backend, u.device)):
        raise ValueError(f"backend {backend!r} is not available on {u.device}: {problem}")
    if backend is not None:
        return backend
    if torch._C._are_functorch_transforms_active():
        return "reference"  # torch.func differentiates plain operations alone
    if u.device.type in GPUS and u.dtype in NATIVE_DTYPES and triton_available(u.device):
        return "triton"
    if use_native(u):
        return "native"
    return "chunked"


def use_native(tensor: torch.Tensor) -> bool:
    """Whether the compiled CPU kernels serve this tensor."""
    return tensor.device.type == "cpu" and tensor.dtype in NATIVE_DTYPES and native_available()


@torch.compiler.assume_constant_result
def native_available() -> bool:
    """Whether the compiled CPU kernels are there; says once how to get them where they are not."""
    return _find_native()


@functools.cache
def _find_native() -> bool:
    available = hymate_native is not None and hymate_native.is_available()
    if not available:
        logger.warning(
            "HyMaTE's compiled CPU kernels are not available (%s); the slower PyTorch path is used.", _native_problem()
        )
    return available


def _native_problem() -> str:
    if hymate_native is None:
        return "the package hymate is not installed: pip install hymate"
    return hymate_native.unavailable_reason() or "unknown reason"


@torch.compiler.assume_constant_result
def triton_available(device: torch.device) -> bool:
    """Whether the Triton kernels run on `device`; says once why where they do not."""
    return _find_triton(device)


@functools.cache
def _find_triton(device: torch.device) -> bool:
    problem = _problem("triton", device)
    if problem:
        logger.warning("HyMaTE's GPU kernels are not available (%s); the slower PyTorch path is used.", problem)
    return not problem


@torch.compiler.assume_constant_result
def _gpu_problem(backend: str, device: torch.device) -> str | None:
    return _problem(backend, device)


@functools.cache
def _problem(backend: str, device: torch.device) -> str | None:
    """Why a GPU backend does not run on `device`, or `None` where a small call did. Importing tells too little:
    Triton may lack a driver, or a C compiler for its launcher, and mamba-ssm the extension it is to call."""
    try:
        _PROBES[backend](device)
    except Exception as error:  # whatever goes wrong in a compiler or a foreign kernel, the PyTorch path still works
        return f"{type(error).__name__}: {error}"
    return None


def _probe_triton(device: torch.device) -> None:
    from .triton_operators import probe  # noqa: PLC0415 - slow to import and needed on GPUs only

    probe(device)


def _probe_mamba_ssm(device: torch.device) -> None:
    step = torch.ones(1, 8, 4, device=device)
    _mamba_ssm_scan()(step, step, -torch.ones(8, 4, device=device), step[:, :4], step[:, :4])


_PROBES = {"triton": _probe_triton, "mamba_ssm": _probe_mamba_ssm}


@functools.cache
def _mamba_ssm_scan() -> Any:
    """mamba-ssm's scan: of the installed package, else of the kernel on the Hub that transformers uses."""
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # noqa: PLC0415 - optional and slow
    except ImportError:
        from kernels import get_kernel  # noqa: PLC0415 - optional

        hub = get_kernel("kernels-community/mamba-ssm", version=4)
        return hub.ops.selective_scan_interface.selective_scan_fn
    return selective_scan_fn


def _check_shapes(u, delta, A, B, C, D, z, delta_bias, lengths, initial_state):
    if u.dim() != 3:
        raise ValueError(f"u must be (batch, length, inner), got shape {tuple(u.shape)}")
    if A.dim() != 2:
        raise ValueError(f"A must be (inner, state), got shape {tuple(A.shape)}")
    batch, length, inner = u.shape
    state = A.shape[1]
    expected = {
        "delta": (delta, (batch, length, inner)),
        "A": (A, (inner, state)),
        "B": (B, (batch, length, state)),
        "C": (C, (batch, length, state)),
        "D": (D, (inner,)),
        "z": (z, (batch, length, inner)),
        "delta_bias": (delta_bias, (inner,)),
        "lengths": (lengths, (batch,)),
        "initial_state": (initial_state, (batch, inner, state)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} must have shape {shape} to fit u and A, got {tuple(tensor.shape)}")
    if lengths is not None and (lengths.is_floating_point() or lengths.dtype == torch.bool):
        raise ValueError(f"lengths must be integers, got {lengths.dtype}")


def _valid_steps(u: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    steps = torch.arange(u.shape[1], device=u.device)
    return (steps < lengths[:, None].to(u.device)).unsqueeze(-1)  # (batch, length, 1)


def _with_recurrence(recurrence: Callable) -> Callable:
    """Makes a backend of `recurrence(x, delta, A, B, C, state) -> (C_t · h_t of every step, final state)`."""

    def scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths, initial_state):
        dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
        x, delta, A, B, C = (tensor.to(dtype) for tensor in (u, delta, A, B, C))
        if delta_bias is not None:
            delta = delta + delta_bias.to(dtype)
        if lengths is not None:
            # A step of size zero leaves the state as it is; the rest is cleared since padding may hold NaN.
            valid = _valid_steps(u, lengths)
            delta = delta.where(valid, -math.inf if delta_softplus else 0)
            x, B, C = (tensor.where(valid, 0) for tensor in (x, B, C))
            z = None if z is None else z.where(valid, 0)
        if delta_softplus:
            delta = F.softplus(delta)
        state = u.new_zeros(u.shape[0], *A.shape, dtype=dtype) if initial_state is None else initial_state.to(dtype)
        output, state = recurrence(x, delta, A, B, C, state)
        if D is not None:
            output = output + x * D.to(dtype)
        if z is not None:
            output = output * F.silu(z.to(dtype))
        if lengths is not None:
            output = output.where(valid, 0)
        return output.to(u.dtype).contiguous(), state

    return scan


def _reference_recurrence(x, delta, A, B, C, state):
    outputs = []
    # unbind, since indexing inside the loop makes the backward pass quadratic in the length
    for x_t, delta_t, B_t, C_t in zip(*(tensor.unbind(1) for tensor in (x, delta, B, C)), strict=True):
        state = (delta_t.unsqueeze(-1) * A).exp() * state + (delta_t * x_t).unsqueeze(-1) * B_t.unsqueeze(1)
        outputs.append((state * C_t.unsqueeze(1)).sum(-1))
    return (torch.stack(outputs, 1) if outputs else torch.zeros_like(x)), state


def _exported_recurrence(x, delta, A, B, C, state):
    """A loop that stays one in an exported program, so that the length is free there and nothing else is needed."""
    from torch._higher_order_ops.scan import scan  # noqa: PLC0415 - export alone needs it

    batch = x.shape[0]

    def step(state, inputs):
        x_t, delta_t, B_t, C_t = inputs
        state = (delta_t.unsqueeze(-1) * A).exp() * state + (delta_t * x_t).unsqueeze(-1) * B_t.unsqueeze(1)
        # a size that is named here is an input of the loop, which inductor looks for
        return state, (state * C_t.unsqueeze(1)).sum(-1).view(batch, -1)

    inputs = tuple(tensor.transpose(0, 1).contiguous() for tensor in (x, delta, B, C))
    state, output = scan(step, state, inputs)
    return output.transpose(0, 1), state


def _chunked_recurrence(x, delta, A, B, C, state):
    x, delta, B, C = (tensor.transpose(0, 1).contiguous() for tensor in (x, delta, B, C))
    output, state = _ChunkedScan.apply(x, delta, A, B, C, state)
    return output.transpose(0, 1), state


class _ChunkedScan(torch.autograd.Function):
    """Keeps one state a chunk; the backward pass recomputes the states inside each chunk from it."""

    @staticmethod
    def forward(ctx, x, delta, A, B, C, initial_state):
        # x and delta (length, batch, inner), B and C (length, batch, state): time first makes each step contiguous
        length = x.shape[0]
        output = torch.empty_like(x)
        state = initial_state
        boundaries = []
        for start in range(0, length, CHUNK_SIZE):
            chunk = slice(start, start + CHUNK_SIZE)
            boundaries.append(state)
            _, states = _chunk_states(x[chunk], delta[chunk], A, B[chunk], state)
            output[chunk] = torch.matmul(states, C[chunk].unsqueeze(-1)).squeeze(-1)
            state = states[-1].clone()
        ctx.save_for_backward(x, delta, A, B, C, *boundaries)
        return output, state

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output, grad_final_state):
        x, delta, A, B, C, *boundaries = ctx.saved_tensors
        grad_x, grad_delta = torch.empty_like(x), torch.empty_like(delta)
        grad_A, grad_B, grad_C = torch.zeros_like(A), torch.empty_like(B), torch.empty_like(C)
        grad_state = grad_final_state  # of the state after the chunk at hand, (batch, inner, state)
        for index in reversed(range(len(boundaries))):
            chunk = slice(index * CHUNK_SIZE, (index + 1) * CHUNK_SIZE)
            x_c, delta_c, B_c, C_c, grad_c = x[chunk], delta[chunk], B[chunk], C[chunk], grad_output[chunk]
            decay, states = _chunk_states(x_c, delta_c, A, B_c, boundaries[index])
            grad_C[chunk] = torch.matmul(grad_c.unsqueeze(-2), states).squeeze(-2)
            # the gradient of each step's state, from its own output and, through the decay, from the step after it
            grads = grad_c.unsqueeze(-1) * C_c.unsqueeze(-2)
            grads[-1] += grad_state
            for step in reversed(range(len(grads) - 1)):
                grads[step].addcmul_(decay[step + 1], grads[step + 1])
            grad_state = decay[0] * grads[0]
            grad_B[chunk] = torch.matmul((delta_c * x_c).unsqueeze(-2), grads).squeeze(-2)
            grad_input = torch.matmul(grads, B_c.unsqueeze(-1)).squeeze(-1)  # of delta * x
            grad_x[chunk] = grad_input * delta_c
            # of delta * A, in place of the decay: grads * decay * previous state
            decay.mul_(grads)
            decay[0].mul_(boundaries[index])
            decay[1:].mul_(states[:-1])
            grad_delta[chunk] = torch.einsum("lbdn,dn->lbd", decay, A).addcmul_(grad_input, x_c)
            grad_A += decay.mul_(delta_c.unsqueeze(-1)).sum((0, 1))
        return grad_x, grad_delta, grad_A, grad_B, grad_C, grad_state


def _chunk_states(x, delta, A, B, state):
    """Decay and states of one chunk, both (chunk, batch, inner, state)."""
    decay = (delta.unsqueeze(-1) * A).exp_()
    states = (delta * x).unsqueeze(-1) * B.unsqueeze(-2)
    for step in range(len(states)):
        state = states[step].addcmul_(decay[step], state)
    return decay, states


def _native(u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths, initial_state):
    return hymate_native.selective_scan(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths, initial_state, return_final_state=True
    )


def _triton(*arguments):
    from .triton_operators import selective_scan as scan  # noqa: PLC0415 - as above

    return scan(*arguments)


def _mamba_ssm(u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths, initial_state):
    if lengths is not None:
        valid = _valid_steps(u, lengths)
        if delta_bias is not None and not delta_softplus:
            delta, delta_bias = delta + delta_bias, None
        # padding becomes steps of size zero, exactly: mamba-ssm's softplus gives 0 this far below zero
        delta = delta.where(valid, -1e4 if delta_softplus else 0)
        u, B, C = (tensor.where(valid, 0) for tensor in (u, B, C))
        z = None if z is None else z.where(valid, 0)
    # the kernel wants (batch, inner or state, length) and one data type
    u_t, delta_t, B_t, C_t, z_t = (
        None if tensor is None else tensor.to(u.dtype).transpose(1, 2).contiguous() for tensor in (u, delta, B, C, z)
    )
    output, final_state = _mamba_ssm_scan()(
        u_t,
        delta_t,
        A.float(),
        B_t,
        C_t,
        D=None if D is None else D.float(),
        z=z_t,
        delta_bias=None if delta_bias is None else delta_bias.float(),
        delta_softplus=delta_softplus,
        return_last_state=True,
    )
    output = output.transpose(1, 2)
    if lengths is not None:
        output = output.where(valid, 0)
    return output, final_state


_BACKENDS = {
    "reference": _with_recurrence(_reference_recurrence),
    "chunked": _with_recurrence(_chunked_recurrence),
    "exported": _with_recurrence(_exported_recurrence),
    "native": _native,
    "triton": _triton,
    "mamba_ssm": _mamba_ssm,
}
