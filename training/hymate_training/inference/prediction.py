"""`hymate predict`: a trained model on new records; and prediction over a data set, which evaluation shares."""

import argparse
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import polars.selectors as cs
import torch
from accelerate import PartialState
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from tqdm.auto import tqdm

from hymate_training.data.collation import ExampleDataset, TaskCollator
from hymate_training.data.tables import UNKNOWN, read_frame
from modeling_hymate import Events, HyMaTEFeatureExtractor, HyMaTEForSequenceClassification
from modeling_hymate.events import EVENT_COLUMNS, is_missing

BATCH_SIZE = 64
STRANGE_SHARE = 0.2  # of a variable's values outside a range that holds 99.8 % of the training records'
STRANGE_TIME = 1.5  # times what 99 % of the training records' events come before
CHECKPOINT_PATTERNS = ["*.json", "*.safetensors", "*.py", "README.md"]
CHECKPOINT_HELP = "a fine-tuned model: its folder, or its name on the Hub"


@dataclass
class Predictions:
    """Predictions for some examples of a data set.

    Attributes:
        indices: positions in the data set.
        values: probabilities or numbers, `(examples, num_labels)`.
        variable_shares: sum over the examples of each variable's share of the attention, `(num_variables,)`.
    """

    indices: np.ndarray
    values: np.ndarray
    variable_shares: np.ndarray


@torch.no_grad()
def predict_examples(
    model: HyMaTEForSequenceClassification,
    dataset: ExampleDataset,
    collator: TaskCollator,
    batch_size: int = BATCH_SIZE,
    rank: int = 0,
    world: int = 1,
    progress: str | None = None,
) -> Predictions:
    """Predicts every example of a data set, or of several processes' shares the `rank`-th of `world`.

    Args:
        model: a classifier, in whatever mode; it is put into evaluation mode.
        dataset: the examples.
        collator: makes them tensors; should not augment.
        batch_size: examples at a time.
        rank: which share.
        world: number of shares.
        progress: label of a progress bar; none where absent.
    """
    model.eval()
    order = np.argsort(dataset.lengths, kind="stable")  # equal lengths together: less padding
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)][rank::world]
    values = []
    shares = np.zeros(model.config.num_variables)
    for batch in tqdm(batches, desc=progress, unit="batch", disable=progress is None, leave=False):
        features = collator(dataset.__getitems__(batch))
        features.pop("labels", None)
        outputs = model(**{name: tensor.to(model.device) for name, tensor in features.items()})
        values.append(model.predictions(outputs.logits).cpu().numpy())
        real = outputs.channel_ids >= 0
        np.add.at(shares, outputs.channel_ids[real].cpu().numpy(), outputs.channel_weights[real].float().cpu().numpy())
    indices = np.concatenate(batches) if batches else np.zeros(0, dtype=np.int64)
    return Predictions(indices, np.concatenate(values) if values else np.zeros((0, len(label_names(model)))), shares)


def checkpoint_folder(checkpoint: str | Path) -> Path:
    """The folder of a checkpoint: `checkpoint` itself, or where a repository of that name on the Hub is downloaded to.

    Raises:
        ValueError: if there is no such folder or repository, or it lacks a file.
    """
    folder = Path(checkpoint)
    if not folder.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(checkpoint)):
        try:
            folder = Path(snapshot_download(str(checkpoint), allow_patterns=CHECKPOINT_PATTERNS))
        except (HfHubHTTPError, OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{checkpoint} is no folder, and not to be had from the Hub: {reason}") from error
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"{checkpoint} is not a checkpoint: it lacks {name}")
    return folder


