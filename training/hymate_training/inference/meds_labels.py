"""Predictions for the labels of a MEDS data set, in the schema of meds-evaluation.

    predict_labels("runs/mortality", "MEDS", "MEDS/tasks/mortality", "predictions")

Every label gets a prediction, in the order of the label shards. The model sees what the data set has of the subject up
to the label's prediction_time, read as `hymate prepare meds` reads it.
"""

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from hymate_training.concepts.mapping import map_events, map_static
from hymate_training.data.collators import TaskCollator
from hymate_training.data.examples import ExampleDataset
from hymate_training.files import writing_file
from hymate_training.inference.checkpoints import Checkpoint, load_checkpoint
from hymate_training.inference.prediction import BATCH_SIZE, check_output, kept_export, predict_examples
from hymate_training.readers.meds import check_time_zones, read_labels, read_splits
from hymate_training.readers.meds_shards import find_shards, read_shard
from hymate_training.readers.times import single_precision
from modeling_hymate import Events, HyMaTEFeatureExtractor

PREDICTIONS_FILE = "predictions.parquet"
THRESHOLD = 0.5  # of predicted_boolean_value


@dataclass(frozen=True, eq=False)
class LabelPredictions:
    """Predictions for the labels of a task.

    Attributes:
        frame: one row per label: subject_id, prediction_time, boolean_value, predicted_boolean_value and
            predicted_boolean_probability.
        output: the file that it was written to.
        unseen: labels before whose time there is no event that the model knows: their predictions rest on static
            columns alone.
    """

    frame: pl.DataFrame
    output: Path
    unseen: int


class LabelDataset(ExampleDataset):
    """Labels of which none shares a pass with another: each is asked at its last event, as in training."""

    @property
    def visits(self) -> np.ndarray:
        return np.arange(len(self))


def predict_labels(
    checkpoint: str | Path | Checkpoint,
    raw: str | Path,
    labels: str | Path,
    output: str | Path,
    *,
    split: str | None = None,
    batch_size: int = BATCH_SIZE,
    overwrite: bool = False,
) -> LabelPredictions:
    """Predicts the labels of a task of a MEDS data set.

    Args:
        checkpoint: a fine-tuned binary classifier: its folder, its name on the Hub, or an open checkpoint.
        raw: the data set.
        labels: folder of its label shards: subject_id, prediction_time, boolean_value.
        output: folder to write `predictions.parquet` to.
        split: only labels of this split of the data set, by the names of ours or of the standard's.
        batch_size: labels at a time.
        overwrite: replace predictions that are there already.

    Returns:
        The predictions, in the order of the labels.

    Raises:
        ValueError: if the model or the labels are not binary, the data set lacks a subject of the labels or knows no
            such split, a file is damaged, and as `load_checkpoint` does.
    """
    path = Path(output) / PREDICTIONS_FILE
    check_output(path, [], overwrite)
    opened, raw, labels = load_checkpoint(checkpoint), Path(raw), Path(labels)
    if len(opened.label_names) != 2 or opened.model.config.problem_type != "single_label_classification":
        raise ValueError(f"{checkpoint} is no binary classifier, which is all that meds-evaluation has a schema for")
    check_time_zones([source.path for source in find_shards(raw)], [labels])
    task, rows = read_labels(labels)
    if task.problem_type != "binary":
        raise ValueError(
            f"{labels} holds {task.label_columns[0]}: meds-evaluation has a schema for boolean_value alone"
        )
    if split is not None:
        rows = _of_split(rows, raw, split)
    events, static, subjects = _read_subjects(raw, rows["subject_id"].unique())
    located = rows.join(subjects, on="subject_id", how="left", maintain_order="left")
    hours = (pl.col("prediction_time") - pl.col("origin")).dt.total_microseconds() / 3.6e9
    located = located.with_columns(time=hours, record_id=pl.col("subject_id").cast(pl.String))
    asked = located.select("subject_id", "time").drop_nulls().unique()
    events = events.with_columns(single_precision(events, asked, "subject_id"))
    table, static = _known(opened, events, _static_table(opened, static, subjects))
    probabilities, unseen = _probabilities(opened, table, static, located, batch_size)
    frame = rows.with_columns(
        predicted_boolean_value=pl.Series(probabilities >= THRESHOLD),
        predicted_boolean_probability=pl.Series(probabilities, dtype=pl.Float32),
    )
    with writing_file(path) as incoming:
        frame.write_parquet(incoming)
    return LabelPredictions(frame, path, unseen)


def _of_split(rows: pl.DataFrame, raw: Path, split: str) -> pl.DataFrame:
    splits = read_splits(raw)
    names = {"tuning": "validation", "held_out": "test"}
    chosen = None if splits is None else splits.filter(pl.col("split") == names.get(split, split))
    if chosen is None or not chosen.height:
        raise ValueError(f"{raw} has no subject in a split {split!r}")
    found = rows.join(chosen, on="subject_id", how="semi", maintain_order="left")
    if not found.height:
        raise ValueError(f"no label is of a subject in the split {split!r}")
    return found


