"""Predictions: over a data set, in its order; and of a model's own answer to new records, as a table."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from hymate_training.concepts.mapping import MAP_SCHEMA, map_events, map_static
from hymate_training.data.collators import TaskCollator, event_limit, prediction_mask
from hymate_training.data.device import on_device
from hymate_training.data.examples import ExampleDataset, last_times
from hymate_training.data.exports import Layout, read_events, read_starts
from hymate_training.data.prepared_folder import refuse_inside
from hymate_training.data.tables import UNKNOWN, read_frame
from hymate_training.files import check_place, refuse_existing, writing_file
from hymate_training.inference.checkpoints import (
    EXPORT_FILE,
    Checkpoint,
    at_horizons,
    label_names,
    load_checkpoint,
    read_kept,
)
from hymate_training.inference.conformal import ALL, SET_COLUMN, conformal_columns, kept_thresholds
from hymate_training.inference.findings import Findings
from hymate_training.inference.hours import (
    UNTRAINED,
    is_untrained,
    listed_hours,
    refuse_untrained,
    regular_hours,
)
from hymate_training.inference.parts import (
    EVENTS_PER_PART,
    Part,
    add_tables,
    count_events,
    may_exceed,
    names_of,
    plain_events,
    split_records,
)
from hymate_training.inference.records import Records, read_records
from modeling_hymate import Events, HyMaTEFeatureExtractor, HyMaTEForSequenceClassification

BATCH_SIZE = 64
EVENTS_AT_ONCE = 1 << 20  # of a batch with its padding
CHANNELS_AT_ONCE = 1 << 24  # variables of all predictions of a batch, likewise
NOT_ASKED = {"record_id": pl.String, "prediction_time": pl.Float64}  # of a part whose records are asked at no time
NO_EVENTS = "no events by then: predicted from static columns alone"
OWN_COLUMNS = ("record_id", "prediction_time", "prediction", SET_COLUMN, "remarks")  # of the output, beside the labels


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions for the examples of a data set, in its order.

    Attributes:
        values: probabilities or numbers, `(examples, num_labels)`, or risks `(examples, horizons)`.
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
    horizons: Sequence[float] | None = None,
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
        horizons: hours within which a time-to-event model says the risk; its own where absent.
        progress: label of a progress bar, which shows on terminals only; none where absent.

    Returns:
        The predictions in the order of the data set.

    Raises:
        ValueError: naming a record for which the model returns no finite number.
    """
    model.eval()
    process = PartialState()
    rank, world = (process.process_index, process.num_processes) if shared else (0, 1)
    batches = in_batches(dataset, collator, batch_size)[rank::world]
    values = np.zeros((len(dataset), len(horizons or label_names(model))), dtype=np.float32)
    shares = np.zeros(model.config.num_variables)
    disable = True if progress is None else None
    for batch in tqdm(batches, desc=progress, unit="batch", disable=disable, leave=False):
        examples = dataset.__getitems__(batch)
        features = collator(examples)
        features.pop("labels", None)
        outputs = model(**on_device(features, model.device))
        mask = prediction_mask(features)
        values[examples.indices] = model.predictions(outputs.logits, horizons).cpu()[mask].numpy()
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
    if len(wrong := np.flatnonzero(~np.isfinite(values).all(axis=1))):
        raise ValueError(
            f"record {dataset.record_ids[wrong[0]]!r}: the model predicts no finite number; its weights are damaged, "
            "or its training has diverged"
        )
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
        output: the file it was written to, if any.
        findings: what the model did not know, counted.
        remarks: what is to be said of all rows, in sentences: the remarks of rows with their number, what no record
            has, and what is so unlike the training records that it looks like a mistake.
    """

    output: Path | None
    findings: Findings
    remarks: list[str]
    parts: list[pl.DataFrame]

    @cached_property
    def frame(self) -> pl.DataFrame:
        """One row per record, or per record and prediction time: `record_id`, `prediction_time` (hours) where records
        are asked at times, one column per label, where one class is chosen `prediction`, with conformal sets or
        intervals these, and `remarks`, what the model did not know, null where there is nothing to say."""
        return pl.concat(self.parts) if self.parts else read_frame(str(self.output))

    @property
    def num_ignored_events(self) -> int:
        """Number of events of unknown variables that were dropped."""
        return self.findings.ignored.total()

    @property
    def unknown_columns(self) -> list[str]:
        """Static columns that are unknown for all records, and so taken as missing."""
        return self.findings.unknown_columns

    @property
    def dropped(self) -> dict[str, int]:
        """What of a hospital's files was dropped before, by reason."""
        return self.findings.dropped


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
    horizons: Sequence[float] | None = None,
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
        horizons: hours after each prediction within which a time-to-event model says the risk; its own where absent.
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
    if horizons is not None:
        opened = at_horizons(opened, horizons)
    thresholds = None if conformal is None else kept_thresholds(opened, conformal, conformal_by)
    questions = Questions(
        every, at, untrained_hours, max_events, batch_size, ignore_unknown_variables, thresholds, conformal_by
    )
    as_it_is = not isinstance(events, list) or (
        start is None and concepts is None and layout in (None, Layout()) and reads_plainly(opened)
    )
    found = predict_parts(opened, events, static, output, questions) if output is not None and as_it_is else None
    if output is not None and found is not None:
        return RecordPredictions(output, found, found.sentences(opened.extractor), [])
    dropped: dict[str, int] = {}
    if isinstance(events, list):
        events, static, dropped = read_export(opened, events, static, start, layout, concepts)
    asked = read_asked(opened.extractor, events, static, questions, dropped)
    frame, findings = answer(opened, asked, questions, "predict")
    if output is not None:
        write_frame(frame, output)
    return RecordPredictions(output, findings, findings.sentences(opened.extractor), [frame])


