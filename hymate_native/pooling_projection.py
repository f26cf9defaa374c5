"""What events are pooled by: a norm, the projection to what is averaged, and bounded scores, as one operator."""

from typing import Any

import torch
from torch import Tensor

from hymate_native import library
from hymate_native.argument_checks import check_float32, check_shapes
from hymate_native.custom_operator import CustomOperator, no_second_derivative
from hymate_native.structures import ProjectionArguments, pointer

_INPUTS = (
    "Tensor states, Tensor lengths, Tensor norm, Tensor query_weight, Tensor value_weight, Tensor value_bias, "
    "float eps, float bound"
)
_WEIGHTS = ("norm", "query_weight", "value_weight", "value_bias")


@CustomOperator("pooling_projection", f"({_INPUTS}) -> (Tensor, Tensor)")
def projection_operator(states, lengths, norm, query_weight, *others):
    parts, scores = torch.empty_like(states), torch.empty((*states.shape[:2], query_weight.shape[0]))
    arguments = projection_arguments(states, lengths, norm, query_weight, *others)
    arguments.parts, arguments.scores = pointer(parts), pointer(scores)
    library.call("projection_forward", arguments)
    return parts, scores


@projection_operator.register_fake
def _(states, lengths, norm, query_weight, *_):
    return torch.empty_like(states), states.new_empty((*states.shape[:2], query_weight.shape[0]))


@CustomOperator(
    "pooling_projection_backward",
    f"(Tensor? grad_parts, Tensor? grad_scores, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _projection_backward(grad_parts, grad_scores, states, lengths, *others):
    grad_parts, grad_scores = (None if grad is None else grad.contiguous() for grad in (grad_parts, grad_scores))
    grads = tuple(torch.empty_like(tensor) for tensor in (states, *others[:4]))
    arguments = projection_arguments(states, lengths, *others)
    arguments.grad_parts, arguments.grad_scores = pointer(grad_parts), pointer(grad_scores)
    for name, grad in zip(("x", *_WEIGHTS), grads, strict=True):
        setattr(arguments, f"grad_{name}", pointer(grad))
    library.call("projection_backward", arguments)
    return grads


@_projection_backward.register_fake
def _(grad_parts, grad_scores, states, lengths, *others):
    return tuple(torch.empty_like(tensor) for tensor in (states, *others[:4]))


def _keep(ctx, inputs, output):
    *tensors, ctx.eps, ctx.bound = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad_parts, grad_scores):
    if grad_parts is None and grad_scores is None:
        return (None,) * 8
    grad_states, *grads = torch.ops.hymate.pooling_projection_backward(
        grad_parts, grad_scores, *ctx.saved_tensors, ctx.eps, ctx.bound
    )
    return grad_states, None, *grads, None, None


projection_operator.register_autograd(_differentiate, setup_context=_keep)
_projection_backward.register_autograd(no_second_derivative("pooling projection"))


def projection_arguments(states, lengths, norm, query_weight, value_weight, value_bias, eps, bound) -> Any:
    return ProjectionArguments(
        *(*states.shape, query_weight.shape[0], library.threads(), eps, bound),
        *map(pointer, (states, lengths, norm, query_weight, value_weight, value_bias)),
    )


def pooling_projection(
    states: Tensor,
    lengths: Tensor,
    *,
    norm: Tensor,
    query_weight: Tensor,
    value_weight: Tensor,
    value_bias: Tensor,
    eps: float,
    bound: float,
) -> tuple[Tensor, Tensor]:
    """`value(n)` and `bound * tanh(query(n) / bound)` of the root mean square norm n of each event's state, on the CPU
    in float32.

    Args:
        states: `(batch, length, hidden)`.
        lengths: `(batch,)`, at most `length`: later events are padding, which is not looked at and gives 0.
        norm: gain, `(hidden,)`. query_weight: `(queries, hidden)`.
        value_weight: `(hidden, hidden)`. value_bias: `(hidden,)`.
        eps: of the norm.
        bound: of the scores.

    Returns:
        `(batch, length, hidden)` and `(batch, length, queries)`.

    Raises:
        ValueError: a shape, device or dtype does not fit.
        RuntimeError: the kernels are not available, or a second derivative is asked for.
    """
    width, queries = states.shape[-1], query_weight.shape[0]
    floats = {"states": (states, tuple(states.shape)), "norm": (norm, (width,))}
    floats |= {"query_weight": (query_weight, (queries, width)), "value_weight": (value_weight, (width, width))}
    floats |= {"value_bias": (value_bias, (width,))}
    check_shapes(**floats, lengths=(lengths, tuple(states.shape[:1])))
    check_float32(**{name: tensor for name, (tensor, _) in floats.items()})
    tensors = (states, lengths.long(), norm, query_weight, value_weight, value_bias)
    return torch.ops.hymate.pooling_projection(*(tensor.contiguous() for tensor in tensors), eps, bound)
