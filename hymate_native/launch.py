"""The kernels on plain tensors: no autograd, no checks of shapes, outputs handed in where the caller has a place."""

from ctypes import Structure
from typing import Any

import torch
from torch import Tensor

from hymate_native.library import (
    CHUNK,
    DTYPES,
    ConvolutionArguments,
    LinearBackwardArguments,
    LinearBackwardSteps,
    ProductArguments,
    ProductSteps,
    ScanArguments,
    call,
    matrix,
    pointer,
    rows,
    threads,
)


def states_size(batch: int, length: int, inner: int, state: int) -> int:
    """Number of floats of the states that a training forward keeps for its backward, one at each chunk's start."""
    return batch * ((length + CHUNK - 1) // CHUNK) * state * ((inner + 15) // 16 * 16)


def new_states(batch: int, length: int, inner: int, state: int) -> Tensor:
    """Room for the states that a training forward keeps."""
    # builds of narrower vectors leave lanes beyond `inner` unwritten, and what stands there would differ between calls
    new = torch.zeros if inner % 16 else torch.empty
    return new(states_size(batch, length, inner, state))


def _dense_rows(tensor: Any) -> Any:
    """The tensor itself if its last dimension is contiguous, else a contiguous copy; None stays None."""
    return tensor if tensor is None or tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _dense(tensor: Any) -> Any:
    return None if tensor is None else tensor.contiguous()


def scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    *,
    return_final_state: bool,
    keep_states: bool,
    y: Tensor | None = None,
    states: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y, the final state and the kept states; what was not asked for has no elements. Where y and states are
    given, they are written to."""
    u, delta, z, B, C = (_dense_rows(tensor) for tensor in (u, delta, z, B, C))
    A, D, delta_bias, lengths, initial_state = map(_dense, (A, D, delta_bias, lengths, initial_state))
    batch, length, inner = u.shape
    state = A.shape[1]
    if y is None:
        y = torch.empty((batch, length, inner), dtype=u.dtype)
    final_state = torch.empty((batch, inner, state) if return_final_state else 0)
    if states is None:
        states = new_states(batch if keep_states else 0, length, inner, state)
    arguments = ScanArguments(
        *(batch, length, inner, state, DTYPES[u.dtype], delta_softplus, threads()),
        *map(rows, (u, delta, z, B, C)),
        *map(pointer, (A, D, delta_bias, lengths, initial_state)),
        rows(y),
        pointer(final_state if return_final_state else None),
        pointer(states if keep_states else None),
    )
    call("scan_forward", arguments)
    return y, final_state, states


def scan_backward(
    grad_y: Tensor,
    grad_final_state: Tensor | None,
    states: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    lengths: Tensor | None,
    *,
    grad_rows: tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor],
    needs_initial_state: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Writes the gradients of u, delta, z, B, C into `grad_rows`; returns those of A, D, delta_bias, initial_state."""
    u, delta, z, B, C, grad_y = (_dense_rows(tensor) for tensor in (u, delta, z, B, C, grad_y))
    A, D, delta_bias, lengths, grad_final_state = map(_dense, (A, D, delta_bias, lengths, grad_final_state))
    batch, length, inner = u.shape
    state = A.shape[1]
    grad_A = torch.empty((inner, state))
    grad_D = None if D is None else torch.empty(inner)
    grad_bias = None if delta_bias is None else torch.empty(inner)
    grad_initial = torch.empty((batch, inner, state)) if needs_initial_state else None
    arguments = ScanArguments(
        *(batch, length, inner, state, DTYPES[u.dtype], delta_softplus, threads()),
        *map(rows, (u, delta, z, B, C)),
        *map(pointer, (A, D, delta_bias, lengths, None)),
        rows(None),
        *map(pointer, (None, states)),
        rows(grad_y),
        pointer(grad_final_state),
        *map(rows, grad_rows),
        *map(pointer, (grad_A, grad_D, grad_bias, grad_initial)),
    )
    call("scan_backward", arguments)
    return grad_A, grad_D, grad_bias, grad_initial


def convolution_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, lengths: Tensor | None, y: Tensor | None = None
) -> Tensor:
    """x (batch, length, inner), weight (inner, kernel) float32; returns a tensor of x's shape, `y` if it is given."""
    x = _dense_rows(x)
    weight, bias, lengths = map(_dense, (weight, bias, lengths))
    if y is None:
        y = torch.empty(x.shape, dtype=x.dtype)
    arguments = ConvolutionArguments(
        *(*x.shape, weight.shape[1], DTYPES[x.dtype], silu, threads()),
        rows(x),
        *map(pointer, (weight, bias, lengths)),
        rows(y),
    )
    call("convolution_forward", arguments)
    return y


