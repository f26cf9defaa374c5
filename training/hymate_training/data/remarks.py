"""What in a prepared folder looks like a mistake of its source: said, by `prepare` and on the card, not mended."""

from collections.abc import Iterator

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from sklearn.metrics import roc_auc_score

from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import SPLITS, YEAR, StaticColumn, TaskInfo, task_path

MAX_EVENTS = 5_000_000  # looked at, of the first split
FEW = 30  # values, records or predictions, of which nothing is said
FAR = 100  # interquartile ranges beyond the middle half: no value lies there by itself
FAR_AND_REPEATED = 10  # the same, where the value occurs `REPEATED` times, as what stands for "unknown" does
REPEATED = 3
GAP = 20 * YEAR  # hours between the first two events that a placeholder date makes, and hardly a patient
MOST_SHOWN = 20
TELLING = 0.98  # AUROC, share of labels told right, or rank correlation, of a column that all but determines a label


def remarks(folder: PreparedFolder) -> list[str]:
    """Sentences on values far from all others, records that begin late or pause for decades, and telling columns."""
    if not folder.splits:
        return []
    records = _first_records(folder, folder.splits[0])
    far = list(_far_values(folder, records))
    more = [f"{len(far) - MOST_SHOWN} more variables have such values."] if len(far) > MOST_SHOWN else []
    return [
        *far[:MOST_SHOWN],
        *more,
        *_odd_times(records),
        *(line for task in folder.info.tasks for line in _telling_columns(folder, task)),
    ]


def _first_records(folder: PreparedFolder, split: str) -> pl.DataFrame:
    """The records of a split's first files, until they hold `MAX_EVENTS`."""
    shards: list[pl.DataFrame] = []
    for path in folder.shards(split):
        shards.append(pl.DataFrame(pl.from_arrow(pq.read_table(path))))
        if sum(shard["time"].list.len().sum() for shard in shards) >= MAX_EVENTS:
            break
    return pl.concat(shards)


def _far_values(folder: PreparedFolder, records: pl.DataFrame) -> Iterator[str]:
    names = dict(enumerate(folder.info.variables))
    events = records.lazy().select("variable", "value").explode("variable", "value")
    named = pl.col("variable").replace_strict(names, return_dtype=pl.String).alias("name")
    columns = [events.select(named, "value")]
    columns += [
        records.lazy().select(pl.lit(column.name).alias("name"), pl.col(column.name).cast(pl.Float32).alias("value"))
        for column in folder.info.static_columns
        if column.kind == "numeric"
    ]
    value = pl.col("value")
    between = value.filter((value != value.median()) & (value > value.min()) & (value < value.max()))
    found = (
        pl.concat(columns)
        .drop_nulls()
        .group_by("name")
        .agg(
            number=pl.len(),
            lower=value.quantile(0.25),
            upper=value.quantile(0.75),
            between=between.quantile(0.75) - between.quantile(0.25),
            low=value.min(),
            lows=(value == value.min()).sum(),
            high=value.max(),
            highs=(value == value.max()).sum(),
        )
        .filter((pl.col("number") >= FEW) & (pl.col("low") < pl.col("high")))
        .sort("name")
        .collect()
    )
    for name, number, lower, upper, between_them, low, lows, high, highs in found.iter_rows():
        # where half of the values are one, how far the others are apart, or else how large it is
        spread = upper - lower or between_them or max(1.0, abs(upper))
        for extreme, count, beyond in ((low, lows, lower - low), (high, highs, high - upper)):
            distance = beyond / spread
            if distance > FAR or (distance > FAR_AND_REPEATED and count >= REPEATED):
                yield (
                    f"{name} is {extreme:g} in {count:,} of {number:,} values, and {_half(lower, upper)} of them. "
                    "Does it stand for unknown, or is it a slip?"
                )


def _half(lower: float, upper: float) -> str:
    return f"between {lower:g} and {upper:g} in half" if lower < upper else f"{lower:g} in at least half"


def _odd_times(records: pl.DataFrame) -> Iterator[str]:
    times = pl.col("time").list
    first, second = records.select(first=times.get(0), second=times.get(1, null_on_oob=True))
    median = float(np.median(first.to_numpy()))
    if len(first) >= FEW and median > YEAR:
        yield (
            f"The first event of the median record comes at hour {median:,.0f}. Are the times hours since the "
            "record's start?"
        )
    if paused := int((second - first > GAP).sum()):
        yield (
            f"{paused:,} of {len(first):,} records have nothing for {GAP / YEAR:.0f} years after their first event. "
            "Is its date a placeholder, such as 1900-01-01?"
        )


def _telling_columns(folder: PreparedFolder, task: TaskInfo) -> Iterator[str]:
    """Static columns that by themselves tell a label: they may have been written after it."""
    split = next((split for split in SPLITS if task_path(folder.path, task.name, split).is_file()), None)
    if split is None or not folder.info.static_columns:
        return
    names = [column.name for column in folder.info.static_columns]
    static = pl.concat(
        pl.DataFrame(pl.from_arrow(pq.read_table(path, columns=["record_id", *names])))
        for path in folder.shards(split)
    )
    rows = pl.DataFrame(pl.from_arrow(folder.task(task.name, split)))
    known = {
        label: rows.select("record_id", label=label).join(static, on="record_id").unique(["record_id", "label"])
        for label in task.label_columns
    }
    for column in folder.info.static_columns:
        if any(_tells(column, joined) for joined in known.values()):
            yield f"{column.name} all but determines {task.name} by itself. Was it known before the prediction?"


def _tells(column: StaticColumn, joined: pl.DataFrame) -> bool:
    if joined["label"].n_unique() < 2 or joined.height < FEW:
        return False
    if joined.schema["label"].is_numeric():
        if column.kind != "numeric" or joined[column.name].count() < FEW:
            return False
        ranks = joined.drop_nulls(column.name).select(pl.corr("label", column.name, method="spearman"))
        return abs(ranks.item()) >= TELLING
    if column.kind == "numeric":
        known = joined.drop_nulls(column.name)
        counts = np.unique(known["label"].to_numpy(), return_counts=True)[1]
        if len(counts) != 2 or counts.min() < REPEATED or known.height < FEW:
            return False
        area = roc_auc_score(known["label"].rank("dense").to_numpy() == 2, known[column.name].to_numpy())
        return max(area, 1 - area) >= TELLING
    if joined[column.name].n_unique() > np.sqrt(joined.height):  # a category for nearly each record tells every label
        return False
    counted = joined.group_by(column.name, "label").len()
    told = counted.group_by(column.name).agg(pl.col("len").max())["len"].to_numpy().sum()
    guessed = counted.group_by("label").agg(pl.col("len").sum())["len"].to_numpy().max()  # always the commonest label
    return 1 - (joined.height - told) / (joined.height - guessed) >= TELLING
