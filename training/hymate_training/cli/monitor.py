"""`hymate monitor`: whether new records are like those that a model was trained on."""

import argparse
from pathlib import Path

from hymate_training.cli.arguments import add_batches, add_checkpoint, add_layout, add_tables, layout_of
from hymate_training.inference.prediction import BATCH_SIZE
from hymate_training.monitoring.monitor import monitor

SHIFTED = 1  # exit code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_checkpoint(parser)
    add_tables(parser, several=True)
    add_layout(parser)
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="Outcomes of a binary task once they are known: record_id and label, 0 or 1.",
    )
    parser.add_argument("--output", type=Path, required=True, help="Folder for monitor.json and index.html.")
    add_batches(parser, BATCH_SIZE)


def run(args: argparse.Namespace) -> tuple[str, int]:
    """Compares; returns the verdict, and the exit code 1 where records have shifted."""
    found = monitor(
        args.checkpoint,
        args.events,
        args.static,
        args.labels,
        args.output,
        max_events=args.max_events,
        batch_size=args.batch_size,
        start=args.start,
        layout=layout_of(args),
    )
    verdict = "shifted" if found.shifted else "as in training"
    lines = [f"{found.content['num_records']} records: {verdict} -> {found.output}", *found.content["reasons"]]
    return "\n".join(lines), SHIFTED if found.shifted else 0
