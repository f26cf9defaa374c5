"""A patient followed event by event, in clinical units."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from .configuration_hymate import HyMaTEConfig
from .events import MAX_HOURS, Events, check_count, parse_hours
from .streaming import StreamState

SNAPSHOTS = 32  # calls that a late event can go back by default
MAX_PLAIN = 1e300  # larger values may be no float


class Stream:
    r"""Follows one patient: each event updates the answer at a cost that does not grow with the number of events.

        stream = Stream(model, feature_extractor, static={"Age": 71})
        answer = stream.add({"time": 0.5, "variable": "HR", "value": 118})
        answer = stream.ask(6.0)

    An answer is a dict: `prediction_time` (hours), `label` and `score`, the most probable label and its probability
    (of a regression the output's name and the number; left out where a regression or a time-to-event model has several
    outputs), `scores`, label -> probability or output -> number, and `variables`, those observed so far by falling
    attention, each `variable`, `weight` (they sum to one) and `num_events`.

    Args:
        model: a `HyMaTEForSequenceClassification` with `attention_axis="channel"`; put into evaluation mode.
        feature_extractor: the model's.
        static: static columns, name -> value; what is absent counts as unknown.
        on_late: what to do with events older than the latest: `"error"` refuses them; `"rewind"` goes back to the
            state before their time and reads on from there, as far as the last `snapshots` calls of `add` reach.
        snapshots: how many calls that is; their states and events are kept.
        state: of an earlier `Stream` of this model, to go on from; `static` is then part of it.

    Raises:
        ValueError: for a model or static columns that do not fit.
    """

    def __init__(
        self,
        model: Any,
        feature_extractor: Any,
        static: Mapping[str, Any] | None = None,
        on_late: Literal["error", "rewind"] = "error",
        snapshots: int = SNAPSHOTS,
        state: StreamState | None = None,
    ):
        if not hasattr(model, "predictions"):
            raise ValueError(f"a stream needs a HyMaTEForSequenceClassification, got {type(model).__name__}")
        if on_late not in ("error", "rewind"):
            raise ValueError(f"on_late must be 'error' or 'rewind', got {on_late!r}")
        check_count("snapshots", snapshots)
        if not isinstance(state, StreamState | None):
            raise ValueError(f"state must be the state of a Stream, got {type(state).__name__}")
        if not isinstance(static, Mapping | None):
            raise ValueError(f"static must be a mapping of static columns, got {type(static).__name__}")
        if state is not None and static is not None:
            raise ValueError("static is part of the state: give one of the two")
        if feature_extractor.time_scale != model.config.time_scale:
            raise ValueError(
                f"the feature extractor's time_scale is {feature_extractor.time_scale}, but the model's is "
                f"{model.config.time_scale}: they do not belong together"
            )
        self.model = model.eval()
        self.feature_extractor = feature_extractor
        self.on_late = on_late
        self._indices = {name: index for index, name in enumerate(feature_extractor.variables)}
        self._earlier: deque[tuple[StreamState, Events]] = deque(maxlen=snapshots)  # state before a call, its events
        self.state = self._start(static) if state is None else state

    def _start(self, static: Mapping[str, Any] | None) -> StreamState:
        nothing: dict[str, list] = {"time": [], "variable": [], "value": []}
        known: dict[str, Any] = {column["name"]: None for column in self.feature_extractor.static_columns}
        for name in static or {}:
            if name not in known:
                raise ValueError(f"static has a column {name!r}, but the model knows {', '.join(known) or 'none'}")
        events = self.feature_extractor.parse([nothing], known | dict(static or {}) or None, allow_empty=True)
        if not self.feature_extractor.static_columns:
            return self.model.start_stream()
        static_values = torch.from_numpy(self.feature_extractor.encode_static(events.static, 1))
        return self.model.start_stream(static_values.to(self.model.device))

    @property
    def time(self) -> float:
        """Hours at which the latest event happened; 0 where there is none."""
        return float(self.state.current.last_time[0]) * self.feature_extractor.time_scale

    def add(self, events: Any) -> dict[str, Any]:
        """Takes further events and answers as of the latest.

        Args:
            events: one event as a dict of `time` (hours), `variable` (name) and `value` (clinical units; None for an
                event without a number), several as a dict of lists or a frame of one record; in any order.

        Raises:
            ValueError: for bad events, as the feature extractor; and for a late one that cannot be taken.
        """
        calls, before, parsed = self._before(self._parse(events))
        device, features = self.model.device, self.feature_extractor.encode_events(parsed)
        inputs = {name: torch.from_numpy(array).to(device) for name, array in features.items()}
        outputs, self.state = self.model.stream(before, **inputs)
        for _ in range(calls):
            self._earlier.pop()
        if self.on_late == "rewind":
            self._earlier.append((before, parsed))
        return self._answer(outputs, self.time)

    def ask(self, time: float) -> dict[str, Any]:
        """Answers at a time, in hours, no earlier than the latest event's, from the events so far."""
        (hours,) = parse_hours([time], "time")
        scaled = np.float32(hours / self.feature_extractor.time_scale)
        if scaled < float(self.state.current.last_time[0]):
            raise ValueError(f"time must be no earlier than the latest event, at {self.time:g} hours, got {time}")
        asked = torch.tensor([scaled], device=self.model.device)
        outputs, _ = self.model.stream(self.state, prediction_time=asked)
        return self._answer(outputs, float(hours))

    def _parse(self, events: Any) -> Events:
        if isinstance(events, Mapping) and "time" in events and np.ndim(events["time"]) == 0:
            parsed = self._parse_one(events)
            if parsed is not None:
                return parsed
            events = {name: [item] for name, item in events.items()}
        parsed = self.feature_extractor.parse(events)
        if len(parsed) != 1:
            raise ValueError(f"a stream follows one patient, but these are events of {len(parsed)} records")
        return parsed

    def _parse_one(self, event: Mapping[str, Any]) -> Events | None:
        """A plain event; None where the feature extractor must look at it, which also says what is wrong.

        For its checks of columns an event takes a tenth of the time of a whole step."""
        if event.keys() != {"time", "variable", "value"}:
            return None
        time, variable, value = event["time"], event["variable"], event["value"]
        value = math.nan if value is None else value
        index = self._indices.get(variable) if isinstance(variable, str) else None
        if index is None or type(time) not in (int, float) or type(value) not in (int, float):
            return None
        if not 0 <= time <= MAX_HOURS or abs(value) > MAX_PLAIN:
            return None
        return Events(np.array([0, 1]), np.array([float(time)]), np.array([index]), np.array([float(value)]))

    def _before(self, new: Events) -> tuple[int, StreamState, Events]:
        """How many calls to go back, the state to go on from, and the events to go on with: the new ones, and those of
        these calls."""
        first = np.float32(new.times[0] / self.feature_extractor.time_scale)
        if not _is_after(self.state, first):
            return 0, self.state, new
        for calls, (state, events) in enumerate(reversed(self._earlier), 1):
            new = _together(events, new)
            if not _is_after(state, first):
                return calls, state, new
        advice = (
            f"it reaches back to before the last {len(self._earlier)} calls, which are all that is kept"
            if self.on_late == "rewind"
            else "give events in the order of their times, or choose on_late='rewind'"
        )
        hours = float(first) * self.feature_extractor.time_scale
        raise ValueError(f"an event at {hours:g} hours is older than the latest, at {self.time:g} hours: {advice}")

    def _answer(self, outputs: Any, time: float) -> dict[str, Any]:
        predicted = self.model.predictions(outputs.logits)[0].tolist()
        answer = {"prediction_time": time, **named_scores(self.model.config, predicted)}
        shares = zip(
            outputs.channel_ids[0].tolist(),
            outputs.channel_weights[0].tolist(),
            outputs.channel_counts[0].tolist(),
            strict=True,
        )
        answer["variables"] = [
            {"variable": self.feature_extractor.variables[variable], "weight": weight, "num_events": int(count)}
            for variable, weight, count in sorted(shares, key=lambda share: -share[1])
            if variable >= 0
        ]
        return answer


