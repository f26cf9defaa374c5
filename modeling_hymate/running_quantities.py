"""What a variable's token holds at a prediction time: quantities of constant size that each event updates.

`Running` describes the events of a channel (a variable observed in a record) in a stretch of time; stretches that
follow each other can be merged. All prediction times of a record are thus answered in one pass over its events: the
events between two prediction times are summarized, and the summaries are merged one after the other. A stream of
events merges them into a state that it keeps.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .constants import constants
from .native import runs_natively
from .scan import hymate_native

SCORE_BOUND = 10.0  # pooling scores lie within it, so that their exponentials can be summed as they are
QUANTITIES = (
    "count",
    "since_first",
    "since_last",
    "numbers",
    "first",
    "last",
    "min",
    "max",
    "mean",
    "variance",
    "mean_change",
    "last_change",
    "change_variance",
)
HALF_LIFE_QUANTITIES = ("decayed_mean", "recent_count")


def running_quantities(
    parts: torch.Tensor,
    scores: torch.Tensor,
    values: torch.Tensor,
    times: torch.Tensor,
    value_mask: torch.Tensor,
    slots: torch.Tensor,
    prediction_times: torch.Tensor,
    num_channels: int,
    half_lives: Sequence[float],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""Softmax-weighted means and statistics of each channel's events at or before each prediction time.

    Args:
        parts: what is averaged, `(batch, length, hidden_size)`; each pooling query has its own part of the columns.
        scores: logarithms of the weights, `(batch, length, queries)`, float32, within `SCORE_BOUND`.
        values: standardized, `(batch, length)`, 0 where there is no number.
        times: `(batch, length)`, ascending over a record's real events.
        value_mask: true at events that carry a number, `(batch, length)`.
        slots: channel of each event, `(batch, length)`; -1 at masked events, which come last.
        prediction_times: ascending in each record, `(batch, predictions)`, in the unit of `times`.
        num_channels: number of channels.
        half_lives: of the decayed means and counts, in the unit of `times`.

    Returns:
        `pooled (batch, predictions, channels, hidden_size)` in the data type of `parts`; `totals (batch, predictions,
        channels, queries)`, the sums of the weights, and `statistics (batch, predictions, channels, quantities)`, both
        float32. The last axis of `statistics` is `QUANTITIES`, then each of `HALF_LIFE_QUANTITIES` for all half-lives.
        All are 0 where a channel has no event yet, and a quantity also where it says nothing (such as the change of a
        single number).
    """
    if runs_natively(parts) and scores.dtype == torch.float32 and not times.requires_grad:
        pooled, totals, statistics = hymate_native.running_quantities(
            parts, scores, values.detach(), times, value_mask, slots, prediction_times, num_channels, half_lives
        )
        if values.requires_grad:  # of which the kernel knows no gradient
            statistics = _statistics(values, times, value_mask, slots, prediction_times, num_channels, half_lives)
        return pooled, totals, statistics
    predictions = prediction_times.shape[1]
    if torch.compiler.is_exporting() and not (isinstance(predictions, int) and predictions == 1):
        return _of_each_prediction(
            parts, scores, values, times, value_mask, slots, prediction_times, num_channels, half_lives
        )
    cells, num_cells = _cells(times, slots, prediction_times, num_channels)
    sums = pooling_sums(parts, scores, cells, num_cells).view(*prediction_times.shape, num_channels, -1)
    if predictions > 1:
        sums = sums.cumsum(1)
    pooled, totals = pooled_means(sums, scores.shape[-1])
    statistics = _statistics(values, times, value_mask, slots, prediction_times, num_channels, half_lives)
    return pooled.to(parts.dtype), totals, statistics


def _cells(times, slots, prediction_times, num_channels) -> tuple[torch.Tensor, int]:
    """The prediction time and channel that an event counts for first, `(batch, length)`, and how many there are."""
    batch, predictions = prediction_times.shape
    interval = torch.searchsorted(prediction_times.contiguous(), times.contiguous())  # that the event falls into
    rows = torch.arange(batch, device=times.device).unsqueeze(1)
    num_cells = batch * predictions * num_channels
    cells = (rows * predictions + interval) * num_channels + slots
    # masked events, and those after the last prediction time, go where nobody looks
    cells = cells.masked_fill((slots < 0) | (interval == predictions), num_cells)
    return cells, num_cells


