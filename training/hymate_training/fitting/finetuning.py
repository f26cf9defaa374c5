"""Fine-tuning: trains a classifier, from a pretrained encoder or from scratch."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from hymate_training.data.collators import TaskCollator, fit_feature_extractor
from hymate_training.data.examples import (
    DrawnTimesDataset,
    TaskDataset,
    ask_at,
    join_splits,
    load_task,
)
from hymate_training.data.prepared_folder import PreparedFolder, open_prepared
from hymate_training.data.schema import TaskInfo
from hymate_training.evaluation.aggregates import asked_last, describe_seen, scores_of, summarize
from hymate_training.evaluation.evaluation import Evaluation, evaluate, labeled
from hymate_training.evaluation.metrics import METRICS, compute_metrics
from hymate_training.files import fingerprint, write_file, write_json
from hymate_training.fitting.auxiliary import AuxiliaryCollator, AuxiliaryModel, load_auxiliary, without_auxiliary
from hymate_training.fitting.calibration import CALIBRATED, calibrate
from hymate_training.fitting.hazards import life_table, time_fields
from hymate_training.fitting.loop import TrainingLoop, from_main, start, write_checkpoint
from hymate_training.fitting.options import LoopOptions, option
from hymate_training.fitting.run import (
    describe_data,
    describe_run,
    finish,
    finished_run,
    make_config,
    run_folder,
)
from hymate_training.fitting.transfer import (
    Transfer,
    compare_variables,
    merge_extractors,
    transfer_weights,
    transferred_config,
)
from hymate_training.inference.checkpoints import (
    EVALUATION_FILE,
    MONITORING_FILE,
    RUN_FILE,
    WEIGHTS_FILE,
    Checkpoint,
    checkpoint_folder,
    checkpoint_name,
    load_checkpoint,
    load_extractor,
    load_model,
    read_json,
    save_checkpoint,
)
from hymate_training.inference.prediction import predict_examples
from modeling_hymate import HyMaTEConfig, HyMaTEFeatureExtractor, HyMaTEForSequenceClassification
from modeling_hymate.hazards import risk_name

PROBLEM_TYPES = {
    "binary": "single_label_classification",
    "multiclass": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
    "time_to_event": "time_to_event",
}
CALIBRATION = ("temperature", "logit_shift")  # fields of the configuration
FITTED_SPLITS = ("train", "validation")
VALIDATED_FOLDER = "validated"  # checkpoint that the evaluation of one that was refitted is of
VALIDATION_HOURS = (6.0, 12.0, 24.0, 36.0, 48.0)
# metrics whose sum, each with this sign, chooses the best checkpoint
SELECTION = {
    "binary": {"auroc": 1, "auprc": 1},
    "multiclass": {"log_loss": -1},
    "multilabel": {"auroc_macro": 1, "auprc_macro": 1},
    "regression": {"rmse": -1},
    "time_to_event": {"concordance": 1, "integrated_brier_score": -1},
}


@dataclass
class FinetuneOptions(LoopOptions):
    """Hyper-parameters of fine-tuning."""

    pos_weight: str | None = option(
        None, "Weight of positives in the loss: a number, or 'balanced' for negatives / positives."
    )
    prediction_times: int | None = option(
        None,
        "Ask each record of a task that has one prediction per record at this many further times, drawn anew for each "
        "epoch between its first event and its prediction time, so that the model can be asked at any hour.",
    )
    auxiliary_tasks: str | None = option(
        None,
        "Further tasks of the prepared folder, separated by commas, that are learned beside the main one in training.",
    )
    auxiliary_weight: float = option(0.3, "Weight of the auxiliary tasks in the loss.")
    time_bins: int = option(
        16,
        "Bins of time of a time-to-event task, each with as many of the training events; fewer where these are few.",
    )
    horizons: str | None = option(
        None,
        "Hours within which a time-to-event model says the risk, separated by commas; where absent, those that it can "
        "answer of 6 hours to 10 years.",
    )
    refit: bool = option(
        False,
        "In the end, train once more on the training and the validation split together, for as many epochs as the "
        "validation split chose, and keep these weights; what is measured and calibrated stays as it was before.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.auxiliary_weight < math.inf:
            raise ValueError(f"auxiliary_weight must not be negative, got {self.auxiliary_weight}")
        if self.prediction_times is not None and self.prediction_times < 1:
            raise ValueError(f"prediction_times must be at least 1, got {self.prediction_times}")
        if self.time_bins < 1:
            raise ValueError(f"time_bins must be at least 1, got {self.time_bins}")


@dataclass(frozen=True, eq=False)
class FinetuneResult:
    """What a fine-tuning run left.

    Attributes:
        output: the run's folder, which is the checkpoint of the best weights.
        history: metrics of each epoch.
        transfer: what the checkpoint it started from and data with other variables have in common; None where they
            have the same, or there was none.
        evaluation: of the best weights on the validation split; None in other processes than the main one.
    """

    output: Path
    history: list[dict[str, Any]]
    evaluation: Evaluation | None
    transfer: Transfer | None = None


def finetune(
    data: str | Path | PreparedFolder,
    task: str,
    output: str | Path,
    options: FinetuneOptions | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    resume: bool = False,
    *,
    command: str | None = None,
) -> FinetuneResult:
    """Fine-tunes a classifier, calibrates it, evaluates it on the validation split and writes its card.

    With `options.refit`, that is done in the folder `validated` of the output. Then the weights of the output are
    trained on both splits for as many epochs; they have the calibration and the evaluation of the former.

    Args:
        data: prepared folder.
        task: task of the prepared folder.
        output: new folder of the run, which becomes the checkpoint of the best weights.
        options: hyper-parameters; their defaults where absent.
        checkpoint: model to start from: its folder or its name on the Hub; from random weights where absent. Variables
            and static columns that it does not know start fresh.
        resume: continue the interrupted run in `output` exactly where it stopped.
        command: the command line that asks for this, for the card.

    Returns:
        The checkpoint's folder, the metrics of each epoch and the evaluation.

    Raises:
        ValueError: if data, task or checkpoint are not there or do not fit, if `output` holds something else, and for
            options that cannot be combined.
        InterruptedRunError: after SIGINT or SIGTERM, once the state is saved.
    """
    options, output, folder = options or FinetuneOptions(), Path(output), open_prepared(data)
    task_info = folder.info.task(task)
    accelerator = start(options, output)
    if resume and (account := from_main(accelerator, partial(finished_run, output, options, task))):
        return FinetuneResult(output, account["history"], _evaluation_in(output))
    if isinstance(checkpoint, Checkpoint):
        checkpoint = checkpoint.path
    if options.refit:
        return _finetune_and_refit(folder, task_info, output, options, checkpoint, resume, command)
    training = _Training.of(folder, task_info, checkpoint, options)
    with run_folder(accelerator, output, resume) as has_state:
        progress = training.loop(accelerator, output, training.validate).run(has_state)
        if not accelerator.is_main_process:
            return FinetuneResult(output, progress.history, None, training.transfer)
        evaluation, calibration = _calibrate_and_evaluate(training, output)
        keep_aggregates(output, training.datasets, task, options.batch_size)
        fingerprints = {split: folder.split_fingerprint(task, split) for split in training.datasets}
        account = describe_run(accelerator, training.model, options, progress) | {
            "command": command,
            "kind": "finetune",
            "checkpoint": None if checkpoint is None else checkpoint_name(checkpoint),
            "task": asdict(task_info),
            **calibration,
            "transfer": training.transfer and asdict(training.transfer),
            **describe_data(folder.info, fingerprints, training.extractor, training.datasets),
        }
        finish(output, account, folder.info)
    return FinetuneResult(output, progress.history, evaluation, training.transfer)


def _evaluation_in(output: Path) -> Evaluation:
    return Evaluation(read_json(output / EVALUATION_FILE), output / EVALUATION_FILE)


@dataclass(frozen=True, eq=False)
class _Training:
    """What is trained, on which examples, and what it is judged by.

    Attributes:
        folder: the prepared folder.
        task: the task.
        start_from: folder of the checkpoint that it starts from; None from random weights.
        transfer: as in `FinetuneResult`.
        extractor: the feature extractor.
        datasets: examples of the training and of the validation split.
        asked: the same, as the model is asked about them; see `ask_through_records`.
        hours: those of the validation split.
        model: the classifier.
        trained: the same, with auxiliary heads if there are any.
        collator: makes its arguments of training examples.
        options: hyper-parameters.
    """

    folder: PreparedFolder
    task: TaskInfo
    start_from: Path | None
    transfer: Transfer | None
    extractor: HyMaTEFeatureExtractor
    datasets: dict[str, TaskDataset]
    asked: dict[str, TaskDataset]
    hours: list[float] | None
    model: HyMaTEForSequenceClassification
    trained: nn.Module
    collator: Callable
    options: FinetuneOptions

    @classmethod
    def of(
        cls, folder: PreparedFolder, task: TaskInfo, checkpoint: str | Path | None, options: FinetuneOptions
    ) -> "_Training":
        """Reads the data and builds the model; errors as of `finetune`."""
        start_from = None if checkpoint is None else checkpoint_folder(checkpoint)
        known = None if start_from is None else load_extractor(start_from)
        extractor = fit_feature_extractor(folder) if known is None else extractor_for(folder, known)
        columns = [column.name for column in folder.info.static_columns]
        transfer = (known and compare_variables(known, folder.info.variables, columns)) or None
        datasets = {split: load_task(folder, task.name, split, extractor.variables) for split in FITTED_SPLITS}
        if options.refit:
            datasets["train"] = join_splits(list(datasets.values()), folder)
        asked, hours = ask_through_records(datasets, extractor, options)
        model = build_model(start_from, known, extractor, task, datasets["train"], options)
        if options.max_events is not None:
            extractor.max_events = options.max_events  # and so for everyone who uses the checkpoint
        trained, collator = _in_training(model, extractor, folder, asked["train"], options)
        fixed = (folder, task, start_from, transfer, extractor, datasets, asked, hours)
        return cls(*fixed, model, trained, collator, options)

    def validate(self, candidate: nn.Module) -> dict[str, float]:
        """`validation_metrics` of the model as it is now."""
        dataset, batch_size = self.asked["validation"], self.options.batch_size
        return validation_metrics(candidate, dataset, self.extractor, self.task, batch_size)

    def save(self, candidate: nn.Module, place: Path) -> None:
        """Writes a checkpoint, without auxiliary heads."""
        save_checkpoint(without_auxiliary(candidate), self.extractor, place)

    def loop(
        self,
        accelerator: Accelerator,
        output: Path,
        validate: Callable[[nn.Module], dict[str, float]] | None,
        stop_after: int | None = None,
    ) -> TrainingLoop:
        """The loop that trains it; `validate` and `stop_after` as there."""
        identity = {
            "data": self.folder.fingerprint,
            "task": self.task.name,
            "checkpoint": self.start_from and fingerprint((self.start_from / WEIGHTS_FILE).read_bytes()),
        }
        titles = METRICS[self.task.problem_type]
        return TrainingLoop(
            *(accelerator, self.trained, self.asked["train"], self.collator, validate, self.save),
            *(self.options, output),
            identity | ({} if stop_after is None else {"stop_after": stop_after}),
            {name: titles[name] for name in SELECTION[self.task.problem_type]},
            stop_after,
        )


def _finetune_and_refit(
    folder: PreparedFolder,
    task: TaskInfo,
    output: Path,
    options: FinetuneOptions,
    checkpoint: str | Path | None,
    resume: bool,
    command: str | None,
) -> FinetuneResult:
    """A run whose validation split says for how many epochs, in `VALIDATED_FOLDER`, and one that trains on both splits
    for as many. The latter's weights, and what the former's evaluation found, make up the checkpoint."""
    training, validated = _Training.of(folder, task, checkpoint, options), output / VALIDATED_FOLDER
    with run_folder(start(options, output), output, resume) as has_state:
        chooses = replace(options, refit=False)
        result = finetune(folder, task.name, validated, chooses, checkpoint, resume and validated.is_dir())
        account = read_json(validated / RUN_FILE)
        best = next(entry["epoch"] for entry in account["history"] if entry["step"] == account["best_step"])
        for name in CALIBRATION:
            setattr(training.model.config, name, account[name])
        accelerator = start(options, output)  # with the seed as it was
        training.loop(accelerator, output, None, best).run(has_state)
        if not accelerator.is_main_process:
            return replace(result, output=output)
        for path in (validated / MONITORING_FILE, *validated.glob(f"{Path(EVALUATION_FILE).stem}*")):
            write_file(output / path.name, path.read_bytes())
        train = training.datasets["train"]
        refit = {"epochs": best, "num_records": len(set(train.rows.tolist())), "num_examples": len(train)}
        finish(output, account | {"command": command, "recipe": asdict(options), "refit": refit}, folder.info)
    return replace(result, output=output, evaluation=_evaluation_in(output))


def _calibrate_and_evaluate(training: _Training, output: Path) -> tuple[Evaluation, dict[str, Any]]:
    """The evaluation of the best weights on the validation split, and what calibrates them on it."""
    best, size = replace(load_checkpoint(output), evaluation=None), training.options.batch_size
    if training.task.problem_type in CALIBRATED:
        collator = TaskCollator(best.extractor)
        calibrate(best.model, training.asked["validation"], collator, size)
        write_checkpoint(best.model, training.save, output)
    path, at, task = output / EVALUATION_FILE, training.hours, training.task.name
    evaluation = evaluate(best, training.folder, task, "validation", path, at=at, batch_size=size)
    return evaluation, {name: getattr(best.model.config, name) for name in CALIBRATION}


def keep_aggregates(checkpoint: Path, datasets: Mapping[str, TaskDataset], task: str, batch_size: int) -> None:
    """Writes the aggregates that `hymate monitor` compares new records with.

    Args:
        checkpoint: folder of a fine-tuned model.
        datasets: its training split, and its validation split, whose predictions are counted: on records that the
            model was trained on they would be surer than on new ones.
        task: name of the task.
        batch_size: records at a time.
    """
    opened = load_checkpoint(checkpoint)
    train, held_out = asked_last(datasets["train"]), asked_last(datasets["validation"])
    held = {column["name"] for column in opened.extractor.static_columns} & set(train.events.static)
    counts = summarize(describe_seen(train, opened.extractor.variables, sorted(held)))
    values = predict_examples(opened.model, held_out, TaskCollator(opened.extractor), batch_size).values
    counts |= summarize({"score": scores_of(opened.model, values)})
    write_json(checkpoint / MONITORING_FILE, {"task": task, "num_records": len(train), "counts": counts})


def ask_through_records(
    datasets: Mapping[str, TaskDataset], extractor: HyMaTEFeatureExtractor, options: FinetuneOptions
) -> tuple[dict[str, TaskDataset], list[float] | None]:
    """The data sets as the model is asked about them in training and validation, and the hours of the latter.

    A task that asks records more than once stays as it is. One that asks once is asked at `options.prediction_times`
    further times if that is set, and in validation at `validation_hours` and its own time. The range of hours goes
    into the extractor, for everyone who uses the checkpoint.

    Raises:
        ValueError: for `options.prediction_times` and a task that asks records more than once.
    """
    train, count = datasets["train"], options.prediction_times
    asked, hours = dict(datasets), None
    extractor.trained_hours = None
    if not train.asks_once:
        if count is not None:
            raise ValueError("prediction_times: the task has prediction times of its own, several per record")
        extractor.trained_hours = [float(train.prediction_times.min()), float(train.prediction_times.max())]
    elif count is not None and len(train):
        asked["train"] = drawn = DrawnTimesDataset(train, count, options.seed)
        extractor.trained_hours = [float(drawn.first.min()), float(drawn.last.max())]
        hours = validation_hours(*extractor.trained_hours)
        asked["validation"] = ask_at(datasets["validation"], hours, own=True)
    return asked, hours


def validation_hours(first: float, last: float) -> list[float]:
    """Hours at which a model that was trained from hour `first` to hour `last` is validated: `VALIDATION_HOURS` up to
    the last, if that is their second at least and twice their last at most, and otherwise the quartiles of the
    range."""
    if VALIDATION_HOURS[1] <= last <= 2 * VALIDATION_HOURS[-1]:
        return [hour for hour in VALIDATION_HOURS if first <= hour <= last]
    return [first + share * (last - first) for share in (0.25, 0.5, 0.75, 1.0)]


def _in_training(
    model: HyMaTEForSequenceClassification,
    extractor: HyMaTEFeatureExtractor,
    folder: PreparedFolder,
    dataset: TaskDataset,
    options: FinetuneOptions,
) -> tuple[nn.Module, Callable]:
    """The model as it is trained, with heads for auxiliary tasks where there are any, and its collator."""
    collator = TaskCollator(
        extractor,
        variable_dropout=options.variable_dropout,
        event_dropout=options.event_dropout,
        seed=options.seed,
    )
    if not options.auxiliary_tasks:
        return model, collator
    names = [name.strip() for name in options.auxiliary_tasks.split(",")]
    splits = FITTED_SPLITS if options.refit else FITTED_SPLITS[:1]
    targets = load_auxiliary(folder, names, splits, dataset)
    return (
        AuxiliaryModel(model, targets.binary, options.auxiliary_weight),
        AuxiliaryCollator(collator, targets),
    )


def validation_metrics(
    model: nn.Module, dataset: TaskDataset, extractor: HyMaTEFeatureExtractor, task: TaskInfo, batch_size: int
) -> dict[str, float]:
    """The metrics of a model that are defined on a split, and their `score`. All processes call this at once."""
    collator = TaskCollator(extractor)
    classifier = without_auxiliary(model)
    times = classifier.config.curve_times
    predicted = predict_examples(classifier, dataset, collator, batch_size, shared=True, horizons=times)
    metrics = compute_metrics(labeled(dataset, predicted.values, task, times))
    known = {name: value for name, value in metrics.items() if value is not None}
    return known | {"score": selection_score(metrics, task)}


def selection_score(metrics: dict[str, float | None], task: TaskInfo) -> float:
    """The sum that chooses the best checkpoint.

    Raises:
        ValueError: if one of its metrics is not defined, such as AUROC where the split holds one class only.
    """
    chosen = SELECTION[task.problem_type]
    undefined = [name for name in chosen if metrics.get(name) is None]
    if undefined:
        raise ValueError(f"{undefined[0]} is not defined on the validation split of {task.name!r}: too few examples")
    return float(sum(sign * (metrics[name] or 0.0) for name, sign in chosen.items()))


def extractor_for(folder: PreparedFolder, known: HyMaTEFeatureExtractor) -> HyMaTEFeatureExtractor:
    """The feature extractor of a checkpoint where it knows all of the folder's variables and the folder has all of its
    static columns, or none; else one that knows what both know as the checkpoint does.

    Raises:
        ValueError: if they share no variable, or only the folder has static columns.
    """
    held, columns = ({column.name for column in folder.info.static_columns}, {c["name"] for c in known.static_columns})
    if set(folder.info.variables) <= set(known.variables) and (columns <= held or not held):
        return known
    return merge_extractors(known, fit_feature_extractor(folder))


def build_model(
    checkpoint: Path | None,
    known: HyMaTEFeatureExtractor | None,
    extractor: HyMaTEFeatureExtractor,
    task: TaskInfo,
    dataset: TaskDataset,
    options: FinetuneOptions,
) -> HyMaTEForSequenceClassification:
    """A classifier for the task, its head's bias set to what the training labels say on average.

    Raises:
        ValueError: for model options that are no fields of the configuration or do not fit the checkpoint.
    """
    labels, names, timed = dataset.labels, task.label_names, {}
    if task.problem_type == "time_to_event":
        timed = time_fields(task, labels, options.time_bins, options.horizons)
        names = tuple(risk_name(timed["event"], hours) for hours in timed["horizons"])
    fields: dict[str, Any] = {
        **options.model,
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": PROBLEM_TYPES[task.problem_type],
        "pos_weight": positive_weight(options.pos_weight, task, labels),
        **dict.fromkeys(("time_bins", "horizons", "event", "logit_shift")),
        "temperature": 1.0,
        **timed,
    }
    if task.problem_type == "regression":
        fields |= {"label_mean": float(labels.mean()), "label_deviation": float(labels.std()) or 1.0}
    if checkpoint is None:
        model = HyMaTEForSequenceClassification(make_config(extractor, fields))
    elif known is None or extractor is known:
        model, _ = load_model(HyMaTEForSequenceClassification, checkpoint, **fields)
    else:
        source, missing = load_model(HyMaTEForSequenceClassification, checkpoint)
        model = HyMaTEForSequenceClassification(transferred_config(source.config, extractor, **fields))
        state = {name: tensor for name, tensor in source.state_dict().items() if name not in missing}
        transfer_weights(model, state, known, extractor)
    bias = prior_bias(task, labels, model.config)
    if bias is not None:
        with torch.no_grad():
            model.classifier.bias.copy_(torch.from_numpy(bias))
    return model


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


def prior_bias(task: TaskInfo, labels: np.ndarray, config: HyMaTEConfig) -> np.ndarray | None:
    """Logits that give every record the training data's average; None where zero is right."""
    if task.problem_type == "regression":
        return None
    if task.problem_type == "time_to_event":
        return life_table(labels, config.time_bins or [])
    if task.problem_type == "multilabel":
        rate = (labels.sum(0) + 1) / (len(labels) + 2)  # Laplace's rule keeps a label nobody has finite
        return np.log(rate / (1 - rate)).astype(np.float32)
    counts = np.bincount(labels, minlength=config.num_labels) + 1
    return np.log(counts / counts.sum()).astype(np.float32)