def named_scores(config: HyMaTEConfig, predicted: Sequence[float]) -> dict[str, Any]:
    """What a model predicts, by the names of its labels, and which of them is the answer where one is.

    Raises:
        ValueError: for what is no finite number.
    """
    if not all(map(math.isfinite, predicted)):
        raise ValueError("the model predicts no finite number; its weights are damaged, or its training has diverged")
    names = [config.id2label[index] for index in range(len(predicted))]
    scores = {"scores": dict(zip(names, predicted, strict=True))}
    if not config.names_an_answer:
        return scores
    best = int(np.argmax(predicted))
    return {"label": names[best], "score": predicted[best], **scores}


def _is_after(state: StreamState, time: np.float32) -> bool:
    return bool(state.current.num_events[0]) and float(state.current.last_time[0]) > float(time)


def _together(earlier: Events, later: Events) -> Events:
    """One record's events of two calls, in the order of their times."""
    order = np.argsort(np.concatenate([earlier.times, later.times]), kind="stable")
    return Events(
        offsets=np.array([0, len(order)]),
        times=np.concatenate([earlier.times, later.times])[order],
        variable_ids=np.concatenate([earlier.variable_ids, later.variable_ids])[order],
        values=np.concatenate([earlier.values, later.values])[order],
    )


__all__ = ["Stream"]
