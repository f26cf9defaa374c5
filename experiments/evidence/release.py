"""`make release`: retrains the released checkpoints from the raw downloads, into model_cards/.

    python -m experiments.evidence.release --release mortality --raw DIR

One seed, chosen in advance. On PhysioNet 2012 an encoder is pretrained and the classifier trained by the recipe
`physionet2012` on the STraTS split of sets b and c; its card has the metrics of the validation split, on which it is
trained as well in the end. On PhysioNet 2019 the hourly classifier of sepsis is made likewise by the recipe
`physionet2019`, on a random split of both hospitals; its card has the metrics of the test split. The baselines stand
beside them. An interrupted run goes on where it stopped.

With --keep-weights nothing is trained: the weights of model_cards/ are evaluated anew, and their card is written as it
would be today. What was refitted needs its run in --work, which holds the weights that its metrics are of.
"""

import argparse
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from experiments.evidence import baselines
from experiments.evidence.studies import STUDIES, Study
from experiments.evidence.tables import card_notes, read_results
from experiments.evidence.units import RESULTS, hymate
from hymate_training.cli.options import read_recipe
from hymate_training.data.collators import stated_units
from hymate_training.data.examples import load_task
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import DatasetInfo
from hymate_training.evaluation.evaluation import evaluate
from hymate_training.explanations.report import build_report
from hymate_training.files import write_file, write_json, writing_folder
from hymate_training.fitting.finetuning import VALIDATED_FOLDER
from hymate_training.fitting.state import STATE_FOLDER
from hymate_training.inference.checkpoints import (
    EVALUATION_FILE,
    RUN_FILE,
    WEIGHTS_FILE,
    load_checkpoint,
    load_extractor,
    read_json,
)
from hymate_training.publishing.card_text import as_code
from hymate_training.publishing.cards import write_model_card
from hymate_training.publishing.privacy import FAITHFULNESS_FILE, NOTES_FILE
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
        encoder: name of the encoder that it starts from, which is released as well.
        refit: train on the split of the metrics as well in the end, since the test patients lie elsewhere.
        prepare: options of the reader.
    """

    name: str
    study: Study
    split: str
    compared: Mapping[str, Callable]
    encoder: str
    refit: bool = False
    prepare: Mapping[str, Any] = field(default_factory=dict)


RELEASES = {
    "mortality": Release(
        "hymate-physionet2012-mortality",
        STUDIES["mortality"],
        "validation",
        {**TREES, "logistic regression on summary statistics": baselines.logistic_regression},
        encoder="hymate-physionet2012-pretrained",
        refit=True,
    ),
    "sepsis": Release(
        "hymate-physionet2019-sepsis",
        STUDIES["sepsis"],
        "test",
        TREES,
        encoder="hymate-physionet2019-pretrained",
        prepare={"split": "random"},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", choices=RELEASES, default="mortality", help="Which (default: mortality).")
    parser.add_argument("--raw", type=Path, required=True, help="Download of PhysioNet 2012 (sets b and c) or 2019.")
    parser.add_argument("--work", type=Path, default=Path("runs/release"), help="Prepared data and unfinished runs.")
    parser.add_argument("--keep-weights", action="store_true", help="Train nothing: only what is said of them is new.")
    args = parser.parse_args()
    chosen = RELEASES[args.release]
    if args.keep_weights:
        take_released(args.work, chosen.encoder, chosen.name)
    task, recipe, data = chosen.study.task, chosen.study.recipe, args.work / "data" / chosen.study.reader
    if not data.is_dir():
        READERS[chosen.study.reader].prepare(args.raw, data, **chosen.prepare)
    encoder, run = args.work / chosen.encoder, args.work / chosen.name
    if not is_over(encoder):
        hymate("pretrain", ["--data", str(data), "--output", str(encoder)], encoder, recipe)
    if not is_over(run):
        arguments = ["--data", str(data), "--task", task, "--checkpoint", str(encoder), "--output", str(run)]
        hymate("finetune", [*arguments, *(["--refit"] if chosen.refit else [])], run, recipe)
    is_refitted = "refit" in read_json(run / RUN_FILE)
    measured = run / VALIDATED_FOLDER if is_refitted else run
    prepared = PreparedFolder(data)
    for folder in dict.fromkeys((encoder, run, measured)):
        state_units(folder, prepared.info)
    compare(measured, prepared, args.work, chosen)
    notes = card_notes(chosen.study, read_results(RESULTS / chosen.study.name))
    since = changed_since([encoder, run], recipe)
    write_file(run / NOTES_FILE, "\n\n".join(filter(None, (since, notes))) + "\n")
    build_report(measured, args.work / f"{chosen.name}-report", data=data, task=task, card=True)
    if is_refitted:
        for path in (measured / FAITHFULNESS_FILE, *measured.glob(f"{Path(EVALUATION_FILE).stem}*")):
            write_file(run / path.name, path.read_bytes())
    for folder in (encoder, run):
        write_model_card(folder)
        release(folder, MODEL_CARDS / folder.name)


def take_released(work: Path, *names: str) -> None:
    """Puts released checkpoints into `work`, as if they had been trained there; ValueError where others lie there, and
    for one that was refitted in another run, which holds the weights that its metrics are of."""
    for name in names:
        own, released = work / name / WEIGHTS_FILE, MODEL_CARDS / name / WEIGHTS_FILE
        if not own.parent.exists():
            if "refit" in read_json(released.parent / RUN_FILE):
                raise ValueError(f"{own.parent} must be the run that {released.parent} came of, since it was refitted")
            shutil.copytree(released.parent, own.parent)
        elif not own.is_file() or own.read_bytes() != released.read_bytes():
            raise ValueError(
                f"{own.parent} holds a run of other weights than {released.parent}: choose another --work"
            )


def state_units(run: Path, info: DatasetInfo) -> None:
    """Has a run's feature extractor say the units that the reader states; older ones say none."""
    extractor = load_extractor(run)
    named = {*extractor.variables, *(column["name"] for column in extractor.static_columns)}
    if (units := stated_units(info, named)) != extractor.units:
        extractor.units = units
        extractor.save_pretrained(run)


def changed_since(runs: Sequence[Path], recipe: str) -> str:
    """What of the recipe was another value when released weights were trained, in a sentence; empty for nothing."""
    options, changed = read_recipe(recipe), []
    for path in runs:
        run = read_json(path / RUN_FILE)
        changed += [name for name, value in options[run["kind"]].items() if run["recipe"].get(name) != value]
    if not changed:
        return ""
    named = " and ".join(map(as_code, changed))
    return f"What follows was measured with the recipe of today. The weights here were trained with another {named}."


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
