"""One token per variable observed in a record: its events pooled by attention, and what its values and times say."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import nn

from .channel_statistics import HyMaTEChannelStatistics, channel_statistics, split_quantities
from .configuration_hymate import HyMaTEConfig
from .native import runs_natively
from .running_quantities import SCORE_BOUND, running_quantities
from .scan import hymate_native


class ChannelIndex:
    """Which events of each record belong to which of its channels, the variables observed in it.

    Attributes:
        slots: channel of each event, `(batch, length)`, a column of `channel_ids`; -1 for masked events.
        channel_ids: variable of each channel, ascending, `(batch, channels)`; -1 where a record has fewer.
    """

    def __init__(self, slots: torch.Tensor, channel_ids: torch.Tensor):
        self.slots = slots
        self.channel_ids = channel_ids

    @classmethod
    def of_events(
        cls, variable_ids: torch.Tensor, mask: torch.Tensor, num_variables: int, max_channels: int | None = None
    ) -> "ChannelIndex":
        """`variable_ids` and boolean `mask` are (batch, length); `max_channels` is a bound to the number of channels
        of any record, without which it is read from the data, or where that cannot be, is the largest possible."""
        batch = variable_ids.shape[0]  # len() would be a constant to torch.export
        rows = torch.arange(batch, device=mask.device).unsqueeze(1)
        places = (rows * num_variables + variable_ids).masked_fill(~mask, batch * num_variables)
        observed = torch.zeros(batch * num_variables + 1, dtype=torch.bool, device=mask.device)
        observed = observed.scatter(0, places.flatten(), True)[:-1].view(batch, num_variables)
        ranks = observed.cumsum(1)
        if max_channels is not None:
            num_channels = max(1, max_channels)
        elif torch.compiler.is_compiling() or mask.is_meta:
            num_channels = num_variables  # which depends on no data; surplus channels are padding and change nothing
        else:
            num_channels = max(1, int(ranks[:, -1].max()))
        slots = (ranks.gather(1, variable_ids) - 1).masked_fill(~mask, -1)
        return cls(slots, columns_of(observed, ranks, num_channels))

    def sum(self, states: torch.Tensor) -> torch.Tensor:
        """Sums events into their channels: (batch, length, width) -> (batch, channels, width)."""
        batch, num_channels = self.channel_ids.shape
        rows = torch.arange(batch, device=states.device).unsqueeze(1) * num_channels
        places = (rows + self.slots).masked_fill(self.slots < 0, batch * num_channels)
        total = states.new_zeros(batch * num_channels + 1, states.shape[-1])
        return total.index_add(0, places.flatten(), states.flatten(0, 1))[:-1].view(batch, num_channels, -1)

    def means(self, states: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted means of the events of each channel, `(batch, channels, width)`, and what they weigh together."""
        weighted = self.sum(torch.cat([states * weights.unsqueeze(-1), weights.unsqueeze(-1)], -1))
        totals, tiny = weighted[..., -1], torch.finfo(weighted.dtype).tiny
        return (weighted[..., :-1] / totals.clamp(min=tiny).unsqueeze(-1)).to(states.dtype), totals

    def last(self, values: torch.Tensor, has_value: torch.Tensor) -> torch.Tensor:
        """Last number of each channel, of values in time order: (batch, length) -> (batch, channels); 0 if none."""
        batch, num_channels = self.channel_ids.shape
        positions = torch.arange(1, values.shape[1] + 1, device=values.device).expand_as(self.slots)
        places = self.slots.masked_fill(~has_value | (self.slots < 0), num_channels)
        latest = positions.new_zeros(batch, num_channels + 1).scatter_reduce(1, places, positions, "amax")
        padded = torch.nn.functional.pad(values, (1, 0))
        return padded.gather(1, latest[:, :num_channels]).float()


def columns_of(observed: torch.Tensor, ranks: torch.Tensor, num_channels: int) -> torch.Tensor:
    """The variables at which `observed (batch, num_variables)` is true, ascending, `(batch, num_channels)`, then -1;
    `ranks` says how many there are up to each."""
    batch, num_variables = observed.shape
    columns = torch.where(observed, ranks - 1, num_channels)  # the unobserved ones write into a surplus column
    ids = torch.arange(num_variables, device=observed.device).expand(batch, -1)
    return ids.new_full((batch, num_channels + 1), -1).scatter(1, columns, ids)[:, :num_channels]