@dataclass(frozen=True)
class Questions:
    """What is asked of records, and how: arguments of `predict` that hold for each of them."""

    every: float | None = None
    at: Any = None
    untrained_hours: bool = False
    max_events: int | None = None
    batch_size: int = BATCH_SIZE
    ignore_unknown_variables: bool = False
    thresholds: Any = None
    conformal_by: str = ALL


@dataclass(frozen=True, eq=False)
class Asked:
    """Records that were read, and what is asked about them.

    Attributes:
        records: the records.
        dataset: one example per prediction.
        hours: of the predictions; None where each record is asked at its end.
        dropped: what of a hospital's files was dropped before, by reason.
    """

    records: Records
    dataset: ExampleDataset
    hours: np.ndarray | None
    dropped: dict[str, int]


def read_asked(
    extractor: HyMaTEFeatureExtractor,
    events: Any,
    static: Any,
    questions: Questions,
    dropped: dict[str, int],
    *,
    is_part: bool = False,
) -> Asked:
    """Reads the records of tables, which are in memory as a whole or are a part of larger ones."""
    ignore = questions.ignore_unknown_variables or extractor.unknown_variables == "ignore"
    records = read_records(extractor, events, static, ignore_unknown_variables=ignore, is_part=is_part)
    dataset, hours = asked_examples(records.events, questions.every, questions.at, is_part=is_part)
    if hours is not None and not questions.untrained_hours:
        refuse_untrained(hours, list(dataset.record_ids), extractor.trained_hours)
    return Asked(records, dataset, hours, dropped)


def answer(
    checkpoint: Checkpoint, asked: Asked, questions: Questions, progress: str | None = None
) -> tuple[pl.DataFrame, Findings]:
    """The predictions that are asked for, and what is to be said about the records."""
    extractor, dataset = checkpoint.extractor, asked.dataset
    collator = TaskCollator(extractor, questions.max_events)
    predicted = predict_examples(checkpoint.model, dataset, collator, questions.batch_size, progress=progress)
    remarks, sets = _remarks(asked.records, dataset, asked.hours, extractor), {}
    if questions.thresholds is not None:
        sets = conformal_columns(checkpoint, dataset, predicted.values, questions.thresholds, questions.conformal_by)
    names = list(dataset.record_ids)
    frame = prediction_frame(names, predicted.values, checkpoint.model, asked.hours, remarks, sets)
    return frame, Findings.of(extractor, asked.records, remarks, len(np.unique(dataset.rows)), asked.dropped)


def reads_plainly(checkpoint: Checkpoint) -> bool:
    """Whether tables for a model need no layout or map of concepts of its training data."""
    layout, concepts = kept_export(checkpoint)
    return layout == Layout() and concepts is None


def kept_export(checkpoint: Checkpoint) -> tuple[Layout, pl.DataFrame | None]:
    """How the files of a model's training data were laid out, and their map to concepts; None where they had none.

    Raises:
        ValueError: if the file that says so is damaged.
    """
    known = read_kept(checkpoint.path, EXPORT_FILE) or {}
    try:
        layout = Layout(**known.get("layout", {}))
        concepts = pl.DataFrame(known["concepts"]["map"], schema=MAP_SCHEMA) if "concepts" in known else None
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{checkpoint.path / EXPORT_FILE} is damaged: {reason}") from error
    return layout, concepts


