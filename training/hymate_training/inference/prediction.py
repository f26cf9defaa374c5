"""Predictions: over a data set, in its order; and of a model's own answer to new records, as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from tqdm.auto import tqdm

from hymate_training.concepts.mapping import MAP_SCHEMA, map_events, map_static
from hymate_training.data.collators import TaskCollator, event_limit, prediction_mask
from hymate_training.data.examples import ExampleDataset, last_times
from hymate_training.data.exports import Layout, read_events, read_starts
from hymate_training.data.tables import UNKNOWN, read_frame
from hymate_training.files import writing_file
from hymate_training.inference.checkpoints import EXPORT_FILE, Checkpoint, label_names, load_checkpoint, read_json
from hymate_training.inference.conformal import ALL, SET_COLUMN, conformal_columns, kept_thresholds
from hymate_training.inference.hours import (
    UNTRAINED,
    is_untrained,
    listed_hours,
    refuse_untrained,
    regular_hours,
)
from hymate_training.inference.records import Records, count_remarks, read_records
from modeling_hymate import Events, HyMaTEFeatureExtractor, HyMaTEForSequenceClassification

BATCH_SIZE = 64
EVENTS_AT_ONCE = 1 << 20  # of a batch with its padding
CHANNELS_AT_ONCE = 1 << 24  # variables of all predictions of a batch, likewise
STRANGE_SHARE = 0.2  # of a variable's values outside a range that holds 99.8 % of the training records'
STRANGE_TIME = 1.5  # times what 99 % of the training records' events come before
NO_EVENTS = "no events by then: predicted from static columns alone"
OWN_COLUMNS = ("record_id", "prediction_time", "prediction", SET_COLUMN, "remarks")  # of the output, beside the labels


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for the examples of a data set, in its order.

    Attributes:
        values: probabilities or numbers, `(examples, num_labels)`.
        variable_shares: sum over the examples of each variable's share of the attention, `(num_variables,)`.
    """

    values: np.ndarray
    variable_shares: np.ndarray


@torch.no_grad()
def predict_examples(
    model: HyMaTEForSequenceClassification,
    dataset: ExampleDataset,
    collator: TaskCollator,
    batch_size: int = BATCH_SIZE,
    *,
    shared: bool = False,
    progress: str | None = None,
) -> Predictions:
    """Predicts every example of a data set.

    Args:
        model: a classifier; it is put into evaluation mode.
        dataset: the examples.
        collator: makes them tensors; should not augment.
        batch_size: records at a time, each with all of its examples; fewer where records are long or have many, so
            that memory stays bounded.
        shared: all processes of the run call this at once: each does a share, and each gets everything.
        progress: label of a progress bar, which shows on terminals only; none where absent.

    Returns:
        The predictions in the order of the data set.
    """
    model.eval()
    process = PartialState()
    rank, world = (process.process_index, process.num_processes) if shared else (0, 1)
    batches = in_batches(dataset, collator, batch_size)[rank::world]
    values = np.zeros((len(dataset), len(label_names(model))), dtype=np.float32)
    shares = np.zeros(model.config.num_variables)
    disable = True if progress is None else None
    for batch in tqdm(batches, desc=progress, unit="batch", disable=disable, leave=False):
        examples = dataset.__getitems__(batch)
        features = collator(examples)
        features.pop("labels", None)
        outputs = model(**send_to_device(features, model.device))
        mask = prediction_mask(features)
        values[examples.indices] = model.predictions(outputs.logits).cpu()[mask].numpy()
        weights = outputs.channel_weights.float().cpu().masked_fill(~mask.unsqueeze(-1), 0)
        if mask.dim() == 2:
            weights = weights.sum(1)
        real = outputs.channel_ids.cpu() >= 0
        np.add.at(shares, outputs.channel_ids.cpu()[real].numpy(), weights[real].numpy())
    if world > 1:
        parts: list[Any] = [None] * world
        torch.distributed.all_gather_object(parts, (values, shares))
        # each example is predicted by one process and zero elsewhere
        values, shares = (np.sum(part, axis=0) for part in zip(*parts, strict=True))
    return Predictions(values, shares)


