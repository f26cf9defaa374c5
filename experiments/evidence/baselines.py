"""What HyMaTE is compared with: trees and a linear model on summary statistics, and GRU-D.

Each takes a prepared folder, a task of it and a seed, trains on the train split, stops early by the validation split,
and returns a function from a split to its probabilities, in the order of `load_task`.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from hymate_training.data.collators import fit_feature_extractor
from hymate_training.data.examples import TaskDataset, load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.evaluation.summary_features import ONCE_FEATURES, summary_features
from hymate_training.evaluation.trees import fit_trees
from modeling_hymate import HyMaTEFeatureExtractor

HOURS = 48
GRU_EPOCHS = 25
GRU_BATCH = 64
INVERSE_PENALTIES = (0.0003, 0.001, 0.003, 0.01, 0.03)  # of which the validation split chooses one, by log-loss


Predict = Callable[[str], np.ndarray]


class _Splits:
    """The examples of a task, each split read once, and an extractor that fits the training split."""

    def __init__(self, folder: Path, task: str):
        self.folder, self.task = PreparedFolder(folder), task
        self.held: dict[str, TaskDataset] = {}
        self.extractor = fit_feature_extractor(self.folder)

    def __getitem__(self, split: str) -> TaskDataset:
        if split not in self.held:
            self.held[split] = load_task(self.folder, self.task, split, self.extractor.variables)
        return self.held[split]


def xgboost(folder: Path, task: str, seed: int) -> Predict:
    """Gradient-boosted trees on summary features."""
    splits = _Splits(folder, task)
    trees = fit_trees(splits["train"], splits["validation"], splits.extractor, seed=seed)
    return lambda split: trees.predict(splits[split])


def logistic_regression(folder: Path, task: str, seed: int) -> Predict:
    """L2-penalized logistic regression on the same summary features, imputed by the median with indicators."""
    splits = _Splits(folder, task)

    def features(split: str) -> np.ndarray:
        return summary_features(splits[split], splits.extractor, ONCE_FEATURES)

    seen, held_out = features("train"), features("validation")
    candidates: list[tuple[float, int, Any]] = []
    for inverse_penalty in INVERSE_PENALTIES:
        model = make_pipeline(
            SimpleImputer(strategy="median", add_indicator=True),
            StandardScaler(),
            LogisticRegression(C=inverse_penalty, max_iter=500, random_state=seed),
        ).fit(seen, splits["train"].labels)
        loss = log_loss(splits["validation"].labels, model.predict_proba(held_out)[:, 1])
        candidates.append((loss, len(candidates), model))
    best = min(candidates)[-1]
    return lambda split: best.predict_proba(features(split))[:, 1]


class GRUD(nn.Module):
    """GRU-D (Che et al., arXiv 1606.01865): a GRU over hours; unmeasured inputs and the state decay."""

    def __init__(self, num_variables: int, num_static: int, hidden_size: int = 64):
        super().__init__()
        self.input_decay = nn.Parameter(torch.zeros(2, num_variables))
        self.state_decay = nn.Linear(num_variables, hidden_size)
        self.cell = nn.GRUCell(2 * num_variables, hidden_size)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(hidden_size + num_static, 1)

    def forward(self, grid: torch.Tensor, static: torch.Tensor) -> torch.Tensor:
        """grid (3, batch, hours, variables): means by hour with 0 (the mean) where missing, mask, hours since the last
        measurement; returns logits (batch,)."""
        values, mask, since = grid
        last = torch.zeros_like(values[:, 0])
        state = values.new_zeros(len(values), self.head.in_features - static.shape[1])
        scale, offset = self.input_decay
        for hour in range(values.shape[1]):
            decay = torch.exp(-torch.relu(scale * since[:, hour] + offset))
            last = torch.where(mask[:, hour] > 0, values[:, hour], last)
            seen = torch.where(mask[:, hour] > 0, values[:, hour], decay * last)
            state = state * torch.exp(-torch.relu(self.state_decay(since[:, hour])))
            state = self.cell(torch.cat([seen, mask[:, hour]], 1), state)
        return self.head(torch.cat([self.dropout(state), static], 1)).squeeze(1)


def hourly_grid(dataset: TaskDataset, extractor: HyMaTEFeatureExtractor) -> torch.Tensor:
    """The input of `GRUD`, (3, examples, hours, variables), standardized; hours since a measurement over 24."""
    events = dataset.events.take(dataset.rows)
    shape = (len(events), HOURS, extractor.num_variables)
    hours = np.minimum(events.times.astype(np.int64), HOURS - 1)
    cells = np.ravel_multi_index((events.rows, hours, events.variable_ids), shape)
    counts = np.bincount(cells, minlength=np.prod(shape))
    sums = np.bincount(cells, extractor.standardize(events.variable_ids, events.values), minlength=np.prod(shape))
    mask = (counts > 0).reshape(shape)
    values = (sums / np.maximum(counts, 1)).reshape(shape)
    since = np.zeros(shape)
    for hour in range(1, HOURS):
        since[:, hour] = np.where(mask[:, hour - 1], 1, since[:, hour - 1] + 1)
    return torch.from_numpy(np.stack([values, mask, since / 24]).astype(np.float32))


def gru_d(folder: Path, task: str, seed: int) -> Predict:
    """GRU-D on hourly means; the epoch with the best AUROC + AUPRC of the validation split counts."""
    splits = _Splits(folder, task)
    train, validation = splits["train"], splits["validation"]
    grid, static = _grid(train, splits.extractor)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = GRUD(splits.extractor.num_variables, static.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    labels = torch.tensor(train.labels, dtype=torch.float32)
    held_out = _grid(validation, splits.extractor)
    best, kept = -np.inf, model
    for _ in range(GRU_EPOCHS):
        model.train()
        for rows in np.array_split(rng.permutation(len(labels)), max(1, len(labels) // GRU_BATCH)):
            logits = model(grid[:, rows], static[rows])
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        probabilities = _answers(model, *held_out)
        score = roc_auc_score(validation.labels, probabilities)
        score += average_precision_score(validation.labels, probabilities)
        if score > best:
            best, kept = score, copy.deepcopy(model)
    return lambda split: _answers(kept, *_grid(splits[split], splits.extractor))


def _grid(dataset: TaskDataset, extractor: HyMaTEFeatureExtractor) -> tuple[torch.Tensor, torch.Tensor]:
    static = extractor.encode_static(dataset.events.static, len(dataset.events))[dataset.rows]
    return hourly_grid(dataset, extractor), torch.from_numpy(static)


@torch.no_grad()
def _answers(model: GRUD, grid: torch.Tensor, static: torch.Tensor) -> np.ndarray:
    model.eval()
    parts = zip(grid.split(256, dim=1), static.split(256), strict=True)
    return torch.cat([model(*part) for part in parts]).sigmoid().numpy()
