"""The selective scan and the causal convolution as PyTorch operators: with autograd, compiled, in half precision."""

import torch
from torch import Tensor

from hymate_native import launch
from hymate_native.library import MAX_KERNEL
from hymate_native.operators import (
    Operator,
    as_float,
    check,
    checked_lengths,
    needs_grad,
    no_second_derivative,
    row_dtype,
)

# An operator returns tensors only: what was not asked for has no elements.

# ------------------------------------------------------------------------------------------------- scan

_SCAN_INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "bool delta_softplus, Tensor? lengths, Tensor? initial_state"
)


@Operator("scan", f"({_SCAN_INPUTS}, bool return_final_state, bool keep_states) -> (Tensor, Tensor, Tensor)")
def _scan(
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    delta_bias,
    delta_softplus,
    lengths,
    initial_state,
    return_final_state,
    keep_states,
):
    return launch.scan_forward(
        *(u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths, initial_state),
        return_final_state=return_final_state,
        keep_states=keep_states,
    )


@_scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths, initial_state, return_final_state, keep_states):
    batch, length, inner = u.shape
    state = A.shape[1]
    states_size = launch.states_size(batch, length, inner, state)
    return (
        u.new_empty((batch, length, inner)),
        A.new_empty((batch, inner, state) if return_final_state else 0),
        A.new_empty(states_size if keep_states else 0),
    )


@Operator(
    "scan_backward",
    f"(Tensor? grad_y, Tensor? grad_final_state, Tensor states, {_SCAN_INPUTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _scan_backward(
    grad_y, grad_final_state, states, u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths, initial_state
):
    grad_u, grad_delta, grad_B, grad_C = (torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in (u, delta, B, C))
    grad_z = None if z is None else torch.empty(z.shape, dtype=z.dtype)
    if grad_y is None:
        grad_y = torch.zeros_like(u)
    grad_A, grad_D, grad_bias, grad_initial = launch.scan_backward(
        *(grad_y, grad_final_state, states, u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths),
        grad_rows=(grad_u, grad_delta, grad_z, grad_B, grad_C),
        needs_initial_state=initial_state is not None,
    )
    grads = (grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias, grad_initial)
    return tuple(torch.empty(0) if grad is None else grad for grad in grads)


@_scan_backward.register_fake
def _(grad_y, grad_final_state, states, u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths, initial_state):
    return tuple(
        A.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)
        for tensor in (u, delta, A, B, C, D, z, delta_bias, initial_state)
    )


def _keep_scan(ctx, inputs, output):
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths, initial_state, _, keep_states = inputs
    ctx.set_materialize_grads(False)
    ctx.delta_softplus = delta_softplus
    ctx.keep_states = keep_states
    ctx.save_for_backward(output[2], u, delta, A, B, C, D, z, delta_bias, lengths, initial_state)


def _differentiate_scan(ctx, grad_y, grad_final_state, grad_states):
    if not ctx.keep_states:
        raise RuntimeError("the states that backward needs were not kept: call the scan with keep_states=True")
    *before, lengths, initial_state = ctx.saved_tensors
    states, u, delta, A, B, C, D, z, delta_bias = before
    if grad_final_state is not None and not grad_final_state.numel():
        grad_final_state = None
    grads = torch.ops.hymate.scan_backward(
        *(grad_y, grad_final_state, states, u, delta, A, B, C, D, z, delta_bias),
        *(ctx.delta_softplus, lengths, initial_state),
    )
    optional = (D, z, delta_bias, initial_state)
    grad_D, grad_z, grad_bias, grad_initial = (
        None if tensor is None else grad for tensor, grad in zip(optional, grads[5:], strict=True)
    )
    return *grads[:5], grad_D, grad_z, grad_bias, None, None, grad_initial, None, None


_scan.register_autograd(_differentiate_scan, setup_context=_keep_scan)
_scan_backward.register_autograd(no_second_derivative("selective scan"))


# ------------------------------------------------------------------------------------------ convolution

_CONVOLUTION_INPUTS = "Tensor x, Tensor weight, Tensor? bias, bool silu, Tensor? lengths"


@Operator("causal_conv1d", f"({_CONVOLUTION_INPUTS}) -> Tensor")
def _convolution(x, weight, bias, silu, lengths):
    return launch.convolution_forward(x, weight, bias, silu, lengths)


@_convolution.register_fake
def _(x, weight, bias, silu, lengths):
    return x.new_empty(x.shape)


@Operator("causal_conv1d_backward", f"(Tensor grad_y, {_CONVOLUTION_INPUTS}) -> (Tensor, Tensor, Tensor)")
def _convolution_backward(grad_y, x, weight, bias, silu, lengths):
    grad_x = torch.empty(x.shape, dtype=x.dtype)
    grad_weight, grad_bias = launch.convolution_backward(grad_y, x, weight, bias, silu, lengths, grad_x)
    return grad_x, grad_weight, torch.empty(0) if grad_bias is None else grad_bias


