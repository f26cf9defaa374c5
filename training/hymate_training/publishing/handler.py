"""Answers an Inference Endpoint of the Hugging Face Hub as `hymate serve` answers `POST /predict`.

`hymate push` puts this file beside the code that it needs: transformers and nothing else of this package.
"""

from collections.abc import Mapping
from typing import Any

from transformers import pipeline

TASK = "ehr-classification"
EVENT_FIELDS = {"time", "variable", "value"}


class EndpointHandler:
    """What the endpoint calls.

    Args:
        path: the repository's folder.
    """

    def __init__(self, path: str = ""):
        self.pipeline = pipeline(TASK, model=path, trust_remote_code=True)
        columns = self.pipeline.feature_extractor.static_columns
        self._static = {column["name"] for column in columns}

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Predicts records.

        Args:
            data: `inputs` holds the body of `POST /predict`: `records`, each `record_id`, `events` (a list of `time`
                in hours, `variable` and `value`) and `static`; and maybe `prediction_times` and `untrained_hours`.

        Returns:
            `predictions`, one per record, or per record and time: `record_id`, `prediction_time` where times are
            asked for, and `probabilities`, or `values` of a regression.

        Raises:
            ValueError: naming the field that does not fit.
        """
        body = _fields(data.get("inputs", data), "inputs", {"records"}, {"prediction_times", "untrained_hours"})
        given = body["records"]
        if not isinstance(given, list) or not given:
            raise ValueError("records must be a list of at least one record")
        records = [self._record(record, f"records[{at}]") for at, record in enumerate(given)]
        hours = body.get("prediction_times")
        options = {} if hours is None else {"prediction_times": self._hours(hours, body.get("untrained_hours", False))}
        key = "values" if self.pipeline.model.config.problem_type == "regression" else "probabilities"
        predictions = []
        for found in self.pipeline(records, **options):
            for one in [found] if hours is None else found:
                time = {} if hours is None else {"prediction_time": one["prediction_time"]}
                predictions.append({"record_id": one["record_id"], **time, key: one["scores"]})
        return {"predictions": predictions}

    def _record(self, record: Any, where: str) -> dict[str, Any]:
        """A record as the pipeline takes it."""
        record = _fields(record, where, {"record_id", "events"}, {"static"})
        if not isinstance(record["record_id"], str):
            raise ValueError(f"{where}.record_id must be text")
        if not isinstance(record["events"], list):
            raise ValueError(f"{where}.events must be a list")
        events = [
            _fields(event, f"{where}.events[{at}]", EVENT_FIELDS - {"value"}, {"value"})
            for at, event in enumerate(record["events"])
        ]
        static = _fields(record.get("static") or {}, f"{where}.static", set(), self._static)
        columns = {name: [event.get(name) for event in events] for name in EVENT_FIELDS}
        return {"record_id": record["record_id"], **columns, **static}

    def _hours(self, hours: Any, untrained_hours: Any) -> list[float]:
        if not isinstance(hours, list) or not all(type(hour) in (int, float) for hour in hours):
            raise ValueError("prediction_times must be a list of hours")
        trained = self.pipeline.feature_extractor.trained_hours
        if untrained_hours is not True and (trained is None or min(hours) < trained[0] or max(hours) > trained[1]):
            said = "at the end of each record alone" if trained is None else f"at hours {trained[0]} to {trained[1]}"
            raise ValueError(f"prediction_times: the model was trained {said}; untrained_hours allows others, too")
        return hours


def _fields(content: Any, where: str, required: set[str], optional: set[str]) -> Mapping[str, Any]:
    """An object of a request, which has what it must and nothing unknown."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} must be an object")
    if missing := required - set(content):
        raise ValueError(f"{where} lacks {min(missing)}")
    if unknown := set(content) - required - optional:
        raise ValueError(f"{where}.{min(unknown)} is unknown; there may be {', '.join(sorted(required | optional))}")
    return content
