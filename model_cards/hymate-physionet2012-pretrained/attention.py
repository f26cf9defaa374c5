"""Attention over channels: pooling of events into tokens, self-attention across tokens, fusion attention."""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_hymate import HyMaTEConfig


class ChannelIndex:
    """Which events of each record belong to which of its channels, the variables observed in it.

    Attributes:
        slots: channel of each event, `(batch, length)`, a column of `channel_ids`; 0 for masked events.
        channel_ids: variable of each channel, ascending, `(batch, channels)`; -1 where a record has fewer.
        counts: number of events of each channel, `(batch, channels)`.
    """

    def __init__(self, variable_ids: torch.Tensor, mask: torch.Tensor, num_variables: int):
        """`variable_ids` and boolean `mask` are (batch, length)."""
        batch, length = variable_ids.shape
        sorted_ids, order = variable_ids.masked_fill(~mask, num_variables).sort(dim=1, stable=True)
        starts = torch.ones_like(sorted_ids, dtype=torch.bool)
        starts[:, 1:] = sorted_ids[:, 1:] != sorted_ids[:, :-1]
        sorted_slots = starts.cumsum(1) - 1
        if torch.compiler.is_compiling():
            # a bound that does not depend on the data; surplus channels are padding and change nothing
            num_channels = min(length, num_variables)
        else:
            num_channels = max(1, int((starts & (sorted_ids < num_variables)).sum(1).max()))
        self.mask = mask
        self.slots = torch.zeros_like(sorted_slots).scatter(1, order, sorted_slots).masked_fill(~mask, 0)
        ids = sorted_ids.new_full((batch, num_channels + 1), num_variables)
        # masked events, sorted last, write their sentinel into the surplus column or a padding channel
        ids = ids.scatter(1, sorted_slots.clamp(max=num_channels), sorted_ids)[:, :num_channels]
        self.channel_ids = ids.masked_fill(ids == num_variables, -1)
        rows = torch.arange(batch, device=mask.device).unsqueeze(1) * num_channels
        self._flat_slots = (self.slots + rows).flatten()
        self.counts = self.sum(mask.to(torch.float32).unsqueeze(-1)).squeeze(-1)

    def sum(self, states: torch.Tensor) -> torch.Tensor:
        """Sums events into their channels: (batch, length, width) -> (batch, channels, width)."""
        batch, num_channels = self.channel_ids.shape
        total = states.new_zeros(batch * num_channels, states.shape[-1])
        return total.index_add(0, self._flat_slots, states.flatten(0, 1)).view(batch, num_channels, -1)

    def gather(self, states: torch.Tensor) -> torch.Tensor:
        """Hands each event what its channel holds: (batch, channels, width) -> (batch, length, width)."""
        return states.flatten(0, 1).index_select(0, self._flat_slots).view(*self.slots.shape, -1)

    def extreme(self, scores: torch.Tensor, reduce: str) -> torch.Tensor:
        """Largest ("amax") or smallest ("amin") number of each channel's events: (batch, length) -> (batch, channels);
        zero where a channel has none."""
        total = scores.new_zeros(self.channel_ids.numel())
        total = total.scatter_reduce(0, self._flat_slots, scores.flatten(), reduce, include_self=False)
        return total.view(self.channel_ids.shape)

    def softmax(self, scores: torch.Tensor) -> torch.Tensor:
        """Softmax of (batch, length, width) over the events of each channel, in float32; 0 for masked events."""
        scores = scores.float()
        mask = self.mask.unsqueeze(-1)
        with torch.no_grad():
            batch, num_channels = self.channel_ids.shape
            lowest = torch.finfo(scores.dtype).min
            index = self._flat_slots.unsqueeze(-1).expand(-1, scores.shape[-1])
            highest = scores.new_full((batch * num_channels, scores.shape[-1]), lowest)
            highest = highest.scatter_reduce(0, index, scores.masked_fill(~mask, lowest).flatten(0, 1), "amax")
            highest = self.gather(highest.view(batch, num_channels, -1))
        weights = (scores - highest).masked_fill(~mask, lowest).exp()
        total = self.gather(self.sum(weights))
        return weights / total.clamp(min=torch.finfo(total.dtype).tiny)


class HyMaTEChannelPooling(nn.Module):
    """Pools the events of each variable into one token by attention with `num_pooling_queries` learned queries.

    Each query fills its own part of the token. The token also carries the embedding of its variable and the
    logarithm of the number of its events.
    """

    def __init__(self, config: HyMaTEConfig):
        super().__init__()
        self.num_queries = config.num_pooling_queries
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.query = nn.Linear(config.hidden_size, config.num_pooling_queries, bias=False)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.count = nn.Linear(1, config.hidden_size, bias=False)

    def forward(
        self, hidden_states: torch.Tensor, channels: ChannelIndex, variable_embedding: nn.Embedding
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, length, hidden_size) -> tokens (batch, channels, hidden_size) and weights (batch, length) of each
        event inside its variable, which sum to one there."""
        states = self.norm(hidden_states)
        weights = channels.softmax(self.query(states))  # (batch, length, queries)
        parts = self.value(states).unflatten(-1, (self.num_queries, -1))
        tokens = channels.sum((parts * weights.to(parts.dtype).unsqueeze(-1)).flatten(-2))
        tokens = tokens + variable_embedding(channels.channel_ids.clamp(min=0))
        tokens = tokens + self.count(channels.counts.log1p().to(self.count.weight.dtype).unsqueeze(-1))
        return tokens, weights.mean(-1)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention that also returns its weights, (batch, heads, tokens, tokens)."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class HyMaTEAttention(nn.Module):
    """Multi-head self-attention across tokens."""

    def __init__(self, config: HyMaTEConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch, tokens, hidden_size) -> the same shape and, from the eager implementation, the weights."""
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            projection(hidden_states).view(heads).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attended, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(attended.flatten(2)), weights


class HyMaTEAttentionLayer(GradientCheckpointingLayer):
    """A pre-norm Transformer layer across tokens."""

    def __init__(self, config: HyMaTEConfig):
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = HyMaTEAttention(config)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden_size, int(config.intermediate_size)),
            nn.GELU(),
            nn.Linear(int(config.intermediate_size), config.hidden_size),
        )
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs) -> torch.Tensor:
        attended, _ = self.attention(self.attention_norm(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))


class HyMaTEFusionAttention(nn.Module):
    """Pools tokens into one vector with weights softmax(u^T tanh(W z + b)) (STraTS, equation 5)."""

    def __init__(self, config: HyMaTEConfig):
        super().__init__()
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size)
        self.score = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, tokens, hidden_size), boolean (batch, tokens) -> (batch, hidden_size) and the float32 weights
        (batch, tokens), which sum to one, or are all zero for a record without tokens."""
        tokens = self.norm(tokens)
        scores = self.score(torch.tanh(self.projection(tokens))).squeeze(-1).float()
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1).masked_fill(~mask, 0)
        return torch.matmul(weights.to(tokens.dtype).unsqueeze(1), tokens).squeeze(1), weights