def predict_parts(
    checkpoint: Checkpoint, events: Any, static: Any, output: Path, questions: Questions
) -> Findings | None:
    """Predicts the records of tables of events that are read and written in parts, see `split_records`; None where
    they are small enough to be read as a whole, or what they say in parts is not what they say in the whole."""
    sources = events if isinstance(events, list) else [events]
    if not all(isinstance(source, str | Path) for source in sources):
        return None
    paths = [Path(source) for source in sources]
    if not may_exceed(paths, EVENTS_PER_PART):
        return None
    beside = output.parent if output.parent.is_dir() else None
    with tempfile.TemporaryDirectory(dir=beside, prefix=".predict-") as scratch:
        files = plain_events(paths, Path(scratch))
        if files is None or count_events(files) <= EVENTS_PER_PART:
            return None
        names, found = names_of(paths, static, questions.at), []
        parts = add_tables(split_records(files, Path(scratch), EVENTS_PER_PART), static, questions.at, Path(scratch))
        read = partial(read_part, checkpoint, names=names, is_export=isinstance(events, list), questions=questions)
        with writing_parts(output) as write:
            for asked in tqdm(read_ahead(read, parts), total=len(parts), desc="predict", unit="part", disable=None):
                frame, findings = answer(checkpoint, asked, questions)
                write(frame)
                found.append(findings)
            joined = Findings.join(found)
            refuse_all_unknown(joined, checkpoint.extractor, names.events)
    return joined


def read_part(checkpoint: Checkpoint, part: Part, names: Part, is_export: bool, questions: Questions) -> Asked:
    """Reads one part of the tables of these names."""
    static = part.static if part.static and count_events([part.static]) else None
    if part.times is not None:
        at: Any = part.times if count_events([part.times]) else pl.DataFrame(schema=NOT_ASKED)
        questions = replace(questions, at=at)
    try:
        table: Any = part.events
        dropped: dict[str, int] = {}
        if is_export:
            table, _, dropped = read_export(checkpoint, [part.events])
        return read_asked(checkpoint.extractor, table, static, questions, dropped, is_part=True)
    except ValueError as error:
        text = str(error)
        for file, name in zip(astuple(part), astuple(names), strict=True):
            text = text.replace(str(file), f"{name}, part {part.events.stem}")
        raise ValueError(text) from error


def read_ahead(read: Callable[[Part], Asked], parts: Sequence[Part]) -> Iterator[Asked]:
    """What is read of each part, the next one while the last is worked on."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read, parts[0])
        for part in parts[1:]:
            asked, coming = coming.result(), reader.submit(read, part)
            yield asked
        yield coming.result()


def refuse_all_unknown(findings: Findings, extractor: HyMaTEFeatureExtractor, source: str | Path) -> None:
    """Raises ValueError where no event of any part is of a variable that the model knows."""
    if len(findings.absent_variables) == extractor.num_variables:
        raise ValueError(f"{source}: none of its variables is known; one is {next(iter(findings.ignored))!r}")


def asked_examples(
    events: Events, every: float | None, at: Any, *, is_part: bool = False
) -> tuple[ExampleDataset, np.ndarray | None]:
    """What is asked about the records, and at which hours; None for the end of each. A part of a larger table may have
    no record that is asked."""
    if every is None and at is None:
        return ExampleDataset(events, np.arange(len(events)), last_times(events)), None
    if is_part and isinstance(at, pl.DataFrame):
        rows, hours = np.zeros(0, dtype=np.int64), np.zeros(0)
    else:
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
    known, known_concepts = kept_export(checkpoint)
    layout, concepts = layout or known, known_concepts if concepts is None else concepts
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
    text = {name: pl.String for name in ("record_id", "prediction", SET_COLUMN) if name in columns}
    return pl.DataFrame(columns, schema_overrides=text)  # also where there are no rows


def check_output(output: Path, sources: Sequence[Any], overwrite: bool) -> None:
    """Raises ValueError unless predictions may be written to `output`; before the work, not after it."""
    _format_of(output)
    for source in sources:
        if isinstance(source, str | Path) and os.path.realpath(output) == os.path.realpath(source):
            raise ValueError(f"{output} is read from: name another file to write")
    refuse_inside(output)
    refuse_existing(output, overwrite)
    check_place(output)


def _format_of(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise ValueError(f"{path}: the name must end in .csv or .parquet")
    return suffix


def write_frame(frame: pl.DataFrame, path: Path) -> None:
    """Writes CSV or Parquet, by the name's ending."""
    with writing_parts(path) as write:
        write(frame)


@contextmanager
def writing_parts(path: Path) -> Iterator[Callable[[pl.DataFrame], None]]:
    """Writes frames of one kind after each other as CSV or Parquet, by the name's ending; whole or not at all."""
    parquet = _format_of(path) == ".parquet"
    writers: list[Any] = []
    with writing_file(path) as incoming, ExitStack() as stack:
        file = stack.enter_context(incoming.open("wb"))

        def write(frame: pl.DataFrame) -> None:
            if not parquet:
                frame.write_csv(file, include_header=not writers)
                writers.append(None)
                return
            table = frame.to_arrow()
            if not writers:
                writers.append(stack.enter_context(pq.ParquetWriter(file, table.schema, compression="zstd")))
            writers[0].write_table(table)

        yield write
