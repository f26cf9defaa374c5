"""What HyMaTE is compared with: trees and a linear model on summary statistics, and GRU-D.

Each takes a prepared folder, a seed and the split to predict, trains on the train split, stops early by the validation
split, and returns probabilities in the order of `load_task`.
"""

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

from experiments.evidence.folds import TASK
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


def _load(folder: Path, split: str) -> tuple[HyMaTEFeatureExtractor, dict[str, TaskDataset]]:
    prepared = PreparedFolder(folder)
    extractor = fit_feature_extractor(prepared)
    splits = dict.fromkeys(("train", "validation", split))
    return extractor, {name: load_task(prepared, TASK, name, extractor.variables) for name in splits}


def xgboost(folder: Path, seed: int, split: str = "test") -> np.ndarray:
    """Gradient-boosted trees on summary features."""
    extractor, datasets = _load(folder, split)
    return fit_trees(datasets["train"], datasets["validation"], extractor, seed=seed).predict(datasets[split])


def logistic_regression(folder: Path, seed: int, split: str = "test") -> np.ndarray:
    """L2-penalized logistic regression on the same summary features, imputed by the median with indicators."""
    extractor, datasets = _load(folder, split)
    features = {name: summary_features(dataset, extractor, ONCE_FEATURES) for name, dataset in datasets.items()}
    candidates: list[tuple[float, int, Any]] = []
    for inverse_penalty in INVERSE_PENALTIES:
        model = make_pipeline(
            SimpleImputer(strategy="median", add_indicator=True),
            StandardScaler(),
            LogisticRegression(C=inverse_penalty, max_iter=500, random_state=seed),
        ).fit(features["train"], datasets["train"].labels)
        validation = model.predict_proba(features["validation"])[:, 1]
        candidates.append((log_loss(datasets["validation"].labels, validation), len(candidates), model))
    return min(candidates)[-1].predict_proba(features[split])[:, 1]


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


def gru_d(folder: Path, seed: int, split: str = "test") -> np.ndarray:
    """GRU-D on hourly means; the epoch with the best AUROC + AUPRC of the validation split counts."""
    extractor, datasets = _load(folder, split)
    grids = {name: hourly_grid(dataset, extractor) for name, dataset in datasets.items()}
    static = {
        name: torch.from_numpy(extractor.encode_static(dataset.events.static, len(dataset.events))[dataset.rows])
        for name, dataset in datasets.items()
    }
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = GRUD(extractor.num_variables, static["train"].shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    labels = torch.tensor(datasets["train"].labels, dtype=torch.float32)
    best, kept = -np.inf, np.zeros(0)

    @torch.no_grad()
    def predict(name: str) -> np.ndarray:
        model.eval()
        parts = zip(grids[name].split(256, dim=1), static[name].split(256), strict=True)
        return torch.cat([model(*part) for part in parts]).sigmoid().numpy()

    for _ in range(GRU_EPOCHS):
        model.train()
        for rows in np.array_split(rng.permutation(len(labels)), max(1, len(labels) // GRU_BATCH)):
            logits = model(grids["train"][:, rows], static["train"][rows])
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        probabilities, truth = predict("validation"), datasets["validation"].labels
        score = roc_auc_score(truth, probabilities) + average_precision_score(truth, probabilities)
        if score > best:
            best, kept = score, predict(split)
    return kept
