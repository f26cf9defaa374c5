"""Event embedding: what was measured, what its value was, and when (STraTS, arXiv 2107.14293, section 4.1)."""

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn

from .configuration_hymate import HyMaTEConfig
from .dropout import FeatureDropout
from .native import runs_natively
from .scan import hymate_native


class ScalarEmbedding(nn.Sequential):
    """Embeds numbers: num_inputs -> ceil(sqrt(hidden_size)) -> hidden_size with tanh between."""

    def __init__(self, hidden_size: int, num_inputs: int = 1):
        width = math.ceil(math.sqrt(hidden_size))
        super().__init__(nn.Linear(num_inputs, width), nn.Tanh(), nn.Linear(width, hidden_size, bias=False))

    def weights(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of the embedding of one number: weight and bias before tanh `(width,)`, and the weight behind it."""
        before, _, behind = cast(Iterable[Any], self)
        return before.weight.squeeze(1), before.bias, behind.weight


class HyMaTEPredictionTimeEmbedding(nn.Module):
    """Embeds the time at which a record is asked, as a share of `time_scale` and as the logarithm of its hours."""

    def __init__(self, config: HyMaTEConfig):
        super().__init__()
        self.time_scale = float(config.time_scale)
        self.layers = ScalarEmbedding(config.hidden_size, 2)

    def forward(self, prediction_times: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(batch, predictions) -> (batch, predictions, hidden_size)"""
        hours = prediction_times.clamp(min=0) * self.time_scale
        return self.layers(torch.stack([prediction_times, hours.log1p()], -1).to(dtype))


class HyMaTEEmbedding(nn.Module):
    """Embeds events as the sum of their variable, value and time; events without a number have a learned vector."""

    def __init__(self, config: HyMaTEConfig):
        super().__init__()
        self.variable_embedding = nn.Embedding(config.num_variables, config.hidden_size)
        self.value_embedding = ScalarEmbedding(config.hidden_size)
        self.variable_value_vectors = (
            nn.Embedding(config.num_variables, config.hidden_size) if config.variable_value_vectors else None
        )
        self.time_embedding = ScalarEmbedding(config.hidden_size)
        self.missing_value = nn.Parameter(torch.empty(config.hidden_size))
        self.dropout = FeatureDropout(config.hidden_dropout)

    def forward(
        self,
        values: torch.Tensor,
        times: torch.Tensor,
        variable_ids: torch.Tensor,
        value_mask: torch.Tensor,
        lengths: torch.Tensor,
    ) -> torch.Tensor:
        """All arguments but the number of real events, which come first, are (batch, length), `value_mask` boolean;
        returns (batch, length, hidden_size)."""
        if self.is_native(values, times):
            factors = self.dropout.factors(self.missing_value.expand(len(values), -1))
            return hymate_native.event_embedding(
                *(values, times, variable_ids, value_mask, lengths), **self.weights(), factors=factors
            )
        dtype = self.missing_value.dtype
        value_embeds = self.value_embedding(values.to(dtype).unsqueeze(-1))
        if self.variable_value_vectors is not None:
            value_embeds = value_embeds + values.to(dtype).unsqueeze(-1) * self.variable_value_vectors(variable_ids)
        value_embeds = torch.where(value_mask.unsqueeze(-1), value_embeds, self.missing_value.to(value_embeds.dtype))
        time_embeds = self.time_embedding(times.to(dtype).unsqueeze(-1))
        return self.dropout(self.variable_embedding(variable_ids) + value_embeds + time_embeds)

    def weights(self) -> dict[str, Any]:
        """By the names, and in the order, of `hymate_native.event_embedding`."""
        vectors = self.variable_value_vectors
        return {
            "variable": self.variable_embedding.weight,
            "vectors": None if vectors is None else vectors.weight,
            "value": self.value_embedding.weights(),
            "time": self.time_embedding.weights(),
            "missing": self.missing_value,
        }

    def is_native(self, values: torch.Tensor, times: torch.Tensor) -> bool:
        """Whether a compiled kernel embeds such events."""
        embeddings = (self.variable_embedding, self.variable_value_vectors, self.value_embedding, self.time_embedding)
        layers: list[nn.Module] = [layer for layer in embeddings if layer is not None]
        layers += [self.dropout, *self.value_embedding, *self.time_embedding]
        differentiates = values.requires_grad or times.requires_grad
        return not differentiates and times.dtype == values.dtype and runs_natively(values, *layers)


class HyMaTEStaticEmbedding(nn.Module):
    """Embeds static features (demographics): num_static_features -> 2 hidden_size -> hidden_size with tanh."""

    def __init__(self, config: HyMaTEConfig):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(config.num_static_features, 2 * config.hidden_size),
            nn.Tanh(),
            nn.Dropout(config.hidden_dropout),
            nn.Linear(2 * config.hidden_size, config.hidden_size),
            nn.Tanh(),
        )

    def forward(self, static_values: torch.Tensor) -> torch.Tensor:
        """(batch, num_static_features) -> (batch, hidden_size)"""
        return self.layers(static_values)
