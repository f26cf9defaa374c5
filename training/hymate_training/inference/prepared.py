"""Predictions for a split of a prepared folder, asked as one of its tasks asks, or at any times."""

from pathlib import Path
from typing import Any

import polars as pl

from hymate_training.data.prepared_folder import PreparedFolder, open_prepared
from hymate_training.inference.checkpoints import Checkpoint
from hymate_training.inference.prediction import RecordPredictions, predict


def predict_split(
    checkpoint: str | Path | Checkpoint,
    data: str | Path | PreparedFolder,
    split: str,
    output: str | Path | None = None,
    *,
    task: str | None = None,
    every: float | None = None,
    **options: Any,
) -> RecordPredictions:
    """Predicts the records of a split of a prepared folder.

    Args:
        checkpoint: a fine-tuned model: its folder, its name on the Hub, or an open checkpoint.
        data: prepared folder; its labels are not looked at.
        split: train, validation or test.
        output: a CSV or Parquet file to write.
        task: ask the records of this task at its prediction times; all records at their end where absent.
        every: ask all records at this many hours after their start, at twice that, and so on, as `predict` does.
        options: others of `predict`.

    Returns:
        The predictions, as of `predict`: with `prediction_time` where `every` is given or the task asks records more
        than once.

    Raises:
        ValueError: if folder, split or task are not there, for both a task and `every`, and as `predict` does.
    """
    if task is not None and every is not None:
        raise ValueError("give task or every (--task, --every), not both")
    folder = open_prepared(data)
    records = pl.DataFrame(pl.from_arrow(folder.records(split)))
    times = None
    if task is not None:
        asked = pl.DataFrame(pl.from_arrow(folder.task(task, split))).select("record_id", "prediction_time")
        records = records.join(asked, on="record_id", how="semi", maintain_order="left")
        if asked["record_id"].is_duplicated().any():
            times = asked
    events = (
        records.select("record_id", "time", "variable", "value")
        .explode("time", "variable", "value")
        .drop_nulls("time")
        .with_columns(variable=pl.lit(pl.Series(folder.info.variables)).gather(pl.col("variable")))
    )
    if task is not None and times is None:  # each record once, up to its prediction time
        limits = asked.select("record_id", pl.col("prediction_time").cast(pl.Float32))
        events = events.join(limits, on="record_id", maintain_order="left")
        events = events.filter(pl.col("time") <= pl.col("prediction_time")).drop("prediction_time")
    static = records.drop("time", "variable", "value")
    return predict(checkpoint, events, static, output, every=every, at=times, **options)