def _read_subjects(raw: Path, wanted: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Events (subject_id, time, code, value), static events (subject_id, code, value) and subjects (subject_id,
    origin, age) of those that are wanted, as `hymate prepare meds` reads them."""
    parts: dict[str, list[pl.DataFrame]] = {"events": [], "static": [], "subjects": []}
    with tempfile.TemporaryDirectory() as scratch:
        for number, source in enumerate(find_shards(raw)):
            folder = Path(scratch) / str(number)
            read_shard(source, folder, None, 0)
            for name, frames in parts.items():
                frame = pl.read_parquet(folder / f"{name}.parquet", glob=False, memory_map=False)
                frames.append(frame.filter(pl.col("subject_id").is_in(wanted.implode())))
    events, static, subjects = (pl.concat(frames) for frames in parts.values())
    if missing := sorted(set(wanted) - set(subjects["subject_id"])):
        raise ValueError(f"{raw} lacks subject {missing[0]}, of whom there is a label")
    return events, static, subjects.select("subject_id", "origin", "age")


def _static_table(
    opened: Checkpoint, static: pl.DataFrame, subjects: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The static columns that the model or its map of concepts names, one row per subject, and the static events that
    are none of them."""
    names = [column["name"] for column in opened.extractor.static_columns]
    names += [] if (concepts := kept_export(opened)[1]) is None else concepts["variable"].to_list()
    table, taken = subjects.select("subject_id", "age"), pl.Series([], dtype=pl.String)
    codes = static["code"].unique().sort()
    variables = set(opened.extractor.variables)
    for name in dict.fromkeys(names):
        family = codes.filter((codes == name) | codes.str.starts_with(f"{name}//"))
        if name == "age" or name in variables or not len(family):
            continue
        own = static.filter(pl.col("code").is_in(family.implode())).unique(
            "subject_id", keep="first", maintain_order=True
        )
        found = pl.col("value").cast(pl.Float64) if name in family else pl.col("code").str.strip_prefix(f"{name}//")
        table = table.join(own.select("subject_id", found.alias(name)), on="subject_id", how="left")
        taken = pl.concat([taken, family])
    return table, static.filter(~pl.col("code").is_in(taken.implode()))


def _known(
    opened: Checkpoint, events: pl.DataFrame, static: tuple[pl.DataFrame, pl.DataFrame]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Events of variables that the model knows (record_id, time, variable, value), and its static columns."""
    extractor, (table, at_start) = opened.extractor, static
    begun = at_start.select("subject_id", "code", "value").with_columns(time=pl.lit(0.0, dtype=pl.Float32))
    every = pl.concat([events, begun.select(events.columns)]).select(
        pl.col("subject_id").cast(pl.String).alias("record_id"),
        "time",
        pl.col("code").alias("variable"),
        "value",
        pl.lit("").alias("unit"),
    )
    table = table.with_columns(record_id=pl.col("subject_id").cast(pl.String)).drop("subject_id")
    if (concepts := kept_export(opened)[1]) is not None:
        every, _ = map_events(every, concepts, extractor.variables)
        table = map_static(table, concepts)
    known = every.filter(pl.col("variable").is_in(extractor.variables)).drop("unit", strict=False)
    held = [column for column in extractor.static_columns if column["name"] in table.columns]
    columns = [
        pl.when(pl.col(column["name"]).is_in(column["categories"])).then(pl.col(column["name"])).alias(column["name"])
        if "categories" in column
        else pl.col(column["name"])
        for column in held
    ]
    return known, table.select("record_id", *columns)


def _probabilities(
    opened: Checkpoint, table: pl.DataFrame, static: pl.DataFrame, located: pl.DataFrame, batch_size: int
) -> tuple[np.ndarray, int]:
    """The probability of each label, and how many there are before any event that the model knows."""
    extractor = opened.extractor
    first = table.group_by("record_id").agg(pl.col("time").min().alias("first"))
    asked = located.join(first, on="record_id", how="left", maintain_order="left")
    times = asked["time"].fill_null(0.0).to_numpy().astype(np.float32)
    begins = asked["first"].fill_null(np.inf).to_numpy()
    seen = begins <= times
    probabilities = np.zeros(len(seen))
    for chosen, knowing in ((seen, True), (~seen, False)):
        if not chosen.any():
            continue
        ids = asked["record_id"].filter(pl.Series(chosen))
        own = static.join(
            ids.unique(maintain_order=True).to_frame(), on="record_id", how="semi", maintain_order="left"
        )
        records = (
            extractor.parse(table.join(own, on="record_id", how="semi"), own) if knowing else _empty(extractor, own)
        )
        place = {record_id: row for row, record_id in enumerate(records.record_ids)}
        rows = np.array([place[record_id] for record_id in ids], dtype=np.int64)
        hours = np.maximum(times[chosen], 0)
        asking = extractor if knowing else _at_any_hour(extractor, hours)
        dataset = (LabelDataset if asking.trained_hours is None else ExampleDataset)(records, rows, hours)
        collator = TaskCollator(asking)
        predicted = predict_examples(opened.model, dataset, collator, batch_size, progress="predict")
        probabilities[chosen] = predicted.values[:, 1]
    return probabilities, int((~seen).sum())


def _empty(extractor: HyMaTEFeatureExtractor, static: pl.DataFrame) -> Events:
    """Records without an event."""
    return Events(
        offsets=np.zeros(static.height + 1, dtype=np.int64),
        times=np.zeros(0, dtype=np.float32),
        variable_ids=np.zeros(0, dtype=np.int32),
        values=np.zeros(0, dtype=np.float32),
        static={
            column["name"]: np.array(static[column["name"]].to_list(), dtype=object)
            for column in extractor.static_columns
            if column["name"] in static.columns
        },
        record_ids=static["record_id"].to_list(),
    )


def _at_any_hour(extractor: HyMaTEFeatureExtractor, hours: np.ndarray) -> HyMaTEFeatureExtractor:
    """The extractor for records that have no last event at which they could be asked."""
    asked = copy.copy(extractor)
    asked.trained_hours = asked.trained_hours or [0.0, float(hours.max())]
    return asked
