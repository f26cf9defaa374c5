"""Distillation: a classifier also learns the probabilities that gradient-boosted trees give its training examples.

A label says that a patient died; a teacher's probability says how surprising that was. The trees are cross-fitted:
they judge an example only where neither it nor another one of its record was among those that they learned from
(knowledge distillation, Hinton et al., arXiv 1503.02531; with cross-fitting, Dao et al., arXiv 2104.09732).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import StratifiedGroupKFold
from torch import nn
from tqdm.auto import tqdm
from transformers import BatchFeature
from transformers.utils import ModelOutput

from hymate_training.collation import Examples, TaskDataset
from hymate_training.records import TaskInfo
from hymate_training.summary_features import summary_features
from modeling_hymate import HyMaTEFeatureExtractor

NUM_FOLDS = 5
REPEATS = 4  # of the folds, drawn anew: the mean over them is steadier


def cross_fitted_trees(
    dataset: TaskDataset, extractor: HyMaTEFeatureExtractor, task: TaskInfo, seed: int
) -> np.ndarray:
    """Probabilities `(examples, labels)` from trees on `summary_features` of the other folds' records.

    The trees' settings are fixed, and meant for some thousand examples.

    Raises:
        ValueError: for a task that is neither binary nor multiclass, or with examples of fewer than `NUM_FOLDS`
            records in a class.
    """
    if task.problem_type not in ("binary", "multiclass"):
        raise ValueError(
            f"teacher_weight applies to binary and multiclass tasks, but {task.name!r} is {task.problem_type}"
        )
    for label, name in enumerate(task.label_names):
        found = len(np.unique(dataset.rows[dataset.labels == label]))
        if found < NUM_FOLDS:
            raise ValueError(
                f"teacher_weight needs training examples of at least {NUM_FOLDS} records in every class, but "
                f"{name!r} of {task.name!r} has {found}: leave it at 0"
            )
    features = summary_features(dataset, extractor)
    logarithms = np.zeros((len(dataset), len(task.label_names)))
    with tqdm(total=REPEATS * NUM_FOLDS, desc="teacher", unit="fit", leave=False) as bar:
        for repeat in range(REPEATS):
            folds = StratifiedGroupKFold(NUM_FOLDS, shuffle=True, random_state=seed + repeat)
            for others, held_out in folds.split(features, dataset.labels, dataset.rows):
                trees = HistGradientBoostingClassifier(
                    learning_rate=0.04,
                    max_iter=200,
                    max_leaf_nodes=12,
                    l2_regularization=5.0,
                    max_features=0.1,
                    early_stopping=False,
                    random_state=seed + repeat,
                )
                trees.fit(features[others], dataset.labels[others])
                logarithms[held_out] += np.log(trees.predict_proba(features[held_out])) / REPEATS
                bar.update()
    return np.exp(logarithms) / np.exp(logarithms).sum(1, keepdims=True)


@dataclass
class TeacherCollator:
    """Adds `teacher_probabilities` to what the collator of the task returns."""

    collator: Callable[[Examples], BatchFeature]
    probabilities: np.ndarray

    def __call__(self, examples: Examples) -> BatchFeature:
        features = self.collator(examples)
        features["teacher_probabilities"] = torch.from_numpy(self.probabilities[examples.indices]).float()
        return features


class TaughtModel(nn.Module):
    """A classifier whose loss is a mean of its own and of the cross-entropy with a teacher's probabilities."""

    def __init__(self, classifier: nn.Module, weight: float):
        super().__init__()
        self.classifier = classifier
        self.weight = weight

    def forward(self, teacher_probabilities: torch.Tensor, **inputs) -> ModelOutput:
        """As the classifier; `teacher_probabilities` (batch, labels). The teacher counts `weight`, the label the
        rest."""
        outputs = self.classifier(**inputs)
        taught = F.cross_entropy(outputs.logits.float(), teacher_probabilities)
        outputs["loss"] = (1 - self.weight) * outputs.loss + self.weight * taught
        return outputs