def load_checkpoint(folder: str | Path) -> tuple[HyMaTEForSequenceClassification, HyMaTEFeatureExtractor]:
    """A fine-tuned model, on the device that Accelerate chooses, and its feature extractor.

    Raises:
        ValueError: if the folder is not a checkpoint of a fine-tuned model.
    """
    folder = checkpoint_folder(folder)
    model, report = HyMaTEForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    if report["missing_keys"]:
        raise ValueError(f"{folder} holds no classifier: run `hymate finetune --checkpoint {folder}` first")
    return model.to(PartialState().device), HyMaTEFeatureExtractor.from_pretrained(folder)


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--checkpoint", type=Path, required=True, help=CHECKPOINT_HELP)
    parser.add_argument(
        "--events", type=Path, required=True, help="CSV or Parquet: record_id, time (hours), variable, value"
    )
    parser.add_argument("--static", type=Path, help="CSV or Parquet: record_id and the static columns, a row a record")
    parser.add_argument("--output", type=Path, required=True, help="CSV or Parquet to write, a row a record")
    parser.add_argument(
        "--max-events", type=int, help="keep the latest events of longer records (default: as in training)"
    )
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help=f"default: {BATCH_SIZE}")
    parser.add_argument(
        "--ignore-unknown-variables", action="store_true", help="drop and count events of unknown variables"
    )


def run(args: argparse.Namespace) -> str:
    """Predicts the records of a file of events; returns what to print."""
    _format_of(args.output)  # before the work, not after it
    if args.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {args.batch_size}")
    model, extractor = load_checkpoint(args.checkpoint)
    if args.ignore_unknown_variables:
        extractor.unknown_variables = "ignore"
    events, left_out = parse_files(extractor, args.events, args.static)
    times = np.full(len(events), np.inf)
    dataset = ExampleDataset(events, np.arange(len(events)), times)
    collator = TaskCollator(extractor, args.max_events)
    predictions = predict_examples(model, dataset, collator, args.batch_size, progress="predict")
    values = np.empty_like(predictions.values)
    values[predictions.indices] = predictions.values
    write_frame(prediction_frame(events.record_ids, values, model), args.output)
    notes = [f"{len(events)} records -> {args.output}"]
    if events.ignored:
        notes.append(f"dropped {events.ignored.total()} events of unknown variables")
    if left_out:
        notes.append(f"left out {len(left_out)} records without any other event, {left_out[0]!r} first")
    unknown = [name for name, column in events.static.items() if all(map(is_missing, column))]
    if unknown:
        notes.append(f"unknown for all of them, so taken as missing: {', '.join(unknown)}")
    return "\n".join(["; ".join(notes), *unlike_training(extractor, events)])


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


def parse_files(
    extractor: HyMaTEFeatureExtractor, events: Path, static: Path | None = None
) -> tuple[Events, list[str]]:
    """The records of a file of events and, where it is given, one of static columns; and the names of those that have
    no event of a known variable, which an extractor that ignores unknown ones leaves out.

    Raises:
        ValueError: for a file that cannot be read or lacks a column, and for bad records.
    """
    frames = {}
    for path, columns in ((events, ("record_id", *EVENT_COLUMNS)), (static, ("record_id",))):
        if path is None:
            continue
        frame = read_frame(path, UNKNOWN if path == static else ()).with_columns(cs.boolean().cast(pl.String))
        frames[path] = frame
        if missing := [name for name in columns if name not in frame.columns]:
            raise ValueError(f"{path} lacks the column {missing[0]!r}; it has {', '.join(frame.columns)}")
    frame, left_out = frames[events], []
    if extractor.unknown_variables == "ignore":
        known = frame.filter(pl.col("variable").is_in(extractor.variables))
        if not known.height:
            raise ValueError(f"{events}: none of its variables is known; the first is {frame['variable'][0]!r}")
        left_out = (
            frame.join(known, on="record_id", how="anti", nulls_equal=True)["record_id"].unique().sort().to_list()
        )
        frame = frame.join(known, on="record_id", how="semi", nulls_equal=True, maintain_order="left")
    return extractor.parse(frame, None if static is None else frames[static]), left_out


def label_names(model: HyMaTEForSequenceClassification) -> tuple[str, ...]:
    """Names of the model's outputs, in order."""
    return tuple(str(name) for name in (model.config.id2label or {}).values())


def prediction_frame(
    record_ids: list[str], values: np.ndarray, model: HyMaTEForSequenceClassification
) -> pl.DataFrame:
    """One row a record: `record_id`, one column a label and, where one class is chosen, `prediction`."""
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


def write_frame(frame: pl.DataFrame, path: Path):
    """Writes CSV or Parquet under a temporary name and renames it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    incoming = path.with_name(f".{path.name}.incoming")
    if _format_of(path) == ".parquet":
        frame.write_parquet(incoming)
    else:
        frame.write_csv(incoming)
    os.replace(incoming, path)
