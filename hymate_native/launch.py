"""The kernels on plain tensors: no autograd, no checks of shapes, outputs handed in where the caller has a place."""

from collections.abc import Sequence
from ctypes import Structure
from typing import Any

import torch
from torch import Tensor

from hymate_native.library import (
    CHUNK,
    DTYPES,
    ConvolutionArguments,
    MixerArguments,
    ScanArguments,
    call,
    describe,
    pointer,
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y, the final state and the kept states; what was not asked for has no elements."""
    u, delta, z, B, C = (_dense_rows(tensor) for tensor in (u, delta, z, B, C))
    A, D, delta_bias, lengths, initial_state = map(_dense, (A, D, delta_bias, lengths, initial_state))
    batch, length, inner = u.shape
    state = A.shape[1]
    y = torch.empty((batch, length, inner), dtype=u.dtype)
    final_state = torch.empty((batch, inner, state) if return_final_state else 0)
    states = new_states(batch if keep_states else 0, length, inner, state)
    arguments = ScanArguments(
        *(batch, length, inner, state, DTYPES[u.dtype], delta_softplus, threads()),
        *map(describe, (u, delta, z, B, C)),
        *map(pointer, (A, D, delta_bias, lengths, initial_state)),
        describe(y),
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
        *map(describe, (u, delta, z, B, C)),
        *map(pointer, (A, D, delta_bias, lengths, None)),
        describe(None),
        *map(pointer, (None, states)),
        describe(grad_y),
        pointer(grad_final_state),
        *map(describe, grad_rows),
        *map(pointer, (grad_A, grad_D, grad_bias, grad_initial)),
    )
    call("scan_backward", arguments)
    return grad_A, grad_D, grad_bias, grad_initial


def convolution_forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, lengths: Tensor | None) -> Tensor:
    """x (batch, length, inner), weight (inner, kernel) float32; returns a tensor of x's shape."""
    x = _dense_rows(x)
    weight, bias, lengths = map(_dense, (weight, bias, lengths))
    y = torch.empty(x.shape, dtype=x.dtype)
    arguments = ConvolutionArguments(
        *(*x.shape, weight.shape[1], DTYPES[x.dtype], silu, threads()),
        describe(x),
        *map(pointer, (weight, bias, lengths)),
        describe(y),
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
        describe(x),
        *map(pointer, (weight, bias, lengths)),
        describe(None),
        *map(describe, (grad_y, grad_x)),
        *map(pointer, (grad_weight, grad_bias)),
    )
    call("convolution_backward", arguments)
    return grad_weight, grad_bias


def mixer_forward(
    rows: Tensor, weights: Sequence[Tensor | None], lengths: Tensor | None, *, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the output and what backward needs: the projected and the convolved rows, (time step, B, C) and the kept
    states; without `keep` those have no elements.

    Args:
        weights: float32, in the order of the struct: in_weight, in_bias, conv_weight, conv_bias, x_weight, dt_weight,
            dt_bias, A, D, out_weight, out_bias. Without in_weight the rows are projected ones, without out_weight the
            gated rows are the output.
    """
    rows, lengths, weights = _dense_rows(rows), _dense(lengths), [_dense(weight) for weight in weights]
    sizes = _mixer_sizes(rows, weights)
    batch, length, inner, state = (sizes[name] for name in ("batch", "length", "inner", "state"))

    def new(width: int, kept: bool = keep) -> Tensor:
        return torch.empty((batch, length, width) if kept else 0, dtype=rows.dtype)

    output, projected = new(sizes["outputs"], True), new(2 * inner, keep and weights[0] is not None)
    convolved, parameters = new(inner), new(sizes["rank"] + 2 * state)
    states = new_states(batch if keep else 0, length, inner, state)
    kept = _kept(projected, convolved, parameters, states) if keep else {}
    call("mixer_forward", _mixer_arguments(sizes, rows, weights, lengths, out=describe(output), **kept))
    return output, projected, convolved, parameters, states


def mixer_backward(
    grad_output: Tensor,
    projected: Tensor,
    convolved: Tensor,
    parameters: Tensor,
    states: Tensor,
    rows: Tensor,
    weights: Sequence[Tensor | None],
    lengths: Tensor | None,
) -> tuple[Tensor, list[Tensor | None]]:
    """Returns the gradients of the rows and of the weights; that of an absent weight is None."""
    grad_output, rows = _dense_rows(grad_output), _dense_rows(rows)
    lengths, weights = _dense(lengths), [_dense(weight) for weight in weights]
    grad_rows = torch.empty(rows.shape, dtype=rows.dtype)
    grad_weights = [None if weight is None else torch.empty(weight.shape) for weight in weights]
    others = _kept(projected, convolved, parameters, states)
    others |= {"grad_out": describe(grad_output), "grad_rows": describe(grad_rows)}
    others |= {f"grad_{name}": pointer(grad) for name, grad in zip(_MIXER_WEIGHTS, grad_weights, strict=True)}
    call("mixer_backward", _mixer_arguments(_mixer_sizes(rows, weights), rows, weights, lengths, **others))
    return grad_rows, grad_weights


_MIXER_WEIGHTS = (
    *("in_weight", "in_bias", "conv_weight", "conv_bias", "x_weight", "dt_weight", "dt_bias", "A", "D"),
    *("out_weight", "out_bias"),
)


def _mixer_sizes(rows: Tensor, weights: Sequence[Any]) -> dict[str, int]:
    _, _, conv_weight, _, _, dt_weight, _, A, _, out_weight, _ = weights
    batch, length, width = rows.shape
    inner, state = A.shape
    outputs = inner if out_weight is None else out_weight.shape[0]
    return {
        **{"batch": batch, "length": length, "width": width, "inner": inner, "state": state},
        **{"rank": dt_weight.shape[1], "kernel": conv_weight.shape[1], "outputs": outputs},
    }


def _kept(projected: Tensor, convolved: Tensor, parameters: Tensor, states: Tensor) -> dict[str, Any]:
    rows = {"projected": projected, "convolved": convolved, "parameters": parameters}
    described = {name: describe(tensor) for name, tensor in rows.items() if tensor.dim() == 3}
    return {**described, "states": pointer(states)}


def _mixer_arguments(
    sizes: dict[str, int], rows: Tensor, weights: Sequence[Tensor | None], lengths: Tensor | None, **others: Any
) -> Structure:
    named = dict(zip(_MIXER_WEIGHTS, map(pointer, weights), strict=True))
    common = {"dtype": DTYPES[rows.dtype], "threads": threads(), "rows": describe(rows), "lengths": pointer(lengths)}
    return MixerArguments(**sizes, **common, **named, **others)