def _statistics(values, times, value_mask, slots, prediction_times, num_channels, half_lives) -> torch.Tensor:
    """`statistics` of `running_quantities`."""
    cells, num_cells = _cells(times, slots, prediction_times, num_channels)
    running = summarize(values, times, value_mask, cells, num_cells, half_lives)
    shape = (*prediction_times.shape, num_channels)
    running = Running(*(field.view(*shape, *field.shape[1:]) for field in running))
    if shape[1] > 1:
        running = _merge_along_predictions(running, half_lives)
    return quantities(running, prediction_times.unsqueeze(-1), half_lives)


def _of_each_prediction(
    parts, scores, values, times, value_mask, slots, prediction_times, num_channels, half_lives
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`running_quantities` with a copy of the record for each prediction time: merging stretches takes a loop whose
    length an exported program would have to know."""
    batch, predictions = prediction_times.shape

    def repeat(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unsqueeze(1).expand(-1, predictions, *tensor.shape[1:]).flatten(0, 1)

    when = prediction_times.reshape(-1, 1)
    parts, scores, values, times, value_mask, slots = map(repeat, (parts, scores, values, times, value_mask, slots))
    slots = slots.masked_fill(times > when, -1)
    found = running_quantities(parts, scores, values, times, value_mask, slots, when, num_channels, half_lives)
    pooled, totals, statistics = (tensor.reshape(batch, predictions, *tensor.shape[2:]) for tensor in found)
    return pooled, totals, statistics


def event_weights(
    channel_weights: torch.Tensor,
    totals: torch.Tensor,
    scores: torch.Tensor,
    times: torch.Tensor,
    slots: torch.Tensor,
    prediction_times: torch.Tensor,
) -> torch.Tensor:
    """The share of each event in what its channel has a share of: the mean over queries of its part of the weights.

    Args:
        channel_weights: `(batch, predictions, channels)`.
        totals: of `running_quantities`, and its arguments `scores`, `times`, `slots` and `prediction_times`.

    Returns:
        `(batch, predictions, length)`, 0 at masked events and those after a prediction time.
    """
    if not torch.is_grad_enabled() and runs_natively(channel_weights) and scores.dtype == torch.float32:
        return hymate_native.event_weights(channel_weights, totals, scores, times, slots, prediction_times)
    shares = channel_weights.unsqueeze(-1) / totals.clamp(min=torch.finfo(totals.dtype).tiny)
    places = slots.clamp(min=0).unsqueeze(1).unsqueeze(-1)
    shares = shares.gather(2, places.expand(-1, shares.shape[1], -1, shares.shape[-1]))
    weights = torch.einsum("bplq,blq->bpl", shares, scores.exp()) / scores.shape[-1]
    unseen = (slots < 0).unsqueeze(1) | (times.unsqueeze(1) > prediction_times.unsqueeze(2))
    return weights.masked_fill(unseen, 0)


def running_quantities_reference(
    parts, scores, values, times, value_mask, slots, prediction_times, num_channels, half_lives
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `running_quantities` computes, by its definition: for each prediction time and channel from the events
    that it may see."""
    queries = scores.shape[-1]
    outputs: tuple[list, list, list] = ([], [], [])
    for row, when in enumerate(prediction_times):
        for time in when:
            for channel in range(num_channels):
                seen = (slots[row] == channel) & (times[row] <= time)
                weights = scores[row][seen].exp()  # (events, queries)
                weighted = parts[row][seen].float().unflatten(-1, (queries, -1)) * weights.unsqueeze(-1)
                total = weights.sum(0)
                mean = weighted.sum(0) / total.clamp(min=torch.finfo(total.dtype).tiny).unsqueeze(-1)
                outputs[0].append(mean.flatten().to(parts.dtype))
                outputs[1].append(total)
                known = value_mask[row] & seen
                described = _describe(values[row][known], times[row][known], times[row][seen], time, half_lives)
                outputs[2].append(described)
    shape = (*prediction_times.shape, num_channels)
    pooled, totals, statistics = (torch.stack(items).unflatten(0, shape) for items in outputs)
    return pooled, totals, statistics


def _describe(values, number_times, event_times, now, half_lives) -> torch.Tensor:
    """`QUANTITIES` and `HALF_LIFE_QUANTITIES` of one channel's numbers and events, in order."""
    values, now = values.double(), now.double()
    number_times, event_times = number_times.double(), event_times.double()
    zero = values.new_zeros(())
    changes = values.diff()
    found = {name: zero for name in QUANTITIES}
    found["count"] = zero + len(event_times)
    if len(event_times):
        found |= {"since_first": now - event_times[0], "since_last": now - event_times[-1]}
    if len(values):
        found |= {"numbers": zero + len(values), "first": values[0], "last": values[-1]}
        found |= {"min": values.min(), "max": values.max(), "mean": values.mean()}
        found["variance"] = values.var(correction=0)
    if len(changes):
        found |= {"mean_change": changes.mean(), "last_change": changes[-1]}
        found["change_variance"] = changes.var(correction=0)
    decayed, recent = [], []
    for half_life in half_lives:
        if len(values):
            weights = torch.exp2((number_times - number_times[-1]) / half_life)
            decayed.append((weights * values).sum() / weights.sum())
        else:
            decayed.append(zero)
        recent.append(torch.exp2((event_times - now) / half_life).sum())
    return torch.stack([*found.values(), *decayed, *recent]).float()


def pooling_sums(parts: torch.Tensor, scores: torch.Tensor, cells: torch.Tensor, num_cells: int) -> torch.Tensor:
    """Sums of the weighted parts and, behind them, of the weights over the events of each cell, in float32.

    `parts (batch, length, hidden_size)`, `scores (batch, length, queries)` and `cells (batch, length)`, which is
    `num_cells` at events that count nowhere; returns `(num_cells, hidden_size + queries)`.
    """
    summands = pooling_summands(parts, scores).flatten(0, 1)
    sums = summands.new_zeros(num_cells + 1, summands.shape[-1])
    return sums.index_add(0, cells.flatten(), summands)[:num_cells]


def pooling_summands(parts: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """What each event adds to `pooling_sums`, `(batch, length, hidden_size + queries)`."""
    weights = scores.exp()
    weighted = parts.float().unflatten(-1, (scores.shape[-1], -1)) * weights.unsqueeze(-1)
    return torch.cat([weighted.flatten(-2), weights], -1)


def pooled_means(sums: torch.Tensor, queries: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What `pooling_sums` summed `(..., hidden_size + queries)` -> the means `(..., hidden_size)` and the weights'
    sums `(..., queries)`."""
    weighted, totals = sums.split([sums.shape[-1] - queries, queries], -1)
    tiny = torch.finfo(totals.dtype).tiny
    means = weighted.unflatten(-1, (queries, -1)) / totals.clamp(min=tiny).unsqueeze(-1)
    return means.flatten(-2), totals


class Running(NamedTuple):
    """Numbers that describe the events of a channel in a stretch of time, enough to merge it with the next stretch.

    Each is of shape `(...)`, or `(..., half_lives)` where it decays, and 0 (extremes: infinite) where the channel has
    no event, or no number, in that time. They are float64, so that sums over very many events stay exact enough for
    differences between them.
    """

    events: torch.Tensor  # how many
    first_time: torch.Tensor
    last_time: torch.Tensor
    recent: torch.Tensor  # decayed count as of last_time
    numbers: torch.Tensor  # how many events carry a number; what follows is about these
    number_time: torch.Tensor  # of the last
    total: torch.Tensor
    squares: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor
    last_change: torch.Tensor
    change_squares: torch.Tensor
    decayed_weight: torch.Tensor  # as of number_time
    decayed_total: torch.Tensor


DECAYING = ("recent", "decayed_weight", "decayed_total")  # fields with one number for each half-life


def accurate_dtype(device: torch.device) -> torch.dtype:
    """Data type of running sums: float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def empty_running(shape: Sequence[int], half_lives: int, device: torch.device) -> Running:
    """The description of no events, of the given shape."""
    zero = torch.zeros(*shape, dtype=accurate_dtype(device), device=device)
    decaying = zero.unsqueeze(-1).expand(*shape, half_lives)
    fields = {name: zero for name in Running._fields}
    fields |= {name: decaying for name in DECAYING}
    return Running(**fields | {"low": zero + math.inf, "high": zero - math.inf})


def summarize(
    values: torch.Tensor,
    times: torch.Tensor,
    value_mask: torch.Tensor,
    cells: torch.Tensor,
    num_cells: int,
    half_lives: Sequence[float],
) -> Running:
    """Describes the events of each cell; arguments `(batch, length)`, in time order, `cells` as in `pooling_sums`;
    fields of shape `(num_cells,)` or `(num_cells, half_lives)`."""
    dtype = accurate_dtype(values.device)
    # the numbers of one cell side by side, so that each finds the one before it; the others last
    number_cells, order = cells.masked_fill(~value_mask, num_cells).sort(dim=1, stable=True)
    numbers, number_times = (tensor.gather(1, order).to(dtype) for tensor in (values, times))
    is_number = number_cells < num_cells
    numbers, times = numbers.masked_fill(~is_number, 0), times.to(dtype)
    begins = number_cells != F.pad(number_cells, (1, -1), value=-1)
    ends = number_cells != F.pad(number_cells, (-1, 1), value=-1)
    changes = (numbers - F.pad(numbers, (1, -1))).masked_fill(begins | ~is_number, 0)
    first_at, last_at = (_places(chosen, number_cells, num_cells) for chosen in (begins, ends))
    number_time, last_time = number_times.flatten()[last_at], _extremes(cells, num_cells, times, "amax", 0)
    rates = constants(half_lives, numbers).reciprocal()
    number_weights, weights = (
        torch.exp2((when - latest[where]).clamp(max=0).unsqueeze(-1) * rates)
        for when, latest, where in ((number_times, number_time, number_cells), (times, last_time, cells))
    )
    one = torch.ones_like(numbers)
    number, change = numbers.unsqueeze(-1), changes.unsqueeze(-1)
    summands = [one.unsqueeze(-1), number, number.square(), change.square(), number_weights, number_weights * number]
    known, total, squares, change_squares, decayed_weight, decayed_total = _sums(number_cells, num_cells, summands)
    events, recent = _sums(cells, num_cells, [one.unsqueeze(-1), weights])
    first, last, last_change, number_time = (
        numbers_.flatten()[place[:-1]].masked_fill(known.squeeze(-1) == 0, 0)
        for numbers_, place in ((numbers, first_at), (numbers, last_at), (changes, last_at), (number_times, last_at))
    )
    return Running(
        events=events.squeeze(-1),
        first_time=_extremes(cells, num_cells, times, "amin", 0)[:-1],
        last_time=last_time[:-1],
        recent=recent,
        numbers=known.squeeze(-1),
        number_time=number_time,
        total=total.squeeze(-1),
        squares=squares.squeeze(-1),
        low=_extremes(number_cells, num_cells, numbers, "amin", math.inf)[:-1],
        high=_extremes(number_cells, num_cells, numbers, "amax", -math.inf)[:-1],
        first=first,
        last=last,
        last_change=last_change,
        change_squares=change_squares.squeeze(-1),
        decayed_weight=decayed_weight,
        decayed_total=decayed_total,
    )


def _sums(cells: torch.Tensor, num_cells: int, summands: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Sums over each cell, `(num_cells, width)`, of each of the summands `(batch, length, width)`."""
    columns = torch.cat(summands, -1)
    sums = columns.new_zeros(num_cells + 1, columns.shape[-1])
    sums = sums.index_add(0, cells.flatten(), columns.flatten(0, 1))[:num_cells]
    return sums.split([summand.shape[-1] for summand in summands], -1)


def _extremes(cells: torch.Tensor, num_cells: int, numbers: torch.Tensor, reduce: str, default: float) -> torch.Tensor:
    """Largest ("amax") or smallest ("amin") number of each cell, `(num_cells + 1,)`; the default where it has none."""
    nothing = math.inf if reduce == "amin" else -math.inf
    found = numbers.new_full((num_cells + 1,), nothing)
    found = found.scatter_reduce(0, cells.flatten(), numbers.flatten(), reduce)
    return found if default == nothing else found.masked_fill(found == nothing, default)


def _places(chosen: torch.Tensor, cells: torch.Tensor, num_cells: int) -> torch.Tensor:
    """Where the one event of each cell stands that is `chosen`, among all `(batch * length)`; `(num_cells + 1,)`."""
    places = torch.arange(chosen.numel(), device=chosen.device)
    chosen_cells = cells.masked_fill(~chosen, num_cells).flatten()
    return places.new_zeros(num_cells + 1).scatter(0, chosen_cells, places)


def describe_event(value: torch.Tensor, time: torch.Tensor, has_value: torch.Tensor, half_lives: int) -> Running:
    """The description of a single event, as `summarize` would give it; all arguments of one shape."""
    dtype = accurate_dtype(value.device)
    value, time, known = value.to(dtype), time.to(dtype), has_value.to(dtype)
    one, zero = torch.ones_like(value), torch.zeros_like(value)
    return Running(
        events=one,
        first_time=time,
        last_time=time,
        recent=one.unsqueeze(-1).expand(*one.shape, half_lives),
        numbers=known,
        number_time=time * known,
        total=value,
        squares=value.square(),
        low=torch.where(has_value, value, math.inf),
        high=torch.where(has_value, value, -math.inf),
        first=value,
        last=value,
        last_change=zero,
        change_squares=zero,
        decayed_weight=known.unsqueeze(-1).expand(*one.shape, half_lives),
        decayed_total=value.unsqueeze(-1).expand(*one.shape, half_lives),
    )


def merge(earlier: Running, later: Running, half_lives: Sequence[float]) -> Running:
    """Describes two stretches, of which the second follows the first, as one."""
    a, b = earlier, later
    both = (a.numbers > 0) & (b.numbers > 0)
    link = (b.first - a.last).masked_fill(~both, 0)  # the change from one to the other
    last_time = torch.where(b.events > 0, b.last_time, a.last_time)
    number_time = torch.where(b.numbers > 0, b.number_time, a.number_time)
    rates = constants(half_lives, a.events).reciprocal()

    def fading(then, now):
        # where there was nothing, neither has `then` a meaning
        return torch.exp2((then - now).clamp(max=0).unsqueeze(-1) * rates)

    number_fading = fading(a.number_time, number_time)
    return Running(
        events=a.events + b.events,
        first_time=torch.where(a.events > 0, a.first_time, b.first_time),
        last_time=last_time,
        recent=a.recent * fading(a.last_time, last_time) + b.recent,
        numbers=a.numbers + b.numbers,
        number_time=number_time,
        total=a.total + b.total,
        squares=a.squares + b.squares,
        low=torch.minimum(a.low, b.low),
        high=torch.maximum(a.high, b.high),
        first=torch.where(a.numbers > 0, a.first, b.first),
        last=torch.where(b.numbers > 0, b.last, a.last),
        last_change=torch.where(b.numbers > 1, b.last_change, torch.where(b.numbers > 0, link, a.last_change)),
        change_squares=a.change_squares + b.change_squares + link.square(),
        decayed_weight=a.decayed_weight * number_fading + b.decayed_weight,
        decayed_total=a.decayed_total * number_fading + b.decayed_total,
    )


def _merge_along_predictions(running: Running, half_lives: Sequence[float]) -> Running:
    """From the stretches between prediction times, dimension 1, to those from the beginning: each step doubles how
    many stretches are merged."""
    step = 1
    while step < running.events.shape[1]:
        merged = merge(
            Running(*(field[:, :-step] for field in running)),
            Running(*(field[:, step:] for field in running)),
            half_lives,
        )
        pairs = zip(running, merged, strict=True)
        running = Running(*(torch.cat([field[:, :step], whole], 1) for field, whole in pairs))
        step *= 2
    return running


def quantities(running: Running, now: torch.Tensor, half_lives: Sequence[float]) -> torch.Tensor:
    """`QUANTITIES` and `HALF_LIFE_QUANTITIES` at the times `now`, which broadcast to the fields: `(..., quantities)`
    in float32."""
    r = running
    now = now.to(r.events.dtype)
    seen, known = r.events > 0, r.numbers > 0
    numbers, changes = r.numbers.clamp(min=1), (r.numbers - 1).clamp(min=1)
    mean, mean_change = r.total / numbers, (r.last - r.first) / changes  # both 0 where there is nothing
    since_last = now - r.last_time
    found = {
        "count": r.events,
        "since_first": now - r.first_time,
        "since_last": since_last,
        "numbers": r.numbers,
        "first": r.first,
        "last": r.last,
        "min": torch.where(known, r.low, 0),
        "max": torch.where(known, r.high, 0),
        "mean": mean,
        "variance": (r.squares / numbers - mean.square()).clamp(min=0),
        "mean_change": mean_change,
        "last_change": r.last_change,
        "change_variance": (r.change_squares / changes - mean_change.square()).clamp(min=0),
    }
    stacked = torch.where(seen.unsqueeze(-1), torch.stack([found[name] for name in QUANTITIES], -1), 0)
    decayed = r.decayed_total / r.decayed_weight.masked_fill(r.decayed_weight == 0, 1)
    rates = constants(half_lives, r.events).reciprocal()
    recent = r.recent * torch.exp2((-since_last).clamp(max=0).unsqueeze(-1) * rates)
    return torch.cat([stacked, decayed, recent], -1).float()
