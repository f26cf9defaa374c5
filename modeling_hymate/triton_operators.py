"""The Triton kernels as PyTorch operators: with autograd, compiled, exported, in half precision.

`selective_scan` serves `modeling_hymate.scan`; `causal_conv1d` and `mamba_mixer` serve the mixer, whose projections
before and after are PyTorch's own. Operators return tensors only: what was not asked for has no elements.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .triton_launch import convolution_backward, convolution_forward, kept_shape, scan_backward, scan_forward

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Operator:
    """`torch.library.custom_op` without its checks at every call, for whatever device Triton serves.

    A folder's copy of this file, loaded beside another's, finds the operators defined and uses those.
    """

    def __init__(self, name: str, schema: str):
        self.name = f"hymate::{name}"
        self.is_new = not hasattr(torch.ops.hymate, name)
        if self.is_new:
            torch.library.define(self.name, schema, tags=(torch.Tag.pt2_compliant_tag,))

    def __call__(self, function: Callable) -> "Operator":
        if self.is_new:
            torch.library.impl(self.name, "CompositeExplicitAutograd", function)
        return self

    def register_fake(self, function: Callable):
        if self.is_new:
            torch.library.register_fake(self.name, function)

    def register_autograd(self, backward: Callable, *, setup_context: Callable | None = None):
        if self.is_new:
            torch.library.register_autograd(self.name, backward, setup_context=setup_context)


def _no_second_derivative(ctx, *grads):
    raise RuntimeError(
        "hymate's GPU kernels have no second derivative. For double backward run the model with the environment "
        "variable HYMATE_SCAN_BACKEND=reference."
    )


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _row_dtype(*tensors: Tensor | None) -> torch.dtype:
    dtype, *others = {tensor.dtype for tensor in tensors if tensor is not None}
    for other in others:
        dtype = torch.promote_types(dtype, other)
    if dtype not in DTYPES:
        raise ValueError(f"the GPU kernels compute in float32, bfloat16 or float16, got {dtype}")
    return dtype


def _cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


def _present(tensors, like: Tensor) -> tuple[Tensor, ...]:
    return tuple(like.new_empty(0) if tensor is None else tensor for tensor in tensors)


def _unless_absent(tensors, grads) -> tuple[Tensor | None, ...]:
    return tuple(None if tensor is None else grad for tensor, grad in zip(tensors, grads, strict=True))


# ------------------------------------------------------------------------------------------------- scan

_SCAN_INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "bool delta_softplus, Tensor? lengths, Tensor? initial_state"
)


@Operator("triton_scan", f"({_SCAN_INPUTS}, bool return_final_state, bool keep_states) -> (Tensor, Tensor, Tensor)")
def _scan(*arguments):
    *inputs, initial_state, return_final_state, keep_states = arguments
    options = {"return_final_state": return_final_state, "keep_states": keep_states}
    return scan_forward(*inputs, initial_state=initial_state, **options)


@_scan.register_fake
def _(u, delta, A, *others):
    *_, return_final_state, keep_states = others
    (batch, length, inner), state = u.shape, A.shape[1]
    return (
        u.new_empty((batch, length, inner)),
        A.new_empty((batch, inner, state) if return_final_state else 0),
        A.new_empty(kept_shape(batch, length, inner, state) if keep_states else 0),
    )


@Operator(
    "triton_scan_backward",
    f"(Tensor? grad_y, Tensor? grad_final_state, Tensor kept, {_SCAN_INPUTS}) -> ({', '.join(['Tensor'] * 9)})",
)
def _scan_backward(grad_y, grad_final_state, kept, *arguments):
    *inputs, initial_state = arguments
    grad_y = torch.zeros_like(inputs[0]) if grad_y is None else grad_y
    grads = scan_backward(grad_y, grad_final_state, kept, *inputs, needs_initial_state=initial_state is not None)
    return _present(grads, kept)


@_scan_backward.register_fake
def _(grad_y, grad_final_state, kept, u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths, initial_state):
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    return _present((None if tensor is None else tensor.new_empty(tensor.shape) for tensor in inputs), kept)


def _keep_scan(ctx, inputs, output):
    *tensors, ctx.delta_softplus, lengths, initial_state, _, ctx.keep_states = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[2], *tensors, lengths, initial_state)


def _differentiate_scan(ctx, grad_y, grad_final_state, _):
    if not ctx.keep_states:
        raise RuntimeError("the states that backward needs were not kept: call the scan with keep_states=True")
    kept, *tensors, lengths, initial_state = ctx.saved_tensors
    if grad_final_state is not None and not grad_final_state.numel():
        grad_final_state = None
    grads = torch.ops.hymate.triton_scan_backward(
        grad_y, grad_final_state, kept, *tensors, ctx.delta_softplus, lengths, initial_state
    )
    *grads, grad_initial = _unless_absent((*tensors, initial_state), grads)
    return *grads, None, None, grad_initial, None, None


_scan.register_autograd(_differentiate_scan, setup_context=_keep_scan)
_scan_backward.register_autograd(_no_second_derivative)


# ------------------------------------------------------------------------------------------ convolution

_CONVOLUTION_INPUTS = "Tensor x, Tensor weight, Tensor? bias, bool silu, Tensor? lengths"


@Operator("triton_causal_conv1d", f"({_CONVOLUTION_INPUTS}) -> Tensor")
def _convolution(x, weight, bias, silu, lengths):
    return convolution_forward(x, weight, bias, silu, lengths)


@_convolution.register_fake
def _(x, weight, bias, silu, lengths):
    return x.new_empty(x.shape)


@Operator("triton_causal_conv1d_backward", f"(Tensor grad_y, {_CONVOLUTION_INPUTS}) -> (Tensor, Tensor, Tensor)")
def _convolution_backward(grad_y, x, weight, bias, silu, lengths):
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return _present((grad_x, *convolution_backward(grad_y, x, weight, bias, silu, lengths, grad_x)), weight)


@_convolution_backward.register_fake
def _(grad_y, x, weight, bias, silu, lengths):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(0 if bias is None else bias.shape)


def _keep_convolution(ctx, inputs, output):
    x, weight, bias, ctx.silu, lengths = inputs
    ctx.save_for_backward(x, weight, bias, lengths)


def _differentiate_convolution(ctx, grad_y):
    x, weight, bias, lengths = ctx.saved_tensors
    grads = torch.ops.hymate.triton_causal_conv1d_backward(grad_y, x, weight, bias, ctx.silu, lengths)
    return *_unless_absent((x, weight, bias), grads), None, None


_convolution.register_autograd(_differentiate_convolution, setup_context=_keep_convolution)
_convolution_backward.register_autograd(_no_second_derivative)


# ------------------------------------------------------------------------------------------------ mixer

_MIXER_INPUTS = (
    "Tensor projected, Tensor conv_weight, Tensor? conv_bias, Tensor x_weight, Tensor dt_weight, Tensor? dt_bias, "
    "Tensor A, Tensor D, Tensor? lengths"
)


def _scan_arguments(projected, convolved, parameters, dt_weight, dt_bias, A, D, lengths):
    rank, state = dt_weight.shape[1], A.shape[1]
    time_step, B, C = parameters.split([rank, state, state], dim=-1)
    gate = projected[..., projected.shape[-1] // 2 :]
    return convolved, F.linear(time_step, dt_weight), A, B, C, D, gate, dt_bias, True, lengths


@Operator("triton_mixer", f"({_MIXER_INPUTS}, bool keep) -> (Tensor, Tensor, Tensor)")
def _mixer(projected, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A, D, lengths, keep):
    """Returns the gated rows, and with `keep` what backward does not compute again: (time step, B, C) and states."""
    rows = projected[..., : projected.shape[-1] // 2]
    convolved = convolution_forward(rows, conv_weight, conv_bias, True, lengths)
    parameters = F.linear(convolved, x_weight)
    arguments = _scan_arguments(projected, convolved, parameters, dt_weight, dt_bias, A, D, lengths)
    y, _, kept = scan_forward(*arguments, initial_state=None, return_final_state=False, keep_states=keep)
    return y, parameters if keep else parameters.new_empty(0), kept


@_mixer.register_fake
def _(projected, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A, D, lengths, keep):
    batch, length, width = projected.shape
    states_shape = kept_shape(batch, length, *A.shape) if keep else 0
    parameters_shape = (batch, length, x_weight.shape[0]) if keep else 0
    y = projected.new_empty((batch, length, width // 2))
    return y, projected.new_empty(parameters_shape), A.new_empty(states_shape)


@Operator(
    "triton_mixer_backward",
    f"(Tensor grad, Tensor parameters, Tensor kept, {_MIXER_INPUTS}) -> ({', '.join(['Tensor'] * 8)})",
)
def _mixer_backward(
    grad, parameters, kept, projected, conv_weight, conv_bias, x_weight, dt_weight, dt_bias, A, D, lengths
):
    """Returns the gradients of the inputs but `lengths`; those of absent ones have no elements."""
    inner = projected.shape[-1] // 2
    rank = dt_weight.shape[1]
    rows = projected[..., :inner]
    convolved = convolution_forward(rows, conv_weight, conv_bias, True, lengths)
    arguments = _scan_arguments(projected, convolved, parameters, dt_weight, dt_bias, A, D, lengths)
    grad_projected = torch.empty(projected.shape, dtype=projected.dtype, device=projected.device)
    grad_convolved, grad_delta, grad_A, grad_B, grad_C, grad_D, _, grad_dt_bias, _ = scan_backward(
        grad, None, kept, *arguments, grad_z=grad_projected[..., inner:]
    )
    grad_parameters = torch.cat([grad_delta @ dt_weight, grad_B, grad_C], -1)
    flat_parameters, flat_convolved = grad_parameters.flatten(0, 1), convolved.flatten(0, 1)
    grad_convolved = torch.addmm(grad_convolved.flatten(0, 1), flat_parameters, x_weight).view_as(convolved)
    grad_conv_weight, grad_conv_bias = convolution_backward(
        grad_convolved, rows, conv_weight, conv_bias, True, lengths, grad_projected[..., :inner]
    )
    grad_dt_weight = grad_delta.flatten(0, 1).t() @ parameters[..., :rank].flatten(0, 1)
    weights = grad_conv_weight, grad_conv_bias, flat_parameters.t() @ flat_convolved, grad_dt_weight, grad_dt_bias
    return _present((grad_projected, *weights, grad_A, grad_D), kept)


@_mixer_backward.register_fake
def _(grad, parameters, kept, *inputs):
    return _present((None if tensor is None else tensor.new_empty(tensor.shape) for tensor in inputs[:-1]), kept)


def _keep_mixer(ctx, inputs, output):
    *tensors, ctx.keep = inputs
    ctx.save_for_backward(*output[1:], *tensors)


def _differentiate_mixer(ctx, grad, *_):
    if not ctx.keep:
        raise RuntimeError("what backward needs was not kept: call mamba_mixer with keep=True")
    parameters, kept, *tensors = ctx.saved_tensors
    grads = torch.ops.hymate.triton_mixer_backward(grad, parameters, kept, *tensors)
    return *_unless_absent(tensors[:-1], grads), None, None


_mixer.register_autograd(_differentiate_mixer, setup_context=_keep_mixer)
_mixer_backward.register_autograd(_no_second_derivative)


# ----------------------------------------------------------------------------------------- public functions


def selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, lengths, initial_state):
    """The backend "triton" of `modeling_hymate.scan.selective_scan`, whose arguments these are.

    Returns:
        y `(batch, length, inner)` in u's dtype and the float32 state after the last real step.

    Raises:
        ValueError: a dtype that the kernels do not compute in.
        RuntimeError: a second derivative is asked for.
    """
    dtype = _row_dtype(u, delta, B, C, z)
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    y, final_state, _ = torch.ops.hymate.triton_scan(
        *(*_cast(dtype, u, delta), A.float(), *_cast(dtype, B, C), *_cast(torch.float32, D)),
        *(*_cast(dtype, z), *_cast(torch.float32, delta_bias), delta_softplus, lengths),
        *(*_cast(torch.float32, initial_state), True, _needs_grad(*tensors)),
    )
    return y.to(u.dtype), final_state


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, lengths: Tensor | None = None
) -> Tensor:
    """Depthwise convolution over the present and past steps.

    Args:
        x: `(batch, length, inner)`, float32, bfloat16 or float16. Time and batch may have any stride.
        weight: `(inner, kernel)`, the last column for the present step.
        bias: `(inner,)`.
        activation: "silu" or None.
        lengths: `(batch,)` integers; steps at or after a record's length give 0.

    Returns:
        `(batch, length, inner)` in x's dtype.
    """
    _row_dtype(x)
    weight, bias = _cast(torch.float32, weight, bias)
    return torch.ops.hymate.triton_causal_conv1d(x, weight, bias, activation == "silu", lengths)


def mamba_mixer(
    projected: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    dt_proj_bias: Tensor | None,
    A: Tensor,
    D: Tensor,
    lengths: Tensor | None = None,
) -> Tensor:
    """A Mamba mixer between its first and its last projection as one differentiable function.

    Convolution with SiLU, projection to time step, B and C, projection of the time step, gated selective scan. The
    convolved rows and the step sizes are computed again in the backward pass instead of being kept.

    Args:
        projected: `(batch, length, 2 inner)`, states and then gate, float32, bfloat16 or float16.
        conv_weight: `(inner, 1, kernel)`. conv_bias: `(inner,)`.
        x_proj_weight: `(rank + 2 state, inner)`. dt_proj_weight: `(inner, rank)`. dt_proj_bias: `(inner,)`.
        A: `(inner, state)`, already negative. D: `(inner,)`.
        lengths: `(batch,)` integers, as in `selective_scan`.

    Returns:
        `(batch, length, inner)`.
    """
    dtype = _row_dtype(projected)
    tensors = (
        *(projected, *_cast(torch.float32, conv_weight.squeeze(1), conv_bias)),
        *(*_cast(dtype, x_proj_weight, dt_proj_weight), *_cast(torch.float32, dt_proj_bias, A, D)),
    )
    return torch.ops.hymate.triton_mixer(*tensors, lengths, _needs_grad(*tensors))[0]


def probe(device: torch.device) -> None:
    """Compiles and runs a small kernel, whose failure says that Triton does not work on `device`."""
    ones = torch.ones(1, 2, 4, device=device)
    convolved = convolution_forward(ones, ones[0].t(), None, False, None)
    if convolved.flatten().tolist() != [1.0] * 4 + [2.0] * 4:
        raise RuntimeError(f"a kernel gave {convolved.flatten().tolist()} where 1 and 2 are right")
