"""Arguments that several commands have in common."""

import argparse
from pathlib import Path

from hymate_training.data.exports import Layout
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


def add_tables(parser: argparse.ArgumentParser, required: bool = True, several: bool = False) -> None:
    """Adds `--events` (once per file where there may be several), `--static` and `--ignore-unknown-variables`."""
    text = "CSV or Parquet file of events: record_id, time (hours), variable, value."
    parser.add_argument(
        "--events",
        type=Path,
        required=required,
        action="append" if several else "store",
        help=f"{text} Once per file." if several else text,
    )
    parser.add_argument(
        "--static",
        type=Path,
        help="CSV or Parquet file with one row per record: record_id and the static columns.",
    )
    parser.add_argument(
        "--ignore-unknown-variables",
        action="store_true",
        help="Drop and count events of variables that the model does not know, which are an error otherwise.",
    )


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Adds `--overwrite`."""
    parser.add_argument("--overwrite", action="store_true", help="Replace the output if it is there already.")


def add_layout(parser: argparse.ArgumentParser) -> None:
    """Adds what says how a hospital's files are laid out; see `layout_of`."""
    parser.add_argument(
        "--start", type=Path, help="Table of record_id and start, where times are timestamps and not hours."
    )
    parser.add_argument(
        "--columns",
        nargs="+",
        default=(),
        metavar="ROLE=COLUMN",
        help="Your names for record_id, time, variable, value, unit and start.",
    )
    parser.add_argument("--layout", type=Path, metavar="FILE", help="YAML file of columns, files and time_zone.")
    parser.add_argument("--time-zone", help="Time zone of timestamps without an offset from UTC.")


def layout_of(args: argparse.Namespace) -> Layout | None:
    """The layout that the arguments describe; None where they say nothing."""
    if args.layout is None and not args.columns and args.time_zone is None:
        return None
    return (Layout() if args.layout is None else Layout.read(args.layout)).with_columns(args.columns, args.time_zone)


def add_times(parser: argparse.ArgumentParser) -> None:
    """Adds `--every` and `--at`, one of which may be given."""
    times = parser.add_mutually_exclusive_group()
    times.add_argument(
        "--every",
        type=float,
        metavar="HOURS",
        help="Ask each record at this many hours after its start, at twice that, and so on, up to the first such hour "
        "that is not before its last event.",
    )
    times.add_argument(
        "--at",
        type=Path,
        metavar="FILE",
        help="Ask records at the times of a CSV or Parquet file: record_id, prediction_time (hours since the record's "
        "start).",
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
