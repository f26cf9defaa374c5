"""Requests -> records that the model takes; what it does not know is refused by the name of the field."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hymate_training.inference.checkpoints import Checkpoint
from hymate_training.inference.hours import is_untrained, said_of_training
from hymate_training.serving.messages import MOST_EVENTS, Event, PredictRequest, Static
from modeling_hymate import Events

Place = tuple[str | int, ...]


class BadField(ValueError):  # noqa: N818 - it is a field of a request that is bad
    """A field of a request does not fit the model.

    Attributes:
        where: the path to the field.
        status: HTTP status of the answer.
    """

    def __init__(self, where: Place, message: str, status: int = 422):
        super().__init__(message)
        self.where = where
        self.status = status


@dataclass(frozen=True, eq=False)
class Question:
    """Records, and when they are asked.

    Attributes:
        events: the records.
        hours: at which each of them is asked; None for the end of each.
    """

    events: Events
    hours: list[float] | None

    @property
    def size(self) -> int:
        """How much work it is: events, and predictions."""
        return len(self.events.times) + len(self.events) * len(self.hours or [0.0])


class Reader:
    """Reads requests for one model."""

    def __init__(self, checkpoint: Checkpoint):
        self.extractor = checkpoint.extractor
        self.follows = checkpoint.model.config.attention_axis == "channel"  # and so can be asked at any time
        self._variables = frozenset(self.extractor.variables)
        self._columns = {column["name"]: column for column in self.extractor.static_columns}

    def question(self, request: PredictRequest) -> Question:
        """The records of a request, and when they are asked.

        Raises:
            BadField: for a variable, static column or category that the model does not know, a record without events
                that is not asked at a time, records of one name, too many events, and hours at which the model was
                not trained unless they are allowed.
        """
        seen: set[str] = set()
        total = 0
        for row, record in enumerate(request.records):
            where: Place = ("records", row)
            if record.record_id in seen:
                raise BadField((*where, "record_id"), "another record of the request has this record_id")
            seen.add(record.record_id)
            total += len(record.events)
            if total > MOST_EVENTS:
                raise BadField((*where, "events"), f"a request may hold at most {MOST_EVENTS} events: send several")
            if not record.events and request.prediction_times is None:
                raise BadField((*where, "events"), "a record without events must be asked at prediction_times")
            self.check_events(record.events, where)
            self.check_static(record.static, (*where, "static"))
        if request.prediction_times is not None:
            self._check_hours(request.prediction_times, request.untrained_hours)
        rows = [
            {"record_id": record.record_id, **columns(record.events), **record.static} for record in request.records
        ]
        try:
            parsed = self.extractor.parse(rows, allow_empty=request.prediction_times is not None)
        except ValueError as error:  # it names the column and the record
            raise BadField(("records",), str(error)) from error
        return Question(parsed, request.prediction_times)

    def check_events(self, events: Sequence[Event], where: Place = ()) -> None:
        """Raises BadField for the first variable that the model does not know."""
        for at, event in enumerate(events):
            if event.variable not in self._variables:
                close = difflib.get_close_matches(event.variable[:100], self.extractor.variables, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                message = f"not one of the model's {len(self._variables)} variables, which GET /model lists{hint}"
                raise BadField((*where, "events", at, "variable"), message)

    def check_static(self, static: Static, where: Place) -> None:
        """Raises BadField for a column or a category that the model does not know, and for what is no number."""
        for name, item in static.items():
            column = self._columns.get(name)
            if column is None:
                known = ", ".join(self._columns) or "none"
                raise BadField((*where, name), f"not one of the model's static columns: {known}")
            if item is None:
                continue
            if "categories" in column:
                if str(item) not in column["categories"]:
                    known = ", ".join(map(repr, filter(None, column["categories"])))
                    raise BadField((*where, name), f"must be one of {known}, or null where it is unknown")
            elif isinstance(item, str) or not _is_finite(item):
                raise BadField((*where, name), "must be a finite number, or null where it is unknown")

    def _check_hours(self, hours: Sequence[float], untrained_hours: bool) -> None:
        if not self.follows:
            raise BadField(("prediction_times",), "this model answers at the end of each record alone")
        trained = self.extractor.trained_hours
        untrained = is_untrained(np.array(hours), trained)
        if untrained.any() and not untrained_hours:
            message = f"the model {said_of_training(trained)}; untrained_hours lets it answer at others, too"
            raise BadField(("prediction_times", int(untrained.argmax())), message)


def columns(events: Sequence[Event]) -> dict[str, list]:
    """Events as the feature extractor takes them."""
    return {
        "time": [event.time for event in events],
        "variable": [event.variable for event in events],
        "value": [event.value for event in events],
    }


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(float(number))
    except OverflowError:
        return False
