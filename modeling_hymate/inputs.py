"""What a model is handed: checked, and put into the order that it works in."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from .channel_tokens import ChannelIndex
from .configuration_hymate import HyMaTEConfig
from .native import runs_natively
from .scan import hymate_native

# what transformers itself may pass to any model's forward, and this one's either heeds or has no use for
KNOWN_ARGUMENTS = frozenset({"output_attentions", "output_hidden_states", "return_dict", "use_cache"})


def refuse_unknown(arguments: Iterable[str], known: Iterable[str]):
    """Raises TypeError for an argument of forward that nobody would read, such as one that is misspelt."""
    for name in arguments:
        if name not in KNOWN_ARGUMENTS:
            raise TypeError(f"forward() got an unexpected keyword argument {name!r}; it takes {', '.join(known)}")


def is_readable(tensor: torch.Tensor) -> bool:
    """Whether checks may read the data: elsewhere this would stall a GPU or break a graph."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def as_mask(mask: torch.Tensor, name: str) -> torch.Tensor:
    """A mask of zeros and ones, or of booleans, as booleans.

    Raises:
        ValueError: (on CPUs) for other numbers, such as the 0 and -inf of masks that are added to scores.
    """
    if mask.dtype != torch.bool and is_readable(mask) and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"{name} must hold booleans, or 1 to keep and 0 to leave out, and no other number")
    return mask.bool()


