"""Five folds over the records of a data set, and prepared folders that hold one fold as the test split."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.writer import PreparedFolderWriter

NUM_FOLDS = 5
SEED = 1  # drawn anew once the recipes were fixed; trials had folds of other seeds


def assign_folds(prepared: Path, output: Path, source_splits: Sequence[str]) -> list[list[str]]:
    """Record ids of each fold over `source_splits`, drawn with `SEED`; written to `output`, and read from there ever
    after.

    Raises:
        ValueError: if `output` lists other records than `prepared` holds.
    """
    held = PreparedFolder(prepared).record_ids
    record_ids = sorted(record_id for split in source_splits for record_id in held[split])
    if not output.is_file():
        order = np.random.default_rng(SEED).permutation(len(record_ids))
        folds = [sorted(record_ids[at] for at in part) for part in np.array_split(order, NUM_FOLDS)]
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"seed": SEED, "folds": folds}) + "\n")
    folds = json.loads(output.read_text())["folds"]
    if sorted(record_id for fold in folds for record_id in fold) != record_ids:
        raise ValueError(f"{output} lists other records than {prepared} holds: prepare the same download with seed 0")
    return folds


def hospitals(prepared: Path, _output: Path, _source_splits: Sequence[str]) -> list[list[str]]:
    """Record ids of hospital A and of hospital B of PhysioNet 2019, whose test split is hospital B."""
    held = PreparedFolder(prepared).record_ids
    return [sorted([*held["train"], *held["validation"]]), sorted(held["test"])]


def prepare_fold(
    prepared: Path,
    folds: list[list[str]],
    fold: int,
    percent: int,
    static: bool,
    output: Path,
    source_splits: Sequence[str],
) -> Path:
    """A prepared folder whose test split is a fold, and of whose other stays 80% train and 20% stop training early.

    With `percent` below 100, only so many of the training stays keep their labels; all keep their events, so that
    pretraining sees them. The labels of a smaller percentage are among those of a larger one. Without `static`, the
    demographics are left out.
    """
    if (output / "metadata.json").is_file():
        return output
    others = sorted(record_id for at, part in enumerate(folds) if at != fold for record_id in part)
    shuffled = [others[at] for at in np.random.default_rng([SEED, fold]).permutation(len(others))]
    size = int(0.8 * len(shuffled))
    splits = {"train": shuffled[:size], "validation": shuffled[size:], "test": folds[fold]}
    labeled = {**splits, "train": shuffled[: max(1, size * percent // 100)]}
    folder = PreparedFolder(prepared)
    info = folder.info
    records = pl.concat([_frame(folder.records(split)) for split in source_splits])
    if not static:
        records = records.drop([column.name for column in info.static_columns])
        info = replace(info, static_columns=())
    with PreparedFolderWriter(output) as writer:
        for split, members in splits.items():
            writer.write_records(split, records.filter(pl.col("record_id").is_in(members)).sort("record_id"))
            for task in info.tasks:
                labels = pl.concat([_frame(folder.task(task.name, part)) for part in source_splits])
                writer.write_task(task, split, labels.filter(pl.col("record_id").is_in(labeled[split])))
        writer.finish(info)
    return output


def _frame(table) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(table))
