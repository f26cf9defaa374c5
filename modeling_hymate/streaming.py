"""Records that grow: a state of constant size, and what further events make of it."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from .channel_tokens import ChannelIndex, columns_of
from .inputs import SortedEvents, arrange_events
from .native import runs_natively
from .running_quantities import (
    DECAYING,
    QUANTITIES,
    Running,
    describe_event,
    empty_running,
    merge,
    pooled_means,
    pooling_summands,
    pooling_sums,
    quantities,
    summarize,
)
from .scan import hymate_native

EVENT_FIELDS = ("values", "times", "variable_ids", "mask", "has_value")
FIXED = tuple(name for name in Running._fields if name not in DECAYING)  # one number each


@dataclass
class StreamMemory:
    """What is kept of the events so far, of as many records as are followed together.

    Attributes:
        convolution: last inputs of each Mamba layer's convolution, `(layers, batch, inner, conv_kernel - 1)`.
        scan: state of each Mamba layer's scan, `(layers, batch, inner, state)`, float32.
        sums: `pooling_sums` of each variable, `(batch, num_variables + 1, hidden_size + queries)`; the last entry is
            that of no variable, and stays empty.
        running: what `Running` says of each variable, `(batch, num_variables + 1, numbers)`, float64.
        last_time: scaled time of the latest event, `(batch,)`; 0 where there is none.
        num_events: how many there were, `(batch,)`.
    """

    convolution: torch.Tensor
    scan: torch.Tensor
    sums: torch.Tensor
    running: torch.Tensor
    last_time: torch.Tensor
    num_events: torch.Tensor

    def where(self, rows: torch.Tensor, other: "StreamMemory") -> "StreamMemory":
        """This memory for the records at which `rows (batch,)` is true, the other for the rest."""
        if rows.all():
            return self
        chosen = {}
        for field in fields(self):
            ours, theirs = getattr(self, field.name), getattr(other, field.name)
            leading = 1 if field.name in ("convolution", "scan") else 0
            shape = (*(1,) * leading, -1, *(1,) * (ours.dim() - leading - 1))
            chosen[field.name] = torch.where(rows.view(shape), ours, theirs)
        return StreamMemory(**chosen)


@dataclass
class StreamState:
    """A stream's state: `HyMaTEModel.start_stream` makes it and `HyMaTEModel.stream` goes on from it.

    Its size does not depend on the number of events, but for those of the latest time stamp. They are kept, since
    others of that time may follow, and events of one time have one order in which the model reads them.

    Attributes:
        settled: of the events before the latest time stamp.
        current: of all events.
        latest: the events of the latest time stamp, each tensor `(batch, length)`.
        static_embeds: of the static features, `(batch, hidden_size)`; None where there are none.
    """

    settled: StreamMemory
    current: StreamMemory
    latest: SortedEvents
    static_embeds: torch.Tensor | None = None

    def to_dict(self) -> dict[str, torch.Tensor]:
        """All tensors by name, as safetensors stores them."""
        parts: dict[str, Any] = {"settled": self.settled, "current": self.current, "latest": self.latest}
        tensors = {
            f"{part}.{field.name}": getattr(held, field.name)
            for part, held in parts.items()
            for field in fields(held)
            if getattr(held, field.name) is not None
        }
        if self.static_embeds is not None:
            tensors["static_embeds"] = self.static_embeds
        return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}

    @classmethod
    def from_dict(cls, tensors: dict[str, torch.Tensor]) -> "StreamState":
        """The state whose `to_dict` this is.

        Raises:
            ValueError: if a tensor is missing.
        """

        def part(kind: Callable, prefix: str) -> Any:
            prefix = f"{prefix}."
            found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            try:
                return kind(**found)
            except TypeError as error:
                raise ValueError(f"these are not the tensors of a stream's state: {error}") from None

        memories = {name: part(StreamMemory, name) for name in ("settled", "current")}
        return cls(**memories, latest=part(SortedEvents, "latest"), static_embeds=tensors.get("static_embeds"))

    def save(self, path: str | Path):
        """Writes the state as safetensors; a file of that name is replaced once all is written.

        Raises:
            OSError: if it cannot be written, such as on a full disk; what was there before stays.
        """
        path = Path(path)
        incoming = path.with_name(f".{path.name[:48]}.incoming")
        try:
            incoming.write_bytes(save(self.to_dict()))
            incoming.replace(path)
        finally:
            incoming.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> "StreamState":
        """Reads what `save` wrote, to the last bit."""
        return cls.from_dict(load_file(path))


def new_stream(model: Any, batch: int, static_embeds: torch.Tensor | None) -> StreamState:
    """The state of `batch` records without events."""
    config, like = model.config, model.embedding.missing_value
    layers, inner = config.num_mamba_layers, config.mamba_inner_size
    variables = config.num_variables + 1
    nothing = empty_running((batch, variables), len(config.half_lives), like.device)
    memory = StreamMemory(
        convolution=like.new_zeros(layers, batch, inner, config.conv_kernel - 1),
        scan=like.new_zeros(layers, batch, inner, config.state_size, dtype=torch.float32),
        sums=like.new_zeros(batch, variables, config.hidden_size + config.num_pooling_queries, dtype=torch.float32),
        running=pack(nothing),
        last_time=like.new_zeros(batch, dtype=torch.float32),
        num_events=torch.zeros(batch, dtype=torch.int64, device=like.device),
    )
    none = torch.zeros(batch, 0, dtype=torch.bool, device=like.device)
    return StreamState(
        memory, memory, SortedEvents(none.float(), none.float(), none.long(), none, none), static_embeds
    )


def advance_stream(model: Any, state: StreamState, new: SortedEvents, layers: Any) -> StreamState:
    """The state after further events; `layers` as of `native_layers`.

    Raises:
        ValueError: for another number of records, or an event that is older than the latest of its record.
    """
    current = state.current
    if len(new.values) != len(current.last_time):
        raise ValueError(f"the state is of {len(current.last_time)} records, but values holds {len(new.values)}")
    is_single = new.mask.shape[1] == 1
    arrivals = _arrivals(current, new)
    if "late" in arrivals:
        row = arrivals.index("late")
        raise ValueError(
            f"an event of record {row} at the scaled time {new.times[row, 0].item():g} is older than its latest, at "
            f"{current.last_time[row].item():g}: a stream takes events in the order of their times"
        )
    settled = current
    if "tied" in arrivals:  # those of the same time are read again, together with the new ones
        ties = torch.tensor([arrival == "tied" for arrival in arrivals], device=new.mask.device)
        settled = state.settled.where(ties, current)
        again = replace(state.latest, mask=state.latest.mask & ties.unsqueeze(1))
        pairs = ((getattr(again, name), getattr(new, name)) for name in EVENT_FIELDS)
        values, times, variable_ids, mask, has_value = (torch.cat(pair, 1) for pair in pairs)
        new, _ = arrange_events(values, times, variable_ids, mask, has_value, model.config)
    latest = new.mask
    if not is_single:
        latest = latest & (new.times == new.last_times.unsqueeze(1))
        settled = _advance(model, settled, _select(new, new.mask & ~latest), layers)
    new = _select(new, latest)
    current = _advance(model, settled, new, layers)
    if "none" in arrivals:
        has_new = torch.tensor([arrival != "none" for arrival in arrivals], device=new.mask.device)
        settled, current = settled.where(has_new, state.settled), current.where(has_new, state.current)
        new = _latest_where(has_new, new, state.latest)
    return StreamState(settled, current, new, state.static_embeds)


def _arrivals(memory: StreamMemory, new: SortedEvents) -> list[str]:
    """When the first new event of each record comes, seen from its latest: `late`, `tied` or `later`; or `none`."""
    rows = (new.mask[:, 0], new.times[:, 0], memory.num_events, memory.last_time)
    return [
        "none" if not is_new else "later" if not known or time > last else "tied" if time == last else "late"
        for is_new, time, known, last in zip(*(column.tolist() for column in rows), strict=True)
    ]


def observed_channels(memory: StreamMemory) -> torch.Tensor:
    """The variables observed so far, `(batch, channels)`; -1 is padding."""
    observed = memory.running[:, :-1, FIXED.index("events")] > 0
    if len(observed) == 1:
        channel_ids = observed[0].nonzero().view(1, -1)
        return channel_ids if channel_ids.numel() else channel_ids.new_full((1, 1), -1)
    ranks = observed.cumsum(1)
    return columns_of(observed, ranks, max(1, int(ranks[:, -1].max())))


def recall_natively(
    memory: StreamMemory, now: torch.Tensor, channel_ids: torch.Tensor, layers: Any
) -> dict[str, torch.Tensor]:
    """What is said of channels and records at the times `now (batch,)`, as outputs of a model name it."""
    tokens, pooled, weights, described = hymate_native.recall_stream(
        layers, memory.sums, memory.running, now.contiguous(), channel_ids.contiguous()
    )
    return {
        "pooler_output": pooled,
        "channel_hidden_state": tokens,
        "channel_counts": described[..., QUANTITIES.index("count")],
        "channel_last_values": described[..., QUANTITIES.index("last")],
        "channel_weights": weights,
    }


def observed_quantities(
    memory: StreamMemory, now: torch.Tensor, channel_ids: torch.Tensor, model: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """`pooled` and `statistics` of `running_quantities` at the times `now (batch,)`, `(batch, 1, channels, ...)`."""
    queries, half_lives = model.config.num_pooling_queries, model.half_lives
    if runs_natively(memory.sums):
        found = hymate_native.recall_channels(memory.sums, memory.running, now, channel_ids, queries, half_lives)
        pooled, described = (tensor.unsqueeze(1) for tensor in found)
        return pooled, described
    variables = channel_ids.masked_fill(channel_ids < 0, model.config.num_variables)
    sums, running = (_of_variables(held, variables).unsqueeze(1) for held in (memory.sums, memory.running))
    pooled, _ = pooled_means(sums, queries)
    return pooled, quantities(_unpack(running, len(half_lives)), now.view(-1, 1, 1), half_lives)


def _advance(model: Any, memory: StreamMemory, events: SortedEvents, layers: Any) -> StreamMemory:
    """The memory after the real ones of `events`, of which none is older."""
    lengths = events.lengths
    if not lengths.any():
        return memory
    if layers is not None and events.values.dtype == torch.float32:
        convolution, scan, sums, running = hymate_native.advance_stream(
            layers,
            (memory.convolution, memory.scan, memory.sums, memory.running),
            *(events.values, events.times, events.variable_ids, events.has_value, lengths),
        )
    else:
        convolution, scan, sums, running = _advance_by_layer(model, memory, events, lengths)
    last_time = torch.where(lengths > 0, events.last_times, memory.last_time)
    return StreamMemory(convolution, scan, sums, running, last_time, memory.num_events + lengths)


def _advance_by_layer(
    model: Any, memory: StreamMemory, events: SortedEvents, lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `hymate_native.advance_stream` does, layer by layer."""
    convolution, scan = memory.convolution, memory.scan
    hidden_states = model.embedding(events.values, events.times, events.variable_ids, events.has_value, lengths)
    convolutions, scans = [], []
    for layer, *before in zip(model.mamba_layers, convolution, scan, strict=True):
        hidden_states, *after = layer.advance(hidden_states, lengths, *before)
        convolutions.append(after[0])
        scans.append(after[1])
    if convolutions:
        convolution, scan = torch.stack(convolutions), torch.stack(scans)
    parts, scores = model.channel_tokens.project(hidden_states, lengths)
    return convolution, scan, *_remember_channels(memory, events, parts, scores, model)


