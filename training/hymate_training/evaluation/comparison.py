"""Two models on the same examples, with paired intervals of their differences."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hymate_training.data.collators import TaskCollator
from hymate_training.data.examples import check_static_columns, load_task
from hymate_training.data.prepared_folder import PreparedFolder, open_prepared
from hymate_training.evaluation.baseline import check_baseline, read_baseline
from hymate_training.evaluation.evaluation import check_task, labeled
from hymate_training.evaluation.metrics import format_differences, paired_difference
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.files import followed, write_json
from hymate_training.inference.checkpoints import RUN_FILE, Checkpoint, check_json_output, load_checkpoint, read_kept
from hymate_training.inference.prediction import BATCH_SIZE, predict_examples

NUM_SAMPLES, LEVEL = 1000, 0.95


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a comparison found.

    Attributes:
        content: what the JSON holds: `runs` (the names of both), `task`, `split`, `source`, `split_fingerprint`,
            `problem_type`, `n` (examples), `num_records`, `differences` (metric -> `a`, `b`, `difference`: the first
            minus the second, and its `interval`) and `bootstrap`.
        output: the JSON file; None where nothing was written.
    """

    content: dict[str, Any]
    output: Path | None


def compare(
    first: str | Path,
    second: str | Path,
    data: str | Path | PreparedFolder,
    task: str,
    split: str = "validation",
    output: str | Path | None = None,
    *,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    max_events: int | None = None,
) -> Comparison:
    """Compares two models on a split of a task.

    Intervals come from resampled records, the same for both models, so that what they share cancels.

    Args:
        first: a fine-tuned model: its folder, or its name on the Hub; or a file of predictions as `read_baseline`
            takes them.
        second: the same.
        data: prepared folder.
        task: its task.
        split: train, validation or test.
        output: JSON file to write.
        num_samples: resamples of the records.
        seed: of these.
        batch_size: records at a time.
        max_events: keep only the latest events of longer records; as in each model's training where absent.

    Returns:
        The comparison, and where it was written.

    Raises:
        ValueError: if both are the same run, if the models were fine-tuned for different tasks, or chosen on different
            validation splits, for predictions that lack an example, if data, task or split are not there, and as
            `check_json_output` and `load_checkpoint` do.
    """
    if output is not None:
        check_json_output(output, ("runs", "task", "differences"))
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if followed(first) == followed(second):
        raise ValueError(f"{first} and {second} are the same run: name two")
    folder, names = open_prepared(data), _names(first, second)
    models = [run if Path(run).is_file() else load_checkpoint(run) for run in (first, second)]
    _check_alike(dict(zip(names, map(_account, models), strict=True)))
    samples = [_predicted(model, folder, task, split, batch_size, max_events) for model in models]
    content = {
        "runs": list(names),
        "task": task,
        "split": split,
        "source": folder.info.source,
        "split_fingerprint": folder.split_fingerprint(task, split),
        "problem_type": samples[0].problem_type,
        "n": len(samples[0]),
        "num_records": samples[0].num_records,
        "differences": paired_difference(*samples, num_samples=num_samples, seed=seed, level=LEVEL),
        "bootstrap": {"resampled": "records", "num_samples": num_samples, "seed": seed, "level": LEVEL},
    }
    if output is not None:
        write_json(Path(output), content)
    return Comparison(content, None if output is None else Path(output))


def _names(first: str | Path, second: str | Path) -> tuple[str, str]:
    """Short names of two runs that tell them apart."""
    short = [Path(run).stem if Path(run).is_file() else Path(run).name for run in (first, second)]
    return (short[0], short[1]) if short[0] != short[1] else (str(first), str(second))


def _account(model: str | Path | Checkpoint) -> dict[str, Any]:
    """How a model came about; empty where that is not known."""
    return (read_kept(model.path, RUN_FILE) or {}) if isinstance(model, Checkpoint) else {}


def _check_alike(accounts: Mapping[str, Mapping[str, Any]]) -> None:
    """ValueError if two runs answer different questions, or if one may have been trained on the other's test split."""
    (first, a), (second, b) = accounts.items()
    tasks = [account.get("task", {}).get("name") for account in (a, b)]
    if None not in tasks and tasks[0] != tasks[1]:
        raise ValueError(f"{first} was fine-tuned for {tasks[0]!r} and {second} for {tasks[1]!r}: not the same task")
    chosen_on = [account.get("split_fingerprints", {}).get("validation") for account in (a, b)]
    if None not in chosen_on and chosen_on[0] != chosen_on[1]:
        raise ValueError(
            f"{first} and {second} were chosen on different validation splits ({chosen_on[0]} and {chosen_on[1]}): "
            "one may have been trained on records that the other is tested on"
        )


def _predicted(
    model: str | Path | Checkpoint,
    folder: PreparedFolder,
    task: str,
    split: str,
    batch_size: int,
    max_events: int | None,
) -> LabeledPredictions:
    info = folder.info.task(task)
    if not isinstance(model, Checkpoint):
        check_baseline(model, info)
        return read_baseline(model, load_task(folder, task, split, folder.info.variables))
    check_task(model.model, info)
    check_static_columns(folder, model.extractor)
    dataset = load_task(folder, task, split, model.extractor.variables)
    collator = TaskCollator(model.extractor, max_events)
    times, title = model.model.config.curve_times, f"predict {model.path.name}"
    predicted = predict_examples(model.model, dataset, collator, batch_size, horizons=times, progress=title)
    return labeled(dataset, predicted.values, info, times)


def format_comparison(content: Mapping[str, Any]) -> str:
    """What a comparison found, as text."""
    size = f"{content['n']:,} examples of {content['num_records']:,} records"
    lines = [f"{content['task']}, {content['split']} split of {content['source']}, {size}", ""]
    return "\n".join(
        [*lines, format_differences(content["problem_type"], content["differences"], tuple(content["runs"]))]
    )
