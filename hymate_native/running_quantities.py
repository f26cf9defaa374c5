"""Running quantities of each channel at prediction times as a PyTorch operator."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hymate_native import library
from hymate_native.argument_checks import check_float32, check_shapes
from hymate_native.custom_operator import CustomOperator, no_second_derivative
from hymate_native.structures import NUM_QUANTITIES, RunningArguments, pointer

_INPUTS = (
    "Tensor parts, Tensor scores, Tensor values, Tensor times, Tensor value_mask, Tensor slots, "
    "Tensor prediction_times, SymInt num_channels, float[] half_lives"
)


@CustomOperator("running_quantities", f"({_INPUTS}) -> (Tensor, Tensor, Tensor)")
def _quantities(*inputs):
    arguments, (shape, width, queries, quantities), _half_life = _arguments(*inputs)
    outputs = tuple(torch.empty((*shape, size)) for size in (width, queries, quantities))
    arguments.pooled, arguments.totals, arguments.statistics = map(pointer, outputs)
    library.call("running_forward", arguments)
    return outputs


@_quantities.register_fake
def _(*inputs):
    shape, *sizes = _shape(*inputs)
    return tuple(inputs[0].new_empty((*shape, size)) for size in sizes)


@CustomOperator(
    "running_quantities_backward",
    f"(Tensor? grad_pooled, Tensor? grad_totals, Tensor pooled, Tensor totals, {_INPUTS}) -> (Tensor, Tensor)",
)
def _quantities_backward(grad_pooled, grad_totals, pooled, totals, *inputs):
    arguments, _, _half_life = _arguments(*inputs)
    grad_pooled = torch.zeros_like(pooled) if grad_pooled is None else grad_pooled.contiguous()
    grad_totals = None if grad_totals is None else grad_totals.contiguous()
    grads = torch.empty_like(inputs[0]), torch.empty_like(inputs[1])
    arguments.pooled, arguments.totals = pointer(pooled), pointer(totals)
    arguments.grad_pooled, arguments.grad_totals = pointer(grad_pooled), pointer(grad_totals)
    arguments.grad_parts, arguments.grad_scores = map(pointer, grads)
    library.call("running_backward", arguments)
    return grads


@_quantities_backward.register_fake
def _(grad_pooled, grad_totals, pooled, totals, parts, scores, *_):
    return torch.empty_like(parts), torch.empty_like(scores)


def _keep(ctx, inputs, output):
    *tensors, ctx.num_channels, ctx.half_lives = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(*output[:2], *tensors)


def _differentiate(ctx, grad_pooled, grad_totals, _):
    if grad_pooled is None and grad_totals is None:
        return (None,) * 9
    grads = torch.ops.hymate.running_quantities_backward(
        grad_pooled, grad_totals, *ctx.saved_tensors, ctx.num_channels, ctx.half_lives
    )
    return *grads, *(None,) * 7


_quantities.register_autograd(_differentiate, setup_context=_keep)
_quantities_backward.register_autograd(no_second_derivative("running quantities"))


def _shape(parts, scores, values, times, value_mask, slots, prediction_times, num_channels, half_lives):
    (width, queries), quantities = (parts.shape[-1], scores.shape[-1]), NUM_QUANTITIES[0]
    shape = (*prediction_times.shape, num_channels)
    return shape, width, queries, quantities + NUM_QUANTITIES[1] * len(half_lives)


def _arguments(*inputs):
    *tensors, num_channels, half_lives = inputs
    (batch, length, width), queries, predictions = tensors[0].shape, tensors[1].shape[-1], tensors[-1].shape[1]
    half_life = torch.tensor(half_lives, dtype=torch.float64)
    arguments = RunningArguments(
        *(batch, length, predictions, num_channels, width, queries, len(half_lives), library.threads()),
        *map(pointer, (*tensors, half_life)),
    )
    return arguments, _shape(*inputs), half_life  # which must live as long as the arguments


@CustomOperator(
    "event_weights",
    "(Tensor channel_weights, Tensor totals, Tensor scores, Tensor times, Tensor slots, Tensor prediction_times) -> "
    "Tensor",
)
def _event_weights(channel_weights, totals, scores, times, slots, prediction_times):
    (batch, length, queries), (_, predictions, channels) = scores.shape, channel_weights.shape
    weights = torch.empty((batch, predictions, length))
    named = {"channel_weights": channel_weights, "totals": totals, "scores": scores, "times": times, "slots": slots}
    named |= {"prediction_times": prediction_times, "event_weights": weights}
    sizes = {"batch": batch, "length": length, "predictions": predictions, "channels": channels, "queries": queries}
    pointers = {name: pointer(tensor) for name, tensor in named.items()}
    library.call("running_shares", RunningArguments(**sizes, **pointers, width=queries, threads=library.threads()))
    return weights


@_event_weights.register_fake
def _(channel_weights, totals, scores, *_):
    return scores.new_empty((*channel_weights.shape[:2], scores.shape[1]))


def event_weights(
    channel_weights: Tensor, totals: Tensor, scores: Tensor, times: Tensor, slots: Tensor, prediction_times: Tensor
) -> Tensor:
    """The share of each event in what its channel has a share of, on the CPU in float32; it has no gradient.

    Args:
        channel_weights: `(batch, predictions, channels)`.
        totals, scores, times, slots, prediction_times: of `running_quantities`.

    Returns:
        `(batch, predictions, length)`, 0 at events after a prediction time and at masked ones.

    Raises:
        ValueError: a shape, device or dtype does not fit.
        RuntimeError: the kernels are not available.
    """
    (batch, predictions, channels), events, queries = channel_weights.shape, tuple(times.shape), scores.shape[-1]
    floats = {"channel_weights": (channel_weights, (batch, predictions, channels)), "times": (times, events)}
    floats |= {"totals": (totals, (batch, predictions, channels, queries)), "scores": (scores, (*events, queries))}
    floats |= {"prediction_times": (prediction_times, (batch, predictions))}
    check_shapes(**floats, slots=(slots, events))
    check_float32(**{name: tensor for name, (tensor, _) in floats.items()})
    tensors = (channel_weights, totals, scores, times, slots.long(), prediction_times)
    return torch.ops.hymate.event_weights(*(tensor.contiguous() for tensor in tensors))


def running_quantities(
    parts: Tensor,
    scores: Tensor,
    values: Tensor,
    times: Tensor,
    value_mask: Tensor,
    slots: Tensor,
    prediction_times: Tensor,
    num_channels: int,
    half_lives: Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax-weighted means and statistics of each channel's events at or before each prediction time, on the CPU.

    The signature is that of `modeling_hymate.running_quantities`, which says what the statistics are. Parts and
    scores have gradients, values and times have none.

    Args:
        parts: `(batch, length, hidden)`, float32; each pooling query has its own part of the columns.
        scores: logarithms of the weights, `(batch, length, queries)`, float32, at most 87.
        values, times: `(batch, length)`, float32; times ascend over a record's real events.
        value_mask: boolean, `(batch, length)`.
        slots: channel of each event, `(batch, length)`, below `num_channels`; -1 at masked events, which come last.
        prediction_times: ascending, `(batch, predictions)`, float32.
        half_lives: positive, in the unit of the times.

    Returns:
        `(batch, predictions, num_channels, ...)`: the means (hidden), the sums of the weights (queries), statistics.

    Raises:
        ValueError: a shape, device or dtype does not fit.
        RuntimeError: the kernels are not available, or a second derivative is asked for.
    """
    batch, length, width = parts.shape
    queries, events = scores.shape[-1], (batch, length)
    floats = {"parts": (parts, (*events, width)), "scores": (scores, (*events, queries)), "values": (values, events)}
    floats |= {"times": (times, events), "prediction_times": (prediction_times, (batch, prediction_times.shape[-1]))}
    check_shapes(**floats, value_mask=(value_mask, events), slots=(slots, events))
    check_float32(**{name: tensor for name, (tensor, _) in floats.items()})
    if queries < 1 or width % queries:
        raise ValueError(f"the columns of parts must divide among the queries, got {width} and {queries}")
    tensors = (parts, scores, values, times, value_mask.bool(), slots.long(), prediction_times)
    return torch.ops.hymate.running_quantities(
        *(tensor.contiguous() for tensor in tensors), num_channels, list(half_lives)
    )
