"""Arguments that several commands have in common."""

import argparse
from pathlib import Path

from hymate_training.data.schema import SPLITS


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds `--checkpoint`, text as it was typed: a path that is normalized could become a name on the Hub."""
    parser.add_argument(
        "--checkpoint", required=True, help="A fine-tuned model: its folder, or its name on the Hub (ORG/NAME)."
    )


def add_data(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds `--data` and `--task`."""
    parser.add_argument("--data", type=Path, required=required, help="The prepared folder.")
    parser.add_argument("--task", required=required, help="A task of the prepared folder.")


def add_split(parser: argparse.ArgumentParser) -> None:
    """Adds `--split`."""
    parser.add_argument(
        "--split", default="validation", choices=SPLITS, help="Split of the prepared folder (default: validation)."
    )


def add_tables(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds `--events` and `--static`."""
    parser.add_argument(
        "--events",
        type=Path,
        required=required,
        help="CSV or Parquet file of events: record_id, time (hours), variable, value.",
    )
    parser.add_argument(
        "--static",
        type=Path,
        help="CSV or Parquet file with one row per record: record_id and the static columns.",
    )


def add_batches(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """Adds `--max-events` and `--batch-size`."""
    parser.add_argument(
        "--max-events",
        type=int,
        help="Keep only the latest events of longer records (default: as in the model's training).",
    )
    parser.add_argument(
        "--batch-size", type=int, default=batch_size, help=f"Records at a time (default: {batch_size})."
    )