def _remember_channels(
    memory: StreamMemory, events: SortedEvents, parts: torch.Tensor, scores: torch.Tensor, model: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """`sums` and `running` after further events, of which `parts` and `scores` are as of `running_quantities`."""
    sums, running, half_lives = memory.sums, memory.running, model.half_lives
    if runs_natively(parts):
        return hymate_native.remember_channels(
            *(sums, running, parts, scores, events.values, events.times, events.has_value),
            *(events.variable_ids, events.lengths, half_lives),
        )
    if events.mask.shape[1] == 1 and events.mask.all():
        variables, new_sums = events.variable_ids, pooling_summands(parts, scores)
        described = describe_event(events.values, events.times, events.has_value, len(half_lives))
    else:
        variables, new_sums, described = _summarize_channels(model, events, parts, scores)
    old_sums, old_running = (_of_variables(held, variables) for held in (sums, running))
    merged = pack(merge(_unpack(old_running, len(half_lives)), described, half_lives))
    places = variables.unsqueeze(-1)
    return (
        sums.scatter(1, places.expand_as(old_sums), old_sums + new_sums),
        running.scatter(1, places.expand_as(merged), merged),
    )


def _summarize_channels(model: Any, events: SortedEvents, parts: torch.Tensor, scores: torch.Tensor):
    """The variables of the events `(batch, channels)`, and their sums and description in these events."""
    num_variables = model.config.num_variables
    channels = ChannelIndex.of_events(events.variable_ids, events.mask, num_variables)
    shape = channels.channel_ids.shape
    rows = torch.arange(shape[0], device=parts.device).unsqueeze(1)
    cells = (channels.slots + rows * shape[1]).masked_fill(~events.mask, shape.numel())
    sums = pooling_sums(parts, scores, cells, shape.numel()).view(*shape, -1)
    running = summarize(events.values, events.times, events.has_value, cells, shape.numel(), model.half_lives)
    running = Running(*(field.view(*shape, *field.shape[1:]) for field in running))
    return channels.channel_ids.masked_fill(channels.channel_ids < 0, num_variables), sums, running


def _of_variables(held: torch.Tensor, variables: torch.Tensor) -> torch.Tensor:
    """(batch, num_variables + 1, width), (batch, channels) -> (batch, channels, width)"""
    return held.gather(1, variables.unsqueeze(-1).expand(-1, -1, held.shape[-1]))


def pack(running: Running) -> torch.Tensor:
    """All fields side by side, `(..., numbers)`, those that decay at the end."""
    fixed = torch.stack([getattr(running, name) for name in FIXED], -1)
    return torch.cat([fixed, *(getattr(running, name) for name in DECAYING)], -1)


def _unpack(packed: torch.Tensor, half_lives: int) -> Running:
    fixed, *decaying = packed.split([len(FIXED), *[half_lives] * len(DECAYING)], -1)
    names = (*FIXED, *DECAYING)
    return Running(**dict(zip(names, (*fixed.unbind(-1), *decaying), strict=True)))


def _select(events: SortedEvents, keep: torch.Tensor) -> SortedEvents:
    """The events at which `keep (batch, length)` is true, still sorted."""
    if keep.all():
        return replace(events, order=None)
    order = keep.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, : int(keep.sum(1).max())]
    kept = replace(events, mask=keep, has_value=events.has_value & keep)
    return kept.map(lambda tensor: tensor.gather(1, order))


def _latest_where(rows: torch.Tensor, ours: SortedEvents, theirs: SortedEvents) -> SortedEvents:
    width = max(ours.mask.shape[1], theirs.mask.shape[1])

    def padded(tensor):
        return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]))

    pairs = ((padded(getattr(ours, name)), padded(getattr(theirs, name))) for name in EVENT_FIELDS)
    return SortedEvents(*(torch.where(rows.unsqueeze(1), mine, other) for mine, other in pairs))
