"""`make release`: retrains the released checkpoints from the raw download, into model_cards/.

    python -m experiments.evidence.release --raw DIR

The encoder is pretrained and the classifier trained by the recipe `physionet2012` on the STraTS split of sets b and c,
one seed, chosen in advance. The card's metrics are those of the validation split, with the baselines beside them.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from experiments.evidence import baselines
from experiments.evidence.studies import STUDIES
from experiments.evidence.tables import card_notes, read_results
from experiments.evidence.units import hymate
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.evaluation.evaluation import evaluate
from hymate_training.explanations.report import build_report
from hymate_training.files import write_file, write_json, writing_folder
from hymate_training.inference.checkpoints import EVALUATION_FILE, RUN_FILE, load_checkpoint
from hymate_training.publishing.cards import write_model_card
from hymate_training.publishing.privacy import NOTES_FILE
from hymate_training.publishing.push import plan_push, write_without_code
from hymate_training.readers import READERS

RESULTS = Path(__file__).with_name("results")
STUDY = STUDIES["mortality"]
TASK = STUDY.task
MODEL_CARDS = Path(__file__).parents[2] / "model_cards"
COMPARED = {
    "XGBoost on summary statistics": baselines.xgboost,
    "logistic regression on summary statistics": baselines.logistic_regression,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True, help="Download of PhysioNet 2012, sets b and c.")
    parser.add_argument("--work", type=Path, default=Path("runs/release"), help="Prepared data and unfinished runs.")
    args = parser.parse_args()
    data = args.work / "data"
    if not data.is_dir():
        READERS["physionet2012"].prepare(args.raw, data)
    pretrained, mortality = (args.work / f"hymate-physionet2012-{name}" for name in ("pretrained", "mortality"))
    if not (pretrained / RUN_FILE).is_file():
        hymate("pretrain", ["--data", str(data), "--output", str(pretrained)], pretrained, STUDY.recipe)
    if not (mortality / EVALUATION_FILE).is_file():
        arguments = ["--data", str(data), "--task", TASK, "--checkpoint", str(pretrained)]
        hymate("finetune", [*arguments, "--output", str(mortality)], mortality, STUDY.recipe)
    compare(mortality, PreparedFolder(data), args.work)
    write_file(mortality / NOTES_FILE, card_notes(STUDY, read_results(RESULTS / STUDY.name)) + "\n")
    build_report(mortality, args.work / "report", data=data, task=TASK, card=True)
    for folder in (pretrained, mortality):
        write_model_card(folder)
        release(folder, MODEL_CARDS / folder.name)


def compare(mortality: Path, folder: PreparedFolder, work: Path) -> None:
    """Evaluates the classifier beside the baselines, the first of them in its decision curve as well."""
    found: dict[str, Any] = {}
    for name, baseline in reversed(COMPARED.items()):
        path = work / f"{name}.parquet"
        ids = folder.task(TASK, "validation")["record_id"].to_pylist()
        pl.DataFrame({"record_id": ids, "prediction": baseline(folder.path, TASK, 0)("validation")}).write_parquet(
            path
        )
        checkpoint = replace(load_checkpoint(mortality), evaluation=None)  # thresholds are chosen anew
        content = evaluate(checkpoint, folder, TASK, "validation", mortality / EVALUATION_FILE, baseline=path).content
        found = content["baselines"] | found
        write_json(mortality / EVALUATION_FILE, content | {"baselines": found})


def release(folder: Path, place: Path) -> None:
    """Writes what `hymate push` would upload, except the code; `place` holds either the old files or the new ones."""
    plan = plan_push(folder)
    with writing_folder(place) as incoming:
        write_without_code(plan, incoming)


if __name__ == "__main__":
    main()
