"""What is compared: HyMaTE, its ablations and the baselines, by name."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.evidence import baselines

PERCENTAGES = (5, 10, 25)  # of the labels, where pretraining is compared with training from scratch


@dataclass(frozen=True)
class Model:
    """A row of the tables: HyMaTE with other settings than the recipe's, or a baseline.

    Attributes:
        title: as it is printed.
        model: fields of the configuration that differ from the recipe's.
        finetune: options of `hymate finetune` that differ from it.
        static: whether it sees the demographics.
        pretrained: start from an encoder that was pretrained on the fold's training records.
        baseline: `(prepared folder, seed) -> probabilities of the test split`, for what is not HyMaTE.
    """

    title: str
    model: dict[str, Any] = field(default_factory=dict)
    finetune: dict[str, Any] = field(default_factory=dict)
    static: bool = True
    pretrained: bool = False
    baseline: Callable | None = None


MODELS = {
    "pretrained": Model("HyMaTE", pretrained=True),
    "hymate": Model("HyMaTE, from scratch"),
    "xgboost": Model("XGBoost on summary statistics", baseline=baselines.xgboost),
    "logistic_regression": Model("logistic regression on summary statistics", baseline=baselines.logistic_regression),
    "gru_d": Model("GRU-D", baseline=baselines.gru_d),
    "attention_only": Model("from scratch, without Mamba layers", model={"num_mamba_layers": 0}),
    "mamba_only": Model("from scratch, without attention layers", model={"num_attention_layers": 0}),
    "no_statistics": Model("from scratch, without statistics in its tokens", model={"num_statistic_bins": 0}),
    "no_demographics": Model("from scratch, without demographics", static=False),
    "no_auxiliary": Model("from scratch, without auxiliary targets", finetune={"auxiliary_tasks": None}),
    "no_event_dropout": Model("from scratch, without dropout of events", finetune={"event_dropout": 0.0}),
    "event_attention": Model(
        "from scratch, with attention across events (as in STraTS)",
        model={"attention_axis": "event", "num_statistic_bins": 0},
    ),
}
FEW_LABELS = ("hymate", "pretrained", "xgboost")  # what is compared on some of the labels
UNITS = [(name, 100) for name in MODELS] + [(name, percent) for percent in PERCENTAGES for name in FEW_LABELS]
