"""Pretrains and releases `hymate-icu-pretrained`, from the raw downloads into model_cards/.

    python -m experiments.icu.release --data DIR

By the recipe `icu`, one seed, chosen in advance. What is done stays in --work: an interrupted run goes on where it
stopped.
"""

import argparse
from pathlib import Path

from experiments.evidence.release import MODEL_CARDS, release, state_units, take_released
from experiments.evidence.units import hymate
from experiments.icu.sources import SOURCES, prepare_sources
from experiments.icu.tables import RESULTS, Results, gains_tables, read_results
from hymate_training.data.pool import FolderPool
from hymate_training.files import write_file
from hymate_training.inference.checkpoints import RUN_FILE
from hymate_training.publishing.cards import write_model_card
from hymate_training.publishing.privacy import NOTES_FILE

NAME, RECIPE = "hymate-icu-pretrained", "icu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the downloads")
    parser.add_argument("--work", type=Path, default=Path("runs/icu"), help="prepared data and the unfinished run")
    parser.add_argument("--keep-weights", action="store_true", help="train nothing: only what is said of them is new")
    args = parser.parse_args()
    if args.keep_weights:
        take_released(args.work, NAME)
    folders = prepare_sources(SOURCES, args.data, args.work / "data")
    output = args.work / NAME
    if not (output / RUN_FILE).is_file():
        arguments = [part for folder in folders.values() for part in ("--data", str(folder))]
        hymate("pretrain", [*arguments, "--output", str(output)], output, RECIPE)
    state_units(output, FolderPool(folders.values()).info)
    write_file(output / NOTES_FILE, card_notes(read_results(RESULTS)) + "\n")
    write_model_card(output)
    release(output, MODEL_CARDS / NAME)


def card_notes(results: Results) -> str:
    """Does such an encoder pay? What the leave-one-source-out experiment has measured of encoders like it."""
    text = (
        "Does such an encoder pay on a source that it never saw? This one saw all that there were, so others were "
        "pretrained by the same recipe with one source left out, and fine-tuned on shares of its labels, beside "
        "the same model from scratch and XGBoost. Means over folds, with 95% intervals over patients."
    )
    return f"{text}\n\n{gains_tables(results)}"


if __name__ == "__main__":
    main()
