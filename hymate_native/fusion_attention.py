"""Fusion attention, which pools the tokens of each group into one vector, as one PyTorch operator."""

from typing import Any

import torch
from torch import Tensor

from hymate_native import library
from hymate_native.argument_checks import check_float32, check_shapes
from hymate_native.custom_operator import CustomOperator, no_second_derivative
from hymate_native.structures import FusionArguments, pointer

_INPUTS = "Tensor tokens, Tensor mask, Tensor norm, Tensor weight, Tensor bias, Tensor score, float eps"


@CustomOperator("fusion_attention", f"({_INPUTS}) -> (Tensor, Tensor)")
def fusion_operator(tokens, mask, norm, weight, bias, score, eps):
    groups, count, width = tokens.shape
    pooled, weights = torch.empty((groups, width)), torch.empty((groups, count))
    arguments = _arguments(tokens, mask, norm, weight, bias, score, eps)
    arguments.pooled, arguments.weights = pointer(pooled), pointer(weights)
    library.call("fusion_forward", arguments)
    return pooled, weights


@fusion_operator.register_fake
def _(tokens, *_):
    groups, count, width = tokens.shape
    return tokens.new_empty((groups, width)), tokens.new_empty((groups, count))


@CustomOperator(
    "fusion_attention_backward",
    f"(Tensor? grad_pooled, Tensor? grad_weights, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _fusion_backward(grad_pooled, grad_weights, tokens, mask, norm, weight, bias, score, eps):
    grad_pooled, grad_weights = (None if grad is None else grad.contiguous() for grad in (grad_pooled, grad_weights))
    grads = tuple(torch.empty_like(tensor) for tensor in (tokens, norm, weight, bias, score))
    arguments = _arguments(tokens, mask, norm, weight, bias, score, eps)
    arguments.grad_pooled, arguments.grad_weights = pointer(grad_pooled), pointer(grad_weights)
    for name, grad in zip(("x", "norm", "weight", "bias", "score"), grads, strict=True):
        setattr(arguments, f"grad_{name}", pointer(grad))
    library.call("fusion_backward", arguments)
    return grads


@_fusion_backward.register_fake
def _(grad_pooled, grad_weights, tokens, mask, norm, weight, bias, score, eps):
    return tuple(torch.empty_like(tensor) for tensor in (tokens, norm, weight, bias, score))


def _keep(ctx, inputs, output):
    *tensors, ctx.eps = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad_pooled, grad_weights):
    if grad_pooled is None and grad_weights is None:
        return (None,) * 7
    grad_tokens, *grads = torch.ops.hymate.fusion_attention_backward(
        grad_pooled, grad_weights, *ctx.saved_tensors, ctx.eps
    )
    return grad_tokens, None, *grads, None


fusion_operator.register_autograd(_differentiate, setup_context=_keep)
_fusion_backward.register_autograd(no_second_derivative("fusion attention"))


def _arguments(tokens, mask, norm, weight, bias, score, eps) -> Any:
    tensors = map(pointer, (tokens, mask, norm, weight, bias, score))
    return FusionArguments(*tokens.shape, library.threads(), eps, *tensors)


def fusion_attention(
    tokens: Tensor,
    mask: Tensor,
    norm: Tensor,
    weight: Tensor,
    bias: Tensor,
    score: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Pools tokens with weights `softmax(score . tanh(weight f + bias))`, `f` the root mean square norm of each, on
    the CPU in float32 (STraTS, arXiv 2107.14293, equation 5).

    Args:
        tokens: `(groups, tokens, hidden)`.
        mask: boolean, `(groups, tokens)`. What it leaves out is not looked at.
        norm: gain of the norm, `(hidden,)`.
        weight: `(hidden, hidden)`. bias: `(hidden,)`.
        score: `(hidden,)`.
        eps: of the norm.

    Returns:
        `(groups, hidden)`, the weighted mean of the normed tokens, and the weights `(groups, tokens)`, which sum to
        one. Both are 0 for a group without tokens.

    Raises:
        ValueError: a shape, device or dtype does not fit.
        RuntimeError: the kernels are not available, or a second derivative is asked for.
    """
    groups, count, width = tokens.shape
    floats = {"tokens": tokens, "norm": norm, "weight": weight, "bias": bias, "score": score}
    sizes = dict.fromkeys(floats, (width,)) | {"tokens": tuple(tokens.shape), "weight": (width, width)}
    check_shapes(mask=(mask, (groups, count)), **{name: (floats[name], sizes[name]) for name in floats})
    check_float32(**floats)
    tensors = [tensor.contiguous() for tensor in (tokens, mask.bool(), norm, weight, bias, score)]
    return torch.ops.hymate.fusion_attention(*tensors, eps)