def event_masks(
    values: torch.Tensor, attention_mask: torch.Tensor | None, value_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which events are real, and which carry a number: the masks that were given, or what is true without them."""
    mask = torch.ones_like(values, dtype=torch.bool)
    mask = mask if attention_mask is None else as_mask(attention_mask, "attention_mask")
    return mask, ~values.isnan() if value_mask is None else as_mask(value_mask, "value_mask")


def check_event_shapes(
    values: torch.Tensor,
    times: torch.Tensor,
    variable_ids: torch.Tensor,
    mask: torch.Tensor,
    has_value: torch.Tensor,
):
    """Raises ValueError for shapes that do not fit, and variables that are not indices."""
    if values.dim() != 2 or 0 in values.shape:
        raise ValueError(f"values must be (batch, length), both at least 1, got {tuple(values.shape)}")
    tensors = {"times": times, "variable_ids": variable_ids, "attention_mask": mask, "value_mask": has_value}
    for name, tensor in tensors.items():
        if tensor.shape != values.shape:
            raise ValueError(f"{name} must have the shape of values, {tuple(values.shape)}: {tuple(tensor.shape)}")
    if variable_ids.is_floating_point():
        raise ValueError(f"variable_ids must be integers, got {variable_ids.dtype}")


def check_events(
    values: torch.Tensor,
    times: torch.Tensor,
    variable_ids: torch.Tensor,
    mask: torch.Tensor,
    has_value: torch.Tensor,
    num_variables: int,
):
    """Raises ValueError on CPUs for ids out of range and for numbers that are not finite."""
    if not is_readable(values):
        return
    ids = variable_ids[mask]
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < num_variables:
        raise ValueError(f"variable_ids must lie in [0, {num_variables}), got {int(ids.min())} to {int(ids.max())}")
    if not times[mask].isfinite().all():
        raise ValueError("times must be finite at every event that attention_mask keeps")
    if not values[mask & has_value].isfinite().all():
        raise ValueError("values must be finite at every event that attention_mask and value_mask keep")


def check_static(static_values: torch.Tensor | None, batch: int, config: HyMaTEConfig):
    """Raises ValueError for static features that are missing, superfluous, of another shape or not finite."""
    num_static = config.num_static_features
    if num_static and static_values is None:
        raise ValueError(f"static_values is required: the configuration has num_static_features={num_static}")
    if static_values is None:
        return
    if not num_static and static_values.shape[-1]:
        raise ValueError("static_values was given, but the configuration has num_static_features=0")
    if num_static and static_values.shape != (batch, num_static):
        raise ValueError(f"static_values must have shape {(batch, num_static)}, got {tuple(static_values.shape)}")
    if num_static and is_readable(static_values) and not static_values.isfinite().all():
        raise ValueError("static_values must be finite: missing ones are 0, with an indicator beside them")


def check_prediction_time(prediction_time: torch.Tensor, last_time: torch.Tensor, num_events: torch.Tensor):
    """Raises ValueError for times, one per record of a stream, that are not finite or before its latest event."""
    if prediction_time.shape != last_time.shape:
        raise ValueError(f"prediction_time must be ({len(last_time)},), got {tuple(prediction_time.shape)}")
    early = ~(prediction_time >= last_time) & (num_events > 0)
    if is_readable(prediction_time) and (early.any() or not prediction_time.isfinite().all()):
        raise ValueError("prediction_time must be finite, and no earlier than the latest event of its record")


@dataclass
class SortedEvents:
    """A batch's events in the canonical order, masked ones last and cleared, all `(batch, length)`.

    Attributes:
        order: where each event stood in the input; None where all stood in this order already.
    """

    values: torch.Tensor
    times: torch.Tensor
    variable_ids: torch.Tensor
    mask: torch.Tensor
    has_value: torch.Tensor
    order: torch.Tensor | None = None

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "SortedEvents":
        """The events with `function` applied to each of their tensors."""
        tensors = (self.values, self.times, self.variable_ids, self.mask, self.has_value)
        values, times, variable_ids, mask, has_value = map(function, tensors)
        return SortedEvents(values, times, variable_ids, mask, has_value)

    @property
    def lengths(self) -> torch.Tensor:
        """Number of real events, `(batch,)`."""
        return self.mask.sum(1)

    @property
    def last_times(self) -> torch.Tensor:
        """Time of the last event, `(batch,)`; 0 where there is none."""
        return self.times.gather(1, (self.lengths - 1).clamp(min=0).unsqueeze(1)).squeeze(1)

    def in_given_order(self, states: torch.Tensor) -> torch.Tensor:
        """States of the events, `(batch, length, ...)`, as they came, zero at masked events."""
        mask = self.mask.view(*self.mask.shape, *(1,) * (states.dim() - 2))
        if states.requires_grad or not (is_readable(states) and states.is_contiguous()):
            states = states.masked_fill(~mask, 0)
        else:  # in place, and padding alone: a copy of all states would take a tenth of a forward pass
            states.flatten(0, 1).index_fill_(0, (~self.mask).flatten().nonzero().squeeze(1), 0)
        if self.order is None:
            return states
        back = self.order.argsort(1).view(mask.shape)
        return states.gather(1, back.expand_as(states))

    def in_canonical_order(self, states: torch.Tensor) -> torch.Tensor:
        """The inverse of `in_given_order`."""
        if self.order is None:
            return states
        return states.gather(1, self.order.view(*self.order.shape, *(1,) * (states.dim() - 2)).expand_as(states))


def arrange_events(
    values: torch.Tensor,
    times: torch.Tensor,
    variable_ids: torch.Tensor,
    mask: torch.Tensor,
    has_value: torch.Tensor,
    config: HyMaTEConfig,
    max_channels: int | None = None,
) -> tuple[SortedEvents, ChannelIndex]:
    """What `check_events` and `sort_events` do, and the channels of the events, `max_channels` of them at most where
    they are not counted."""
    tensors = (values, times, variable_ids, mask, has_value)
    is_plain = is_readable(values) and times.dtype == values.dtype
    if is_plain and runs_natively(values) and not (values.requires_grad or times.requires_grad):
        found = hymate_native.arrange_events(*tensors, config.num_variables)
        if found is not None:  # else the checks below say what is wrong
            return SortedEvents(*found[:5], order=found.order), ChannelIndex(found.slots, found.channel_ids)
    check_events(*tensors, config.num_variables)
    events = sort_events(*tensors)
    return events, ChannelIndex.of_events(events.variable_ids, events.mask, config.num_variables, max_channels)


def sort_events(
    values: torch.Tensor,
    times: torch.Tensor,
    variable_ids: torch.Tensor,
    mask: torch.Tensor,
    has_value: torch.Tensor,
) -> SortedEvents:
    """Clears what stands at masked events and where there is no number, so that not even a NaN there can reach the
    others, and sorts."""
    values = values.masked_fill(~(mask & has_value), 0)
    times = times.masked_fill(~mask, 0).float()
    variable_ids = variable_ids.long().masked_fill(~mask, 0)
    events = SortedEvents(values, times, variable_ids, mask, has_value & mask)
    ties = values.masked_fill(~has_value, math.inf)
    if torch.compiler.is_exporting():  # ONNX knows no bit patterns
        order = _lexicographic_order(times.masked_fill(~mask, math.inf), variable_ids, ties)
        return replace(events.map(lambda tensor: tensor.gather(1, order)), order=order)
    keys = order_keys(times, variable_ids, mask)
    if is_readable(values) and _is_sorted(keys, ties):
        return events
    order = _argsort(keys, ties)
    return replace(events.map(lambda tensor: tensor.gather(1, order)), order=order)


def canonical_order(
    values: torch.Tensor, times: torch.Tensor, variable_ids: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Sorts events by time, then variable, then value (infinite where there is none); masked events last.

    All (batch, length); returns indices.
    """
    return _argsort(order_keys(times, variable_ids, mask), values)


def order_keys(times: torch.Tensor, variable_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Integers that order events by time, then variable, masked ones last, (batch, length)."""
    # Times as integers of the same order, in the upper half of one key: flipping the lower 31 bits of negative
    # floats makes their bit patterns ascend; adding 0.0 turns -0.0 into 0.0.
    bits = (times.float() + 0.0).contiguous().view(torch.int32)
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return (bits << 32 | variable_ids).masked_fill(~mask, torch.iinfo(torch.int64).max)


def _argsort(keys: torch.Tensor, ties: torch.Tensor) -> torch.Tensor:
    by_value = ties.argsort(dim=1, stable=True)
    return by_value.gather(1, keys.gather(1, by_value).argsort(dim=1, stable=True))


def _lexicographic_order(*columns: torch.Tensor) -> torch.Tensor:
    """Indices that sort by the first column, then by the second and so on, all `(batch, length)`."""
    order = columns[-1].argsort(dim=1, stable=True)
    for column in columns[-2::-1]:
        order = order.gather(1, column.gather(1, order).argsort(dim=1, stable=True))
    return order


def _is_sorted(keys: torch.Tensor, ties: torch.Tensor) -> bool:
    before, after = keys[:, :-1], keys[:, 1:]
    masked = after == torch.iinfo(torch.int64).max
    return bool(((before < after) | masked | ((before == after) & (ties[:, :-1] <= ties[:, 1:]))).all())


@dataclass
class PredictionTimes:
    """The times at which a batch's records are asked, ascending, `(batch, predictions)`.

    Attributes:
        mask: which are real, `(batch, predictions)`; the others repeat a record's last. None where all are.
        order: where each stood in the input; None where all stood in this order already.
        is_single: whether none were given, and the one of each record is that of its last event.
    """

    times: torch.Tensor
    mask: torch.Tensor | None = None
    order: torch.Tensor | None = None
    is_single: bool = False

    def split(self, size: int) -> "list[PredictionTimes]":
        """Parts of at most `size` predictions per record."""
        times = self.times.split(size, 1)
        masks = [None] * len(times) if self.mask is None else self.mask.split(size, 1)
        return [PredictionTimes(*part) for part in zip(times, masks, strict=True)]

    def in_given_order(self, predicted: Any) -> Any:
        """`(batch, predictions, ...)` in the order of the input; `(batch, ...)` where no times were given."""
        if self.is_single:
            return predicted.squeeze(1)
        if self.order is None:
            return predicted
        back = self.order.argsort(1).view(*self.order.shape, *(1,) * (predicted.dim() - 2))
        return predicted.gather(1, back.expand_as(predicted))


def sort_predictions(
    prediction_times: torch.Tensor | None, prediction_mask: torch.Tensor | None, events: SortedEvents
) -> PredictionTimes:
    """The prediction times in ascending order; the time of each record's last event where none are given.

    Raises:
        ValueError: for a mask without times, shapes that do not fit, and on CPUs for times that are not finite.
    """
    if prediction_times is None:
        if prediction_mask is not None:
            raise ValueError("prediction_mask was given without prediction_times")
        return PredictionTimes(events.last_times.unsqueeze(1), is_single=True)
    batch = events.times.shape[0]
    if prediction_times.dim() != 2 or prediction_times.shape[0] != batch or not prediction_times.shape[1]:
        raise ValueError(
            f"prediction_times must be ({batch}, predictions), at least one for each record, got "
            f"{tuple(prediction_times.shape)}"
        )
    times, mask = prediction_times.float(), prediction_mask
    if mask is not None:
        if mask.shape != times.shape:
            raise ValueError(f"prediction_mask must have the shape of prediction_times: {tuple(mask.shape)}")
        mask = as_mask(mask, "prediction_mask")
        last = times.masked_fill(~mask, -math.inf).amax(1, keepdim=True)
        times = torch.where(mask, times, last.masked_fill(last == -math.inf, 0))
    if is_readable(times):
        if not times.isfinite().all():
            raise ValueError("prediction_times must be finite at every prediction that prediction_mask keeps")
        if (times.diff(dim=1) >= 0).all():
            return PredictionTimes(times, mask)
    times, order = times.sort(dim=1, stable=True)
    return PredictionTimes(times, None if mask is None else mask.gather(1, order), order)