@_convolution_backward.register_fake
def _(grad_y, x, weight, bias, silu, lengths):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(0 if bias is None else bias.shape)


def _keep_convolution(ctx, inputs, output):
    x, weight, bias, silu, lengths = inputs
    ctx.silu = silu
    ctx.save_for_backward(x, weight, bias, lengths)


def _differentiate_convolution(ctx, grad_y):
    x, weight, bias, lengths = ctx.saved_tensors
    grad_x, grad_weight, grad_bias = torch.ops.hymate.causal_conv1d_backward(
        grad_y, x, weight, bias, ctx.silu, lengths
    )
    return grad_x, grad_weight, None if bias is None else grad_bias, None, None


_convolution.register_autograd(_differentiate_convolution, setup_context=_keep_convolution)
_convolution_backward.register_autograd(no_second_derivative("causal convolution"))


# ----------------------------------------------------------------------------------------- public functions


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    lengths: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_final_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The selective scan of Mamba on the CPU.

    With `d_t = softplus(delta_t + delta_bias)`: `h_t = exp(d_t A) h_{t-1} + d_t B_t u_t` and
    `y_t = (C_t . h_t + D u_t) silu(z_t)`. The state is float32 whatever the dtype of the rows.

    Args:
        u, delta, z: `(batch, length, inner)`, float32, bfloat16 or float16. Time and batch may have any stride.
        A: `(inner, state)`. B, C: `(batch, length, state)`. D, delta_bias: `(inner,)`.
        lengths: `(batch,)` integers. Steps at or after a record's length give 0, take no gradient, do not move the
            state and cost nothing; lengths beyond the rows' count as the rows'.
        initial_state: `(batch, inner, state)`.

    Returns:
        y `(batch, length, inner)` in u's dtype; with `return_final_state` also the float32 state after the last valid
        step, `(batch, inner, state)`.

    Raises:
        ValueError: a shape, device or dtype does not fit.
        RuntimeError: the kernels are not available, or a second derivative is asked for.
    """
    if u.dim() != 3 or A.dim() != 2:
        raise ValueError(f"u must have 3 dimensions and A 2, got {u.dim()} and {A.dim()}")
    batch, length, inner = u.shape
    state = A.shape[1]
    if not inner:
        raise ValueError(f"u must have channels, got {tuple(u.shape)}")
    check(
        u=(u, (batch, length, inner)),
        delta=(delta, (batch, length, inner)),
        z=(z, (batch, length, inner)),
        A=(A, (inner, state)),
        B=(B, (batch, length, state)),
        C=(C, (batch, length, state)),
        D=(D, (inner,)),
        delta_bias=(delta_bias, (inner,)),
        initial_state=(initial_state, (batch, inner, state)),
    )
    dtype = row_dtype(u, delta, B, C, z)
    y, final_state, _ = torch.ops.hymate.scan(
        *(u.to(dtype), delta.to(dtype), A.float(), B.to(dtype), C.to(dtype)),
        *(as_float(D), None if z is None else z.to(dtype), as_float(delta_bias), delta_softplus),
        *(checked_lengths(lengths, batch, length), as_float(initial_state), return_final_state),
        needs_grad(u, delta, A, B, C, D, z, delta_bias, initial_state),
    )
    y = y.to(u.dtype)
    return (y, final_state) if return_final_state else y


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = "silu",
    lengths: Tensor | None = None,
) -> Tensor:
    """Depthwise convolution over the present and past steps, on the CPU.

    Args:
        x: `(batch, length, inner)`, float32, bfloat16 or float16. Time and batch may have any stride.
        weight: `(inner, kernel)`, the last column for the present step; a kernel of at most 8.
        bias: `(inner,)`.
        activation: "silu" or None.
        lengths: `(batch,)` integers; steps at or after a record's length give 0.

    Returns:
        `(batch, length, inner)` in x's dtype.

    Raises:
        ValueError: a shape, device, dtype or the activation does not fit.
        RuntimeError: the kernels are not available, or a second derivative is asked for.
    """
    if x.dim() != 3 or weight.dim() != 2:
        raise ValueError(f"x must have 3 dimensions and weight 2, got {x.dim()} and {weight.dim()}")
    if not x.shape[2]:
        raise ValueError(f"x must have channels, got {tuple(x.shape)}")
    if activation not in ("silu", None):
        raise ValueError(f'activation must be "silu" or None, got {activation!r}')
    if not 1 <= weight.shape[1] <= MAX_KERNEL:
        raise ValueError(f"weight must have 1 to {MAX_KERNEL} columns, got {weight.shape[1]}")
    batch, length, inner = x.shape
    check(x=(x, (batch, length, inner)), weight=(weight, (inner, weight.shape[1])), bias=(bias, (inner,)))
    row_dtype(x)
    lengths = checked_lengths(lengths, batch, length)
    return torch.ops.hymate.causal_conv1d(x, weight.float(), as_float(bias), activation == "silu", lengths)
