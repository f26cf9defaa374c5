"""XGBoost on the prefixes that HyMaTE sees, for the hourly task of PhysioNet 2019.

    hymate prepare physionet2019 --raw DIR --output PREPARED
    python -m benchmarks.sepsis_onset --data PREPARED --output xgboost.json

Features of each prediction, from the events up to its time and no later: each variable's latest value, hours since it,
mean, minimum, maximum and number, and the static columns. The number of trees is chosen on patients held out of the
training split, so the validation and test figures are comparable with those of `hymate evaluate`; the threshold of the
utility is chosen on the validation split, as there.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import xgboost

from hymate_training.collation import TaskDataset, fit_feature_extractor, load_task
from hymate_training.evaluate import alarm_gains
from hymate_training.loop import write_json
from hymate_training.metrics import format_report, report
from hymate_training.records import read_info, split_fingerprint
from hymate_training.utility import add_utility, best_threshold
from modeling_hymate import HyMaTEFeatureExtractor

TASK = "sepsis_onset"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="prepared folder of PhysioNet 2019")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    start = time.perf_counter()
    info, extractor = read_info(args.data), fit_feature_extractor(args.data)
    datasets = {split: load_task(args.data, TASK, split, extractor.variables) for split in ("train", "validation")}
    train = datasets["train"]
    features = prefix_features(train, extractor)
    held_out = np.isin(train.rows, np.random.default_rng(0).permutation(len(train.events))[: len(train.events) // 10])
    parts = [xgboost.DMatrix(features[rows], train.labels[rows]) for rows in (~held_out, held_out)]
    settings = {
        "objective": "binary:logistic",
        "eval_metric": "auc",
        "eta": 0.05,
        "max_depth": 5,
        "min_child_weight": 10,
        "subsample": 0.7,
        "colsample_bytree": 0.5,
        "nthread": args.threads,
        "seed": 0,
    }
    booster = xgboost.train(
        settings, parts[0], 500, [(parts[1], "held_out")], early_stopping_rounds=30, verbose_eval=False
    )
    trees = booster.best_iteration + 1
    dataset = datasets["validation"]
    probabilities = booster.predict(
        xgboost.DMatrix(prefix_features(dataset, extractor)), iteration_range=(0, trees)
    ).astype(np.float64)
    evaluation = report(
        "binary",
        dataset.labels,
        probabilities,
        groups=dataset.record_ids,
        split_fingerprint=split_fingerprint(args.data, TASK, "validation"),
    )
    if utility := info.extra.get("utility", {}).get(TASK):
        gains = alarm_gains(utility, dataset)
        threshold = {"value": best_threshold(gains, probabilities), "chosen_on": "validation"}
        add_utility(evaluation, gains, probabilities, dataset.record_ids, threshold)
    write_json(args.output, evaluation | {"model": "XGBoost", "trees": trees, "task": TASK, "split": "validation"})
    print(f"XGBoost, {trees} trees, {features.shape[1]} features, {time.perf_counter() - start:.0f} s")
    print(format_report(evaluation))


def prefix_features(dataset: TaskDataset, extractor: HyMaTEFeatureExtractor) -> np.ndarray:
    """(predictions, features): for each variable six figures of its events up to the prediction, NaN without any."""
    events, size = dataset.events, extractor.num_variables
    static = extractor.encode_static(events.static, len(events))
    features = np.full((len(dataset), 6 * size + 1 + static.shape[1]), np.nan, dtype=np.float32)
    features[:, -1 - static.shape[1]] = dataset.prediction_times
    features[:, features.shape[1] - static.shape[1] :] = static[dataset.rows]
    order = np.lexsort((dataset.prediction_times, dataset.rows))
    latest, lowest, highest = (np.full(size, np.nan, dtype=np.float32) for _ in range(3))
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
