"""Records read again without some of their events, many versions of each at a time."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hymate_native import library
from hymate_native.argument_checks import check_shapes
from hymate_native.mamba_mixer import mixer_arguments, mixer_sizes
from hymate_native.pooled_states import check_pooling
from hymate_native.pooling_projection import projection_arguments
from hymate_native.structures import NUM_QUANTITIES, OcclusionArguments, RunningArguments, dense, describe, pointer


def pooled_without(
    states: Tensor,
    lengths: Tensor,
    values: Tensor,
    times: Tensor,
    value_mask: Tensor,
    slots: Tensor,
    num_channels: int,
    half_lives: Sequence[float],
    records: Tensor,
    absent: Tensor,
    *,
    mixer: Sequence[Any],
    mixer_eps: float,
    norm: Tensor,
    query_weight: Tensor,
    value_weight: Tensor,
    value_bias: Tensor,
    eps: float,
    bound: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `mamba_mixer` in a residual layer and then `pooled_states` say of records without some of their events.

    Each version is asked at the time of its last event; on the CPU in float32, and without a gradient. Versions of a
    record share what comes before their first absent event, and of what comes after it the step sizes and decays,
    except those of the events whose convolution sees others than before.

    Args:
        states: of the whole records before the layer, `(batch, length, hidden)`.
        lengths, values, times, value_mask, slots, num_channels, half_lives: as in `pooled_states`.
        records: the record of each version, ascending, `(versions,)`.
        absent: boolean, true at events that the version is without, `(versions, length)`.
        mixer: the layer's weights in the order of `MIXER_WEIGHTS`, all but the factors.
        mixer_eps: of the layer's norm.
        norm, query_weight, value_weight, value_bias, eps, bound: as in `pooling_projection`.

    Returns:
        Means `(versions, num_channels, hidden)`, statistics `(versions, num_channels, quantities)` and the times of
        the versions' last events, `(versions,)`, 0 where there is none.

    Raises:
        ValueError: a shape, device or dtype does not fit.
        RuntimeError: the kernels are not available.
    """
    weights = {"norm": norm, "query_weight": query_weight, "value_weight": value_weight, "value_bias": value_bias}
    events = {"values": values, "times": times, "value_mask": value_mask, "slots": slots}
    check_pooling(states, lengths, **weights, **events)
    (batch, length, width), versions, queries = states.shape, len(records), len(query_weight)
    check_shapes(absent=(absent, (versions, length)))
    if versions and (records.diff() < 0).any():
        raise ValueError("records must ascend")
    layer = [*map(dense, mixer), None]
    states, lengths = states.contiguous(), lengths.long().contiguous()
    _, projected, convolved, parameters, _ = torch.ops.hymate.mamba_mixer(states, *layer, lengths, mixer_eps, True)
    kept = {"projected": projected, "convolved": convolved, "parameters": parameters}
    described = {name: describe(tensor) for name, tensor in kept.items()}
    half_life = torch.tensor(half_lives, dtype=torch.float64)
    starts = torch.searchsorted(records.contiguous(), torch.arange(batch + 1))
    quantities = NUM_QUANTITIES[0] + NUM_QUANTITIES[1] * len(half_lives)
    pooled, statistics = (torch.empty((versions, num_channels, columns)) for columns in (width, quantities))
    last_times = torch.empty(versions)
    pooling = {name: weight.contiguous() for name, weight in weights.items()}
    inputs = [tensor.contiguous() for tensor in (values, times, value_mask.bool(), slots.long(), absent.bool())]
    arguments = OcclusionArguments(
        mixer_arguments(mixer_sizes(states, layer), states, layer, lengths, **described),
        projection_arguments(states, lengths, **pooling, eps=eps, bound=bound),
        RunningArguments(
            *(batch, length, 1, num_channels, width, queries, len(half_lives), library.threads(), None, None),
            *(*map(pointer, inputs[:-1]), None, pointer(half_life), pointer(pooled), None, pointer(statistics)),
        ),
        *map(pointer, (starts, inputs[-1], last_times)),
    )
    library.call("occlusion_forward", arguments)
    return pooled, statistics, last_times
