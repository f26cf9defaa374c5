"""A stream's step from kernel to kernel.

The checks and operators between kernels would take longer than a few events. Nothing here has a gradient or is traced.
The layers' own functions (`event_embedding`, `mamba_mixer` and so on) do the same one by one, and say what they do.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hymate_native.argument_checks import check_float32, check_shapes
from hymate_native.attention_layer import layer_operator
from hymate_native.channel_memory import check_memory, recall_operator, remember_operator
from hymate_native.channel_statistics import statistics_operator
from hymate_native.channel_tokens import tokens_operator
from hymate_native.event_embedding import embedding_operator
from hymate_native.fusion_attention import fusion_operator
from hymate_native.mamba_mixer import MIXER_WEIGHTS, mixer_stream_operator
from hymate_native.pooling_projection import projection_operator

_A = MIXER_WEIGHTS.index("A")


class StreamLayers(NamedTuple):
    """A model's weights, float32 and contiguous, each layer's as its operator takes them, and their constants.

    Attributes:
        embedding: variable, vectors, value and time (three each), missing.
        mixers: of each Mamba layer from in_weight to norm, with A_log for A, which is -exp(A_log); and eps.
        pooling: norm, query_weight, value_weight, value_bias, eps, bound.
        knots: of the statistics of each variable, and the number of bins.
        attention: of each layer the weights from attention_norm to down_bias, num_heads and eps.
        fusion: norm, weight, bias, score, eps.
        half_lives, time_scale: as in `running_quantities` and `channel_statistics`.
    """

    embedding: Sequence[Any]
    mixers: Sequence[tuple[Sequence[Any], float]]
    pooling: Sequence[Any]
    knots: tuple[Tensor, int]
    attention: Sequence[tuple[list[Tensor], int, float]]
    fusion: Sequence[Any]
    half_lives: list[float]
    time_scale: float

    @property
    def queries(self) -> int:
        """Number of pooling queries."""
        return self.pooling[1].shape[0]


def advance_stream(
    layers: StreamLayers,
    memory: tuple[Tensor, Tensor, Tensor, Tensor],
    values: Tensor,
    times: Tensor,
    variable_ids: Tensor,
    value_mask: Tensor,
    lengths: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is kept of records after further events.

    Args:
        layers: the model.
        memory: inputs of the convolutions `(layers, batch, inner, kernel - 1)`, states of the scans `(layers, batch,
            inner, state)`, `sums` and `history` of `remember_channels`.
        values, times, variable_ids, value_mask, lengths: as `event_embedding` takes them, of its data types.

    Raises:
        ValueError: the memory does not fit the model.
    """
    convolutions, scans, sums, history = memory
    _check_memory(layers, *memory, batch=len(values))
    values, times, variable_ids, value_mask = map(Tensor.contiguous, (values, times, variable_ids, value_mask))
    states = embedding_operator.run(values, times, variable_ids, value_mask, lengths, *layers.embedding, None)
    finals = []
    for (weights, eps), *before in zip(layers.mixers, convolutions, scans, strict=True):
        A = -torch.exp(weights[_A])
        states, *final = mixer_stream_operator.run(
            states, *weights[:_A], A, *weights[_A + 1 :], None, lengths, eps, *before
        )
        finals.append(final)
    if finals:
        convolutions, scans = map(torch.stack, zip(*finals, strict=True))
    parts, scores = projection_operator.run(states, lengths, *layers.pooling)
    sums, history = remember_operator.run(
        *(sums.contiguous(), history.contiguous(), parts, scores, values, times, value_mask, variable_ids, lengths),
        layers.half_lives,
    )
    return convolutions, scans, sums, history


def recall_stream(
    layers: StreamLayers, sums: Tensor, history: Tensor, now: Tensor, channel_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is said of records at a time.

    Args:
        layers: the model.
        sums, history, now, channel_ids: as `recall_channels` takes them; `now` and `channel_ids` contiguous.

    Returns:
        Tokens `(batch, channels, hidden)`, their pooled vector `(batch, hidden)` and weights in it `(batch,
        channels)`, and the running quantities `(batch, channels, quantities)`.

    Raises:
        ValueError: the memory does not fit the model.
    """
    embedding, width = layers.embedding[0], layers.embedding[0].shape[1]
    check_memory(sums, history, len(now), width, layers.queries, layers.half_lives)
    pooled, quantities = recall_operator.run(
        sums.contiguous(), history.contiguous(), now, channel_ids, layers.queries, layers.half_lives
    )
    statistics = statistics_operator.run(quantities, layers.time_scale)
    mask = quantities[..., 0] > 0
    at_one_time = (tensor.unsqueeze(1) for tensor in (pooled, mask, *statistics))
    tokens = tokens_operator.run(*at_one_time, channel_ids, embedding, *layers.knots).squeeze(1)
    for weights, heads, eps in layers.attention:
        tokens = layer_operator.run(tokens, mask, weights, heads, eps, 0.0, 0.0, 0)
    return tokens, *fusion_operator.run(tokens, mask, *layers.fusion), quantities


def _check_memory(layers, convolutions, scans, sums, history, batch):
    check_memory(sums, history, batch, layers.embedding[0].shape[1], layers.queries, layers.half_lives)
    if not layers.mixers:
        return
    weights, _ = layers.mixers[0]
    conv_weight, A = weights[MIXER_WEIGHTS.index("conv_weight")], weights[_A]
    leading = len(layers.mixers), batch, A.shape[0]
    check_shapes(
        convolution=(convolutions, (*leading, conv_weight.shape[1] - 1)), scan=(scans, (*leading, A.shape[1]))
    )
    check_float32(convolution=convolutions, scan=scans)
