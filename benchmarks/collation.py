"""Records per second that the main process collates: read from the data set, standardized, padded, as tensors.

    python -m benchmarks.collation [--data PREPARED --task TASK]

Without a prepared folder: simulated records of a few lengths, 37 variables, four static columns. One process, no
loader workers; the rate is the best of several passes.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from hymate_training.data.collators import TaskCollator, fit_feature_extractor
from hymate_training.data.examples import TaskDataset, load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.files import markdown_table
from modeling_hymate import Events, HyMaTEFeatureExtractor

NUM_VARIABLES = 37
CATEGORIES = ("medical", "surgical", "cardiac", "coronary")


def simulated(num_records: int, length: int) -> tuple[TaskDataset, HyMaTEFeatureExtractor]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(length // 2, length + length // 2, num_records)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    starts = np.repeat(offsets[:-1], lengths)
    order = np.lexsort((times := rng.uniform(0, 48, offsets[-1]), starts))
    events = Events(
        offsets=offsets,
        times=times[order].astype(np.float32),
        variable_ids=rng.integers(0, NUM_VARIABLES, offsets[-1]).astype(np.int32),
        values=rng.lognormal(size=offsets[-1]).astype(np.float32),
        static={
            "age": rng.normal(60, 15, num_records),
            "height": np.where(rng.random(num_records) < 0.3, np.nan, rng.normal(170, 10, num_records)),
            "gender": rng.choice(np.array(["female", "male", None], dtype=object), num_records),
            "unit": rng.choice(np.array(CATEGORIES, dtype=object), num_records),
        },
        record_ids=[str(number) for number in range(num_records)],
    )
    extractor = HyMaTEFeatureExtractor.fit(
        events,
        [f"variable {number}" for number in range(NUM_VARIABLES)],
        numeric_columns=["age", "height"],
        categorical_columns={"gender": ("female", "male"), "unit": CATEGORIES},
    )
    labels = rng.integers(0, 2, num_records)
    return TaskDataset(events, np.arange(num_records), np.full(num_records, 48.0, np.float32), labels), extractor


def records_per_second(dataset: TaskDataset, collator: TaskCollator, batch_size: int, passes: int) -> float:
    order = np.random.default_rng(0).permutation(len(dataset))
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    best = 0.0
    for _ in range(passes):
        start = time.perf_counter()
        for batch in batches:
            collator(dataset.__getitems__(batch))
        best = max(best, len(dataset) / (time.perf_counter() - start))
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, help="Prepared folder.")
    parser.add_argument("--task", help="Its task.")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--passes", type=int, default=5)
    args = parser.parse_args()
    if (args.data is None) != (args.task is None):
        parser.error("--data and --task go together")
    sets = {}
    if args.data:
        folder = PreparedFolder(args.data)
        extractor = fit_feature_extractor(folder)
        sets[f"{args.data.name}, {args.task}"] = (
            load_task(folder, args.task, "train", extractor.variables),
            extractor,
        )
    else:
        sets = {f"simulated, {length} events": simulated(8192, length) for length in (8, 24, 100, 400)}
    rows: list[list[object]] = [["data", "batch size", "records/s", "million events/s"]]
    for name, (dataset, extractor) in sets.items():
        for batch_size in args.batch_sizes:
            rate = records_per_second(dataset, TaskCollator(extractor), batch_size, args.passes)
            events = rate * dataset.lengths.mean() / 1e6
            rows.append([name, batch_size, f"{rate:,.0f}", f"{events:.1f}"])
    print(f"{torch.get_num_threads()} threads\n\n{markdown_table(rows)}")


if __name__ == "__main__":
    main()
