"""Mortality on PhysioNet 2012 asked at several hours: one HyMaTE model against one XGBoost model per hour.

    python -m experiments.evidence.hours --raw DIR

One fold of the cross-validation, its other stays as there: 80% train, 20% stop training early. HyMaTE is pretrained
and fine-tuned by the recipe `physionet2012` with `--prediction-times`, once for all hours. XGBoost has a model per
hour, on the summary statistics of the events until then, the best of its settings by the log-loss of the validation
split at that hour. Both are evaluated on the fold's stays, on which nothing was chosen here. An interrupted run goes
on where it stopped; --write puts the tables into docs/evidence.md.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from experiments.evidence.studies import STUDIES
from experiments.evidence.tables import PAGE
from experiments.evidence.units import HERE, hymate, open_place, pretrain
from experiments.pages import write_block
from hymate_training.data.collators import TaskCollator
from hymate_training.data.examples import TaskDataset, ask_at, load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.evaluation.metrics import paired_difference, report
from hymate_training.evaluation.sample import LabeledPredictions
from hymate_training.evaluation.trees import fit_trees
from hymate_training.files import markdown_table, write_json
from hymate_training.inference.checkpoints import EVALUATION_FILE, load_checkpoint
from hymate_training.inference.prediction import predict_examples

STUDY = STUDIES["mortality"]
HOURS = (6.0, 12.0, 24.0, 36.0, 48.0)
FOLD, SPLITS = 0, ("train", "validation", "test")
TIMES_PER_RECORD = 4  # drawn anew for each epoch, beside the 48th hour
COLUMNS = {"auroc": "AUROC", "auprc": "AUPRC", "expected_calibration_error": "calibration error"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True, help="Download of PhysioNet 2012, sets b and c.")
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"), help="Prepared folds and unfinished runs.")
    parser.add_argument("--write", action="store_true", help="Put the tables into docs/evidence.md.")
    args = parser.parse_args()
    place = open_place(STUDY, args.raw, args.work)
    data = place.fold(FOLD)
    output = args.work / "runs" / "hours"
    if not (output / EVALUATION_FILE).is_file():
        options = ["--seed", str(FOLD), "--prediction-times", str(TIMES_PER_RECORD)]
        start = ["--checkpoint", str(pretrain(STUDY.models["hymate"], data, FOLD, place))]
        arguments = ["--data", str(data), "--task", STUDY.task, "--output", str(output), *start, *options]
        hymate("finetune", arguments, output, STUDY.recipe)
    found = compare(data, output)
    write_json(HERE / "hours.json", found)
    print(table(found))
    if args.write:
        write_block(PAGE, "hours", table(found))


def compare(data: Path, output: Path) -> list[dict[str, Any]]:
    """For each hour: the reports of both models, and their paired difference."""
    checkpoint, found = load_checkpoint(output), []
    extractor = checkpoint.extractor
    splits = {name: load_task(PreparedFolder(data), STUDY.task, name, extractor.variables) for name in SPLITS}
    for hour in HOURS:
        asked = {name: ask_at(dataset, [hour]) for name, dataset in splits.items()}
        test = asked["test"]
        ours = predict_examples(checkpoint.model, test, TaskCollator(extractor)).values[:, 1].astype(np.float64)
        theirs = fit_trees(asked["train"], asked["validation"], extractor, seed=FOLD).predict(test)
        samples = {"HyMaTE": _sample(test, ours), "XGBoost": _sample(test, theirs)}
        found.append(
            {
                "hour": hour,
                "reports": {name: report(sample) for name, sample in samples.items()},
                "difference": paired_difference(samples["HyMaTE"], samples["XGBoost"]),
            }
        )
    return found


def _sample(dataset: TaskDataset, probabilities: np.ndarray) -> LabeledPredictions:
    return LabeledPredictions("binary", dataset.labels, probabilities, groups=dataset.record_ids)


def table(found: list[dict[str, Any]]) -> str:
    """The reports in Markdown: a row for each hour and model, and one for their difference."""
    cells = [["hour", "model", *COLUMNS.values()]]
    for entry in found:
        for name, evaluation in entry["reports"].items():
            values, intervals = evaluation["metrics"], evaluation["confidence_intervals"]
            cells.append([f"{entry['hour']:g}", name, *(_cell(values[key], intervals[key]) for key in COLUMNS)])
        shown = (entry["difference"].get(key) for key in COLUMNS)
        difference = [_cell(one["difference"], one["interval"], "+") if one else "" for one in shown]
        cells.append([f"{entry['hour']:g}", "difference", *difference])
    sizes = found[-1]["reports"]["HyMaTE"]
    return "\n".join([f"{sizes['n']:,} stays of fold {FOLD}; 95% intervals.", "", markdown_table(cells)])


def _cell(value: float, interval: list[float], sign: str = "") -> str:
    return f"{value:{sign}.4f} [{interval[0]:{sign}.4f}, {interval[1]:{sign}.4f}]"


if __name__ == "__main__":
    main()
