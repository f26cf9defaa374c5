"""CPU seconds of whole workloads: predictions, training on every hour of a stay, a report about explanations.

    hymate prepare physionet2012 --raw DIR --output runs/physionet2012
    hymate prepare physionet2019 --raw DIR --output runs/physionet2019
    python -m benchmarks.workloads --stays runs/physionet2012 --hours runs/physionet2019 --write

One thread, medians of a few repetitions. To compare two versions, install each in an environment of its own, and run
this in turn in both.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from tqdm import tqdm

import hymate_native
from benchmarks.measure import processor, titled_table, write_section
from experiments.evidence.studies import STUDIES
from hymate_training.cli.options import read_recipe
from hymate_training.data.collators import TaskCollator, fit_feature_extractor
from hymate_training.data.examples import TaskDataset, load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.explanations.report import build_report
from hymate_training.fitting.batches import EpochLoader
from hymate_training.fitting.finetuning import FinetuneOptions, build_model
from hymate_training.inference.checkpoints import Checkpoint, load_checkpoint

CHECKPOINT = Path(__file__).parents[1] / "model_cards" / "hymate-physionet2012-mortality"
PAGE = Path(__file__).parents[1] / "docs" / "speed.md"
SECTION = "Whole workloads"
TASK = STUDIES["mortality"].task
HOURLY_TASK, HOURLY_RECIPE = "sepsis_onset", "physionet2019"
BATCH_SIZE = 64  # of predictions
REPETITIONS = 5
PACKAGES = ("hymate", "torch", "numpy")
INTRODUCTION = """\
CPU seconds of work that is done with the package, as `python -m benchmarks.workloads --stays PHYSIONET2012 --hours
PHYSIONET2019 --write` measured it with one thread: both are folders that `hymate prepare` leaves, and the model of the
stays is `model_cards/hymate-physionet2012-mortality`. A training step on every hour holds collation, forward, backward
and the optimizer; a label is one patient's hour. A report explains its stays by every method and tests the
explanations."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="Folder of a fine-tuned model.")
    parser.add_argument("--stays", type=Path, help="Prepared folder of PhysioNet 2012, to predict and to report on.")
    parser.add_argument("--hours", type=Path, help="Prepared folder of PhysioNet 2019, to train on.")
    parser.add_argument("--records", type=int, default=1280, help="Stays that are predicted (default: 1280).")
    parser.add_argument("--steps", type=int, default=10, help="Training steps (default: 10).")
    parser.add_argument("--reported", type=int, default=200, help="Stays of the report (default: 200).")
    parser.add_argument("--write", action="store_true", help="Put the table into docs/speed.md.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(args.checkpoint)
    rows: list[list[Any]] = []
    if args.stays:
        rows += [
            prediction_row(checkpoint, args.stays, args.records),
            report_row(checkpoint, args.stays, args.reported),
        ]
    if args.hours:
        rows.append(training_row(args.hours, args.steps))
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    build = hymate_native.selected_build() if hymate_native.is_available() else None
    table = titled_table("CPU time", ("workload", "seconds", "µs each"), rows)
    text = "\n\n".join([INTRODUCTION, f"{processor()}, 1 thread, kernels {build}, {versions}", table])
    print(text)
    if args.write:
        write_section(PAGE, SECTION, text)


def median_cpu_seconds(call: Callable[[], object], repetitions: int = REPETITIONS, warms_up: bool = True) -> float:
    """Median over repeated calls of the CPU time of this process, after one that warms up."""
    if warms_up:
        call()
    seconds = []
    for _ in tqdm(range(repetitions), leave=False):
        started = time.process_time()
        call()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def _row(name: str, seconds: float, count: int) -> list[Any]:
    return [name, seconds, seconds / count * 1e6]


def prediction_row(checkpoint: Checkpoint, folder: Path, num_records: int) -> list[Any]:
    """Forward passes over stays of the validation split, those of similar length together."""
    dataset = load_task(PreparedFolder(folder), TASK, "validation", checkpoint.extractor.variables)
    events = dataset.events.take(dataset.rows[:num_records])
    order = np.argsort(events.lengths, kind="stable")
    batches = [
        checkpoint.extractor.encode(events.take(order[at : at + BATCH_SIZE]))
        for at in range(0, len(order), BATCH_SIZE)
    ]

    @torch.no_grad()
    def predict():
        for batch in batches:
            checkpoint.model(**batch)

    return _row(f"{len(order):,} predictions, PhysioNet 2012", median_cpu_seconds(predict), len(order))


def report_row(checkpoint: Checkpoint, folder: Path, num_records: int) -> list[Any]:
    """A report about a task's validation split, figures included."""

    def report():
        with tempfile.TemporaryDirectory() as output:
            build_report(checkpoint, Path(output) / "report", data=folder, task=TASK, num_records=num_records)

    seconds = median_cpu_seconds(report, 3, warms_up=False)
    return _row(f"a report on {num_records} stays, PhysioNet 2012", seconds, num_records)


def training_row(folder: Path, num_steps: int) -> list[Any]:
    """Training steps on batches in which each patient is asked at every hour."""
    prepared = PreparedFolder(folder)
    extractor = fit_feature_extractor(prepared)
    dataset = cast(TaskDataset, load_task(prepared, HOURLY_TASK, "train", extractor.variables))
    recipe = read_recipe(HOURLY_RECIPE)
    options = FinetuneOptions(**recipe["finetune"], model=recipe["model"])
    torch.manual_seed(options.seed)
    model = build_model(None, None, extractor, prepared.info.task(HOURLY_TASK), dataset, options).train()
    collator = TaskCollator(extractor, variable_dropout=options.variable_dropout, event_dropout=options.event_dropout)
    alone = cast(Any, SimpleNamespace(process_index=0, num_processes=1))
    batches = EpochLoader(dataset, collator, options, alone).batches(0)[:num_steps]
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, fused=True)

    def train():
        for batch in batches:
            optimizer.zero_grad()
            model(**collator(dataset.__getitems__(batch))).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    labels = sum(map(len, batches))
    return _row(f"training on {labels:,} hours, PhysioNet 2019", median_cpu_seconds(train), labels)


if __name__ == "__main__":
    main()
