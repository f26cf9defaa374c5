"""`hymate predict`: a fine-tuned model on new records."""

import argparse
from pathlib import Path

from hymate_training.cli.arguments import add_batches, add_checkpoint, add_tables
from hymate_training.inference.prediction import BATCH_SIZE, predict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_checkpoint(parser)
    add_tables(parser)
    parser.add_argument(
        "--output", type=Path, required=True, help="CSV or Parquet file to write, with one row per record."
    )
    add_batches(parser, BATCH_SIZE)
    parser.add_argument(
        "--ignore-unknown-variables",
        action="store_true",
        help="Drop and count events of variables that the model does not know, which are an error otherwise.",
    )


def run(args: argparse.Namespace) -> str:
    """Predicts; returns how many records, and what is to be said about them."""
    result = predict(
        args.checkpoint,
        args.events,
        args.static,
        args.output,
        max_events=args.max_events,
        batch_size=args.batch_size,
        ignore_unknown_variables=args.ignore_unknown_variables,
    )
    notes = [f"{result.frame.height} records -> {result.output}"]
    if result.num_ignored_events:
        notes.append(f"dropped {result.num_ignored_events} events of unknown variables")
    if result.left_out:
        notes.append(f"left out {len(result.left_out)} records without any other event, {result.left_out[0]!r} first")
    if result.unknown_columns:
        notes.append(f"unknown for all of them, so taken as missing: {', '.join(result.unknown_columns)}")
    return "\n".join(["; ".join(notes), *result.remarks])
