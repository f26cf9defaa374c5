"""What is asked: on each target, four ways to a model, on shares of its labels."""

from dataclasses import dataclass, field
from typing import Any

from experiments.evidence.studies import FIGURES

PERCENTAGES = (1, 5, 10, 25, 100)  # of the labels
ARMS = {
    "others": "pretrained on other sources",
    "scratch": "from scratch",
    "same": "pretrained on the same source",
    "xgboost": "XGBoost",
}


@dataclass(frozen=True)
class Target:
    """A source that the encoder of the others never saw.

    Attributes:
        title: as it is printed.
        source: of `experiments.icu.sources.SOURCES`.
        splits: of its prepared folder, whose records make up the folds.
        task: what is predicted.
        others: sources whose train and validation splits the encoder is pretrained on.
        finetune: options of `hymate finetune`, beside the recipe's.
        thresholds: from which probability on there is an alarm, for the net benefit.
        figures: metrics whose resamples are kept, so that differences are paired later on.
    """

    title: str
    source: str
    splits: tuple[str, ...]
    task: str
    others: tuple[str, ...]
    finetune: dict[str, Any] = field(default_factory=dict)
    thresholds: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    figures: tuple[str, ...] = FIGURES


# half of what the recipe trains, for what is compared with each other alone
SHORT = {"epochs": 20, "patience": 20, "learning_rate": 1.5e-3, "schedule": "cosine", "ema_decay": 0.995}
# an epoch has four hours of each patient: neighboring ones say nearly the same
HOURLY = SHORT | {"epochs": 12, "examples_per_record": 4, "event_dropout": 0.2}
TARGETS = {
    "mortality": Target(
        "in-hospital mortality, PhysioNet 2012",
        "p12",
        ("train", "validation"),
        "in_hospital_mortality",
        ("p19", "eicu", "mimic3", "mimic4"),
        SHORT,
    ),
    "sepsis": Target(
        "sepsis, PhysioNet 2019, hospital A",
        "p19",
        ("train", "validation"),
        "sepsis_onset",
        ("p12", "eicu", "mimic3", "mimic4"),
        HOURLY,
    ),
    "hospital_b": Target("sepsis, from hospital A to hospital B", "p19", ("test",), "sepsis_onset", ("p19",), HOURLY),
}
