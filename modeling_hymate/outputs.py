"""Outputs of the models."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class HyMaTEModelOutput(ModelOutput):
    """Output of the encoder.

    With `prediction_times`, what is said of a record is said at each of them: a dimension `predictions` comes after
    the batch in all fields but those of the events and `channel_ids`. What stands at padded predictions means nothing.

    Attributes:
        last_hidden_state: contextual events in the order they were handed in, `(batch, length, hidden_size)`; zeros
            at masked events. Absent from a stream's outputs.
        pooler_output: the patient representation, `(batch, [predictions,] config.pooler_size)`.
        channel_hidden_state: one token per variable observed by then, `(batch, [predictions,] channels,
            hidden_size)`; with `attention_axis="event"` the weighted mean of that variable's events. With
            `prediction_times` only where `output_channel_hidden_state` asks for it.
        channel_ids: the variable of each channel, `(batch, channels)`; -1 is padding. A compiled or exported model
            pads to the most channels that there can be.
        channel_counts: number of events of each channel, `(batch, [predictions,] channels)`; 0 where the variable has
            none yet, and its token and weight are 0.
        channel_last_values: the last number of each channel, standardized, `(batch, [predictions,] channels)`; 0 where
            there is none.
        event_weights: share of each event in the pooled vector, `(batch, length)`; a record's shares sum to one. With
            `prediction_times` only where `output_event_weights` asks for it, `(batch, predictions, length)`. Absent
            from a stream's outputs.
        channel_weights: share of each variable, `(batch, [predictions,] channels)`; a record's shares sum to one.
        hidden_states: with `output_hidden_states`, the embedded events and the output of each Mamba layer, each like
            `last_hidden_state`.
        attentions: with `output_attentions` and the eager attention implementation, the weights of each attention
            layer, `(batch * predictions, heads, tokens, tokens)`, those of one record after those of the other:
            between channels, or between events in time order.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    channel_hidden_state: torch.Tensor | None = None
    channel_ids: torch.Tensor | None = None
    channel_counts: torch.Tensor | None = None
    channel_last_values: torch.Tensor | None = None
    event_weights: torch.Tensor | None = None
    channel_weights: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class HyMaTEHeadOutput(ModelOutput):
    """What a head adds to the encoder's output, ahead of it."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


@dataclass
class HyMaTEForecastOutput(HyMaTEHeadOutput):
    """What the forecast head adds."""

    measured_logits: torch.Tensor | None = None


@dataclass
class HyMaTEForPreTrainingOutput(HyMaTEModelOutput, HyMaTEForecastOutput):
    """Output of forecast pretraining: the fields of `HyMaTEModelOutput` and

    Attributes:
        loss: mean squared error over the forecast values that were measured, plus `config.measured_weight` times the
            cross-entropy of whether each variable was; present with `forecast_values`.
        logits: forecast of each variable's next value within each of `config.forecast_horizons`, in standardized
            units, `(batch, [predictions,] horizons, num_variables)`, float32.
        measured_logits: scores, before the sigmoid, of its being measured within that time; of the same shape.
    """


@dataclass
class HyMaTEForSequenceClassificationOutput(HyMaTEModelOutput, HyMaTEHeadOutput):
    """Output of record classification: the fields of `HyMaTEModelOutput` and

    Attributes:
        loss: present with `labels`.
        logits: scores before softmax or sigmoid, the regressed numbers, or the score of each bin's hazard, `(batch,
            [predictions,] config.num_logits)`.
    """
