"""`make release`: retrains the released checkpoints from the raw downloads, into model_cards/.

    python -m experiments.evidence.release --release mortality --raw DIR

One seed, chosen in advance. On PhysioNet 2012 an encoder is pretrained and the classifier trained by the recipe
`physionet2012` on the STraTS split of sets b and c; its card has the metrics of the validation split. On PhysioNet
2019 the hourly classifier of sepsis is trained by the recipe `physionet2019` on a random split of both hospitals; its
card has those of the test split. The baselines stand beside them. An interrupted run goes on where it stopped.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from experiments.evidence import baselines
from experiments.evidence.studies import STUDIES, Study
from experiments.evidence.tables import card_notes, read_results
from experiments.evidence.units import RESULTS, hymate
from hymate_training.data.examples import load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.evaluation.evaluation import evaluate
from hymate_training.explanations.report import build_report
from hymate_training.files import write_file, write_json, writing_folder
from hymate_training.fitting.state import STATE_FOLDER
from hymate_training.inference.checkpoints import EVALUATION_FILE, RUN_FILE, load_checkpoint
from hymate_training.publishing.cards import write_model_card
from hymate_training.publishing.privacy import NOTES_FILE
from hymate_training.publishing.push import plan_push, write_without_code
from hymate_training.readers import READERS

MODEL_CARDS = Path(__file__).parents[2] / "model_cards"
TREES = {"XGBoost on summary statistics": baselines.xgboost}


@dataclass(frozen=True)
class Release:
    """A checkpoint of model_cards/.

    Attributes:
        name: of the classifier.
        study: its task and recipe, and the cross-validation on its card.
        split: that its card has metrics of.
        compared: baselines on its card; the first is in its decision curve as well.
        encoder: name of the encoder that it starts from, which is released as well; None: from scratch.
        prepare: options of the reader.
    """

    name: str
    study: Study
    split: str
    compared: Mapping[str, Callable]
    encoder: str | None = None
    prepare: Mapping[str, Any] = field(default_factory=dict)


RELEASES = {
    "mortality": Release(
        "hymate-physionet2012-mortality",
        STUDIES["mortality"],
        "validation",
        {**TREES, "logistic regression on summary statistics": baselines.logistic_regression},
        encoder="hymate-physionet2012-pretrained",
    ),
    "sepsis": Release("hymate-physionet2019-sepsis", STUDIES["sepsis"], "test", TREES, prepare={"split": "random"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", choices=RELEASES, default="mortality", help="Which (default: mortality).")
    parser.add_argument("--raw", type=Path, required=True, help="Download of PhysioNet 2012 (sets b and c) or 2019.")
    parser.add_argument("--work", type=Path, default=Path("runs/release"), help="Prepared data and unfinished runs.")
    args = parser.parse_args()
    chosen = RELEASES[args.release]
    task, recipe, data = chosen.study.task, chosen.study.recipe, args.work / "data" / chosen.study.reader
    if not data.is_dir():
        READERS[chosen.study.reader].prepare(args.raw, data, **chosen.prepare)
    arguments, encoders = ["--data", str(data)], []
    if chosen.encoder:
        encoders = [args.work / chosen.encoder]
        if not is_over(encoders[0]):
            hymate("pretrain", [*arguments, "--output", str(encoders[0])], encoders[0], recipe)
        arguments += ["--checkpoint", str(encoders[0])]
    run = args.work / chosen.name
    if not is_over(run):
        hymate("finetune", [*arguments, "--task", task, "--output", str(run)], run, recipe)
    compare(run, PreparedFolder(data), args.work, chosen)
    write_file(run / NOTES_FILE, card_notes(chosen.study, read_results(RESULTS / chosen.study.name)) + "\n")
    build_report(run, args.work / f"{chosen.name}-report", data=data, task=task, card=True)
    for folder in (*encoders, run):
        write_model_card(folder)
        release(folder, MODEL_CARDS / folder.name)


def is_over(run: Path) -> bool:
    """Whether a run has been and was not interrupted."""
    return (run / RUN_FILE).is_file() and not (run / STATE_FOLDER).is_dir()


def compare(run: Path, folder: PreparedFolder, work: Path, chosen: Release) -> None:
    """Evaluates the classifier beside the baselines, the first of them in its decision curve as well."""
    found: dict[str, Any] = {}
    task, split = chosen.study.task, chosen.split
    asked = load_task(folder, task, split, folder.info.variables)
    keys = {"record_id": asked.record_ids, "prediction_time": asked.prediction_times}
    for name, baseline in reversed(list(chosen.compared.items())):
        path = work / f"{name}.parquet"
        probabilities = baseline(folder.path, task, 0)(split)
        pl.DataFrame({**keys, "prediction": probabilities}).write_parquet(path)
        checkpoint = load_checkpoint(run)
        if split == "validation":
            checkpoint = replace(checkpoint, evaluation=None)  # thresholds are chosen anew
        content = evaluate(checkpoint, folder, task, split, run / EVALUATION_FILE, baseline=path).content
        found = content["baselines"] | found
        write_json(run / EVALUATION_FILE, content | {"baselines": found})


def release(folder: Path, place: Path) -> None:
    """Writes what `hymate push` would upload, except the code; `place` holds either the old files or the new ones."""
    plan = plan_push(folder)
    with writing_folder(place) as incoming:
        write_without_code(plan, incoming)


if __name__ == "__main__":
    main()
