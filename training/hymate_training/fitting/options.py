"""Hyper-parameters of the training loop, and the field of a dataclass that says what it means."""

import dataclasses
import math
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

TRACKERS = ("tensorboard", "wandb", "trackio")


def option(default: Any, description: str) -> Any:
    """A dataclass field with a sentence about it, which the command line shows as its flag's help."""
    changes = isinstance(default, dict | list)
    factory = {"default_factory": default.copy} if changes else {"default": default}
    return dataclasses.field(**factory, metadata={"help": description})


@dataclass
class LoopOptions:
    """Hyper-parameters of the loop, shared by pretraining and fine-tuning.

    Raises:
        ValueError: for a value out of range, naming the field.
    """

    epochs: int = option(20, "Passes over the training data.")
    batch_size: int = option(32, "Records per step and process.")
    gradient_accumulation_steps: int = option(1, "Batches that make up one optimizer step.")
    learning_rate: float = option(1e-3, "Peak learning rate of AdamW.")
    weight_decay: float = option(0.01, "Weight decay of matrices; vectors, decay rates and embeddings have none.")
    warmup_steps: int = option(100, "Optimizer steps over which the learning rate rises.")
    schedule: str = option("cosine", "Learning rate after the warm-up: cosine, linear or constant_with_warmup.")
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm.")
    ema_decay: float = option(
        0.0, "Decay of the moving average of the weights, which is what is validated and saved; 0 turns it off."
    )
    patience: int = option(10, "Epochs without improvement after which training stops early.")
    variable_dropout: float = option(
        0.2, "Share of each record's variables that are left out in training, as augmentation."
    )
    event_dropout: float = option(
        0.0,
        "Largest share of a record's events that are left out in training, as augmentation; the share itself is drawn "
        "anew for each record, and half of the records of a batch keep all events, as records do in prediction.",
    )
    max_events: int | None = option(None, "Keep only the latest events of longer records.")
    examples_per_record: int | None = option(None, "Draw at most this many of a record's examples for each epoch.")
    mixed_precision: str = option("no", "Precision of the forward pass: no (float32), bf16 or fp16.")
    gradient_checkpointing: bool = option(
        False,
        "Keep only the inputs of each layer and compute the rest anew in the backward pass: less memory, more time.",
    )
    cuda_graphs: bool = option(
        False,
        "Record the kernels of each shape of batch once and launch them together, for small models on a GPU. This is "
        "for one process, without fp16 and gradient_checkpointing, and a resumed run draws other dropout.",
    )
    dataloader_num_workers: int = option(0, "Processes that prepare batches ahead; 0 prepares them in between.")
    seed: int = option(0, "Seed of the initialization, the order of the examples, dropout and augmentation.")
    save_steps: int | None = option(None, "Save the training state every so many steps, as well as every epoch.")
    report_to: str | None = option(None, "Tracker to report to: tensorboard, wandb or trackio.")
    model: dict = option({}, "Fields of HyMaTEConfig.")  # noqa: RUF009 - makes a field with a factory

    def __post_init__(self) -> None:
        _check_types(self)
        counts = ("epochs", "batch_size", "gradient_accumulation_steps", "patience", "examples_per_record")
        for name in (*counts, "max_events", "save_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("ema_decay", "variable_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.event_dropout <= 1:
            raise ValueError(f"event_dropout must lie in [0, 1], got {self.event_dropout}")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.cuda_graphs and (self.mixed_precision == "fp16" or self.gradient_checkpointing):
            raise ValueError("cuda_graphs goes with neither mixed_precision fp16 nor gradient_checkpointing")
        for name in ("weight_decay", "warmup_steps", "dataloader_num_workers", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        choices = {
            "mixed_precision": ("no", "bf16", "fp16"),
            "schedule": ("cosine", "linear", "constant_with_warmup"),
            "report_to": (None, *TRACKERS),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")


def _check_types(options: LoopOptions) -> None:
    """Raise ValueError for the first field that holds another type; whole numbers are also numbers, True is none."""
    for field in dataclasses.fields(options):
        value, is_union = getattr(options, field.name), isinstance(field.type, UnionType)
        kinds = tuple(get_origin(kind) or kind for kind in (get_args(field.type) if is_union else (field.type,)))
        wanted = (*kinds, int) if float in kinds else kinds
        if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join("nothing" if kind is NoneType else kind.__name__ for kind in kinds)
            raise ValueError(f"{field.name} must be {names}, got {value!r}")
