"""`hymate embed`: patient representations of new records."""

import argparse
from pathlib import Path

from hymate_training.cli.arguments import add_batches, add_overwrite, add_tables, add_times
from hymate_training.inference.embedding import embed
from hymate_training.inference.prediction import BATCH_SIZE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        help="A pretrained or fine-tuned model: its folder, or its name on the Hub (ORG/NAME).",
    )
    add_tables(parser)
    add_times(parser)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="Parquet file to write, with one row per record, or per record and time: record_id, prediction_time "
        "where times are asked for, embedding, an array, and in remarks what the model did not know.",
    )
    add_overwrite(parser)
    add_batches(parser, BATCH_SIZE)


def run(args: argparse.Namespace) -> str:
    """Embeds; returns how many records, and what is to be said about them."""
    found = embed(
        args.checkpoint,
        args.events,
        args.static,
        args.output,
        every=args.every,
        at=args.at,
        max_events=args.max_events,
        batch_size=args.batch_size,
        ignore_unknown_variables=args.ignore_unknown_variables,
        overwrite=args.overwrite,
    )
    records = f"{found.frame['record_id'].n_unique()} records"
    times = f", {found.frame.height} representations" if "prediction_time" in found.frame.columns else ""
    return "\n".join([f"{records}{times} -> {found.output}", *found.remarks])
