"""Gradient-boosted trees on summary features, tuned on a validation split: what a model is compared with."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from hymate_training.data.examples import ExampleDataset, TaskDataset
from hymate_training.evaluation.summary_features import HOURLY_FEATURES, ONCE_FEATURES, FeatureSet, summary_features
from modeling_hymate import HyMaTEFeatureExtractor

if TYPE_CHECKING:
    import xgboost

FIXED = {"objective": "binary:logistic", "eval_metric": "logloss", "subsample": 0.7, "reg_lambda": 5}


@dataclass(frozen=True)
class Search:
    """What trees see, and what the log-loss of the validation split chooses from.

    Attributes:
        features: of each example.
        settings: of XGBoost, one of which is chosen.
        learning_rate: of all of them.
        most_trees: that are grown.
        patience: how many trees may pass without a gain.
    """

    features: FeatureSet
    settings: tuple[Mapping[str, float], ...]
    learning_rate: float
    most_trees: int
    patience: int


# of records that are asked once: thousands of rows, a few seconds for each setting
ONCE = Search(
    features=ONCE_FEATURES,
    settings=tuple(
        {"max_depth": depth, "min_child_weight": weight, "colsample_bytree": share}
        for depth, weight, share in product((3, 4, 6), (1, 5, 20), (0.1, 0.3))
    ),
    learning_rate=0.03,
    most_trees=2000,
    patience=60,
)
# of records that are asked many times, whose neighboring rows say nearly the same
HOURLY = Search(
    features=HOURLY_FEATURES,
    settings=tuple(
        {"max_depth": depth, "min_child_weight": weight, "colsample_bytree": 0.3}
        for depth, weight in ((4, 10), (6, 50), (8, 200))
    ),
    learning_rate=0.05,
    most_trees=1000,
    patience=30,
)


@dataclass(frozen=True, eq=False)
class Trees:
    """Trees that were grown, and how.

    Attributes:
        booster: of XGBoost.
        extractor: knows the variables and static columns.
        features: of each example.
        settings: that were chosen, `num_trees` and `num_features` among them.
    """

    booster: "xgboost.Booster"
    extractor: HyMaTEFeatureExtractor
    features: FeatureSet
    settings: dict[str, Any]

    def predict(self, dataset: ExampleDataset) -> np.ndarray:
        """The probability of the second label in each example, `(examples,)`."""
        matrix = import_xgboost().DMatrix(summary_features(dataset, self.extractor, self.features))
        probabilities = self.booster.predict(matrix, iteration_range=(0, self.settings["num_trees"]))
        return probabilities.astype(np.float64)


def fit_trees(
    train: TaskDataset,
    validation: TaskDataset,
    extractor: HyMaTEFeatureExtractor,
    *,
    seed: int = 0,
    search: Search | None = None,
) -> Trees:
    """Grows trees on one split, and chooses settings and their number by the log-loss of another.

    Args:
        train: examples of a binary task.
        validation: others of it.
        extractor: knows their variables and static columns.
        seed: of the rows and features that each tree sees.
        search: what is chosen from; `ONCE` or `HOURLY` as the task asks, where absent.

    Raises:
        ValueError: where XGBoost is not installed, and where a split has one label only.
    """
    xgboost = import_xgboost()
    for name, dataset in (("train", train), ("validation", validation)):
        if len(np.unique(dataset.labels)) < 2:
            raise ValueError(f"trees need both labels, but all {len(dataset):,} examples of the {name} split have one")
    search = search or (ONCE if train.asks_once else HOURLY)
    grown, held_out = (
        xgboost.DMatrix(summary_features(dataset, extractor, search.features), dataset.labels)
        for dataset in (train, validation)
    )
    fixed = FIXED | {"eta": search.learning_rate, "nthread": torch.get_num_threads(), "seed": seed}
    boosters = [
        xgboost.train(
            fixed | dict(settings),
            grown,
            search.most_trees,
            evals=[(held_out, "validation")],
            early_stopping_rounds=search.patience,
            verbose_eval=False,
        )
        for settings in tqdm(search.settings, desc="XGBoost", unit="setting", leave=False, disable=None)
    ]
    best = min(range(len(boosters)), key=lambda at: boosters[at].best_score)
    settings = {
        **search.settings[best],
        "learning_rate": search.learning_rate,
        "num_trees": boosters[best].best_iteration + 1,
        "num_features": grown.num_col(),
    }
    return Trees(boosters[best], extractor, search.features, settings)


def import_xgboost() -> Any:
    """The module; ValueError that says how to get it where it is not installed."""
    try:
        import xgboost  # noqa: PLC0415 - an extra of its own
    except ModuleNotFoundError as error:
        raise ValueError("the baseline xgboost needs XGBoost: pip install 'hymate[trees]'") from error
    return xgboost
