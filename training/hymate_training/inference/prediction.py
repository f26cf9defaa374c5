"""Predictions: over a data set, in its order; and of a model's own answer to new records, as a table."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs
import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from tqdm.auto import tqdm

from hymate_training.concepts.mapping import MAP_SCHEMA, map_events, map_static
from hymate_training.data.collators import TaskCollator, prediction_mask
from hymate_training.data.examples import ExampleDataset, group_by_record, last_times
from hymate_training.data.exports import Layout, read_events, read_starts
from hymate_training.data.tables import UNKNOWN, read_frame, tidy_frame
from hymate_training.files import writing_file
from hymate_training.inference.checkpoints import EXPORT_FILE, Checkpoint, label_names, load_checkpoint, read_json
from modeling_hymate import Events, HyMaTEFeatureExtractor, HyMaTEForSequenceClassification
from modeling_hymate.events import EVENT_COLUMNS, is_missing

BATCH_SIZE = 64
STRANGE_SHARE = 0.2  # of a variable's values outside a range that holds 99.8 % of the training records'
STRANGE_TIME = 1.5  # times what 99 % of the training records' events come before


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
        batch_size: records at a time, each with all of its examples.
        shared: all processes of the run call this at once: each does a share, and each gets everything.
        progress: label of a progress bar, which shows on terminals only; none where absent.

    Returns:
        The predictions in the order of the data set.
    """
    model.eval()
    process = PartialState()
    rank, world = (process.process_index, process.num_processes) if shared else (0, 1)
    # all predictions of a record in one pass, and records of equal lengths together: less padding
    lengths = dataset.lengths
    records = sorted(group_by_record(dataset.rows), key=lambda examples: lengths[examples].max())
    parted = [records[at : at + batch_size] for at in range(0, len(records), batch_size)]
    batches = [np.concatenate(part) for part in parted[rank::world]]
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


@dataclass(frozen=True, eq=False)
class RecordPredictions:
    """What a model says of new records.

    Attributes:
        frame: one row per record: `record_id`, one column per label and, where one class is chosen, `prediction`.
        output: the file it was written to, if any.
        num_ignored_events: events of unknown variables that were dropped.
        left_out: records that have no event of a known variable, and so no prediction.
        unknown_columns: static columns that are unknown for all records, and so taken as missing.
        dropped: what of a hospital's files was dropped before, by reason.
        remarks: what in the records is so unlike the training records that it looks like a mistake, in sentences.
    """

    frame: pl.DataFrame
    output: Path | None
    num_ignored_events: int
    left_out: list[str]
    unknown_columns: list[str]
    remarks: list[str]
    dropped: dict[str, int] = field(default_factory=dict)


def predict(
    checkpoint: str | Path | Checkpoint,
    events: Any,
    static: Any = None,
    output: str | Path | None = None,
    *,
    max_events: int | None = None,
    batch_size: int = BATCH_SIZE,
    ignore_unknown_variables: bool = False,
    start: str | Path | None = None,
    layout: Layout | None = None,
    concepts: pl.DataFrame | None = None,
) -> RecordPredictions:
    """Predicts new records.

    Args:
        checkpoint: a fine-tuned model: its folder, its name on the Hub, or an open checkpoint.
        events: a CSV or Parquet file, or a polars or pandas frame, with one row per event: `record_id`, `time`
            (hours), `variable` and `value`; or a list of a hospital's files, as `read_export` takes them.
        static: the same with one row per record: `record_id` and the static columns.
        output: a CSV or Parquet file to write.
        max_events: keep only the latest events of longer records; as in training where absent.
        batch_size: records at a time.
        ignore_unknown_variables: drop and count events of variables that the model does not know, which are an error
            otherwise.
        start: of a hospital's files, as for `read_export`.
        layout: the same.
        concepts: the same.

    Returns:
        The predictions, one row per record, and what is to be said about the records.

    Raises:
        ValueError: for a file that cannot be read or lacks a column, for bad records, and as `load_checkpoint` does.
    """
    if output is not None:
        output = Path(output)
        _format_of(output)  # before the work, not after it
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    opened = load_checkpoint(checkpoint)
    extractor = opened.extractor
    if ignore_unknown_variables:
        extractor = copy.copy(extractor)
        extractor.unknown_variables = "ignore"
    dropped: dict[str, int] = {}
    if isinstance(events, list):
        events, static, dropped = read_export(opened, events, static, start, layout, concepts)
    records, left_out = parse_tables(extractor, events, static)
    dataset = ExampleDataset(records, np.arange(len(records)), last_times(records))
    collator = TaskCollator(extractor, max_events)
    predicted = predict_examples(opened.model, dataset, collator, batch_size, progress="predict")
    frame = prediction_frame(records.record_ids, predicted.values, opened.model)
    if output is not None:
        write_frame(frame, output)
    return RecordPredictions(
        frame=frame,
        output=output,
        num_ignored_events=records.ignored.total(),
        left_out=left_out,
        unknown_columns=[name for name, column in records.static.items() if all(map(is_missing, column))],
        remarks=unlike_training(extractor, records),
        dropped=dropped,
    )