class HyMaTEChannelTokens(nn.Module):
    """Makes a variable's token of its events by attention with `num_pooling_queries` learned queries, each of which
    fills its own part of the token, of the variable's embedding, and of its statistics; or, without statistics, of the
    number of its events and the hours since the first and the last."""

    def __init__(self, config: HyMaTEConfig):
        super().__init__()
        self.time_scale = float(config.time_scale)
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.query = nn.Linear(config.hidden_size, config.num_pooling_queries, bias=False)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.statistics = HyMaTEChannelStatistics(config) if config.num_statistic_bins else None
        if self.statistics is None:
            self.occurrence = nn.Linear(3, config.hidden_size, bias=False)

    def project(self, hidden_states: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, length, hidden_size) of records that have `lengths` real events, first -> `parts` and `scores` of
        `running_quantities`."""
        if self.projects_natively(hidden_states):
            return hymate_native.pooling_projection(hidden_states, lengths, **self.projection_weights())
        states = self.norm(hidden_states)
        scores = self.query(states).float()
        return self.value(states), SCORE_BOUND * torch.tanh(scores / SCORE_BOUND)

    def describe(
        self,
        hidden_states: torch.Tensor,
        events: Any,
        channels: ChannelIndex,
        stretches: Sequence[torch.Tensor],
        half_lives: Sequence[float],
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
        """For each of `stretches`, some prediction times `(batch, predictions)`: what `running_quantities` returns of
        the `SortedEvents` and their states, and the events' scores, `(batch, length, queries)`."""
        num_channels = channels.channel_ids.shape[1]
        inputs = (events.values, events.times, events.has_value, channels.slots)
        if len(stretches) == 1 and self.pools_states(hidden_states, stretches[0].shape[1] * num_channels):
            yield hymate_native.pooled_states(
                hidden_states,
                events.lengths,
                *inputs,
                stretches[0],
                num_channels,
                half_lives,
                **self.projection_weights(),
            )
            return
        parts, scores = self.project(hidden_states, events.lengths)
        for prediction_times in stretches:
            yield *running_quantities(parts, scores, *inputs, prediction_times, num_channels, half_lives), scores

    def pools_states(self, hidden_states: torch.Tensor, num_cells: int) -> bool:
        """Whether a compiled kernel pools the states of events and projects the means of each query in a record's
        `num_cells` cells, which must be less work than to project the events first. It has no gradient."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        is_less = num_cells * self.query.out_features <= hidden_states.shape[1]
        return is_less and self.projects_natively(hidden_states)

    def projects_natively(self, hidden_states: torch.Tensor) -> bool:
        """Whether a compiled kernel does `project`."""
        return runs_natively(hidden_states, self.norm, self.query, self.value)

    def projection_weights(self) -> dict[str, Any]:
        """By the names, and in the order, of `hymate_native.pooling_projection`."""
        return {
            "norm": self.norm.weight,
            "query_weight": self.query.weight,
            "value_weight": self.value.weight,
            "value_bias": self.value.bias,
            "eps": cast(float, self.norm.eps),
            "bound": SCORE_BOUND,
        }

    def forward(
        self,
        pooled: torch.Tensor,
        quantities: torch.Tensor,
        mask: torch.Tensor,
        channel_ids: torch.Tensor,
        variable_embedding: Callable[[], nn.Embedding],
    ) -> torch.Tensor:
        """Running quantities at each prediction time, `(batch, predictions, channels, ...)`, which channels have any
        event by then, `(batch, predictions, channels)`, the variable of each channel, `(batch, channels)`, and where
        to find the variables' embedding -> tokens `(batch, predictions, channels, hidden_size)`; those of channels
        without an event mean nothing."""
        layer, embedding = self.statistics, variable_embedding()
        if layer is not None and not quantities.requires_grad and runs_natively(pooled, embedding, layer):
            statistics, present = channel_statistics(quantities, self.time_scale)
            return hymate_native.channel_tokens(
                pooled, mask, statistics, present, channel_ids, embedding.weight, layer.knots, layer.num_bins
            )
        tokens = pooled + embedding(channel_ids.clamp(min=0)).unsqueeze(1)
        if layer is not None:
            described = layer(quantities, channel_ids)
        else:
            found = split_quantities(quantities)
            hours = (found[name].clamp(min=0) * self.time_scale for name in ("since_first", "since_last"))
            described = self.occurrence(torch.stack([found["count"], *hours], -1).log1p().to(tokens.dtype))
        return tokens + described.to(tokens.dtype)
