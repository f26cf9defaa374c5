"""Another model's predictions for the examples of a task, read from a file."""

from pathlib import Path

import polars as pl

from hymate_training.data.examples import TaskDataset
from hymate_training.data.tables import numbers, read_frame, refuse
from hymate_training.evaluation.sample import LabeledPredictions


def read_baseline(path: str | Path, dataset: TaskDataset, sample: LabeledPredictions) -> LabeledPredictions:
    """The labels of a binary task with the probabilities of a baseline.

    Args:
        path: CSV or Parquet file: `record_id`, `prediction` (probability of the second label) and, for a task that
            asks records more than once, `prediction_time` (hours). Rows of other records are not looked at.
        dataset: the examples.
        sample: their labels.

    Raises:
        ValueError: if the file cannot be read or lacks a column, names an example twice or not at all, and for a
            prediction that is no probability.
    """
    path = Path(path)
    frame = read_frame(path)
    keys = ["record_id"] if dataset.asks_once else ["record_id", "prediction_time"]
    if missing := [name for name in (*keys, "prediction") if name not in frame.columns]:
        raise ValueError(f"{path} lacks the column {missing[0]!r}; it has {', '.join(frame.columns)}")
    prediction = numbers(path, frame["prediction"])
    refuse(path, prediction.is_null() | ~prediction.is_between(0, 1), "prediction must be a probability", prediction)
    columns = [prediction]
    if not dataset.asks_once:
        columns.append(numbers(path, frame["prediction_time"]).cast(pl.Float32))
    frame = frame.select("record_id").with_columns(columns)
    refuse(path, frame.select(keys).is_duplicated(), f"{' and '.join(keys)} named before, or again below")
    asked = pl.DataFrame({"record_id": list(dataset.record_ids), "prediction_time": dataset.prediction_times})
    found = asked.join(frame, on=keys, how="left", maintain_order="left")["prediction"]
    if lacking := found.null_count():
        raise ValueError(f"{path} lacks {lacking:,} of the {len(dataset):,} examples of the task")
    return LabeledPredictions(sample.problem_type, sample.labels, found.to_numpy(), groups=dataset.record_ids)
