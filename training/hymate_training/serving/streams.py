"""Patients that are followed event by event: how many are held, until when, and across a restart."""

import json
import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from hymate_training.files import fingerprint, writing_file
from hymate_training.inference.checkpoints import EXTRACTOR_FILE, WEIGHTS_FILE, Checkpoint
from hymate_training.serving.messages import Event, Static
from hymate_training.serving.reading import BadField, Reader, columns
from hymate_training.serving.scoring import outputs_key
from modeling_hymate import Stream
from modeling_hymate.streaming import StreamState

ID_BYTES = 16
HOURS_KEPT = 168  # answers at full hours, of each stream: a week
MOST_AT_ONE_TIME = 1000  # events of one time stamp, which a stream keeps until a later one comes
METADATA = "hymate_streams"  # in the file's header


@dataclass
class Held:
    """A patient that is followed.

    Attributes:
        stream: the state.
        touched: when it was last used, seconds since 1970.
        hours: the answers at the last full hours.
        next_hour: the first full hour without an answer.
    """

    stream: Stream
    touched: float
    hours: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=HOURS_KEPT))
    next_hour: int = 1

    @property
    def num_events(self) -> int:
        """How many events there were."""
        return int(self.stream.state.current.num_events[0])


class HeldStreams:
    """The streams of a service. All methods run in one thread, that of the model.

    Args:
        checkpoint: whose model follows.
        most: how many are held at once.
        hours: of a stream that is not used, after which it is forgotten.
        clock: seconds since 1970.
    """

    def __init__(self, checkpoint: Checkpoint, most: int, hours: float, clock: Callable[[], float] = time.time):
        self._checkpoint = checkpoint
        self._reader = Reader(checkpoint)
        self._key = outputs_key(checkpoint)
        self._most = most
        self._seconds = hours * 3600
        self._clock = clock
        self._held: dict[str, Held] = {}
        self.changed = False  # since the last `save` or `restore`

    def __len__(self) -> int:
        return len(self._held)

    def start(self, static: Static) -> dict[str, Any]:
        """Follows a further patient.

        Raises:
            BadField: for static columns that do not fit, a model that cannot follow, or (429) as many streams as may
                be held.
        """
        self.forget_expired()
        if not self._reader.follows:
            raise BadField((), "this model cannot follow a patient: it answers at the end of each record alone")
        self._reader.check_static(static, ("static",))
        if len(self._held) >= self._most:
            message = f"{self._most} streams are held, and no more may be: end one with DELETE /streams/{{id}}"
            raise BadField((), message, status=429)
        name = secrets.token_urlsafe(ID_BYTES)
        stream = Stream(self._checkpoint.model, self._checkpoint.extractor, static)
        self._held[name] = Held(stream, self._clock())
        self.changed = True
        return self._described(name)

    def add(self, name: str, events: list[Event]) -> dict[str, Any]:
        """Takes further events of a patient, all or none, and answers as of the latest.

        Raises:
            BadField: for events that do not fit, (409) for one earlier than the latest so far, (404) for a stream that
                is not held.
        """
        held = self._get(name)
        self._reader.check_events(events)
        latest = np.float32(held.stream.time)
        for at, event in enumerate(events):
            if np.float32(event.time) < latest:
                message = f"earlier than the latest event, at {held.stream.time:g} hours: a stream goes on in time"
                raise BadField(("events", at, "time"), message, status=409)
        before = held.stream.state, held.hours.copy(), held.next_hour
        try:
            found = self._advance(held, sorted(events, key=lambda event: event.time))
        except BaseException:
            held.stream.state, held.hours, held.next_hour = before
            raise
        self.changed = True
        return self._described(name) | self._answer(found) | {"variables": found["variables"]}

    def look(self, name: str, hour: float | None) -> dict[str, Any]:
        """The answer as of the latest event, or at a later hour, and those at the full hours before.

        Raises:
            BadField: for an hour before the latest event, (404) for a stream that is not held.
        """
        held = self._get(name)
        if hour is not None and np.float32(hour) < np.float32(held.stream.time):
            raise BadField(("time",), f"must not be earlier than the latest event, at {held.stream.time:g} hours")
        found = held.stream.ask(held.stream.time if hour is None else hour)
        described = self._described(name) | self._answer(found) | {"variables": found["variables"]}
        return described | {"hours": list(held.hours)}

    def end(self, name: str) -> None:
        """Forgets a stream; BadField (404) if it is not held."""
        self._get(name)
        del self._held[name]
        self.changed = True

    def forget_expired(self) -> None:
        """Forgets the streams that were not used for too long."""
        now = self._clock()
        for name in [name for name, held in self._held.items() if now - held.touched > self._seconds]:
            del self._held[name]
            self.changed = True

    def _get(self, name: str) -> Held:
        self.forget_expired()
        held = self._held.get(name)
        if held is None:
            raise BadField(("id",), "no such stream is held: it may have expired or ended", status=404)
        held.touched = self._clock()
        return held

    def _advance(self, held: Held, events: list[Event]) -> dict[str, Any]:
        """Goes on hour by hour; the answer as of the last event."""
        while events:
            last = max(math.ceil(events[0].time), 1)  # the full hour up to which the events are seen
            held.next_hour = max(held.next_hour, last - HOURS_KEPT)
            for hour in range(held.next_hour, last) if held.num_events else ():
                held.hours.append(self._answer(held.stream.ask(float(hour))))
            held.next_hour = max(held.next_hour, last)
            count = next((at for at, event in enumerate(events) if event.time > last), len(events))
            found = held.stream.add(columns(events[:count]))
            if held.stream.state.latest.mask.shape[1] > MOST_AT_ONE_TIME:
                raise BadField(("events",), f"more than {MOST_AT_ONE_TIME} events at {held.stream.time:g} hours")
            events = events[count:]
        return found

    def _answer(self, found: Mapping[str, Any]) -> dict[str, Any]:
        return {"prediction_time": found["prediction_time"], self._key: found["scores"]}

    def _described(self, name: str) -> dict[str, Any]:
        held = self._held[name]
        expires = datetime.fromtimestamp(held.touched + self._seconds, UTC)
        return {"id": name, "num_events": held.num_events, "expires": expires.isoformat(timespec="seconds")}

    # ----------------------------------------------------------------------------------------------- across a restart

    def save(self, path: Path) -> None:
        """Writes all streams as safetensors, with JSON in the header, readable by the user alone."""
        self.forget_expired()
        streams = {
            name: {"touched": held.touched, "next_hour": held.next_hour, "hours": list(held.hours)}
            for name, held in self._held.items()
        }
        tensors = {
            f"{name}/{part}": tensor.cpu()
            for name, held in self._held.items()
            for part, tensor in held.stream.state.to_dict().items()
        }
        metadata = {"model": _model_of(self._checkpoint), METADATA: json.dumps(streams)}
        with writing_file(path) as incoming:
            incoming.touch(mode=0o600)
            incoming.write_bytes(save(tensors, metadata))
        self.changed = False

    def restore(self, path: Path) -> None:
        """Goes on with the streams of a file that `save` wrote.

        Raises:
            ValueError: if it is damaged, or its streams are those of another model.
        """
        device = self._checkpoint.model.device
        try:
            with safe_open(path, "pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                if metadata.get("model") != _model_of(self._checkpoint):
                    raise ValueError(f"{path} holds streams of another model: name another file, or move it away")
                streams = json.loads(metadata[METADATA])
                tensors: dict[str, dict[str, Any]] = {name: {} for name in streams}
                for key in file.keys():  # noqa: SIM118 - a file of safetensors is no dict
                    name, _, part = key.partition("/")
                    tensors[name][part] = file.get_tensor(key)
            for name, kept in streams.items():
                state = StreamState.from_dict(tensors[name])
                stream = Stream(self._checkpoint.model, self._checkpoint.extractor, state=state)
                hours = deque(kept["hours"], maxlen=HOURS_KEPT)
                self._held[name] = Held(stream, float(kept["touched"]), hours, int(kept["next_hour"]))
        except (SafetensorError, OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        self.changed = False


def _model_of(checkpoint: Checkpoint) -> str:
    """Names a model and its feature extractor."""
    return fingerprint(b"".join((checkpoint.path / name).read_bytes() for name in (WEIGHTS_FILE, EXTRACTOR_FILE)))
