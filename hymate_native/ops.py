"""The kernels as PyTorch operators: with autograd, under torch.compile and torch.export, in half precision."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hymate_native import launch
from hymate_native.library import DTYPES, MAX_KERNEL

# An operator returns tensors only: what was not asked for has no elements.


def _custom_op(name: str, schema: str):
    return torch.library.custom_op(f"hymate::{name}", mutates_args=(), device_types="cpu", schema=schema)


def _no_second_derivative(name: str):
    def backward(ctx, *grads):
        raise RuntimeError(
            f"hymate's native {name} has no second derivative. For double backward run the model with the environment "
            "variable HYMATE_SCAN_BACKEND=reference."
        )

    return backward


# ------------------------------------------------------------------------------------------------- scan

_SCAN_INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "bool delta_softplus, Tensor? lengths, Tensor? initial_state"
)


@_custom_op("scan", f"({_SCAN_INPUTS}, bool return_final_state, bool keep_states) -> (Tensor, Tensor, Tensor)")
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


@_custom_op(
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
_scan_backward.register_autograd(_no_second_derivative("selective scan"))


# ------------------------------------------------------------------------------------------ convolution

_CONVOLUTION_INPUTS = "Tensor x, Tensor weight, Tensor? bias, bool silu, Tensor? lengths"


@_custom_op("causal_conv1d", f"({_CONVOLUTION_INPUTS}) -> Tensor")
def _convolution(x, weight, bias, silu, lengths):
    return launch.convolution_forward(x, weight, bias, silu, lengths)


@_convolution.register_fake
def _(x, weight, bias, silu, lengths):
    return x.new_empty(x.shape)


@_custom_op("causal_conv1d_backward", f"(Tensor grad_y, {_CONVOLUTION_INPUTS}) -> (Tensor, Tensor, Tensor)")
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
_convolution_backward.register_autograd(_no_second_derivative("causal convolution"))


# ----------------------------------------------------------------------------------------------- linear


@_custom_op("linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
def _linear(x, weight, bias):
    return launch.linear_forward(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])


@_linear.register_fake
def _(x, weight, bias):
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@_custom_op("linear_backward", "(Tensor grad, Tensor x, Tensor weight) -> (Tensor, Tensor)")
def _linear_backward(grad, x, weight):
    grad_x = torch.empty(x.shape)
    return grad_x, launch.linear_backward(grad.flatten(0, -2), x.flatten(0, -2), weight, grad_x.flatten(0, -2))


@_linear_backward.register_fake
def _(grad, x, weight):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _keep_linear(ctx, inputs, output):
    x, weight, bias = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight)


def _differentiate_linear(ctx, grad):
    grad_x, grad_weight = torch.ops.hymate.linear_backward(grad, *ctx.saved_tensors)
    return grad_x, grad_weight, grad.flatten(0, -2).sum(0) if ctx.has_bias else None


_linear.register_autograd(_differentiate_linear, setup_context=_keep_linear)
_linear_backward.register_autograd(_no_second_derivative("linear layer"))


# ------------------------------------------------------------------------------------------ inner block

_INNER_INPUTS = (
    "Tensor projected_states, Tensor conv_weight, Tensor? conv_bias, Tensor x_proj_weight, Tensor dt_proj_weight, "
    "Tensor? dt_proj_bias, Tensor A, Tensor D, Tensor? lengths"
)


def _split(projected_states: Tensor, inner: int) -> Sequence[Tensor]:
    return projected_states[..., :inner], projected_states[..., inner:]


def _split_parameters(parameters: Tensor, rank: int, state: int) -> Sequence[Tensor]:
    return parameters[..., :rank], parameters[..., rank : rank + state], parameters[..., rank + state :]


@_custom_op("mamba_inner", f"({_INNER_INPUTS}, bool keep_states) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
def _inner(
    projected_states,
    conv_weight,
    conv_bias,
    x_proj_weight,
    dt_proj_weight,
    dt_proj_bias,
    A,
    D,
    lengths,
    keep_states,
):
    """Returns the gated output, and what backward needs: convolved states, (time step, B, C), delta, kept states."""
    (inner, state), rank = A.shape, dt_proj_weight.shape[1]
    x, gate = _split(projected_states, inner)
    convolved = launch.convolution_forward(x, conv_weight, conv_bias, True, lengths)
    flat_parameters = launch.linear_forward(convolved.flatten(0, 1), x_proj_weight)
    parameters = flat_parameters.unflatten(0, convolved.shape[:2])  # (batch, length, rank + 2 state)
    time_step, B, C = _split_parameters(parameters, rank, state)
    delta = torch.empty_like(convolved)
    launch.linear_forward(time_step.flatten(0, 1), dt_proj_weight, out=delta.flatten(0, 1))
    y, _, states = launch.scan_forward(
        *(convolved, delta, A, B, C, D, gate, dt_proj_bias, True, lengths, None),
        return_final_state=False,
        keep_states=keep_states,
    )
    if not keep_states:
        convolved, parameters, delta = (y.new_empty(0) for _ in range(3))
    return y, convolved, parameters, delta, states


@_inner.register_fake
def _(
    projected_states,
    conv_weight,
    conv_bias,
    x_proj_weight,
    dt_proj_weight,
    dt_proj_bias,
    A,
    D,
    lengths,
    keep_states,
):
    batch, length, _ = projected_states.shape
    inner, state = A.shape
    rows = projected_states.new_empty
    if not keep_states:
        return rows((batch, length, inner)), rows(0), rows(0), rows(0), A.new_empty(0)
    return (
        *(rows((batch, length, width)) for width in (inner, inner, x_proj_weight.shape[0], inner)),
        A.new_empty(launch.states_size(batch, length, inner, state)),
    )


@_custom_op(
    "mamba_inner_backward",
    f"(Tensor grad_y, Tensor convolved, Tensor parameters, Tensor delta, Tensor states, {_INNER_INPUTS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _inner_backward(
    grad_y,
    convolved,
    parameters,
    delta,
    states,
    projected_states,
    conv_weight,
    conv_bias,
    x_proj_weight,
    dt_proj_weight,
    dt_proj_bias,
    A,
    D,
    lengths,
):
    (inner, state), rank = A.shape, dt_proj_weight.shape[1]
    x, gate = _split(projected_states, inner)
    time_step, B, C = _split_parameters(parameters, rank, state)
    # Every gradient is written where it belongs, into a part of a wider tensor, so that nothing has to be joined.
    grad_projected = torch.empty(projected_states.shape, dtype=projected_states.dtype)
    grad_x, grad_gate = _split(grad_projected, inner)
    grad_parameters = torch.empty(parameters.shape, dtype=parameters.dtype)
    _, grad_B, grad_C = _split_parameters(grad_parameters, rank, state)
    grad_convolved, grad_delta = torch.empty_like(convolved), torch.empty_like(delta)
    grad_A, grad_D, grad_dt_bias, _ = launch.scan_backward(
        *(grad_y, None, states, convolved, delta, A, B, C, D, gate, dt_proj_bias, True, lengths),
        grad_rows=(grad_convolved, grad_delta, grad_gate, grad_B, grad_C),
    )
    flat_grad_delta, flat_grad_parameters = grad_delta.flatten(0, 1), grad_parameters.flatten(0, 1)
    grad_dt_weight = launch.linear_backward(
        flat_grad_delta, time_step.flatten(0, 1), dt_proj_weight, flat_grad_parameters[:, :rank]
    )
    grad_x_weight = launch.linear_backward(
        flat_grad_parameters, convolved.flatten(0, 1), x_proj_weight, grad_convolved.flatten(0, 1), accumulate=True
    )
    grad_conv_weight, grad_conv_bias = launch.convolution_backward(
        grad_convolved, x, conv_weight, conv_bias, True, lengths, grad_x
    )
    grads = (
        *(grad_projected, grad_conv_weight, grad_conv_bias, grad_x_weight, grad_dt_weight, grad_dt_bias),
        *(grad_A, grad_D),
    )
    return tuple(torch.empty(0) if grad is None else grad for grad in grads)


@_inner_backward.register_fake
def _(
    grad_y,
    convolved,
    parameters,
    delta,
    states,
    projected_states,
    conv_weight,
    conv_bias,
    x_proj_weight,
    dt_proj_weight,
    dt_proj_bias,
    A,
    D,
    lengths,
):
    return tuple(
        A.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)
        for tensor in (
            *(projected_states, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, dt_proj_bias),
            *(A, D),
        )
    )


def _keep_inner(ctx, inputs, output):
    *tensors, keep_states = inputs
    ctx.set_materialize_grads(False)
    ctx.keep_states = keep_states
    ctx.save_for_backward(*output[1:], *tensors)


def _differentiate_inner(ctx, grad_y, *_):
    if not ctx.keep_states:
        raise RuntimeError("the states that backward needs were not kept: call mamba_inner with keep_states=True")
    tensors = ctx.saved_tensors
    if grad_y is None:
        return (None,) * 10
    grads = torch.ops.hymate.mamba_inner_backward(grad_y, *tensors)
    return *(None if tensor is None else grad for tensor, grad in zip(tensors[4:12], grads, strict=True)), None, None


_inner.register_autograd(_differentiate_inner, setup_context=_keep_inner)
_inner_backward.register_autograd(_no_second_derivative("Mamba layer"))


# ----------------------------------------------------------------------------------------- public functions


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()


def _row_dtype(*tensors: Tensor | None) -> torch.dtype:
    dtype, *others = {tensor.dtype for tensor in tensors if tensor is not None}
    for other in others:
        dtype = torch.promote_types(dtype, other)
    if dtype not in DTYPES:
        raise ValueError(f"the native kernels compute in float32, bfloat16 or float16, got {dtype}")
    return dtype


def _check(**shapes: tuple[Tensor | None, tuple[int, ...]]) -> None:
    for name, (tensor, expected) in shapes.items():
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            raise ValueError(f"{name} must be on the CPU, got {tensor.device}")
        if tensor.shape != expected:
            raise ValueError(f"{name} must have the shape {tuple(expected)}, got {tuple(tensor.shape)}")


def _checked_lengths(lengths: Tensor | None, batch: int, length: int) -> Tensor | None:
    if lengths is None:
        return None
    _check(lengths=(lengths, (batch,)))
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(f"lengths must be integers, got {lengths.dtype}")
    return lengths.long()


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
    _check(
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
    dtype = _row_dtype(u, delta, B, C, z)
    y, final_state, _ = torch.ops.hymate.scan(
        *(u.to(dtype), delta.to(dtype), A.float(), B.to(dtype), C.to(dtype)),
        *(_float(D), None if z is None else z.to(dtype), _float(delta_bias), delta_softplus),
        *(_checked_lengths(lengths, batch, length), _float(initial_state), return_final_state),
        _needs_grad(u, delta, A, B, C, D, z, delta_bias, initial_state),
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
    if activation not in ("silu", None):
        raise ValueError(f'activation must be "silu" or None, got {activation!r}')
    if not 1 <= weight.shape[1] <= MAX_KERNEL:
        raise ValueError(f"weight must have 1 to {MAX_KERNEL} columns, got {weight.shape[1]}")
    batch, length, inner = x.shape
    _check(x=(x, (batch, length, inner)), weight=(weight, (inner, weight.shape[1])), bias=(bias, (inner,)))
    _row_dtype(x)
    lengths = _checked_lengths(lengths, batch, length)
    return torch.ops.hymate.causal_conv1d(x, weight.float(), _float(bias), activation == "silu", lengths)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` for many rows and a small weight in float32, on the CPU.

    Args:
        x: `(..., in_features)`, of at least two dimensions.
        weight: `(out_features, in_features)`. bias: `(out_features,)`.

    Returns:
        `(..., out_features)`.

    Raises:
        ValueError: a shape, device or dtype does not fit.
        RuntimeError: the kernels are not available, or a second derivative is asked for.
    """
    if x.dim() < 2 or weight.dim() != 2:
        raise ValueError(f"x must have at least 2 dimensions and weight 2, got {x.dim()} and {weight.dim()}")
    _check(x=(x, (*x.shape[:-1], weight.shape[1])), weight=(weight, weight.shape), bias=(bias, weight.shape[:1]))
    for name, tensor in {"x": x, "weight": weight, "bias": bias}.items():
        if tensor is not None and tensor.dtype != torch.float32:
            raise ValueError(f"{name} must be float32, got {tensor.dtype}")
    return torch.ops.hymate.linear(x, weight, bias)