def unlike_training(extractor: HyMaTEFeatureExtractor, events: Events) -> list[str]:
    """What in the records is so far from the training records that it looks like other units or a longer stay."""
    found = [
        f"{share:.0%} of the values of {name} lie outside the range of the training records, and are clipped to it: "
        "are its units the same?"
        for name, share in extractor.shares_outside(events).items()
        if share >= STRANGE_SHARE
    ]
    latest = float(events.times.max())
    if latest > STRANGE_TIME * extractor.time_scale:
        found.append(
            f"events reach {latest:g} hours; hardly any of the training records' come after {extractor.time_scale:g}"
        )
    return found


def parse_tables(extractor: HyMaTEFeatureExtractor, events: Any, static: Any = None) -> tuple[Events, list[str]]:
    """Reads records from a table of events and, where it is given, one of static columns.

    Args:
        extractor: knows the variables and the static columns.
        events: a CSV or Parquet file, or a polars or pandas frame: `record_id`, `time` (hours), `variable`, `value`.
        static: the same, with one row per record: `record_id` and the static columns.

    Returns:
        The records, and the names of those that have no event of a known variable, which an extractor that ignores
        unknown ones leaves out.

    Raises:
        ValueError: for a file that cannot be read or lacks a column, and for bad records.
    """
    frame = _table(events, "events", ("record_id", *EVENT_COLUMNS))
    own = None if static is None else _table(static, "static", ("record_id",), UNKNOWN)
    left_out: list[str] = []
    if extractor.unknown_variables == "ignore":
        known = frame.filter(pl.col("variable").is_in(extractor.variables))
        if not known.height:
            name = events if isinstance(events, str | Path) else "events"
            raise ValueError(f"{name}: none of its variables is known; the first is {frame['variable'][0]!r}")
        left_out = (
            frame.join(known, on="record_id", how="anti", nulls_equal=True)["record_id"].unique().sort().to_list()
        )
        frame = frame.join(known, on="record_id", how="semi", nulls_equal=True, maintain_order="left")
    return extractor.parse(frame, own), left_out


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


def _table(source: Any, name: str, columns: Sequence[str], unknown: Sequence[str] = ()) -> pl.DataFrame:
    if isinstance(source, str | Path):
        name, frame = str(source), read_frame(source, unknown)
    elif isinstance(source, pl.DataFrame):
        frame = tidy_frame(source, name)
    elif hasattr(source, "iloc"):
        frame = tidy_frame(pl.from_pandas(source), name)
    else:
        raise ValueError(f"{name} must be a file or a polars or pandas frame, not a {type(source).__name__}")
    if missing := [column for column in columns if column not in frame.columns]:
        raise ValueError(f"{name} lacks the column {missing[0]!r}; it has {', '.join(frame.columns)}")
    return frame.with_columns(cs.boolean().cast(pl.String))  # true and false are categories


def prediction_frame(
    record_ids: list[str], values: np.ndarray, model: HyMaTEForSequenceClassification
) -> pl.DataFrame:
    """One row per record: `record_id`, one column per label and, where one class is chosen, `prediction`."""
    names = label_names(model)
    columns: dict[str, Any] = {"record_id": record_ids, **{name: values[:, index] for index, name in enumerate(names)}}
    if model.config.problem_type == "single_label_classification":
        columns["prediction"] = [names[index] for index in values.argmax(1)]
    return pl.DataFrame(columns)


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
