"""`hymate compare`: two models on the same records."""

import argparse
from pathlib import Path

from hymate_training.cli.arguments import add_batches, add_data, add_split
from hymate_training.evaluation.comparison import NUM_SAMPLES, compare, format_comparison
from hymate_training.inference.prediction import BATCH_SIZE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    for name, which in (("first", "One"), ("second", "The other")):
        parser.add_argument(
            name,
            metavar=f"RUN_{'A' if name == 'first' else 'B'}",
            help=f"{which} fine-tuned model: its folder, or its name on the Hub (ORG/NAME); or a CSV or Parquet file "
            "of predictions, as for hymate evaluate --baseline.",
        )
    add_data(parser)
    add_split(parser)
    parser.add_argument("--output", type=Path, help="JSON file to write.")
    parser.add_argument(
        "--num-samples", type=int, default=NUM_SAMPLES, help=f"Resamples of the records (default: {NUM_SAMPLES})."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of the resamples (default: 0).")
    add_batches(parser, BATCH_SIZE)


def run(args: argparse.Namespace) -> str:
    """Compares; returns the differences as a table."""
    found = compare(
        args.first,
        args.second,
        args.data,
        args.task,
        args.split,
        args.output,
        num_samples=args.num_samples,
        seed=args.seed,
        batch_size=args.batch_size,
        max_events=args.max_events,
    )
    text = format_comparison(found.content)
    return text if found.output is None else f"{text}\n\n{found.output}"
