"""`hymate finetune`: trains a classifier, from a pretrained encoder or from scratch."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from hymate_training.cli.options import add_option_flags, option, read_options
from hymate_training.data.collation import (
    ExampleDataset,
    TaskCollator,
    TaskDataset,
    check_static_columns,
    fit_feature_extractor,
    load_task,
)
from hymate_training.data.prepared_folder import data_fingerprint, fingerprint, read_info, split_fingerprint
from hymate_training.data.schema import TaskInfo
from hymate_training.evaluation.evaluation import EVALUATION_FILE, evaluate, format_evaluation, task_predictions
from hymate_training.evaluation.metrics import compute_metrics
from hymate_training.fitting import loop
from hymate_training.fitting.auxiliary import AuxiliaryCollator, AuxiliaryModel, load_auxiliary, without_auxiliary
from hymate_training.fitting.calibration import calibrate
from hymate_training.inference.prediction import checkpoint_folder, load_checkpoint, predict_examples
from hymate_training.publishing.cards import write_model_card
from modeling_hymate import HyMaTEConfig, HyMaTEFeatureExtractor, HyMaTEForSequenceClassification

PROBLEM_TYPES = {
    "binary": "single_label_classification",
    "multiclass": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}
# figures whose sum chooses the best checkpoint
SELECTION = {
    "binary": {"auroc": 1, "auprc": 1},
    "multiclass": {"log_loss": -1},
    "multilabel": {"auroc_macro": 1, "auprc_macro": 1},
    "regression": {"rmse": -1},
}


@dataclass
class FinetuneOptions(loop.LoopOptions):
    """Hyper-parameters of fine-tuning."""

    pos_weight: str | None = option(
        None, "weight of positives in the loss: a number, or 'balanced' for negatives / positives"
    )
    auxiliary_tasks: str | None = option(
        None, "further tasks of the prepared folder, separated by commas, that are learned beside the main one"
    )
    auxiliary_weight: float = option(0.3, "weight of the auxiliary tasks in the loss")

    def __post_init__(self):
        super().__post_init__()
        if self.auxiliary_weight < 0:
            raise ValueError(f"auxiliary_weight must not be negative, got {self.auxiliary_weight}")


def add_arguments(parser: argparse.ArgumentParser):
    parser.add_argument("--data", type=Path, required=True, help="prepared folder")
    parser.add_argument("--task", required=True, help="task of the prepared folder")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run and its best checkpoint")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="pretrained model to start from: its folder, or its name on the Hub; from scratch without",
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --output where it stopped")
    add_option_flags(parser, FinetuneOptions)


def run(args: argparse.Namespace) -> str:
    """Fine-tunes; returns the validation figures to print."""
    options = read_options(FinetuneOptions, "finetune", args)
    info = read_info(args.data)
    task = info.task(args.task)
    accelerator = loop.start(options, args.output)
    checkpoint = None if args.checkpoint is None else checkpoint_folder(args.checkpoint)
    extractor = load_extractor(checkpoint, args.data)
    datasets = {
        split: load_task(args.data, task.name, split, extractor.variables) for split in ("train", "validation")
    }
    model = build_model(checkpoint, extractor, task, datasets["train"], options)
    if options.max_events is not None:
        extractor.max_events = options.max_events  # and so for everyone who uses the checkpoint
    collator = partial(TaskCollator, extractor, seed=options.seed)
    trained: nn.Module = model
    train_collator: Callable = collator(variable_dropout=options.variable_dropout, event_dropout=options.event_dropout)
    if options.auxiliary_tasks:
        names = [name.strip() for name in options.auxiliary_tasks.split(",")]
        targets = load_auxiliary(args.data, names, "train", datasets["train"])
        trained = AuxiliaryModel(model, targets.binary, options.auxiliary_weight)
        train_collator = AuxiliaryCollator(train_collator, targets)

    def validate(candidate: nn.Module) -> dict[str, float]:
        candidate = without_auxiliary(candidate)
        shard = (accelerator.process_index, accelerator.num_processes)
        predicted = predict_examples(candidate, datasets["validation"], collator(), options.batch_size, *shard)
        indices, values = loop.gather_predictions(accelerator, predicted.indices, predicted.values)
        ordered = np.empty_like(values)
        ordered[indices] = values
        figures = compute_metrics(task.problem_type, datasets["validation"].labels, task_predictions(ordered, task))
        return {name: value for name, value in figures.items() if value is not None} | {
            "score": selection_score(figures, task)
        }

    def save(candidate: nn.Module, folder: Path):
        without_auxiliary(candidate).save_pretrained(folder)
        extractor.save_pretrained(folder)

    loop.from_main(accelerator, partial(loop.prepare_output, args.output, args.resume))
    progress = loop.train(
        accelerator,
        trained,
        datasets["train"],
        train_collator,
        validate,
        save,
        options,
        args.output,
        args.resume,
        identity={
            "data": data_fingerprint(args.data),
            "task": task.name,
            "checkpoint": checkpoint and fingerprint((checkpoint / "model.safetensors").read_bytes()),
        },
    )
    if not accelerator.is_main_process:
        return ""
    account = loop.describe_run(accelerator, model, options, progress) | {
        "kind": "finetune",
        "checkpoint": None if args.checkpoint is None else args.checkpoint.name,
        "task": asdict(task),
        "temperature": None,
        **describe_data(args.data, task, extractor, datasets),
    }
    best, _ = load_checkpoint(args.output)
    if task.problem_type != "regression":
        calibrate(best, datasets["validation"], collator(), options.batch_size)
        loop.write_checkpoint(best, save, args.output)
        account["temperature"] = best.config.temperature
    loop.write_json(args.output / loop.RUN_FILE, account)
    evaluation = evaluate(
        best,
        extractor,
        args.data,
        task.name,
        "validation",
        args.output / EVALUATION_FILE,
        options.batch_size,
    )
    write_model_card(args.output)
    loop.finish(args.output)
    return f"{format_evaluation(evaluation)}\n\n{args.output}"


def selection_score(figures: dict[str, float | None], task: TaskInfo) -> float:
    """The sum that chooses the best checkpoint.

    Raises:
        ValueError: if one of its figures is not defined, such as AUROC where the split holds one class only.
    """
    chosen = SELECTION[task.problem_type]
    undefined = [name for name in chosen if figures.get(name) is None]
    if undefined:
        raise ValueError(f"{undefined[0]} is not defined on the validation split of {task.name!r}: too few examples")
    return float(sum(sign * (figures[name] or 0.0) for name, sign in chosen.items()))


def load_extractor(checkpoint: Path | None, data: Path) -> HyMaTEFeatureExtractor:
    """The checkpoint's feature extractor, or one fitted on the training records of `data`."""
    if checkpoint is None:
        return fit_feature_extractor(data)
    extractor = HyMaTEFeatureExtractor.from_pretrained(checkpoint)
    check_static_columns(data, extractor)
    return extractor


