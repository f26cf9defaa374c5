"""`hymate predict`: a fine-tuned model on new records."""

import argparse
from pathlib import Path

from hymate_training.cli.arguments import add_batches, add_checkpoint, add_layout, add_tables, layout_of
from hymate_training.concepts.mapping import read_map
from hymate_training.inference.prediction import BATCH_SIZE, predict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_checkpoint(parser)
    add_tables(parser, several=True)
    add_layout(parser)
    parser.add_argument(
        "--concepts",
        type=Path,
        metavar="MAP.csv",
        help="Map of the variables to concepts (default: that of the model's training data).",
    )
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
        start=args.start,
        layout=layout_of(args),
        concepts=None if args.concepts is None else read_map(args.concepts),
    )
    notes = [f"{result.frame.height} records -> {result.output}"]
    if result.num_ignored_events:
        notes.append(f"dropped {result.num_ignored_events} events of unknown variables")
    if result.left_out:
        notes.append(f"left out {len(result.left_out)} records without any other event, {result.left_out[0]!r} first")
    if result.unknown_columns:
        notes.append(f"unknown for all of them, so taken as missing: {', '.join(result.unknown_columns)}")
    notes += [f"dropped {count} {reason}" for reason, count in result.dropped.items()]
    return "\n".join(["; ".join(notes), *result.remarks])
