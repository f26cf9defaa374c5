"""The embedding of events as one PyTorch operator."""

from typing import Any

import torch
from torch import Tensor

from hymate_native import library
from hymate_native.argument_checks import check_float32, check_shapes
from hymate_native.custom_operator import CustomOperator, no_second_derivative
from hymate_native.structures import EmbeddingArguments, pointer

# In the order of the struct.
_WEIGHTS = (
    *("variable", "vectors", "value_weight", "value_bias", "value_out", "time_weight", "time_bias", "time_out"),
    "missing",
)
_INPUTS = (
    "Tensor values, Tensor times, Tensor variable_ids, Tensor value_mask, Tensor lengths, Tensor variable, "
    "Tensor? vectors, Tensor value_weight, Tensor value_bias, Tensor value_out, Tensor time_weight, Tensor time_bias, "
    "Tensor time_out, Tensor missing, Tensor? factors"
)


@CustomOperator("event_embedding", f"({_INPUTS}) -> Tensor")
def embedding_operator(values, *inputs):
    output = torch.empty((*values.shape, inputs[-2].shape[0]))
    arguments = _arguments(values, *inputs)
    arguments.out = pointer(output)
    library.call("embedding_forward", arguments)
    return output


@embedding_operator.register_fake
def _(values, *inputs):
    return values.new_empty((*values.shape, inputs[-2].shape[0]))


@CustomOperator("event_embedding_backward", f"(Tensor grad, {_INPUTS}) -> ({', '.join(['Tensor'] * len(_WEIGHTS))})")
def _embedding_backward(grad, *inputs):
    grad = grad.contiguous()
    grads = [None if weight is None else torch.empty_like(weight) for weight in inputs[5:-1]]
    arguments = _arguments(*inputs)
    arguments.grad_out = pointer(grad)
    for name, weight_grad in zip(_WEIGHTS, grads, strict=True):
        setattr(arguments, f"grad_{name}", pointer(weight_grad))
    library.call("embedding_backward", arguments)
    return tuple(torch.empty(0) if weight_grad is None else weight_grad for weight_grad in grads)


@_embedding_backward.register_fake
def _(grad, *inputs):
    return tuple(grad.new_empty(0) if weight is None else torch.empty_like(weight) for weight in inputs[5:-1])


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad):
    inputs = ctx.saved_tensors
    grads = torch.ops.hymate.event_embedding_backward(grad, *inputs)
    weights = (None if weight is None else grad for weight, grad in zip(inputs[5:-1], grads, strict=True))
    return *(None,) * 5, *weights, None


embedding_operator.register_autograd(_differentiate, setup_context=_keep)
_embedding_backward.register_autograd(no_second_derivative("event embedding"))


def _arguments(*tensors: Any) -> Any:
    (batch, length), (variables, width), inside = tensors[0].shape, tensors[5].shape, tensors[7].shape[0]
    sizes = (batch, length, width, inside, variables, library.threads())
    return EmbeddingArguments(*sizes, *map(pointer, tensors))


def event_embedding(
    values: Tensor,
    times: Tensor,
    variable_ids: Tensor,
    value_mask: Tensor,
    lengths: Tensor,
    *,
    variable: Tensor,
    vectors: Tensor | None,
    value: tuple[Tensor, Tensor, Tensor],
    time: tuple[Tensor, Tensor, Tensor],
    missing: Tensor,
    factors: Tensor | None = None,
) -> Tensor:
    """`factors * (variable + value_embedding + time_embedding)` of each event, on the CPU in float32.

    A number x is embedded as `out tanh(weight x + bias)`, a value also by `value * vectors[variable]`; where there is
    no number, `missing` stands in place of both. Values, times and factors have no gradient.

    Args:
        values, times: `(batch, length)`; values where `value_mask` is false, and padding, are not looked at.
        variable_ids: `(batch, length)`. value_mask: boolean, `(batch, length)`.
        lengths: `(batch,)`, at most `length`: later events are padding, whose embedding is 0.
        variable, vectors: `(variables, hidden)`.
        value, time: weight `(inside,)`, bias `(inside,)` and out `(hidden, inside)`.
        missing: `(hidden,)`.
        factors: `(batch, hidden)`, such as those of dropout of whole features.

    Returns:
        `(batch, length, hidden)`.

    Raises:
        ValueError: a shape, device or dtype does not fit.
        RuntimeError: the kernels are not available, or a second derivative is asked for.
    """
    events, (variables, width), inside = tuple(values.shape), variable.shape, value[0].shape[0]
    weights = (variable, vectors, *value, *time, missing)
    sizes = [(variables, width)] * 2 + [(inside,), (inside,), (width, inside)] * 2 + [(width,)]
    floats = dict(zip(_WEIGHTS, zip(weights, sizes, strict=True), strict=True))
    floats |= {"values": (values, events), "times": (times, events), "factors": (factors, (events[0], width))}
    check_shapes(
        **floats, variable_ids=(variable_ids, events), value_mask=(value_mask, events), lengths=(lengths, events[:1])
    )
    check_float32(**{name: tensor for name, (tensor, _) in floats.items() if tensor is not None})
    tensors = (values, times, variable_ids.long(), value_mask.bool(), lengths.long(), *weights, factors)
    return torch.ops.hymate.event_embedding(*(None if tensor is None else tensor.contiguous() for tensor in tensors))
