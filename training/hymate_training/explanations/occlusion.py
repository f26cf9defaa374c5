"""What a classifier says of records without some of their events, of many versions of each record at a time."""

from collections.abc import Mapping
from typing import Any

import torch

from modeling_hymate.inputs import arrange_events, event_masks
from modeling_hymate.native import is_plain
from modeling_hymate.outputs import HyMaTEModelOutput
from modeling_hymate.scan import hymate_native

MOST_EVENTS = 8192  # of a record: what its versions share takes memory for each of its events


def logits_without(
    model: Any, features: Mapping[str, torch.Tensor], records: torch.Tensor, absent: torch.Tensor
) -> torch.Tensor:
    """The logits of versions of records, each asked at the time of its last event.

    Versions that a compiled kernel reads share most of the work.

    Args:
        model: a `HyMaTEForSequenceClassification` in evaluation mode.
        features: a batch of whole records, as the feature extractor encodes it without prediction times.
        records: the record of each version, ascending, `(versions,)`.
        absent: boolean, true at events that the version is without, `(versions, length)`.

    Returns:
        `(versions, num_labels)`.
    """
    encoder = model.hymate
    if not shares_work(model, features["values"]):
        return logits_without_reference(model, features, records, absent)
    values, times, variable_ids = (features[name] for name in ("values", "times", "variable_ids"))
    mask, has_value = event_masks(values, features.get("attention_mask"), features.get("value_mask"))
    events, channels = arrange_events(values, times, variable_ids, mask, has_value, model.config)
    if events.order is not None:
        absent = absent.gather(1, events.order[records])
    lengths, (layer,), tokens = events.lengths, encoder.mamba_layers, encoder.channel_tokens
    *weights, norm = layer.weights()
    weights[7] = -torch.exp(weights[7].float())  # A of its logarithm
    pooled, quantities, last_times = hymate_native.pooled_without(
        encoder.embedding(events.values, events.times, events.variable_ids, events.has_value, lengths),
        *(lengths, events.values, events.times, events.has_value, channels.slots, channels.channel_ids.shape[1]),
        *(encoder.half_lives, records, absent),
        mixer=(*weights, norm),
        mixer_eps=layer.norm.eps,
        **tokens.projection_weights(),
    )
    static = features.get("static_values")
    pooled = encoder.encode_quantities(
        pooled.unsqueeze(1),
        quantities.unsqueeze(1),
        channels.channel_ids[records],
        last_times.unsqueeze(1),
        None if static is None else static[records],
    )
    return model.head(HyMaTEModelOutput(pooler_output=pooled.squeeze(1)))["logits"]


def logits_without_reference(
    model: Any, features: Mapping[str, torch.Tensor], records: torch.Tensor, absent: torch.Tensor
) -> torch.Tensor:
    """What `logits_without` says, from each version read on its own."""
    versions = {name: tensor[records] for name, tensor in features.items()}
    mask, _ = event_masks(versions["values"], versions.get("attention_mask"), versions.get("value_mask"))
    return model(**versions | {"attention_mask": mask & ~absent}).logits


def shares_work(model: Any, values: torch.Tensor) -> bool:
    """Whether a compiled kernel reads versions of records with these `values (batch, length)`: on CPUs, for a model of
    one Mamba layer whose tokens are channels."""
    encoder = model.hymate
    like = encoder.embedding.missing_value.detach()
    return (
        not torch.is_grad_enabled()
        and not model.training
        and values.dtype == torch.float32
        and values.shape[1] <= MOST_EVENTS
        and encoder.channel_tokens is not None
        and len(encoder.mamba_layers) == 1
        and all(map(is_plain, (model, encoder, encoder.mamba_layers[0])))
        and encoder.mamba_layers[0].is_fusable(like)
        and encoder.channel_tokens.projects_natively(like)
    )
