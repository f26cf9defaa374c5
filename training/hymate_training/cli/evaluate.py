"""`hymate evaluate`: metrics with intervals, what decisions are worth, plots and attention shares of a model."""

import argparse
from pathlib import Path

from hymate_training.cli.arguments import add_batches, add_checkpoint, add_data, add_split
from hymate_training.evaluation.alarms import SNOOZE_HOURS
from hymate_training.evaluation.decisions import THRESHOLDS
from hymate_training.evaluation.evaluation import evaluate, format_evaluation
from hymate_training.files import followed
from hymate_training.inference.checkpoints import EVALUATION_FILES
from hymate_training.inference.prediction import BATCH_SIZE
from hymate_training.publishing.cards import write_model_card


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_checkpoint(parser)
    add_data(parser)
    add_split(parser)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="JSON file to write; plots go beside it. One that lies in the "
        "checkpoint's folder as evaluation*.json is part of its model card, which is then written anew.",
    )
    parser.add_argument(
        "--at",
        type=float,
        nargs="+",
        metavar="HOURS",
        help="Also evaluate by hour. A task with one prediction per record is asked at each of these hours, of all "
        "records whose own prediction time is not earlier; the predictions of other tasks are taken apart at them.",
    )
    parser.add_argument(
        "--thresholds",
        type=float,
        nargs="+",
        default=THRESHOLDS,
        metavar="P",
        help="Probabilities from which on an alarm is raised, for the table of decisions of a binary task (default: "
        f"{' '.join(map(str, THRESHOLDS))}).",
    )
    parser.add_argument(
        "--snooze-hours",
        type=float,
        default=SNOOZE_HOURS,
        metavar="HOURS",
        help="How long an alarm keeps others of its record silent, where records are asked many times (default: "
        f"{SNOOZE_HOURS:g}).",
    )
    parser.add_argument(
        "--baseline",
        metavar="FILE",
        help="What to compare with: xgboost, for trees on summary statistics that are grown on the train split and "
        "tuned on the validation split; or a file of another model's predictions: record_id, prediction and, where "
        "records are asked many times, prediction_time. The file's name is the model's.",
    )
    parser.add_argument(
        "--baseline-data",
        type=Path,
        metavar="DIR",
        help="With --baseline xgboost: prepared folder that the checkpoint was trained on, where that is not --data.",
    )
    add_batches(parser, BATCH_SIZE)


def run(args: argparse.Namespace) -> str:
    """Evaluates; returns the metrics as a table."""
    evaluation = evaluate(
        args.checkpoint,
        args.data,
        args.task,
        args.split,
        args.output,
        at=args.at,
        thresholds=args.thresholds,
        snooze_hours=args.snooze_hours,
        baseline=args.baseline,
        baseline_data=args.baseline_data,
        batch_size=args.batch_size,
        max_events=args.max_events,
    )
    folder = Path(args.checkpoint)
    if followed(args.output) in [followed(path) for path in folder.glob(EVALUATION_FILES)]:
        write_model_card(folder)
    return f"{format_evaluation(evaluation.content)}\n\n{evaluation.output}"
