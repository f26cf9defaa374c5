"""HyMaTE as an estimator of scikit-learn: records in lists, labels in an array."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from hymate_training.data.collators import TaskCollator
from hymate_training.data.examples import ExampleDataset, last_times
from hymate_training.data.splits import split_at_random
from hymate_training.fitting.finetuning import FinetuneOptions, finetune
from hymate_training.inference.checkpoints import Checkpoint, load_checkpoint
from hymate_training.inference.prediction import predict_examples
from hymate_training.readers import frame
from modeling_hymate.events import EVENT_COLUMNS

TASK = "label"
OWN_NAMES = ("patient_id", "split")  # which mean something in a table of static columns


class HyMaTEClassifier(ClassifierMixin, BaseEstimator):
    """Fine-tunes a classifier on records and their labels, and predicts others.

        classifier = hymate.HyMaTEClassifier("runs/pretrained").fit(records, y)
        probabilities = classifier.predict_proba(others)  # (records, classes)

    It works where scikit-learn hands estimators lists of samples on: `train_test_split`, `cross_val_score`,
    `GridSearchCV`, `clone`. `check_estimator` and pipelines of transformers do not apply, since they feed matrices:
    a sample here is a record, a dict of `time` (hours), `variable` (names) and `value` (None for an event without a
    number), lists of one length, and static columns beside them as single values.

    Args:
        checkpoint: model to start from: its folder or its name on the Hub; from random weights where absent.
        options: hyper-parameters, `FinetuneOptions`; their defaults where absent. Its seed also divides the records.
        validation_fraction: of the records of each class, which choose the best epoch and calibrate.
        output: new folder for the run, which is a checkpoint with its card afterwards; a temporary one where absent.

    Attributes:
        classes_: the labels, sorted, in the order of the columns of `predict_proba`.
        checkpoint_: the fine-tuned model and its feature extractor.
        evaluation_: metrics on the validation records.
    """

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        options: FinetuneOptions | None = None,
        validation_fraction: float = 0.2,
        output: str | Path | None = None,
    ):
        self.checkpoint = checkpoint
        self.options = options
        self.validation_fraction = validation_fraction
        self.output = output

    def fit(self, records: Sequence[Mapping[str, Any]], y: Sequence | np.ndarray) -> Self:
        """Fine-tunes on records and one label each.

        Raises:
            ValueError: for bad records or labels, for classes too small to divide, and as `hymate.finetune` does.
        """
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be between 0 and 1, got {self.validation_fraction}")
        if len(records) != len(y):
            raise ValueError(f"y must have one label per record: {len(y)} labels, {len(records)} records")
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y must hold at least two classes, got {len(self.classes_)}")
        options = self.options or FinetuneOptions()
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data"
            _prepare(records, codes, self.validation_fraction, options.seed, data)
            output = Path(folder) / "run" if self.output is None else Path(self.output)
            result = finetune(data, TASK, output, options, self.checkpoint)
            self.checkpoint_: Checkpoint = load_checkpoint(result.output)
        self.evaluation_ = None if result.evaluation is None else result.evaluation.content
        return self

    def predict_proba(self, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The probability of each class, `(records, classes)`, from all events of each record.

        Raises:
            ValueError: for bad records, and for variables and categories that the model does not know.
        """
        check_is_fitted(self)
        rows = [dict(record) | {"record_id": str(at)} for at, record in enumerate(records)]
        parsed = self.checkpoint_.extractor.parse(rows)
        dataset = ExampleDataset(parsed, np.arange(len(parsed)), last_times(parsed))
        collator = TaskCollator(self.checkpoint_.extractor)
        return predict_examples(self.checkpoint_.model, dataset, collator).values.astype(np.float64)

    def predict(self, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The most probable class of each record, `(records,)`."""
        chosen = self.predict_proba(records).argmax(1)
        return self.classes_[chosen]


def _prepare(
    records: Sequence[Mapping[str, Any]], codes: np.ndarray, validation_fraction: float, seed: int, output: Path
) -> None:
    """Writes the records as a prepared folder with the task `TASK`."""
    names = [f"{at:08d}" for at in range(len(records))]
    strata = {name: str(code) for name, code in zip(names, codes.tolist(), strict=True)}
    fractions = {"train": 1 - validation_fraction, "validation": validation_fraction}
    splits = split_at_random(names, fractions, seed, strata)
    tables = {
        "events": pl.concat([_events(name, record) for name, record in zip(names, records, strict=True)]),
        "static": pl.DataFrame({"record_id": names, "split": [splits[name] for name in names], **_static(records)}),
        # text in the order of the classes where there are more than two
        "labels": pl.DataFrame(
            {
                "record_id": names,
                **(
                    {"boolean_value": codes.astype(bool)}
                    if codes.max() == 1
                    else {"categorical_value": [f"class {code:06d}" for code in codes.tolist()]}
                ),
            }
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.parquet" for name in tables}
        for name, table in tables.items():
            table.write_parquet(paths[name])
        labels = [f"{TASK}={paths['labels']}"]
        frame.prepare(paths["events"], output, static=paths["static"], labels=labels, seed=seed)


def _events(name: str, record: Mapping[str, Any]) -> pl.DataFrame:
    if missing := [column for column in EVENT_COLUMNS if column not in record]:
        raise ValueError(f"record {int(name)} lacks {missing[0]!r}; a record holds the lists time, variable and value")
    try:
        return pl.DataFrame(
            {"record_id": name, **{column: record[column] for column in EVENT_COLUMNS}},
            schema={"record_id": pl.String, "time": pl.Float64, "variable": pl.String, "value": pl.Float64},
            strict=False,
        )
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"record {int(name)}: {error}") from error


def _static(records: Sequence[Mapping[str, Any]]) -> dict[str, pl.Series]:
    """The columns beside the events; None where a record lacks one."""
    columns: dict[str, pl.Series] = {}
    for name in dict.fromkeys(name for record in records for name in record):
        if name in OWN_NAMES:
            raise ValueError(f"a static column may not be called {name!r}, which has a meaning of its own")
        if name not in (*EVENT_COLUMNS, "record_id"):
            try:
                columns[name] = pl.Series(name, [record.get(name) for record in records])
            except (TypeError, pl.exceptions.PolarsError) as error:
                raise ValueError(f"static column {name!r} must hold numbers or text: {error}") from error
    return columns
