"""Hours in single precision, in which a prepared folder holds them, and what comes before what in them."""

import numpy as np
import polars as pl


def single_precision(events: pl.DataFrame, asked: pl.DataFrame, by: str) -> pl.Series:
    """Times in single precision, larger than those of all predictions that are earlier in double precision.

    Over decades single precision cannot tell minutes apart, and an event just after a prediction would be seen by it.

    Args:
        events: `by` and `time`, in hours.
        asked: `by` and `time` of the predictions.
        by: the column that names the record.

    Returns:
        `time` of each event, in the order of `events`.
    """
    order = events.select(by, "time").with_row_index("row").sort("time")
    earlier = order.join_asof(
        asked.sort("time").with_columns(asked=pl.col("time")),
        on="time",
        by=by,
        strategy="backward",
        allow_exact_matches=False,
        check_sortedness=False,  # it cannot be checked with `by`; both are sorted above
    ).sort("row")
    time = earlier["time"].to_numpy().astype(np.float32)
    asked_at = earlier["asked"].fill_null(-np.inf).to_numpy().astype(np.float32)
    return pl.Series("time", np.maximum(time, np.nextafter(asked_at, np.float32(np.inf))))


def still_open(rows: pl.DataFrame) -> pl.DataFrame:
    """Predictions of a time-to-event task without those asked when the event has happened, or after the last sight."""
    after = pl.col("event_time") - pl.col("prediction_time")
    return rows.filter((after > 0) | ((after == 0) & ~pl.col("event_observed")))
