"""Attention across tokens: self-attention layers, and fusion attention that pools them into one vector."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_hymate import HyMaTEConfig
from .inputs import is_readable
from .native import runs_natively
from .scan import hymate_native


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

    def runs_natively(self, hidden_states: torch.Tensor) -> bool:
        """Whether a compiled kernel takes the place of this layer, for which a mask of tokens is enough."""
        attention, (up, activation, down) = self.attention, self.mlp
        return attention.config._attn_implementation == "sdpa" and runs_natively(
            hidden_states,
            *(self.attention_norm, attention, attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj),
            *(self.mlp_norm, self.mlp, up, activation, down, self.dropout),
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        token_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """(batch, tokens, hidden_size) -> the same shape. With `token_mask (batch, tokens)`, for a layer that
        `runs_natively`, the compiled kernel does it and `attention_mask` is not looked at."""
        if token_mask is not None:
            return self._run_natively(hidden_states, token_mask)
        attended, _ = self.attention(self.attention_norm(hidden_states), attention_mask, **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))

    def _run_natively(self, hidden_states: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
        return hymate_native.attention_layer(
            hidden_states,
            token_mask,
            **self.weights(),
            num_heads=self.attention.config.num_attention_heads,
            eps=cast(float, self.attention_norm.eps),
            dropout=self.dropout.p if self.training else 0.0,
            attention_dropout=self.attention.attention_dropout if self.training else 0.0,
            seed=torch.randint(2**62, ()) if self.training else None,
        )

    def weights(self) -> dict[str, Any]:
        """By the names, and in the order, of `hymate_native.attention_layer`."""
        attention, (up, _, down) = self.attention, cast(Iterable[Any], self.mlp)
        projections = {
            "q_proj": attention.q_proj,
            "k_proj": attention.k_proj,
            "v_proj": attention.v_proj,
            "o_proj": attention.o_proj,
        }
        return {
            "attention_norm": self.attention_norm.weight,
            **{name: (layer.weight, layer.bias) for name, layer in projections.items()},
            "mlp_norm": self.mlp_norm.weight,
            "up_proj": (up.weight, up.bias),
            "down_proj": (down.weight, down.bias),
        }


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
        if self.runs_natively(tokens):
            return hymate_native.fusion_attention(tokens, mask, *self.weights())
        tokens = self.norm(tokens)
        scores = self.score(torch.tanh(self.projection(tokens))).squeeze(-1).float()
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1).masked_fill(~mask, 0)
        return torch.matmul(weights.to(tokens.dtype).unsqueeze(1), tokens).squeeze(1), weights

    def runs_natively(self, tokens: torch.Tensor) -> bool:
        """Whether a compiled kernel takes the place of this layer."""
        return runs_natively(tokens, self.norm, self.projection, self.score)

    def weights(self) -> tuple[Any, ...]:
        """In the order of `hymate_native.fusion_attention`: of the norm, the projection and the score, and `eps`."""
        projection = self.projection
        return self.norm.weight, projection.weight, projection.bias, self.score.weight.squeeze(0), self.norm.eps


def mix_tokens(model: Any, tokens: torch.Tensor, mask: torch.Tensor, **kwargs) -> tuple[torch.Tensor, ...]:
    """A model's attention layers and then its fusion: (..., tokens, hidden_size), boolean (..., tokens) -> the tokens,
    what they are pooled to, (..., hidden_size), and the weights, (..., tokens)."""
    shape = tokens.shape
    tokens, mask = tokens.flatten(0, -3), mask.flatten(0, -2)
    if len(model.attention_layers):
        is_native = all(layer.runs_natively(tokens) for layer in model.attention_layers)
        token_mask = mask if is_native else None
        attention_mask = None if is_native else _attention_mask(model.config, tokens, mask)
        for layer in model.attention_layers:
            tokens = layer(tokens, attention_mask, token_mask=token_mask, **kwargs)
    pooled, weights = model.fusion(tokens, mask)
    return tokens.view(shape), pooled.view(*shape[:-2], -1), weights.view(shape[:-1])


def _attention_mask(config: HyMaTEConfig, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor | None:
    # whether a mask may be left out is read from it, which would make a GPU wait
    return create_bidirectional_mask(config, tokens, mask, allow_is_bidirectional_skip=is_readable(mask))
