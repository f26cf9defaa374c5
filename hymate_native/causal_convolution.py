"""The causal depthwise convolution as a PyTorch operator: with autograd, compiled, in half precision."""

import torch
from torch import Tensor

from hymate_native import library
from hymate_native.argument_checks import as_float, check_shapes, checked_lengths, row_dtype
from hymate_native.custom_operator import CustomOperator, no_second_derivative
from hymate_native.structures import DTYPES, MAX_KERNEL, ConvolutionArguments, dense, dense_rows, describe, pointer

_CONVOLUTION_INPUTS = "Tensor x, Tensor weight, Tensor? bias, bool silu, Tensor? lengths"


@CustomOperator("causal_conv1d", f"({_CONVOLUTION_INPUTS}) -> Tensor")
def _convolution(x, weight, bias, silu, lengths):
    return _launch_forward(x, weight, bias, silu, lengths)


@_convolution.register_fake
def _(x, weight, bias, silu, lengths):
    return x.new_empty(x.shape)


@CustomOperator("causal_conv1d_backward", f"(Tensor grad_y, {_CONVOLUTION_INPUTS}) -> (Tensor, Tensor, Tensor)")
def _convolution_backward(grad_y, x, weight, bias, silu, lengths):
    grad_x = torch.empty(x.shape, dtype=x.dtype)
    grad_weight, grad_bias = _launch_backward(grad_y, x, weight, bias, silu, lengths, grad_x)
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


def _launch_forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, lengths: Tensor | None) -> Tensor:
    """x (batch, length, inner), weight (inner, kernel) float32; returns a tensor of x's shape."""
    x = dense_rows(x)
    weight, bias, lengths = map(dense, (weight, bias, lengths))
    y = torch.empty(x.shape, dtype=x.dtype)
    arguments = ConvolutionArguments(
        *(*x.shape, weight.shape[1], DTYPES[x.dtype], silu, library.threads()),
        describe(x),
        *map(pointer, (weight, bias, lengths, None)),
        describe(y),
    )
    library.call("convolution_forward", arguments)
    return y


def _launch_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, lengths: Tensor | None, grad_x: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Writes the gradient of x into `grad_x`; returns those of weight and bias."""
    x, grad_y = dense_rows(x), dense_rows(grad_y)
    weight, bias, lengths = map(dense, (weight, bias, lengths))
    grad_weight = torch.empty(weight.shape)
    grad_bias = None if bias is None else torch.empty(bias.shape)
    arguments = ConvolutionArguments(
        *(*x.shape, weight.shape[1], DTYPES[x.dtype], silu, library.threads()),
        describe(x),
        *map(pointer, (weight, bias, lengths, None)),
        describe(None),
        *map(describe, (grad_y, grad_x)),
        *map(pointer, (grad_weight, grad_bias)),
    )
    library.call("convolution_backward", arguments)
    return grad_weight, grad_bias


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
    check_shapes(x=(x, (batch, length, inner)), weight=(weight, (inner, weight.shape[1])), bias=(bias, (inner,)))
    row_dtype(x)
    lengths = checked_lengths(lengths, batch, length)
    return torch.ops.hymate.causal_conv1d(x, weight.float(), as_float(bias), activation == "silu", lengths)
