"""Patient representations: what a model makes of a record before any task, for other methods to go on with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from hymate_training.data.collators import TaskCollator, prediction_mask
from hymate_training.data.device import on_device
from hymate_training.data.examples import ExampleDataset
from hymate_training.inference.checkpoints import Checkpoint, checkpoint_folder, load_extractor, load_model
from hymate_training.inference.prediction import (
    BATCH_SIZE,
    NO_EVENTS,
    asked_examples,
    check_output,
    in_batches,
    write_frame,
)
from hymate_training.inference.records import count_remarks, read_records
from modeling_hymate import HyMaTEFeatureExtractor, HyMaTEModel


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Representations of records.

    Attributes:
        frame: one row per record, or per record and time: `record_id`, `prediction_time` (hours) where times are asked
            for, `embedding`, an array of float32, and `remarks`, what the model did not know, null where there is
            nothing to say.
        output: the file it was written to, if any.
        remarks: what is to be said of all rows, in sentences.
    """

    frame: pl.DataFrame
    output: Path | None
    remarks: list[str]


def embed(
    checkpoint: str | Path | Checkpoint,
    events: Any,
    static: Any = None,
    output: str | Path | None = None,
    *,
    every: float | None = None,
    at: Any = None,
    max_events: int | None = None,
    batch_size: int = BATCH_SIZE,
    ignore_unknown_variables: bool = False,
    overwrite: bool = False,
) -> Embeddings:
    """Represents each record, at its end or at any times, by the vector that the model's heads start from.

        found = hymate.embed("runs/pretrained", "events.csv", "static.csv")
        matrix = found.frame["embedding"].to_numpy()  # (records, numbers)

    Args:
        checkpoint: a pretrained or fine-tuned model: its folder, its name on the Hub, or an open checkpoint.
        events: as of `predict`, a table or a frame.
        static: as of `predict`.
        output: a Parquet file to write.
        every: as of `predict`: ask each record at this many hours after its start, at twice that, and so on.
        at: as of `predict`: ask records at the times of a table of `record_id` and `prediction_time`.
        max_events: keep only the latest events of longer records; as in training where absent.
        batch_size: records at a time.
        ignore_unknown_variables: drop and count events of variables that the model does not know, which are an error
            otherwise.
        overwrite: replace an `output` that is there already.

    Raises:
        ValueError: for a file that cannot be read or lacks a column, for bad records or times, for an output that is
            there already, and for a checkpoint that is damaged.
    """
    if output is not None:
        output = Path(output)
        if output.suffix.lower() != ".parquet":
            raise ValueError(f"{output}: the name must end in .parquet, since representations are arrays")
        check_output(output, [events, static, at], overwrite)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if every is not None and at is not None:
        raise ValueError("give every or at (--every, --at), not both")
    encoder, extractor = _open(checkpoint)
    ignore = ignore_unknown_variables or extractor.unknown_variables == "ignore"
    records = read_records(extractor, events, static, ignore_unknown_variables=ignore)
    dataset, hours = asked_examples(records.events, every, at)
    embedded = embed_examples(encoder, dataset, TaskCollator(extractor, max_events), batch_size, progress="embed")
    remarks = [
        [*records.remarks[row], *([NO_EVENTS] if not length else [])]
        for row, length in zip(dataset.rows, dataset.lengths, strict=True)
    ]
    columns: dict[str, Any] = {"record_id": list(dataset.record_ids)}
    if hours is not None:
        columns["prediction_time"] = hours
    columns["embedding"] = pl.Series(embedded, dtype=pl.Array(pl.Float32, embedded.shape[1]))
    columns["remarks"] = pl.Series(["; ".join(texts) or None for texts in remarks], dtype=pl.String)
    frame = pl.DataFrame(columns)
    if output is not None:
        write_frame(frame, output)
    said = [*count_remarks(remarks, len(remarks), "representations"), *records.about_all()]
    return Embeddings(frame, output, said)


@torch.no_grad()
def embed_examples(
    encoder: HyMaTEModel,
    dataset: ExampleDataset,
    collator: TaskCollator,
    batch_size: int = BATCH_SIZE,
    *,
    progress: str | None = None,
) -> np.ndarray:
    """The representation of each example of a data set, in its order, `(examples, pooler_size)`, float32.

    Args:
        encoder: in evaluation mode.
        dataset: the examples.
        collator: makes them tensors; should not augment.
        batch_size: records at a time.
        progress: label of a progress bar, which shows on terminals only; none where absent.
    """
    embedded = np.zeros((len(dataset), encoder.config.pooler_size), dtype=np.float32)
    disable = True if progress is None else None
    for batch in tqdm(
        in_batches(dataset, collator, batch_size), desc=progress, unit="batch", disable=disable, leave=False
    ):
        examples = dataset.__getitems__(batch)
        features = collator(examples)
        pooled = encoder(**on_device(features, encoder.device)).pooler_output
        embedded[examples.indices] = pooled.float().cpu()[prediction_mask(features)].numpy()
    return embedded


def _open(checkpoint: str | Path | Checkpoint) -> tuple[HyMaTEModel, HyMaTEFeatureExtractor]:
    if isinstance(checkpoint, Checkpoint):
        return checkpoint.model.hymate, checkpoint.extractor
    folder = checkpoint_folder(checkpoint)
    encoder, missing = load_model(HyMaTEModel, folder)
    if missing:
        raise ValueError(f"{folder} is not complete: it lacks {min(missing)}")
    return encoder.to(PartialState().device), load_extractor(folder)
