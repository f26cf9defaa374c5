"""`hymate explain`: show what predictions rest on, and whether that can be trusted."""

import argparse
from pathlib import Path

from hymate_training.cli.arguments import (
    add_batches,
    add_checkpoint,
    add_data,
    add_layout,
    add_split,
    add_tables,
    layout_of,
)
from hymate_training.explanations.attribution import BATCH_SIZE
from hymate_training.explanations.report import NUM_RECORDS, build_report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_checkpoint(parser)
    add_data(parser, required=False)
    add_split(parser)
    add_tables(parser, required=False, several=True)
    add_layout(parser)
    parser.add_argument(
        "--output", type=Path, required=True, help="Folder of the report: new, empty, or an earlier report to replace."
    )
    parser.add_argument("--label", help="Output to explain, if the model has several.")
    parser.add_argument(
        "--num-records",
        type=int,
        help=f"Number of records that are drawn for the cohort (default: {NUM_RECORDS}, or none with --record-id).",
    )
    parser.add_argument(
        "--record-id",
        nargs="+",
        default=[],
        metavar="ID",
        help="Write a page about each of these records, and about the cohort only with --num-records or --card.",
    )
    parser.add_argument(
        "--window-hours", type=float, default=6.0, help="Width of the windows that occlusion removes (default: 6)."
    )
    parser.add_argument(
        "--card",
        action="store_true",
        help="Also say in the checkpoint's model card whether its explanations are faithful.",
    )
    add_batches(parser, BATCH_SIZE)
    parser.add_argument(
        "--seed", type=int, default=0, help="Seed of the drawn records, random orders and resamples (default: 0)."
    )


def run(args: argparse.Namespace) -> str:
    """Writes the report; returns the findings and where it lies."""
    report = build_report(
        args.checkpoint,
        args.output,
        data=args.data,
        task=args.task,
        split=args.split,
        events=args.events,
        static=args.static,
        ignore_unknown_variables=args.ignore_unknown_variables,
        label=args.label,
        record_ids=args.record_id,
        num_records=args.num_records,
        window_hours=args.window_hours,
        max_events=args.max_events,
        batch_size=args.batch_size,
        seed=args.seed,
        card=args.card,
        start=args.start,
        layout=layout_of(args),
    )
    words = [f"{found['method']} {found['ranking']}. {found['areas']}" for found in report.findings]
    pages = (
        list(report.patients.values()) if len(report.patients) == 1 else [report.page.parent / "patients/index.html"]
    )
    return "\n".join([*words, *map(str, pages if report.patients else ()), str(report.page)])
