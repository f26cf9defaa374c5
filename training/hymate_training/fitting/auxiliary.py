"""Auxiliary targets: further labels of the same records that a classifier learns beside its own, in training only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from sklearn.preprocessing import QuantileTransformer
from torch import nn
from transformers import BatchFeature
from transformers.utils import ModelOutput

from hymate_training.data.collators import by_prediction
from hymate_training.data.examples import Examples, TaskDataset
from hymate_training.data.prepared_folder import PreparedFolder
from modeling_hymate import HyMaTEForSequenceClassification


@dataclass
class AuxiliaryTargets:
    """Targets of each example, `(examples, targets)`, NaN where unknown; `binary` (targets,) says which are 0 or 1,
    the others are numbers whose ranks follow a normal distribution, so that no outlier rules the loss."""

    values: np.ndarray
    binary: np.ndarray


def load_auxiliary(
    folder: PreparedFolder, tasks: Sequence[str], splits: Sequence[str], dataset: TaskDataset
) -> AuxiliaryTargets:
    """Labels of further tasks for the examples of `dataset`, which are of these splits, matched by record.

    Raises:
        ValueError: for a task that is not there, or is neither binary nor a regression, or asks more than once per
            record.
    """
    columns, binary = [], []
    for name in tasks:
        try:
            task = folder.info.task(name)
        except ValueError as error:
            raise ValueError(f'auxiliary_tasks: {error} (--auxiliary-tasks "" trains without any)') from error
        if task.problem_type not in ("binary", "regression"):
            raise ValueError(
                f"auxiliary task {name!r} is {task.problem_type}; only binary and regression tasks can be auxiliary"
            )
        table = pa.concat_tables([folder.task(name, split) for split in splits])
        if len(table["record_id"].unique()) < len(table):
            raise ValueError(f"auxiliary task {name!r} has several labels per record; only one can be learned")
        labels = table[task.label_columns[0]].to_numpy(zero_copy_only=False).astype(np.float64)
        binary.append(task.problem_type == "binary")
        if not binary[-1] and len(labels):
            normal = QuantileTransformer(n_quantiles=min(1000, len(labels)), output_distribution="normal")
            labels = np.clip(normal.fit_transform(labels[:, None])[:, 0], -3, 3)
        place = pc.index_in(pa.array(dataset.events.record_ids, pa.string()), value_set=table["record_id"])
        of_record = np.append(labels, np.nan)[place.fill_null(len(labels)).to_numpy()]
        columns.append(of_record[dataset.rows])
    return AuxiliaryTargets(np.array(columns, dtype=np.float32).T, np.array(binary))


@dataclass
class AuxiliaryCollator:
    """Adds `auxiliary_labels` to what the collator of the main task returns."""

    collator: Callable[[Examples], BatchFeature]
    targets: AuxiliaryTargets

    def __call__(self, examples: Examples) -> BatchFeature:
        features = self.collator(examples)
        targets = self.targets.values[examples.indices]
        features["auxiliary_labels"] = by_prediction(features, targets, padding=np.nan)
        return features


class AuxiliaryModel(nn.Module):
    """A classifier with one more linear head for auxiliary targets. Only `classifier` is kept in the end."""

    binary: torch.Tensor

    def __init__(self, classifier: HyMaTEForSequenceClassification, binary: np.ndarray, weight: float):
        super().__init__()
        self.classifier = classifier
        self.heads = nn.Linear(classifier.config.pooler_size, len(binary))
        self.weight = weight
        self.register_buffer("binary", torch.from_numpy(binary))

    def forward(self, auxiliary_labels: torch.Tensor, **inputs) -> ModelOutput:
        """As the classifier; `auxiliary_labels` (batch, [predictions,] targets), NaN where unknown."""
        outputs = self.classifier(**inputs)
        predicted = self.heads(self.classifier.dropout(outputs.pooler_output)).float()
        known = ~auxiliary_labels.isnan()
        labels = auxiliary_labels.masked_fill(~known, 0)
        losses = torch.where(
            self.binary,
            F.binary_cross_entropy_with_logits(predicted, labels, reduction="none"),
            (predicted - labels).square(),
        )
        outputs["loss"] = outputs.loss + self.weight * (losses * known).sum() / known.sum().clamp(min=1)
        return outputs


def without_auxiliary(model: nn.Module) -> HyMaTEForSequenceClassification:
    """The classifier of a model that may carry auxiliary heads."""
    return model.classifier if isinstance(model, AuxiliaryModel) else model  # type: ignore[return-value]
