"""What requests and answers look like, as the page of the service documents it; shapes are checked here, names and
categories against the model in `reading`."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, StrictStr

MOST_RECORDS = 1000  # of a request
MOST_EVENTS = 100_000  # of a request
MOST_TIMES = 1000  # at which each record of a request is asked
LATEST_HOUR = 1_000_000  # 114 years
LONGEST_NAME = 500  # characters

Hours = Annotated[float, Field(ge=0, le=LATEST_HOUR, allow_inf_nan=False, description="Since the record's start.")]
Static = dict[str, StrictInt | StrictFloat | StrictStr | None]


class Message(BaseModel):
    """Nothing is turned into another type, and nothing unknown is dropped."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Event(Message):
    """Something that was measured or happened."""

    time: Hours
    variable: str = Field(max_length=LONGEST_NAME, description="One of the model's variables; see GET /model.")
    value: float | None = Field(None, allow_inf_nan=False, description="In clinical units; null where there is none.")


class Record(Message):
    """A stay or a patient."""

    record_id: str = Field(min_length=1, max_length=LONGEST_NAME)
    events: list[Event] = Field(max_length=MOST_EVENTS)
    static: Static = Field({}, description="Static columns; what is absent counts as unknown. See GET /model.")


class PredictRequest(Message):
    """Records to predict."""

    records: list[Record] = Field(min_length=1, max_length=MOST_RECORDS)
    prediction_times: list[Hours] | None = Field(
        None,
        min_length=1,
        max_length=MOST_TIMES,
        description="Hours at which each record is asked; each answer rests on the events at or before its time. "
        "Without them, a record is asked once, from all of its events.",
    )
    untrained_hours: bool = Field(
        False, description="Answer also at hours at which the model was not trained; an error otherwise."
    )

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "records": [
                    {
                        "record_id": "1",
                        "events": [{"time": 0.5, "variable": "HR", "value": 92}],
                        "static": {"Age": 71},
                    }
                ]
            }
        }
    )


class Answer(BaseModel):
    """`probabilities`, or `values` of a regression."""

    prediction_time: float | None = Field(None, description="Hours; where times were asked for.")
    probabilities: dict[str, float] | None = Field(None, description="Label -> probability, of a classifier.")
    values: dict[str, float] | None = Field(None, description="Output -> number, of a regression.")


class Prediction(Answer):
    """What the model says of a record."""

    record_id: str


class PredictResponse(BaseModel):
    """One prediction per record, or per record and time, in the order of the request."""

    predictions: list[Prediction]


class StreamRequest(Message):
    """A patient to follow."""

    static: Static = Field({}, description="As of a record.")


class EventsRequest(Message):
    """Further events of a patient, none earlier than the latest so far."""

    events: list[Event] = Field(min_length=1, max_length=MOST_EVENTS)


class VariableShare(BaseModel):
    """How much the answer rests on a variable, by attention."""

    variable: str
    weight: float
    num_events: int


class StreamAnswer(Answer):
    """What the model says of a patient that is followed."""

    id: str = Field(description="Random; says nothing about the patient.")
    num_events: int
    expires: str = Field(description="When the stream is forgotten unless it is used before; ISO 8601, UTC.")
    variables: list[VariableShare] = Field([], description="Those observed so far, by falling weight.")


class StreamHistory(StreamAnswer):
    """The same, and the answers at the full hours before the latest event."""

    hours: list[Answer]


class StaticColumn(BaseModel):
    """A static column: a number, or one of some categories."""

    name: str
    categories: list[str] | None = None


class ModelDescription(BaseModel):
    """What the model takes and answers."""

    labels: list[str]
    problem_type: str
    variables: list[str]
    static_columns: list[StaticColumn]
    trained_hours: list[float] | None = Field(
        description="First and last hour at which it was trained; null: at the end of each record alone."
    )


class Problem(BaseModel):
    """What is wrong with a request, and where."""

    loc: list[str | int]
    msg: str


class Refusal(BaseModel):
    """What is wrong with a request."""

    detail: list[Problem]


def problem(where: tuple[str | int, ...], message: str) -> dict[str, Any]:
    """The body of an answer to a bad request."""
    return {"detail": [{"loc": list(where), "msg": message}]}
