"""Running quantities of channels from the states of events, for inference: one PyTorch operator."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hymate_native import library
from hymate_native.argument_checks import check_float32, check_shapes
from hymate_native.custom_operator import CustomOperator
from hymate_native.pooling_projection import projection_arguments
from hymate_native.structures import NUM_QUANTITIES, PooledArguments, RunningArguments, pointer


@CustomOperator(
    "pooled_states",
    "(Tensor states, Tensor lengths, Tensor norm, Tensor query_weight, Tensor value_weight, Tensor value_bias, "
    "float eps, float bound, Tensor values, Tensor times, Tensor value_mask, Tensor slots, Tensor prediction_times, "
    "SymInt num_channels, float[] half_lives) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _pooled(states, lengths, norm, query_weight, value_weight, value_bias, eps, bound, *inputs):
    *events, num_channels, half_lives = inputs
    outputs = _new_outputs(states, lengths, norm, query_weight, value_weight, value_bias, eps, bound, *inputs)
    pooled, totals, statistics, scores = map(pointer, outputs)
    (batch, length, width), queries, predictions = states.shape, query_weight.shape[0], events[-1].shape[1]
    half_life = torch.tensor(half_lives, dtype=torch.float64)
    projection = projection_arguments(states, lengths, norm, query_weight, value_weight, value_bias, eps, bound)
    projection.scores = scores
    running = RunningArguments(
        *(batch, length, predictions, num_channels, width, queries, len(half_lives), library.threads()),
        *map(pointer, (None, None, *events, half_life)),
        *(pooled, totals, statistics),
    )
    library.call("pooled_forward", PooledArguments(projection, running))
    return outputs


@_pooled.register_fake
def _new_outputs(states, lengths, norm, query_weight, value_weight, value_bias, eps, bound, *inputs):
    *_, prediction_times, num_channels, half_lives = inputs
    width, queries = states.shape[-1], query_weight.shape[0]
    sizes = width, queries, NUM_QUANTITIES[0] + NUM_QUANTITIES[1] * len(half_lives)
    cells = (*prediction_times.shape, num_channels)
    return *(states.new_empty((*cells, size)) for size in sizes), states.new_empty((*states.shape[:2], queries))


def pooled_states(
    states: Tensor,
    lengths: Tensor,
    values: Tensor,
    times: Tensor,
    value_mask: Tensor,
    slots: Tensor,
    prediction_times: Tensor,
    num_channels: int,
    half_lives: Sequence[float],
    *,
    norm: Tensor,
    query_weight: Tensor,
    value_weight: Tensor,
    value_bias: Tensor,
    eps: float,
    bound: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `pooling_projection` and then `running_quantities` say, on the CPU in float32, and without a gradient.

    The mean of projected states is the projected mean of the states. So not every event is projected, but the means of
    each channel and query: much less work where prediction times are few.

    Args:
        states, lengths, norm, query_weight, value_weight, value_bias, eps, bound: as in `pooling_projection`.
        values, times, value_mask, slots, prediction_times, num_channels, half_lives: as in `running_quantities`.

    Returns:
        The means, the sums of the weights and the statistics of `running_quantities`, and the scores `(batch, length,
        queries)`, 0 at padding; those of events that no prediction time sees mean nothing.

    Raises:
        ValueError: a shape, device or dtype does not fit.
        RuntimeError: the kernels are not available.
    """
    weights = {"norm": norm, "query_weight": query_weight, "value_weight": value_weight, "value_bias": value_bias}
    events = {"values": values, "times": times, "value_mask": value_mask, "slots": slots}
    check_pooling(states, lengths, **weights, **events)
    check_shapes(prediction_times=(prediction_times, (states.shape[0], prediction_times.shape[-1])))
    check_float32(prediction_times=prediction_times)
    tensors = (states, lengths.long(), *weights.values())
    inputs = (values, times, value_mask.bool(), slots.long(), prediction_times)
    return torch.ops.hymate.pooled_states(
        *(tensor.contiguous() for tensor in tensors),
        *(eps, bound),
        *(tensor.contiguous() for tensor in inputs),
        *(num_channels, list(half_lives)),
    )


def check_pooling(states: Tensor, lengths: Tensor, **tensors: Tensor) -> None:
    """Raises ValueError if any argument of `pooled_states` but the prediction times does not fit the others."""
    batch, length, width = states.shape
    queries, events = tensors["query_weight"].shape[0], (batch, length)
    integers = {"lengths": (batch,), "value_mask": events, "slots": events}
    floats = {
        **{"states": (*events, width), "norm": (width,), "query_weight": (queries, width)},
        **{"value_weight": (width, width), "value_bias": (width,), "values": events, "times": events},
    }
    tensors |= {"states": states, "lengths": lengths}
    check_shapes(**{name: (tensors[name], shape) for name, shape in (floats | integers).items()})
    check_float32(**{name: tensors[name] for name in floats})
    if queries < 1 or width % queries:
        raise ValueError(f"the columns of states must divide among the queries, got {width} and {queries}")
