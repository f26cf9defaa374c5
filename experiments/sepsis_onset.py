"""HyMaTE against XGBoost on the same prefixes, for the hourly task of PhysioNet 2019.

    hymate prepare physionet2019 --raw ../shared/data/physionet2019 --output runs/sepsis/data
    hymate pretrain --recipe physionet2019 --data runs/sepsis/data --output runs/sepsis/pretrained
    hymate finetune --recipe physionet2019 --data runs/sepsis/data --task sepsis_onset \\
        --checkpoint runs/sepsis/pretrained --output runs/sepsis/onset
    python -m experiments.sepsis_onset --data runs/sepsis/data --checkpoint runs/sepsis/onset \\
        --output runs/sepsis/comparison.json --write

XGBoost's features of each prediction, from the events up to its time and no later: each variable's latest value, hours
since it, mean, minimum, maximum and number, and the static columns. The number of trees is chosen on patients held out
of the training split. HyMaTE's epoch, the event dropout of its recipe (one of three values), and for both the
threshold of the utility, are chosen on the validation split; nothing is chosen on the test split. Intervals are from a
bootstrap over patients; that of the difference is paired. --write puts the tables into docs/data.md.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import xgboost

from experiments.data_sources import PAGE
from experiments.pages import write_block
from hymate_training.data.collators import TaskCollator, fit_feature_extractor
from hymate_training.data.examples import TaskDataset, load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.evaluation.evaluation import alarm_gains
from hymate_training.evaluation.metrics import format_report, paired_difference, report
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.evaluation.utility import add_utility, best_threshold
from hymate_training.files import markdown_table, write_json
from hymate_training.inference.checkpoints import load_checkpoint
from hymate_training.inference.prediction import predict_examples
from modeling_hymate import HyMaTEFeatureExtractor

TASK, SPLITS = "sepsis_onset", ("validation", "test")
SHOWN = {"auroc": "AUROC", "auprc": "AUPRC", "normalized_utility": "normalized utility"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Prepared folder of PhysioNet 2019.")
    parser.add_argument(
        "--checkpoint", type=Path, help="Fine-tuned model to compare with XGBoost, which runs alone without it."
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON to write.")
    parser.add_argument("--threads", type=int, default=2, help="Threads of XGBoost (default: 2).")
    parser.add_argument("--write", action="store_true", help="Put the tables into docs/data.md.")
    args = parser.parse_args()
    data = PreparedFolder(args.data)
    extractor = fit_feature_extractor(data)
    datasets = [load_task(data, TASK, split, extractor.variables) for split in SPLITS]
    predictions: dict[str, list[np.ndarray]] = {}
    if args.checkpoint:
        predictions["HyMaTE"] = hymate_probabilities(args.checkpoint, datasets)
    predictions["XGBoost"] = xgboost_probabilities(data, datasets, extractor, args.threads)
    gains = [alarm_gains(data.info.extra["utility"][TASK], dataset) for dataset in datasets]
    thresholds = {name: best_threshold(gains[0], probabilities[0]) for name, probabilities in predictions.items()}
    result: dict[str, Any] = {"task": TASK, "splits": {}}
    for index, (split, dataset) in enumerate(zip(SPLITS, datasets, strict=True)):
        found: dict[str, Any] = {"models": {}}
        result["splits"][split] = found
        samples = {
            name: LabeledPredictions("binary", dataset.labels, probabilities[index], groups=dataset.record_ids)
            for name, probabilities in predictions.items()
        }
        for name, sample in samples.items():
            evaluation = report(sample, split_fingerprint=data.split_fingerprint(TASK, split))
            threshold = {"value": thresholds[name], "chosen_on": SPLITS[0]}
            add_utility(evaluation, gains[index], sample, threshold)
            found["models"][name] = evaluation
            print(f"\n{name}\n{format_report(evaluation)}")
        if args.checkpoint:
            found["difference"] = paired_difference(samples["HyMaTE"], samples["XGBoost"])
    write_json(args.output, result)
    text = "\n\n".join("\n".join(table(split, found)) for split, found in result["splits"].items())
    print(f"\n{text}")
    if args.write:
        write_block(PAGE, TASK, text)


def table(split: str, result: dict[str, Any]) -> list[str]:
    """The comparison in Markdown: one row per model, and the paired difference."""
    cells = [["model", *SHOWN.values()]]
    for name, evaluation in result["models"].items():
        values, intervals = evaluation["metrics"], evaluation["confidence_intervals"]
        cells.append([name, *(_cell(values[metric], intervals[metric]) for metric in SHOWN)])
    if differences := result.get("difference"):
        shown = (differences.get(metric) for metric in SHOWN)
        cells.append(["difference", *(_cell(d["difference"], d["interval"], "+") if d else "" for d in shown)])
    sizes = next(iter(result["models"].values()))
    size = f"{sizes['n']:,} hours of {sizes['num_records']:,} patients, {sizes['positives']:,} of them positive"
    return [f"{split.capitalize()} split: {size}; 95% intervals.", "", markdown_table(cells)]


def _cell(value: float, interval: list[float], sign: str = "") -> str:
    return f"{value:{sign}.3f} [{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"


def hymate_probabilities(place: Path, datasets: list[TaskDataset]) -> list[np.ndarray]:
    checkpoint = load_checkpoint(place)
    collator = TaskCollator(checkpoint.extractor)
    predicted = (predict_examples(checkpoint.model, dataset, collator, progress="HyMaTE") for dataset in datasets)
    return [found.values[:, 1].astype(np.float64) for found in predicted]


def xgboost_probabilities(
    data: PreparedFolder, datasets: list[TaskDataset], extractor: HyMaTEFeatureExtractor, threads: int
) -> list[np.ndarray]:
    start = time.perf_counter()
    train = load_task(data, TASK, "train", extractor.variables)
    features = prefix_features(train, extractor)
    held_out = np.isin(train.rows, np.random.default_rng(0).permutation(len(train.events))[: len(train.events) // 10])
    parts = [xgboost.DMatrix(features[rows], train.labels[rows]) for rows in (~held_out, held_out)]
    booster = train_trees(parts[0], parts[1], threads)
    trees = booster.best_iteration + 1
    print(f"XGBoost, {trees} trees, {features.shape[1]} features, {time.perf_counter() - start:.0f} s")
    matrices = (xgboost.DMatrix(prefix_features(dataset, extractor)) for dataset in datasets)
    return [booster.predict(matrix, iteration_range=(0, trees)).astype(np.float64) for matrix in matrices]


def train_trees(train: xgboost.DMatrix, held_out: xgboost.DMatrix, threads: int, seed: int = 0) -> xgboost.Booster:
    """Trees on the features of hours, as many as are best on `held_out`."""
    settings = {
        "objective": "binary:logistic",
        "eval_metric": "auc",
        "eta": 0.05,
        "max_depth": 5,
        "min_child_weight": 10,
        "subsample": 0.7,
        "colsample_bytree": 0.5,
        "nthread": threads,
        "seed": seed,
    }
    return xgboost.train(
        settings, train, 500, evals=[(held_out, "held_out")], early_stopping_rounds=30, verbose_eval=False
    )


def prefix_features(dataset: TaskDataset, extractor: HyMaTEFeatureExtractor) -> np.ndarray:
    """(predictions, features): six statistics of each variable's events up to the prediction, NaN without any."""
    events, size = dataset.events, extractor.num_variables
    static = extractor.encode_static(events.static, len(events))
    features = np.full((len(dataset), 6 * size + 1 + static.shape[1]), np.nan, dtype=np.float32)
    features[:, -1 - static.shape[1]] = dataset.prediction_times
    features[:, features.shape[1] - static.shape[1] :] = static[dataset.rows]
    order = np.lexsort((dataset.prediction_times, dataset.rows))
    latest, lowest, highest = (np.full(size, np.nan) for _ in range(3))
    seen, total, number = np.zeros(size), np.zeros(size), np.zeros(size)
    record, at, end = -1, 0, 0
    for row in order:
        limit = dataset.prediction_times[row]
        if dataset.rows[row] != record:
            record = dataset.rows[row]
            at, end = events.offsets[record], events.offsets[record + 1]
            for column in (latest, lowest, highest):
                column[:] = np.nan
            for column in (seen, total, number):
                column[:] = 0
        until = at + int(np.searchsorted(events.times[at:end], limit, side="right"))
        if until > at:
            which, values = events.variable_ids[at:until], events.values[at:until]
            latest[which], seen[which] = values, events.times[at:until]
            np.fmin.at(lowest, which, values)
            np.fmax.at(highest, which, values)
            np.add.at(total, which, values)
            np.add.at(number, which, 1)
            at = until
        known = number > 0
        mean = np.where(known, total / np.maximum(number, 1), np.nan)
        since = np.where(known, limit - seen, np.nan)
        features[row, : 6 * size] = np.concatenate([latest, since, mean, lowest, highest, number])
    return features


if __name__ == "__main__":
    main()
