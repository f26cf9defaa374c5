"""HyMaTE as an estimator of scikit-learn: records in lists, labels in an array."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from numbers import Real
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
from modeling_hymate import Events
from modeling_hymate.events import EVENT_COLUMNS, parse_events
from modeling_hymate.items import as_number, is_listlike, is_missing

TASK = "label"
LABELS = (bool, int, float, np.bool_, np.integer, np.floating)
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
        fraction, options = self.validation_fraction, self.options or FinetuneOptions()
        if not isinstance(fraction, Real) or not 0 < fraction < 1:
            raise ValueError(f"validation_fraction must be between 0 and 1, got {fraction!r}")
        if not isinstance(options, FinetuneOptions):
            raise ValueError(f"options must be FinetuneOptions, got {type(options).__name__}")
        _check_sequences(records, y)
        self.classes_: np.ndarray
        self.classes_, codes = _classes(y)
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
        parsed = self.checkpoint_.extractor.parse(_rows(records))
        dataset = ExampleDataset(parsed, np.arange(len(parsed)), last_times(parsed))
        collator = TaskCollator(self.checkpoint_.extractor)
        return predict_examples(self.checkpoint_.model, dataset, collator).values.astype(np.float64)

    def predict(self, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The most probable class of each record, `(records,)`."""
        chosen = self.predict_proba(records).argmax(1)
        return self.classes_[chosen]


def _check_sequences(records: Any, y: Any) -> None:
    for name, given in (("records", records), ("y", y)):
        if not is_listlike(given):
            raise ValueError(f"{name} must be a sequence, got {type(given).__name__}")
    if len(records) != len(y):
        raise ValueError(f"y must have one label per record: {len(y)} labels, {len(records)} records")


def _classes(y: Sequence | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The classes, sorted, and the position of each label among them."""
    kinds = set()
    for at, label in enumerate(y):
        if is_missing(label) or (isinstance(label, float | np.floating) and not float(label).is_integer()):
            raise ValueError(f"y must hold the class of each record: label {at} is {label!r}")
        kinds.add("text" if isinstance(label, str) else "numbers" if isinstance(label, LABELS) else "others")
    if len(kinds) > 1 or "others" in kinds:
        raise ValueError(f"y must hold text alone, or whole numbers alone: it holds {' and '.join(sorted(kinds))}")
    classes, codes = np.unique(np.asarray(y), return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"y must hold at least two classes, got {len(classes)}")
    return classes, codes


def _rows(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The records by their positions, as the parser of a feature extractor takes them."""
    for at, record in enumerate(records if is_listlike(records) else [records]):
        if not isinstance(record, Mapping):
            raise ValueError(f"record {at} must be a mapping, got {type(record).__name__}")
        if missing := [column for column in EVENT_COLUMNS if column not in record]:
            raise ValueError(f"record {at} lacks {missing[0]!r}; a record holds the lists time, variable and value")
    return [{**record, "record_id": str(at)} for at, record in enumerate(records)]


def _prepare(
    records: Sequence[Mapping[str, Any]], codes: np.ndarray, validation_fraction: float, seed: int, output: Path
) -> None:
    """Writes the records as a prepared folder with the task `TASK`."""
    events, variables = _parsed(records)
    names = [f"{at:08d}" for at in range(len(records))]
    strata = {name: str(code) for name, code in zip(names, codes.tolist(), strict=True)}
    fractions = {"train": 1 - validation_fraction, "validation": validation_fraction}
    splits = split_at_random(names, fractions, seed, strata)
    tables = {
        "events": pl.DataFrame(
            {
                "record_id": pl.Series(names).gather(events.rows),
                "time": events.times,
                "variable": pl.Series(variables).gather(events.variable_ids),
                "value": pl.Series(events.values).fill_nan(None),
            }
        ),
        "static": pl.DataFrame(
            {
                "record_id": names,
                "split": [splits[name] for name in names],
                **{name: _static_column(name, found.tolist()) for name, found in events.static.items()},
            }
        ),
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


def _parsed(records: Sequence[Mapping[str, Any]]) -> tuple[Events, list[str]]:
    """The records, read as those that are predicted, and the names of their variables."""
    rows = _rows(records)
    variables: dict[str, None] = {}
    for at, row in enumerate(rows):
        for name in row["variable"] if is_listlike(row["variable"]) else ():
            if not isinstance(name, str) or not name.strip() or not _is_unicode(name):
                raise ValueError(f"column 'variable', record {at}: {name!r} is not the name of a variable")
            variables[name] = None
    static = dict.fromkeys(name for row in rows for name in row if name not in (*EVENT_COLUMNS, "record_id"))
    if taken := [name for name in OWN_NAMES if name in static]:
        raise ValueError(f"a static column may not be called {taken[0]!r}, which has a meaning of its own")
    return parse_events(rows, list(variables), static_columns=list(static)), list(variables)


def _static_column(name: str, items: list[Any]) -> pl.Series:
    """Text, or numbers, None where unknown."""
    known = [item for item in items if not is_missing(item)]
    if all(isinstance(item, bool) for item in known):
        return pl.Series(name, [None if is_missing(item) else item for item in items], pl.Boolean)
    if all(isinstance(item, str) and _is_unicode(item) for item in known):
        return pl.Series(name, [None if is_missing(item) else item for item in items], pl.String)
    numbers = []
    for at, item in enumerate(items):
        try:
            numbers.append(as_number(item))
            if math.isinf(numbers[-1]):
                raise ValueError("infinite")
        except ValueError:
            raise ValueError(
                f"static column {name!r} must hold numbers or text: that of record {at} is {item!r}"
            ) from None
    return pl.Series(name, numbers, pl.Float64).fill_nan(None)


def _is_unicode(text: str) -> bool:
    """Whether no half of a character is in it, which no file could hold."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