def convolution_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, lengths: Tensor | None, grad_x: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Writes the gradient of x into `grad_x`; returns those of weight and bias."""
    x, grad_y = _dense_rows(x), _dense_rows(grad_y)
    weight, bias, lengths = map(_dense, (weight, bias, lengths))
    grad_weight = torch.empty(weight.shape)
    grad_bias = None if bias is None else torch.empty(bias.shape)
    arguments = ConvolutionArguments(
        *(*x.shape, weight.shape[1], DTYPES[x.dtype], silu, threads()),
        rows(x),
        *map(pointer, (weight, bias, lengths)),
        rows(None),
        *map(rows, (grad_y, grad_x)),
        *map(pointer, (grad_weight, grad_bias)),
    )
    call("convolution_backward", arguments)
    return grad_weight, grad_bias


def _product(tall: Tensor, small: Tensor, bias: Tensor | None, out: Tensor, accumulate: bool) -> Structure:
    sizes = (*tall.shape, small.shape[1], accumulate, threads())
    return ProductArguments(*sizes, matrix(tall), matrix(small), pointer(bias), matrix(out))


def linear_forward(*steps: tuple[Tensor, Tensor, Tensor | None, Tensor]) -> None:
    """One linear layer or two on the same rows, the second of which reads what the first wrote.

    Args:
        steps: x (rows, in), weight (out, in), bias or None, and where the result goes, (rows, out).
    """
    if steps[0][0].dtype != torch.float32:  # the half types are oneDNN's
        for x, weight, bias, out in steps:
            if bias is None:
                torch.mm(x, weight.t(), out=out)
            else:
                torch.addmm(bias, x, weight.t(), out=out)
        return
    steps = tuple((_dense_rows(x), weight, _dense(bias), out) for x, weight, bias, out in steps)
    products = tuple(_product(x, weight.t(), bias, out, False) for x, weight, bias, out in steps)
    call("matrix_products", ProductSteps(len(steps), products))


def linear_backward(*steps: tuple[Tensor, Tensor, Tensor, Tensor, bool]) -> list[Tensor]:
    """The backward pass of one linear layer or two on the same rows, the second of which reads what the first wrote.

    Args:
        steps: gradient of the output (rows, out), x (rows, in), weight (out, in), where the gradient of x goes, and
            whether it is added to what is there.

    Returns:
        The weights' gradients.
    """
    if steps[0][0].dtype != torch.float32:
        grad_weights = []
        for grad, x, weight, grad_x, accumulate in steps:
            if accumulate:
                grad_x.addmm_(grad, weight)
            else:
                torch.mm(grad, weight, out=grad_x)
            grad_weights.append(grad.t() @ x)
        return grad_weights
    steps = tuple((_dense_rows(grad), _dense_rows(x), *others) for grad, x, *others in steps)
    grad_weights = [torch.empty(weight.shape) for _, _, weight, _, _ in steps]
    passes = (
        LinearBackwardArguments(_product(grad, weight, None, grad_x, accumulate), matrix(x), pointer(grad_weight))
        for (grad, x, weight, grad_x, accumulate), grad_weight in zip(steps, grad_weights, strict=True)
    )
    call("linear_backwards", LinearBackwardSteps(len(steps), tuple(passes)))
    return grad_weights
