"""Pipeline from records in clinical units to labels and what they rest on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import Pipeline

from .events import check_count
from .stream import Stream, named_scores

TASK = "ehr-classification"
BATCH_SIZE = 32
# How a saved folder's config.json names this pipeline, so that `pipeline(..., trust_remote_code=True)` finds it.
CUSTOM_PIPELINES = {TASK: {"impl": "pipeline_hymate.HyMaTEPipeline", "pt": ["AutoModelForSequenceClassification"]}}


class HyMaTEPipeline(Pipeline):
    r"""Labels records and says which events and variables the answer rests on.

        classifier = pipeline("ehr-classification", model=folder_or_repo)
        classifier({"time": [0.5, 2.0], "variable": ["HR", "GCS"], "value": [118, 9]}, static={"Age": 71})

    Each record's result is a dict:

    - `record_id`: its name, or its position in the input;
    - `label`, `score`: the most probable label and its probability; of a regression, the output's name and the number
      (left out where a regression or a time-to-event model has several outputs);
    - `scores`: label -> probability, or output -> number, for all of them. The classes of a binary or multiclass model
      sum to one; the labels of a multilabel model do not. Of a time-to-event model they are the risks within its
      horizons;
    - `top_events`: the events with the largest weights, each `time` (hours), `variable`, `value` (clinical units, None
      where the event carries no number) and `weight`; the weights of all of a record's events sum to one;
    - `top_variables`: the variables with the largest weights, each `variable`, `weight` and `num_events`.

    With `prediction_times`, each record's result is a list of such dicts, one for each time, which is their
    `prediction_time`; each rests on the events at or before its time alone.

    Weights are the model's attention: where it looked, which is not the same as what caused the outcome.
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = True
    _load_tokenizer = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if not hasattr(self.model, "predictions"):
            raise ValueError(
                f"{TASK} needs a HyMaTEForSequenceClassification fine-tuned on a task, got {type(self.model).__name__}"
            )
        if self.feature_extractor is None:
            raise ValueError(f"{TASK} needs the model's feature extractor: pass feature_extractor=")
        scale = self.model.config.time_scale
        if self.feature_extractor.time_scale != scale:
            raise ValueError(
                f"the feature extractor's time_scale is {self.feature_extractor.time_scale}, but the model's is "
                f"{scale}: they do not belong together"
            )

    def __call__(self, records: Any, static: Any = None, **kwargs) -> dict[str, Any] | list[dict[str, Any]] | Iterator:
        """Labels one record or many.

        Args:
            records: anything `HyMaTEFeatureExtractor` takes: a long-format pandas or polars frame (`time` in hours,
                `variable`, `value`, and `record_id` unless it is one record), a record as a dict of lists, a list of
                records; or a generator or PyTorch data set of single records, which is read as results are asked for.
            static: static columns where `records` does not hold them: a frame or dict, with `record_id` or in the
                order of the records.
            top_k (`int` or `None`, defaults to 5): how many events and variables to return; `None` returns all.
            max_events (`int`, *optional*): keep the latest events of longer records; as in training by default.
            prediction_times (*optional*): hours at which each record is asked: one list for all records, or one list
                for each. By default a record is asked once, at the time of its last event.
            batch_size (`int`, defaults to 32): records at a time.
            num_workers (`int`, *optional*): processes that prepare a generator's or data set's records.

        Returns:
            A dict for one record (a dict of lists, or a frame without `record_id`), else a list of dicts in the order
            of the records, or an iterator over them for a generator or data set.

        Raises:
            ValueError: for bad records, see `HyMaTEFeatureExtractor.__call__`; for a `top_k` below 1.
        """
        if kwargs.get("batch_size") is None:
            kwargs["batch_size"] = self._batch_size or BATCH_SIZE
        if isinstance(records, Iterator | Dataset):
            if static is not None:
                raise ValueError("static cannot be given beside a generator or data set: put it into the records")
            lazy = records if isinstance(records, Dataset) else _Records(records)
            return super().__call__(lazy, **kwargs)
        times = kwargs.pop("prediction_times", self._preprocess_params.get("prediction_times"))
        events = self.feature_extractor.parse(records, static, allow_empty=times is not None)
        order = np.argsort(events.lengths, kind="stable")  # equal lengths together: less padding
        parsed = [_Parsed(events.take(order[at : at + 1])) for at in range(len(order))]
        if times is not None:
            hours, real = self.feature_extractor.parse_prediction_times(times, events.record_ids)
            for item, row in zip(parsed, order, strict=True):
                item.prediction_times = hours[row][real[row]]
        results = super().__call__(parsed, **kwargs)
        if events.is_one_record:
            return results[0]
        return [results[at] for at in np.argsort(order)]

    def stream(self, static: Mapping[str, Any] | None = None, **options) -> Stream:
        """Follows a new patient event by event; arguments as of `Stream`, but for the model and its feature extractor,
        which are this pipeline's."""
        return Stream(self.model, self.feature_extractor, static, **options)

    def _sanitize_parameters(self, **parameters):
        postprocess = {}
        if "top_k" in parameters:
            top_k = parameters.pop("top_k")
            if top_k is not None:
                check_count("top_k", top_k)
            postprocess["top_k"] = top_k
        names = ("max_events", "prediction_times")
        preprocess = {name: parameters.pop(name) for name in names if name in parameters}
        if parameters:
            name = next(iter(parameters))
            raise ValueError(f"{TASK} has no parameter {name!r}; it has top_k, {' and '.join(names)}")
        return preprocess, {}, postprocess

    def preprocess(
        self, record: Any, max_events: int | None = None, prediction_times: Sequence | np.ndarray | None = None
    ) -> dict[str, Any]:
        extractor = self.feature_extractor
        if isinstance(record, _Parsed):
            events, prediction_times = record.events, record.prediction_times
        else:
            events = extractor.parse([record], allow_empty=prediction_times is not None)
        if prediction_times is None:
            events = extractor.shorten(events, max_events)
            return {**extractor.encode(events), "parsed": _Parsed(events)}
        events = extractor.shorten(extractor.until(events, prediction_times), max_events)
        hours, mask = extractor.parse_prediction_times(prediction_times, events.record_ids)
        features = extractor.encode(events, prediction_times=hours)
        # always there, since records are padded to the same number of times here
        features["prediction_mask"] = torch.from_numpy(mask)
        return {**features, "parsed": _Parsed(events, hours[0])}

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        features = {name: item for name, item in inputs.items() if name != "parsed"}
        outputs = self.model(**features, output_event_weights=True)
        return {
            "predictions": self.model.predictions(outputs.logits),
            "event_weights": outputs.event_weights.float(),
            "channel_ids": outputs.channel_ids,
            "channel_weights": outputs.channel_weights.float(),
            "channel_counts": outputs.channel_counts,
            "parsed": inputs["parsed"],
        }

    def postprocess(self, outputs: dict[str, Any], top_k: int | None = 5) -> dict[str, Any] | list[dict[str, Any]]:
        events, hours = outputs["parsed"].events, outputs["parsed"].prediction_times
        channel_ids = outputs["channel_ids"][0].numpy()
        names = ("predictions", "event_weights", "channel_weights", "channel_counts")
        found = {name: outputs[name][0] for name in names}
        if hours is None:
            return self._result(events, channel_ids, top_k, **found)
        results = []
        for place, time in enumerate(hours.tolist()):
            seen = events.select(events.times.astype(np.float32) <= np.float32(time))
            result = self._result(seen, channel_ids, top_k, **{name: found[name][place] for name in names})
            results.append({"record_id": result.pop("record_id"), "prediction_time": time} | result)
        return results

    def _result(self, events, channel_ids, top_k, predictions, event_weights, channel_weights, channel_counts) -> dict:
        """What was found out from the events of one record."""
        variables = self.feature_extractor.variables
        result = {"record_id": events.record_ids[0], **named_scores(self.model.config, predictions.tolist())}
        weights = event_weights[: len(events.times)].numpy()
        result["top_events"] = [
            {
                "time": float(events.times[at]),
                "variable": variables[events.variable_ids[at]],
                "value": None if np.isnan(events.values[at]) else float(events.values[at]),
                "weight": float(weights[at]),
            }
            for at in np.argsort(-weights, kind="stable")[:top_k]
        ]
        observed = np.flatnonzero(channel_counts.numpy() > 0)
        shares = channel_weights.numpy()[observed]
        result["top_variables"] = [
            {
                "variable": variables[channel_ids[observed[at]]],
                "weight": float(shares[at]),
                "num_events": int(channel_counts[observed[at]]),
            }
            for at in np.argsort(-shares, kind="stable")[:top_k]
        ]
        return result


@dataclass
class _Parsed:
    """The events of one record that were read already, and when it is asked."""

    events: Any
    prediction_times: np.ndarray | None = None


class _Records(IterableDataset):
    """An iterator's records as a data set: transformers before 5.14 reads a generator to its end before it starts."""

    def __init__(self, records: Iterator):
        self.records = records

    def __iter__(self) -> Iterator:
        return self.records


__all__ = ["HyMaTEPipeline"]
