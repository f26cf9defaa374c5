"""Integrated gradients of a classifier's score (Sundararajan et al., arXiv 1703.01365), along a straight line.

On the line every event's value turns into its variable's mean in the training data, and its variable's embedding into
the mean over all variables; the number and the times of a variable's values stay as they are. What the points of the
line share is computed once: the running statistics of a record's values grow with the values, in proportion or, where
they are variances, with their square, so that one gradient through them serves all points.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import nn

from modeling_hymate.channel_tokens import ChannelIndex
from modeling_hymate.embedding import HyMaTEEmbedding
from modeling_hymate.inputs import SortedEvents, arrange_events, event_masks, sort_predictions
from modeling_hymate.outputs import HyMaTEModelOutput
from modeling_hymate.running_quantities import QUANTITIES, running_quantities

# Near the baseline embedded events are short, and the norm behind them makes much of a small step: within about this
# share of the line the score changes as much as on the rest of it.
BEND = 0.1
SQUARED = [QUANTITIES.index(name) for name in ("variance", "change_variance")]


@lru_cache
def line_points(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Where between 0 and 1 to take gradients, and what each weighs in the integral, `(steps,)` both.

    The points of Gauss and Legendre for u, of which `BEND sinh(u)` is the place on the line, so that they lie close to
    each other near 0 (Johnston and Elliott, doi 10.1002/nme.1208).
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    end = math.asinh(1 / BEND)
    u = end * (nodes + 1) / 2
    return BEND * np.sinh(u), BEND * np.cosh(u) * weights * end / 2


def integrated_gradients(
    model: Any,
    score: Callable[[torch.Tensor], torch.Tensor],
    features: Mapping[str, torch.Tensor],
    steps: int,
    events_at_once: int,
) -> torch.Tensor:
    """Attributions of the events of a batch, `(batch, length)`, 0 at masked ones.

    Args:
        model: a `HyMaTEForSequenceClassification` in evaluation mode.
        score: what is explained, of logits `(records, 1, num_logits)`: `(records, 1)`.
        features: a batch as the feature extractor encodes it, in which each record is asked once.
        steps: points of the line at which gradients are taken.
        events_at_once: how many events, with padding, to take gradients of at a time; at least those of the batch.
    """
    line = _Line.of(model, features)
    points, weights = (
        torch.from_numpy(numbers).float().to(line.events.values.device) for numbers in line_points(steps)
    )
    at_once = max(1, events_at_once // max(1, line.events.values.numel()))
    of_embeds, of_quantities = torch.zeros_like(line.change, dtype=torch.float32), None
    with fixed_weights(model):
        for some, their_weights in zip(points.split(at_once), weights.split(at_once), strict=True):
            embeds = (line.baseline + some.view(-1, 1, 1, 1) * line.change).flatten(0, 1).requires_grad_()
            logits, quantities = line.logits(embeds, some)
            inputs = [embeds] if quantities is None else [embeds, quantities]
            grads = torch.autograd.grad(score(logits).sum(), inputs)
            grad_embeds, *grad_quantities = (grad.float().unflatten(0, (len(some), -1)) for grad in grads)
            of_embeds += torch.einsum("p,pblh->blh", their_weights, grad_embeds)
            for grad in grad_quantities:
                slopes = their_weights.unsqueeze(1).repeat(1, grad.shape[-1])
                slopes[:, SQUARED] *= some.unsqueeze(1)
                found = torch.einsum("pq,pbtcq->btcq", slopes, grad)
                of_quantities = found if of_quantities is None else of_quantities + found
    found = (of_embeds * line.change).sum(-1)
    if of_quantities is not None:
        found += line.events.values * line.gradient_of_values(of_quantities)
    return line.events.in_given_order(found)


@dataclass(frozen=True)
class _Line:
    """A batch's events in the model's order, and the line that their embeddings take, `(batch, length, hidden_size)`
    from `baseline` on, by `change` in all."""

    model: Any
    events: SortedEvents
    channels: ChannelIndex
    asked: torch.Tensor
    static_values: torch.Tensor | None
    baseline: torch.Tensor
    change: torch.Tensor

    @classmethod
    def of(cls, model: Any, features: Mapping[str, torch.Tensor]) -> "_Line":
        values, times, variable_ids = (features[name] for name in ("values", "times", "variable_ids"))
        mask, has_value = event_masks(values, features.get("attention_mask"), features.get("value_mask"))
        events, channels = arrange_events(values, times, variable_ids, mask, has_value, model.config)
        asked = sort_predictions(features.get("prediction_times"), None, events).times
        with torch.no_grad():
            embeds, baseline = _ends(model.hymate.embedding, events)
        return cls(model, events, channels, asked, features.get("static_values"), baseline, embeds - baseline)

    def logits(self, embeds: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits at each of the points, `(points * batch, 1, num_logits)`, and the statistics that they rest on beside
        the embeddings, which take a gradient; None where tokens hold none."""
        count, encoder = len(points), self.model.hymate
        events = self.events.map(lambda tensor: tensor.repeat(count, 1))
        static_values = None if self.static_values is None else self.static_values.repeat(count, 1)
        if encoder.channel_tokens is None:
            with replaced(encoder.embedding, embeds):
                return self.model(
                    events.values, events.times, events.variable_ids, events.mask, events.has_value, static_values
                ).logits.unsqueeze(1), None
        for layer in encoder.mamba_layers:
            embeds = layer(embeds, events.lengths)
        slots, channel_ids = self.channels.slots.repeat(count, 1), self.channels.channel_ids.repeat(count, 1)
        asked = self.asked.repeat(count, 1)
        values = events.values * points.repeat_interleave(len(self.asked)).unsqueeze(1)
        parts, scores = encoder.channel_tokens.project(embeds, events.lengths)
        inputs = (parts, scores, values, events.times, events.has_value, slots, asked)
        pooled, _, quantities = running_quantities(*inputs, channel_ids.shape[1], encoder.half_lives)
        has_statistics = encoder.channel_tokens.statistics is not None
        quantities = quantities.detach().requires_grad_(has_statistics)
        pooled = encoder.encode_quantities(pooled, quantities, channel_ids, asked, static_values)
        logits = self.model.head(HyMaTEModelOutput(pooler_output=pooled))["logits"]
        return logits, quantities if has_statistics else None

    def gradient_of_values(self, of_quantities: torch.Tensor) -> torch.Tensor:
        """Gradient of the statistics -> that of the values, `(batch, length)`."""
        events, values = self.events, self.events.values.detach().requires_grad_()
        nothing = values.new_zeros(*values.shape, 1)  # to be pooled
        _, _, quantities = running_quantities(
            *(nothing, nothing, values, events.times, events.has_value, self.channels.slots, self.asked),
            *(self.channels.channel_ids.shape[1], self.model.hymate.half_lives),
        )
        return torch.autograd.grad(quantities, values, of_quantities)[0]


def _ends(embedding: HyMaTEEmbedding, events: SortedEvents) -> tuple[torch.Tensor, torch.Tensor]:
    """Embedded events, and what the line to them starts from, each (batch, length, hidden_size)."""
    others = (events.times, events.variable_ids, events.has_value, events.lengths)
    at_mean = embedding(torch.zeros_like(events.values), *others)  # standardized: 0 is the mean
    average = embedding.variable_embedding.weight.mean(0)
    return embedding(events.values, *others), at_mean - embedding.variable_embedding(events.variable_ids) + average


@contextlib.contextmanager
def replaced(module: nn.Module, output: torch.Tensor) -> Iterator[None]:
    """For the while, a module that gives this output, and computes nothing."""
    module.forward = lambda *_: output
    try:
        yield
    finally:
        del module.forward


@contextlib.contextmanager
def fixed_weights(model: nn.Module) -> Iterator[None]:
    """For the while, weights that need no gradient, which then need not be found."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_()