def mamba_inner(
    projected_states: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    dt_proj_bias: Tensor | None,
    A: Tensor,
    D: Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    """A Mamba mixer between its input and its output projection, on the CPU, as one differentiable function.

    Convolution with SiLU, projection to time step, B and C, projection of the time step, gated selective scan. Rows
    and matrix products take the dtype of `projected_states`, or autocast's; A, D, biases and the state are float32.

    Args:
        projected_states: `(batch, length, 2 inner)`, states and then gate.
        conv_weight: `(inner, 1, kernel)`, a kernel of at most 8. conv_bias: `(inner,)`.
        x_proj_weight: `(rank + 2 state, inner)`. dt_proj_weight: `(inner, rank)`. dt_proj_bias: `(inner,)`.
        A: `(inner, state)`, already negative. D: `(inner,)`.
        lengths: `(batch,)` integers, as in `selective_scan`.

    Returns:
        `(batch, length, inner)`.

    Raises:
        ValueError: a shape, device or dtype does not fit.
        RuntimeError: the kernels are not available, or a second derivative is asked for.
    """
    if projected_states.dim() != 3 or A.dim() != 2 or conv_weight.dim() != 3 or dt_proj_weight.dim() != 2:
        raise ValueError("projected_states and conv_weight must have 3 dimensions, A and dt_proj_weight 2")
    batch, length, _ = projected_states.shape
    (inner, state), rank, kernel = A.shape, dt_proj_weight.shape[1], conv_weight.shape[2]
    if not 1 <= kernel <= MAX_KERNEL:
        raise ValueError(f"conv_weight must have a kernel of 1 to {MAX_KERNEL}, got {kernel}")
    _check(
        projected_states=(projected_states, (batch, length, 2 * inner)),
        conv_weight=(conv_weight, (inner, 1, kernel)),
        conv_bias=(conv_bias, (inner,)),
        x_proj_weight=(x_proj_weight, (rank + 2 * state, inner)),
        dt_proj_weight=(dt_proj_weight, (inner, rank)),
        dt_proj_bias=(dt_proj_bias, (inner,)),
        A=(A, (inner, state)),
        D=(D, (inner,)),
    )
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else projected_states.dtype
    if dtype not in DTYPES:
        raise ValueError(f"the native kernels compute in float32, bfloat16 or float16, got {dtype}")
    tensors = (
        *(projected_states.to(dtype), conv_weight.squeeze(1).float(), _float(conv_bias)),
        *(x_proj_weight.to(dtype), dt_proj_weight.to(dtype), _float(dt_proj_bias), A.float(), D.float()),
    )
    lengths = _checked_lengths(lengths, batch, length)
    return torch.ops.hymate.mamba_inner(*tensors, lengths, _needs_grad(*tensors))[0]