def build_model(
    checkpoint: Path | None,
    extractor: HyMaTEFeatureExtractor,
    task: TaskInfo,
    dataset: TaskDataset,
    options: FinetuneOptions,
) -> HyMaTEForSequenceClassification:
    """A classifier for the task, its head's bias set to what the training labels say on average.

    Raises:
        ValueError: for model options that are no fields of the configuration or do not fit the checkpoint.
    """
    labels = dataset.labels
    fields: dict[str, Any] = {
        **options.model,
        "id2label": dict(enumerate(task.label_names)),
        "label2id": {name: index for index, name in enumerate(task.label_names)},
        "problem_type": PROBLEM_TYPES[task.problem_type],
        "pos_weight": positive_weight(options.pos_weight, task, labels),
    }
    if task.problem_type == "regression":
        fields |= {"label_mean": float(labels.mean()), "label_deviation": float(labels.std()) or 1.0}
    if checkpoint is None:
        model = HyMaTEForSequenceClassification(make_config(extractor, fields))
    else:
        try:
            model = HyMaTEForSequenceClassification.from_pretrained(checkpoint, **fields)
        except (RuntimeError, TypeError, StrictDataclassError) as error:
            raise ValueError(f"{checkpoint} does not fit the model options {options.model}: {error}") from error
    bias = prior_bias(task, labels, len(task.label_names))
    if bias is not None:
        with torch.no_grad():
            model.classifier.bias.copy_(torch.from_numpy(bias))
    return model


