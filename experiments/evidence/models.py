"""What is compared: HyMaTE, its ablations and the baselines, by name."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from experiments.evidence import baselines

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
        baseline: `(prepared folder, task, seed) -> (split -> probabilities)`, for what is not HyMaTE.
    """

    title: str
    model: dict[str, Any] = field(default_factory=dict)
    finetune: dict[str, Any] = field(default_factory=dict)
    static: bool = True
    pretrained: bool = False
    baseline: Callable | None = None


# What costs half as much as the recipe, for what is compared with each other alone.
SHORT = {"epochs": 20, "patience": 20, "learning_rate": 1.5e-3, "schedule": "cosine", "ema_decay": 0.995}


def _ablation(title: str, finetune: dict[str, Any] | None = None, **others: Any) -> Model:
    return Model(f"short training, {title}", finetune=SHORT | (finetune or {}), **others)


# trained like the recipe, pretraining included
HALVES = {
    "attention_only": Model("without Mamba layers", model={"num_mamba_layers": 0}, pretrained=True),
    "mamba_only": Model("without attention layers", model={"num_attention_layers": 0}, pretrained=True),
}
MODELS = {
    "hymate": Model("HyMaTE", pretrained=True),
    "xgboost": Model("XGBoost on summary statistics", baseline=baselines.xgboost),
    "logistic_regression": Model("logistic regression on summary statistics", baseline=baselines.logistic_regression),
    "gru_d": Model("GRU-D", baseline=baselines.gru_d),
    "pretrained": _ablation("pretrained", pretrained=True),
    "scratch": _ablation("from scratch"),
    **HALVES,
    "no_statistics": Model("without statistics in its tokens", model={"num_statistic_bins": 0}, pretrained=True),
    "neither": Model(
        "without Mamba layers and statistics", model={"num_mamba_layers": 0, "num_statistic_bins": 0}, pretrained=True
    ),
    "not_pretrained": Model("without pretraining"),
    "no_demographics": _ablation("from scratch, without demographics", static=False),
    "no_auxiliary": _ablation("from scratch, without auxiliary targets", {"auxiliary_tasks": None}),
    "no_event_dropout": _ablation("from scratch, without dropout of events", {"event_dropout": 0.0}),
    "event_attention": _ablation(
        "from scratch, with attention across events (as in STraTS)",
        model={"attention_axis": "event", "num_statistic_bins": 0},
    ),
}
HOSPITAL_MODELS = {
    "hymate": Model("HyMaTE", pretrained=True),
    "xgboost": Model("XGBoost on summary statistics", baseline=baselines.xgboost),
}
SEPSIS_MODELS = {**HOSPITAL_MODELS, **HALVES}
