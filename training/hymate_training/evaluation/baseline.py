"""Other predictions for the examples of a task: from a file, or of trees that are grown for the comparison."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hymate_training.data.examples import TaskDataset, load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import TaskInfo
from hymate_training.data.tables import numbers, read_frame, refuse
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.evaluation.trees import fit_trees, import_xgboost
from hymate_training.inference.checkpoints import RUN_FILE, Checkpoint, read_kept

XGBOOST = "xgboost"  # in place of a file
XGBOOST_TITLE = "XGBoost on summary statistics"


@dataclass(frozen=True, eq=False)
class Baseline:
    """What a model is compared with.

    Attributes:
        name: as reports call it.
        sample: the labels of a binary task with its probabilities.
        settings: of trees, as they were chosen.
        validation: of trees, the validation split and their probabilities of it, for what is chosen there.
    """

    name: str
    sample: LabeledPredictions
    settings: dict[str, Any] = field(default_factory=dict)
    validation: tuple[TaskDataset, LabeledPredictions] | None = None


def check_baseline(baseline: str | Path, task: TaskInfo) -> None:
    """ValueError for a task that is not binary, and for trees where XGBoost is not installed."""
    if task.problem_type != "binary":
        raise ValueError(f"baseline: only binary tasks are compared, but {task.name!r} is {task.problem_type}")
    if str(baseline) == XGBOOST:
        import_xgboost()


def find_baseline(
    baseline: str | Path, training: PreparedFolder, checkpoint: Checkpoint, task: str, dataset: TaskDataset
) -> Baseline:
    """The predictions of a file, or of trees where `baseline` is `XGBOOST`.

    Args:
        baseline: `XGBOOST`, or a file as `read_baseline` takes it.
        training: the prepared folder that the checkpoint was trained on; of use for trees alone.
        checkpoint: that is compared.
        task: a binary task.
        dataset: the examples to predict.

    Raises:
        ValueError: as `read_baseline` and `fit_trees` do, and if the checkpoint was trained on other data than
            `training` holds.
    """
    if str(baseline) != XGBOOST:
        return Baseline(Path(baseline).stem, read_baseline(baseline, dataset))
    _check_trained_on(checkpoint, training, task)
    train, validation = (
        load_task(training, task, split, checkpoint.extractor.variables) for split in ("train", "validation")
    )
    trees = fit_trees(train, validation, checkpoint.extractor)
    own, chosen_on = (labeled_yes(part, trees.predict(part)) for part in (dataset, validation))
    return Baseline(XGBOOST_TITLE, own, trees.settings, (validation, chosen_on))


def labeled_yes(dataset: TaskDataset, probabilities: np.ndarray) -> LabeledPredictions:
    """The labels of a binary task with probabilities of the second one, `(examples,)`."""
    return LabeledPredictions("binary", dataset.labels, probabilities, groups=dataset.record_ids)


def _check_trained_on(checkpoint: Checkpoint, training: PreparedFolder, task: str) -> None:
    run = read_kept(checkpoint.path, RUN_FILE) or {}
    known = run.get("split_fingerprints", {}).get("train")
    if known is not None and known != training.split_fingerprint(task, "train"):
        raise ValueError(
            f"the checkpoint was trained on other records or labels than the train split of {training.path} holds, "
            "so that trees grown there would be no fair comparison: name the prepared folder of its training as "
            "baseline_data (--baseline-data)"
        )


def read_baseline(path: str | Path, dataset: TaskDataset) -> LabeledPredictions:
    """The labels of a binary task with the probabilities of a file.

    Args:
        path: CSV or Parquet file: `record_id`, `prediction` (probability of the second label) and, for a task that
            asks records more than once, `prediction_time` (hours). Rows of other records are not looked at.
        dataset: the examples.

    Raises:
        ValueError: if the file cannot be read or lacks a column, names an example twice or not at all, and for a
            prediction that is no probability.
    """
    path = Path(path)
    frame = read_frame(path)
    keys = ["record_id"] if dataset.asks_once else ["record_id", "prediction_time"]
    if missing := [name for name in (*keys, "prediction") if name not in frame.columns]:
        raise ValueError(f"{path} lacks the column {missing[0]!r}; it has {', '.join(frame.columns)}")
    prediction = numbers(path, frame["prediction"])
    refuse(path, prediction.is_null() | ~prediction.is_between(0, 1), "prediction must be a probability", prediction)
    columns = [prediction]
    if not dataset.asks_once:
        columns.append(numbers(path, frame["prediction_time"]).cast(pl.Float32))
    frame = frame.select("record_id").with_columns(columns)
    refuse(path, frame.select(keys).is_duplicated(), f"{' and '.join(keys)} named before, or again below")
    asked = pl.DataFrame({"record_id": list(dataset.record_ids), "prediction_time": dataset.prediction_times})
    found = asked.join(frame, on=keys, how="left", maintain_order="left")["prediction"]
    if lacking := found.null_count():
        first = dataset.record_ids[found.is_null().arg_max() or 0]
        raise ValueError(
            f"{path} lacks {lacking:,} of the {len(dataset):,} examples of the task, the first of record {first!r}"
        )
    return labeled_yes(dataset, found.to_numpy())
