"""Predictions for a split of a prepared folder, asked as one of its tasks asks, or at any times."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from hymate_training.data.prepared_folder import PreparedFolder, open_prepared
from hymate_training.inference.checkpoints import Checkpoint
from hymate_training.inference.prediction import RecordPredictions, predict, writing_parts


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
    asked, times = None, None
    if task is not None:
        asked = pl.DataFrame(pl.from_arrow(folder.task(task, split))).select("record_id", "prediction_time")
        times = asked if asked["record_id"].is_duplicated().any() else None
    with tempfile.TemporaryDirectory(dir=None if output is None else _beside(Path(output))) as scratch:
        events, static = Path(scratch) / "events.parquet", Path(scratch) / "static.parquet"
        with writing_parts(events) as write_events, writing_parts(static) as write_static:
            for part in folder.parts(split):
                records = pl.DataFrame(pl.from_arrow(part))
                if asked is not None:
                    records = records.join(
                        asked.select("record_id").unique(), on="record_id", how="semi", maintain_order="left"
                    )
                write_events(_events_of(records, folder.info.variables, None if times is not None else asked))
                write_static(records.drop("time", "variable", "value"))
        try:
            return predict(checkpoint, events, static, output, every=every, at=times, **options)
        except ValueError as error:
            name = f"{folder.path}, {split}"
            raise ValueError(str(error).replace(str(events), name).replace(str(static), name)) from error


def _events_of(records: pl.DataFrame, variables: Sequence[str], limits: pl.DataFrame | None) -> pl.DataFrame:
    """One row per event of the records, up to the prediction time of each where there are such limits."""
    events = (
        records.select("record_id", "time", "variable", "value")
        .explode("time", "variable", "value")
        .drop_nulls("time")
        .with_columns(variable=pl.lit(pl.Series(variables, dtype=pl.String)).gather(pl.col("variable")))
    )
    if limits is None:
        return events
    until = limits.select("record_id", pl.col("prediction_time").cast(pl.Float32))
    events = events.join(until, on="record_id", maintain_order="left")
    return events.filter(pl.col("time") <= pl.col("prediction_time")).drop("prediction_time")


def _beside(output: Path) -> Path | None:
    return output.parent if output.parent.is_dir() else None