def in_batches(dataset: ExampleDataset, collator: TaskCollator, batch_size: int) -> list[np.ndarray]:
    """Parts the examples: a record's stay together, and records of equal lengths for less padding, within bounds.

    A record with more examples than may be held at once has several passes, one span of time after the other; one
    that is longer than `max_events` has a pass for each example, since their latest events differ.
    """
    limit, groups = event_limit(collator), dataset.groups
    at_once = max(1, CHANNELS_AT_ONCE // collator.feature_extractor.num_variables)
    sizes, begins = np.diff(groups.bounds), groups.bounds[:-1]
    visit = np.repeat(np.arange(len(groups)), sizes)
    order = groups.order[np.lexsort((dataset.prediction_times[groups.order], visit))]
    lengths = dataset.lengths[order]
    apart = np.zeros(len(groups), dtype=bool)
    if limit is not None and len(groups):
        apart = np.maximum.reduceat(lengths, begins) > limit
    # parts of a visit begin where it does, and after as many examples as one may have
    place = np.arange(len(order)) - np.repeat(begins, sizes)
    starts = np.flatnonzero(place % np.where(apart, batch_size, at_once)[visit] == 0)
    widths = np.diff(starts, append=len(order))
    apart = apart[visit[starts]]
    longest = np.maximum.reduceat(lengths, starts) if len(starts) else lengths
    longest = np.where(apart, limit or 0, longest)
    by_length = np.argsort(longest, kind="stable")
    passes = np.where(apart, widths, 1)[by_length].tolist()
    channels = np.where(apart, 1, widths)[by_length].tolist()
    bounds, own, widest = [0], 0, 0
    for at, length in enumerate(longest[by_length].tolist()):
        own, widest = own + passes[at], max(widest, channels[at])
        if at and (own > batch_size or own * widest > at_once or own * length > EVENTS_AT_ONCE):
            bounds.append(at)
            own, widest = passes[at], channels[at]
    ends = starts + widths
    return [
        np.concatenate([order[starts[part] : ends[part]] for part in by_length[begin:end]])
        for begin, end in pairwise([*bounds, len(by_length)])
        if end > begin
    ]


@dataclass(frozen=True, eq=False)
class RecordPredictions:
    """What a model says of new records.

    Attributes:
        frame: one row per record, or per record and prediction time: `record_id`, `prediction_time` (hours) where
            records are asked at times, one column per label, where one class is chosen `prediction`, the columns of
            `conformal_columns` where they are asked for, and `remarks`, what the model did not know, null where there
            is nothing to say.
        output: the file it was written to, if any.
        num_ignored_events: events of unknown variables that were dropped.
        unknown_columns: static columns that are unknown for all records, and so taken as missing.
        remarks: what is to be said of all rows, in sentences: the remarks of rows with their number, what no record
            has, and what is so unlike the training records that it looks like a mistake.
        dropped: what of a hospital's files was dropped before, by reason.
    """

    frame: pl.DataFrame
    output: Path | None
    num_ignored_events: int
    unknown_columns: list[str]
    remarks: list[str]
    dropped: dict[str, int] = field(default_factory=dict)


def predict(
    checkpoint: str | Path | Checkpoint,
    events: Any,
    static: Any = None,
    output: str | Path | None = None,
    *,
    every: float | None = None,
    at: Any = None,
    untrained_hours: bool = False,
    max_events: int | None = None,
    batch_size: int = BATCH_SIZE,
    ignore_unknown_variables: bool = False,
    start: str | Path | None = None,
    layout: Layout | None = None,
    concepts: pl.DataFrame | None = None,
    conformal: float | None = None,
    conformal_by: str = ALL,
    overwrite: bool = False,
) -> RecordPredictions:
    """Predicts new records, at the end of each or at any times, all of a record's times in one pass.

    No record is left out. Static columns and values that are absent and categories that were not in the training data
    are taken as missing; a record without events by the time it is asked is predicted from its static columns alone.
    Each such row says so in `remarks`.

    Args:
        checkpoint: a fine-tuned model: its folder, its name on the Hub, or an open checkpoint.
        events: a CSV or Parquet file, or a polars or pandas frame, with one row per event: `record_id`, `time`
            (hours), `variable` and `value`; or a list of a hospital's files, as `read_export` takes them.
        static: the same with one row per record: `record_id` and the static columns.
        output: a CSV or Parquet file to write.
        every: ask each record at this many hours after its start, at twice that, and so on, up to the first such hour
            that is not before its last event.
        at: ask records at the times of a table: a CSV or Parquet file, or a polars or pandas frame, with `record_id`
            and `prediction_time` (hours). A prediction rests on the events at or before its time.
        untrained_hours: answer also at hours at which the model was not trained, and remark it; an error otherwise.
        max_events: keep only the latest events of longer records; as in training where absent.
        batch_size: records at a time.
        ignore_unknown_variables: drop and count events of variables that the model does not know, which are an error
            otherwise.
        start: of a hospital's files, as for `read_export`.
        layout: the same.
        concepts: the same.
        conformal: add conformal sets of labels, or intervals of numbers, that hold the truth for this share of records
            drawn like those of the validation split: a level whose thresholds the checkpoint keeps.
        conformal_by: what the thresholds hold for: `"all"` records together, each `"label"`, or each group of a static
            column, by its name.
        overwrite: replace an `output` that is there already.

    Returns:
        The predictions, one row per record and time, and what is to be said about the records.

    Raises:
        ValueError: for a file that cannot be read or lacks a column, for bad records or times, for hours at which the
            model was not trained unless they are allowed, for an output that is there already, and as
            `kept_thresholds` and `load_checkpoint` do.
    """
    if output is not None:
        output = Path(output)
        check_output(output, [*(events if isinstance(events, list) else [events]), static, start, at], overwrite)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if every is not None and at is not None:
        raise ValueError("give every or at (--every, --at), not both")
    opened = load_checkpoint(checkpoint)
    extractor = opened.extractor
    thresholds = None if conformal is None else kept_thresholds(opened, conformal, conformal_by)
    dropped: dict[str, int] = {}
    if isinstance(events, list):
        events, static, dropped = read_export(opened, events, static, start, layout, concepts)
    ignore = ignore_unknown_variables or extractor.unknown_variables == "ignore"
    records = read_records(extractor, events, static, ignore_unknown_variables=ignore)
    dataset, hours = asked_examples(records.events, every, at)
    if hours is not None and not untrained_hours:
        refuse_untrained(hours, list(dataset.record_ids), extractor.trained_hours)
    collator = TaskCollator(extractor, max_events)
    predicted = predict_examples(opened.model, dataset, collator, batch_size, progress="predict")
    remarks, sets = _remarks(records, dataset, hours, extractor), {}
    if thresholds is not None:
        sets = conformal_columns(opened, dataset, predicted.values, thresholds, conformal_by)
    frame = prediction_frame(list(dataset.record_ids), predicted.values, opened.model, hours, remarks, sets)
    if output is not None:
        write_frame(frame, output)
    unasked = len(records.events) - len(np.unique(dataset.rows))
    return RecordPredictions(
        frame=frame,
        output=output,
        num_ignored_events=records.events.ignored.total(),
        unknown_columns=records.unknown_columns,
        remarks=[
            *count_remarks(remarks, len(remarks), "predictions"),
            *([f"{unasked} records have no prediction time in the table, and so no prediction"] if unasked else []),
            *records.about_all(),
            *unlike_training(extractor, records.events),
        ],
        dropped=dropped,
    )


def asked_examples(events: Events, every: float | None, at: Any) -> tuple[ExampleDataset, np.ndarray | None]:
    """What is asked about the records, and at which hours; None for the end of each."""
    if every is None and at is None:
        return ExampleDataset(events, np.arange(len(events)), last_times(events)), None
    rows, hours = listed_hours(events, at) if every is None else regular_hours(events, every)
    dataset = ExampleDataset(events, rows, hours)
    dataset.asks_once = False  # the time matters even where each record has one
    return dataset, hours


def _remarks(
    records: Records, dataset: ExampleDataset, hours: np.ndarray | None, extractor: HyMaTEFeatureExtractor
) -> list[list[str]]:
    """What is to be said of each prediction."""
    trained_hours = extractor.trained_hours
    if hours is None and trained_hours is None:
        untrained = np.zeros(len(dataset), dtype=bool)
    else:
        untrained = is_untrained(dataset.prediction_times, trained_hours)
    said = (dataset.lengths == 0, NO_EVENTS), (untrained, UNTRAINED)
    return [
        [*records.remarks[row], *(text for holds, text in said if holds[example])]
        for example, row in enumerate(dataset.rows)
    ]


def unlike_training(extractor: HyMaTEFeatureExtractor, events: Events) -> list[str]:
    """What in the records is so far from the training records that it looks like other units or a longer stay."""
    found = [
        f"{share:.0%} of the values of {name} lie outside the range of the training records, and are clipped to it: "
        "are its units the same?"
        for name, share in extractor.shares_outside(events).items()
        if share >= STRANGE_SHARE
    ]
    latest = float(events.times.max(initial=0))
    if latest > STRANGE_TIME * extractor.time_scale:
        found.append(
            f"events reach {latest:g} hours; hardly any of the training records' come after {extractor.time_scale:g}"
        )
    return found


def read_export(
    checkpoint: Checkpoint,
    events: Sequence[str | Path],
    static: str | Path | None = None,
    start: str | Path | None = None,
    layout: Layout | None = None,
    concepts: pl.DataFrame | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame | None, dict[str, int]]:
    """Reads a hospital's files as the data were read that a model was trained on.

    Args:
        checkpoint: knows the layout and the map of concepts of its training data.
        events: files of events, as `hymate_training.data.exports` describes them.
        static: table of static columns.
        start: table of each record's start, where times are timestamps.
        layout: of the files; that of the training data where absent.
        concepts: map to concepts, as `read_map` returns it; that of the training data where absent.

    Returns:
        Events (record_id, time, variable, value), static columns, and what was dropped by reason.

    Raises:
        ValueError: naming all problems of the files.
    """
    path = checkpoint.path / EXPORT_FILE
    known = read_json(path) if path.is_file() else {}
    layout = layout or Layout(**known.get("layout", {}))
    if concepts is None and "concepts" in known:
        concepts = pl.DataFrame(known["concepts"]["map"], schema=MAP_SCHEMA)
    export = read_events(events, layout, None if start is None else read_starts(start, layout))
    table = None if static is None else read_frame(static, UNKNOWN, layout.of(Path(static)))
    variables = checkpoint.extractor.variables
    if concepts is not None:
        frame, left = map_events(export.events, concepts, variables)
        return frame, None if table is None else map_static(table, concepts), export.dropped | left
    with_unit = pl.format("{} [{}]", "variable", "unit")
    named = pl.when(with_unit.is_in(variables)).then(with_unit).otherwise("variable").alias("variable")
    return export.events.select("record_id", "time", named, "value"), table, export.dropped


def prediction_frame(
    record_ids: list[str],
    values: np.ndarray,
    model: HyMaTEForSequenceClassification,
    hours: np.ndarray | None = None,
    remarks: Sequence[Sequence[str]] | None = None,
    sets: Mapping[str, Sequence[Any]] | None = None,
) -> pl.DataFrame:
    """One row per prediction: `record_id`, `prediction_time` and `remarks` where they are given, one column per label,
    where one class is chosen `prediction`, and the columns of `sets`."""
    names = label_names(model)
    if taken := [name for name in names if name in OWN_COLUMNS]:
        raise ValueError(f"a label of the model is called {taken[0]!r}, as another column of its predictions is")
    columns: dict[str, Any] = {"record_id": record_ids}
    if hours is not None:
        columns["prediction_time"] = hours
    columns |= {name: values[:, index] for index, name in enumerate(names)}
    if model.config.problem_type == "single_label_classification":
        columns["prediction"] = [names[index] for index in values.argmax(1)]
    columns |= sets or {}
    if remarks is not None:
        columns["remarks"] = pl.Series(["; ".join(texts) or None for texts in remarks], dtype=pl.String)
    return pl.DataFrame(columns)


def check_output(output: Path, sources: Sequence[Any], overwrite: bool) -> None:
    """Raises ValueError unless predictions may be written to `output`; before the work, not after it."""
    _format_of(output)
    for source in sources:
        if isinstance(source, str | Path) and output.resolve() == Path(source).resolve():
            raise ValueError(f"{output} is read from: name another file to write")
    if output.exists() and not overwrite:
        raise ValueError(f"{output} is there already: name another file, or replace it (overwrite, --overwrite)")


def _format_of(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise ValueError(f"{path}: the name must end in .csv or .parquet")
    return suffix


def write_frame(frame: pl.DataFrame, path: Path) -> None:
    """Writes CSV or Parquet, by the name's ending."""
    write = frame.write_parquet if _format_of(path) == ".parquet" else frame.write_csv
    with writing_file(path) as incoming:
        write(incoming)
