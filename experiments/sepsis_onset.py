"""HyMaTE against XGBoost on the same prefixes, for the hourly task of PhysioNet 2019.

    hymate prepare physionet2019 --raw ../shared/data/physionet2019 --output runs/sepsis/data
    hymate pretrain --recipe physionet2019 --data runs/sepsis/data --output runs/sepsis/pretrained
    hymate finetune --recipe physionet2019 --data runs/sepsis/data --task sepsis_onset \\
        --checkpoint runs/sepsis/pretrained --output runs/sepsis/onset
    python -m experiments.sepsis_onset --data runs/sepsis/data --checkpoint runs/sepsis/onset \\
        --output runs/sepsis/comparison.json --write

XGBoost's features of each prediction are the summary features of records that are asked many times
(`hymate_training.evaluation.summary_features.HOURLY_FEATURES`): statistics of each variable up to its time and no
later, those of the last 6 and 24 hours, how long ago it was measured, and the static columns. Its settings and number
of trees, HyMaTE's epoch, the event dropout of its recipe (one of three values), and for both the threshold of the
utility, are chosen on the validation split; nothing is chosen on the test split. Intervals are from a bootstrap over
patients; that of the difference is paired. --write puts the tables into docs/data.md.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.data_sources import PAGE
from experiments.pages import write_block
from hymate_training.data.collators import TaskCollator, fit_feature_extractor
from hymate_training.data.examples import TaskDataset, load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.evaluation.evaluation import alarm_gains
from hymate_training.evaluation.metrics import format_report, paired_difference, report
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.evaluation.trees import fit_trees
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
    parser.add_argument("--threads", type=int, default=2, help="Threads of each model (default: 2).")
    parser.add_argument("--write", action="store_true", help="Put the tables into docs/data.md.")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = PreparedFolder(args.data)
    extractor = fit_feature_extractor(data)
    datasets = [load_task(data, TASK, split, extractor.variables) for split in SPLITS]
    predictions: dict[str, list[np.ndarray]] = {}
    if args.checkpoint:
        predictions["HyMaTE"] = hymate_probabilities(args.checkpoint, datasets)
    predictions["XGBoost"] = xgboost_probabilities(data, datasets, extractor)
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
    data: PreparedFolder, datasets: list[TaskDataset], extractor: HyMaTEFeatureExtractor
) -> list[np.ndarray]:
    start = time.perf_counter()
    trees = fit_trees(load_task(data, TASK, "train", extractor.variables), datasets[0], extractor)
    print(f"XGBoost, {trees.settings}, {time.perf_counter() - start:.0f} s")
    return [trees.predict(dataset) for dataset in datasets]


if __name__ == "__main__":
    main()
