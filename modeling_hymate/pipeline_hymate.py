"""Pipeline from records in clinical units to labels and what they rest on."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset
from transformers import Pipeline

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
      (left out where a regression has several outputs);
    - `scores`: label -> probability, or output -> number, for all of them. The classes of a binary or multiclass model
      sum to one; the labels of a multilabel model do not;
    - `top_events`: the events with the largest weights, each `time` (hours), `variable`, `value` (clinical units, None
      where the event carries no number) and `weight`; the weights of all of a record's events sum to one;
    - `top_variables`: the variables with the largest weights, each `variable`, `weight` and `num_events`.

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
            lazy = records if isinstance(records, Dataset) else _Stream(records)
            return super().__call__(lazy, **kwargs)
        events = self.feature_extractor.parse(records, static)
        order = np.argsort(events.lengths, kind="stable")  # equal lengths together: less padding
        results = super().__call__([events.take(order[at : at + 1]) for at in range(len(order))], **kwargs)
        if _is_one_record(records):
            return results[0]
        return [results[at] for at in np.argsort(order)]

    def _sanitize_parameters(self, **parameters):
        postprocess = {}
        if "top_k" in parameters:
            top_k = parameters.pop("top_k")
            if top_k is not None and top_k < 1:
                raise ValueError(f"top_k must be at least 1, or None for all, got {top_k}")
            postprocess["top_k"] = top_k
        preprocess = {"max_events": parameters.pop("max_events")} if "max_events" in parameters else {}
        if parameters:
            raise ValueError(f"{TASK} has no parameter {next(iter(parameters))!r}; it has top_k and max_events")
        return preprocess, {}, postprocess

    def preprocess(self, record: Any, max_events: int | None = None) -> dict[str, Any]:
        # not by class: loaded from a folder, the feature extractor has its own copy of events.py
        is_parsed = hasattr(record, "variable_ids")
        events = record if is_parsed else self.feature_extractor.parse([record])
        events = self.feature_extractor.shorten(events, max_events)
        return {**self.feature_extractor.encode(events), "events": events}

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        outputs = self.model(**{name: item for name, item in inputs.items() if name != "events"})
        return {
            "predictions": self.model.predictions(outputs.logits),
            "event_weights": outputs.event_weights.float(),
            "channel_ids": outputs.channel_ids,
            "channel_weights": outputs.channel_weights.float(),
            "events": inputs["events"],
        }

    def postprocess(self, outputs: dict[str, Any], top_k: int | None = 5) -> dict[str, Any]:
        events = outputs["events"]
        config = self.model.config
        predicted = outputs["predictions"][0].tolist()
        names = [config.id2label[index] for index in range(len(predicted))]
        result: dict[str, Any] = {"record_id": events.record_ids[0]}
        if config.problem_type != "regression" or len(names) == 1:
            best = int(np.argmax(predicted))
            result |= {"label": names[best], "score": predicted[best]}
        result["scores"] = dict(zip(names, predicted, strict=True))

        variables = self.feature_extractor.variables
        weights = outputs["event_weights"][0, : len(events.times)].numpy()
        result["top_events"] = [
            {
                "time": float(events.times[at]),
                "variable": variables[events.variable_ids[at]],
                "value": None if np.isnan(events.values[at]) else float(events.values[at]),
                "weight": float(weights[at]),
            }
            for at in np.argsort(-weights, kind="stable")[:top_k]
        ]
        known = outputs["channel_ids"][0] >= 0
        channels = outputs["channel_ids"][0][known].numpy()
        shares = outputs["channel_weights"][0][known].numpy()
        counts = np.bincount(events.variable_ids, minlength=len(variables))
        result["top_variables"] = [
            {
                "variable": variables[channels[at]],
                "weight": float(shares[at]),
                "num_events": int(counts[channels[at]]),
            }
            for at in np.argsort(-shares, kind="stable")[:top_k]
        ]
        return result


class _Stream(IterableDataset):
    """An iterator's records as a data set: transformers before 5.14 reads a generator to its end before it starts."""

    def __init__(self, records: Iterator):
        self.records = records

    def __iter__(self) -> Iterator:
        return self.records


def _is_one_record(records: Any) -> bool:
    """Whether parsed `records` were one record by themselves rather than a collection of one or more."""
    if isinstance(records, Mapping):
        if isinstance(records.get("record_id"), Sequence | np.ndarray) and not isinstance(records["record_id"], str):
            return False  # flat columns of several records
        first = next(iter(records["time"]))
        return isinstance(first, str) or not isinstance(first, Sequence | np.ndarray)
    return hasattr(records, "columns") and "record_id" not in records.columns


__all__ = ["HyMaTEPipeline"]