def make_config(extractor: HyMaTEFeatureExtractor, fields: dict[str, Any]) -> HyMaTEConfig:
    """A configuration for the extractor's variables and static features.

    Raises:
        ValueError: for fields that HyMaTEConfig does not have, or values it refuses.
    """
    sizes = {
        "num_variables": extractor.num_variables,
        "num_static_features": len(extractor.static_feature_names),
        "time_scale": extractor.time_scale,
    }
    for name in fields:
        if name in sizes:
            raise ValueError(f"model options: {name} follows from the data and cannot be set")
        if not hasattr(HyMaTEConfig(), name) or isinstance(getattr(HyMaTEConfig, name, None), property):
            raise ValueError(f"HyMaTEConfig has no field {name!r} to be set")
    try:
        return HyMaTEConfig(**sizes, **fields)
    except StrictDataclassError as error:
        raise ValueError(f"model options: {error}") from error


def positive_weight(given: str | None, task: TaskInfo, labels: np.ndarray) -> float | list[float] | None:
    """`pos_weight` of the configuration from the option: a number, or negatives / positives for `"balanced"`."""
    if given is None:
        return None
    if task.problem_type not in ("binary", "multilabel"):
        raise ValueError(
            f"pos_weight applies to binary and multilabel tasks, but {task.name!r} is {task.problem_type}"
        )
    if given != "balanced":
        try:
            return float(given)
        except ValueError:
            raise ValueError(f"pos_weight must be a number or 'balanced', got {given!r}") from None
    rate = labels.mean(0)
    if np.any((rate == 0) | (rate == 1)):
        raise ValueError(f"pos_weight='balanced' needs positives and negatives of every label of {task.name!r}")
    ratio = (1 - rate) / rate
    return float(ratio) if task.problem_type == "binary" else [float(weight) for weight in ratio]


def prior_bias(task: TaskInfo, labels: np.ndarray, num_labels: int) -> np.ndarray | None:
    """Logits that give every record the training data's average; None where zero is right."""
    if task.problem_type == "regression":
        return None
    if task.problem_type == "multilabel":
        rate = (labels.sum(0) + 1) / (len(labels) + 2)  # Laplace's rule keeps a label nobody has finite
        return np.log(rate / (1 - rate)).astype(np.float32)
    counts = np.bincount(labels, minlength=num_labels) + 1
    return np.log(counts / counts.sum()).astype(np.float32)


def describe_data(
    data: Path, task: TaskInfo | None, extractor: HyMaTEFeatureExtractor, datasets: Mapping[str, ExampleDataset]
) -> dict[str, Any]:
    """What a model card says about the data a model was trained on."""
    info = read_info(data)
    return {
        "data": {
            "source": info.source,
            "license": info.license,
            "citation": info.citation,
            "description": info.extra.get("description"),
            "split_description": info.split_description,
            "dropped": info.dropped,
        },
        "split_fingerprints": {
            split: split_fingerprint(data, task.name, split) for split in datasets if task is not None
        },
        "num_records": {split: len(set(dataset.rows.tolist())) for split, dataset in datasets.items()},
        "num_examples": {split: len(dataset) for split, dataset in datasets.items()},
        "preprocessing": {
            "num_variables": extractor.num_variables,
            "num_logarithmic": sum(median is not None for median in extractor.value_medians),
            "static_features": extractor.static_feature_names,
            "time_scale_hours": extractor.time_scale,
        },
    }
