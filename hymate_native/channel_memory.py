"""What a stream keeps of each variable: moved on by further events, and asked at a time; both PyTorch operators."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hymate_native import library
from hymate_native.argument_checks import check_float32, check_shapes
from hymate_native.custom_operator import CustomOperator
from hymate_native.structures import NUM_HISTORY, NUM_QUANTITIES, MemoryArguments, pointer


@CustomOperator(
    "remember_channels",
    "(Tensor sums, Tensor history, Tensor parts, Tensor scores, Tensor values, Tensor times, Tensor value_mask, "
    "Tensor variable_ids, Tensor lengths, float[] half_lives) -> (Tensor, Tensor)",
)
def remember_operator(sums, history, parts, scores, *inputs):
    *events, half_lives = inputs
    outputs = torch.empty_like(sums), torch.empty_like(history)
    half_life = torch.tensor(half_lives, dtype=torch.float64)
    batch, length, width = parts.shape
    arguments = MemoryArguments(
        *(batch, length, sums.shape[1], 0, width, scores.shape[-1], len(half_lives), library.threads()),
        *map(pointer, (half_life, sums, history, parts, scores, *events, *outputs)),
    )
    library.call("remember_channels", arguments)
    return outputs


@remember_operator.register_fake
def _(sums, history, *_):
    return torch.empty_like(sums), torch.empty_like(history)


@CustomOperator(
    "recall_channels",
    "(Tensor sums, Tensor history, Tensor now, Tensor channel_ids, int queries, float[] half_lives) -> "
    "(Tensor, Tensor)",
)
def recall_operator(sums, history, now, channel_ids, queries, half_lives):
    pooled, quantities = outputs = _new_answers(sums, history, now, channel_ids, queries, half_lives)
    half_life = torch.tensor(half_lives, dtype=torch.float64)
    (batch, channels), variables, width = channel_ids.shape, sums.shape[1], pooled.shape[-1]
    arguments = MemoryArguments(
        *(batch, 0, variables, channels, width, queries, len(half_lives), library.threads()),
        *map(pointer, (half_life, sums, history)),
    )
    arguments.now, arguments.channel_ids, arguments.pooled, arguments.quantities = map(
        pointer, (now, channel_ids, pooled, quantities)
    )
    library.call("recall_channels", arguments)
    return outputs


@recall_operator.register_fake
def _new_answers(sums, history, now, channel_ids, queries, half_lives):
    sizes = sums.shape[-1] - queries, NUM_QUANTITIES[0] + NUM_QUANTITIES[1] * len(half_lives)
    return tuple(sums.new_empty((*channel_ids.shape, size)) for size in sizes)


def remember_channels(
    sums: Tensor,
    history: Tensor,
    parts: Tensor,
    scores: Tensor,
    values: Tensor,
    times: Tensor,
    value_mask: Tensor,
    variable_ids: Tensor,
    lengths: Tensor,
    half_lives: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """What is kept of each variable after further events of each record, on the CPU.

    Args:
        sums: of the weighted parts and, behind them, of the weights, `(batch, variables, hidden + queries)`, float32.
        history: `modeling_hymate.running_quantities.Running`, `(batch, variables, numbers)`, float64.
        parts: `(batch, length, hidden)`, float32; each pooling query has its own part of the columns.
        scores: logarithms of the weights, `(batch, length, queries)`, float32, at most 87.
        values, times: `(batch, length)`, float32; times ascend, and none is before those in the history.
        value_mask: boolean, `(batch, length)`.
        variable_ids: `(batch, length)`, each in `[0, variables)`.
        lengths: `(batch,)`, at most `length`: later events are padding, which is not looked at.
        half_lives: positive, in the unit of the times.

    Returns:
        `sums` and `history` after these events; the given ones stay as they are.

    Raises:
        ValueError: a shape, device or dtype does not fit.
        RuntimeError: the kernels are not available.
    """
    batch, length, width = parts.shape
    queries, events = scores.shape[-1], (batch, length)
    check_memory(sums, history, batch, width, queries, half_lives)
    floats = {"parts": (parts, (*events, width)), "scores": (scores, (*events, queries)), "values": (values, events)}
    floats["times"] = times, events
    check_shapes(
        **floats, value_mask=(value_mask, events), variable_ids=(variable_ids, events), lengths=(lengths, (batch,))
    )
    check_float32(**{name: tensor for name, (tensor, _) in floats.items()})
    tensors = (sums, history, parts, scores, values, times, value_mask.bool(), variable_ids.long(), lengths.long())
    return torch.ops.hymate.remember_channels(*(tensor.contiguous() for tensor in tensors), list(half_lives))


def recall_channels(
    sums: Tensor, history: Tensor, now: Tensor, channel_ids: Tensor, queries: int, half_lives: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """What `remember_channels` keeps says of some variables at a time, on the CPU.

    Args:
        sums, history, half_lives: as in `remember_channels`.
        now: `(batch,)`, float32.
        channel_ids: variables, `(batch, channels)`, each in `[0, variables)`; or -1, of which nothing is known.
        queries: number of pooling queries.

    Returns:
        The weighted means `(batch, channels, hidden)` and the quantities of `running_quantities`, `(batch, channels,
        quantities)`, both float32, and 0 where a variable has no event.

    Raises:
        ValueError: a shape, device or dtype does not fit.
        RuntimeError: the kernels are not available.
    """
    batch = len(sums)
    check_memory(sums, history, batch, sums.shape[-1] - queries, queries, half_lives)
    check_shapes(now=(now, (batch,)), channel_ids=(channel_ids, (batch, channel_ids.shape[-1])))
    check_float32(now=now)
    tensors = (sums, history, now, channel_ids.long())
    return torch.ops.hymate.recall_channels(*(tensor.contiguous() for tensor in tensors), queries, list(half_lives))


def check_memory(sums, history, batch, width, queries, half_lives):
    if queries < 1 or width < queries or width % queries:
        raise ValueError(f"the columns of parts must divide among the queries, got {width} and {queries}")
    variables, numbers = sums.shape[1], NUM_HISTORY[0] + NUM_HISTORY[1] * len(half_lives)
    check_shapes(sums=(sums, (batch, variables, width + queries)), history=(history, (batch, variables, numbers)))
    check_float32(sums=sums)
    if history.dtype != torch.float64:
        raise ValueError(f"history must be float64, got {history.dtype}")
