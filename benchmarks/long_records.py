"""Time and memory of one long record: the longest of a prepared folder, whole and in windows, with a fresh model.

    hymate prepare meds --raw ../shared/data/mimic-iv-demo-meds --min-subjects 1 --output runs/meds
    python -m benchmarks.long_records runs/meds

A row is a window of the latest events in a process of its own; memory is what the process held at most beyond what it
held before its first forward pass. The last rows give the model a vocabulary several times as large, which must cost
nothing but its embedding.
"""

import argparse
import multiprocessing
import resource
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from hymate_training.data.collators import TaskCollator, fit_feature_extractor
from hymate_training.data.examples import ExampleDataset
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.files import markdown_table
from modeling_hymate import HyMaTEConfig, HyMaTEForSequenceClassification


def longest_record(folder: PreparedFolder) -> ExampleDataset:
    candidates = []
    for split in folder.splits:
        events = folder.events(split)
        candidates.append((events.lengths.max(), events.take(np.array([events.lengths.argmax()]))))
    _, events = max(candidates, key=lambda candidate: candidate[0])
    return ExampleDataset(events, np.array([0]), np.array([np.inf]))


def measure(path: Path, window: tuple[int | None, int]) -> list[str]:
    max_events, vocabulary = window
    folder = PreparedFolder(path)
    extractor = fit_feature_extractor(folder)
    longest = longest_record(folder)
    features = TaskCollator(extractor, max_events)(longest.__getitems__([0]))
    torch.manual_seed(0)
    config = HyMaTEConfig(
        num_variables=vocabulary * extractor.num_variables,
        num_static_features=len(extractor.static_feature_names),
        time_scale=extractor.time_scale,
        num_labels=2,
    )
    model = HyMaTEForSequenceClassification(config)
    model(**TaskCollator(extractor, 64)(longest.__getitems__([0])))  # what runs once only
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    memory = []
    model.eval()
    with torch.no_grad():
        start = time.perf_counter()
        model(**features)
        inference = time.perf_counter() - start
    memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    model.train()
    start = time.perf_counter()
    model(**features, labels=torch.tensor([1])).loss.backward()
    training = time.perf_counter() - start
    memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    length = features["values"].shape[1]
    return [
        f"{length:,}",
        f"{len(features['variable_ids'].unique()):,}",
        f"{config.num_variables:,}",
        f"{inference:.2f}",
        f"{length / inference / 1000:,.0f}",
        f"{memory[0] / 1024:,.0f}",
        f"{training:.2f}",
        f"{memory[1] / 1024:,.0f}",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", type=Path, help="Prepared folder.")
    parser.add_argument("--windows", type=int, nargs="+", default=[512, 2048, 8192, 32768])
    args = parser.parse_args()
    columns = ("events", "distinct codes", "vocabulary", "inference, s", "thousand events/s", "memory, MB")
    columns += ("forward and backward, s", "memory, MB")
    windows = [*((size, 1) for size in args.windows), (None, 1), (2048, 10), (None, 10)]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        rows = list(pool.imap(partial(measure, args.data), windows, chunksize=1))
    print(f"{torch.get_num_threads()} threads\n\n{markdown_table([columns, *rows])}")


if __name__ == "__main__":
    main()
