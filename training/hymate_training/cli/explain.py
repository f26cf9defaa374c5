"""`hymate explain`: show what predictions rest on, and whether that can be trusted."""

import argparse
from pathlib import Path

from hymate_training.cli.arguments import add_batches, add_checkpoint, add_data, add_split, add_tables
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.explanations.attribution import BATCH_SIZE, Explainer
from hymate_training.explanations.cohort import cohort_of_records, cohort_of_task
from hymate_training.explanations.report import NUM_RECORDS, build_report
from hymate_training.inference.checkpoints import load_checkpoint
from hymate_training.inference.prediction import parse_tables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_checkpoint(parser)
    add_data(parser, required=False)
    add_split(parser)
    add_tables(parser, required=False)
    parser.add_argument(
        "--output", type=Path, required=True, help="Folder of the report: new, empty, or an earlier report to replace."
    )
    parser.add_argument("--label", help="Output to explain, if the model has several.")
    parser.add_argument(
        "--num-records",
        type=int,
        default=NUM_RECORDS,
        help=f"Number of records that are drawn for the cohort. Default: {NUM_RECORDS}.",
    )
    parser.add_argument(
        "--record-id", nargs="+", default=[], metavar="ID", help="Also write a page about each of these records."
    )
    parser.add_argument(
        "--window-hours", type=float, default=6.0, help="Width of the windows that occlusion removes. Default: 6."
    )
    parser.add_argument(
        "--card",
        action="store_true",
        help="Also say in the checkpoint's card whether explanations are faithful.",
    )
    add_batches(parser, BATCH_SIZE)
    parser.add_argument(
        "--seed", type=int, default=0, help="Seed of the drawn records, random orders and resamples. Default: 0."
    )


def run(args: argparse.Namespace) -> str:
    """Write the report; return the findings and where it lies."""
    if (args.data is None) == (args.events is None):
        raise ValueError("give either --data and --task, or --events")
    if args.data is not None and args.task is None:
        raise ValueError("--data needs --task")
    checkpoint = load_checkpoint(args.checkpoint)
    explainer = Explainer(checkpoint.model, checkpoint.extractor, args.label, args.batch_size)
    if args.data is not None:
        cohort = cohort_of_task(
            explainer, PreparedFolder(args.data), args.task, args.split, max_events=args.max_events, seed=args.seed
        )
    else:
        events, _ = parse_tables(checkpoint.extractor, args.events, args.static)
        sources = [path for path in (args.events, args.static) if path is not None]
        cohort = cohort_of_records(
            explainer, events, title=args.events.name, max_events=args.max_events, sources=sources
        )
    report = build_report(
        explainer,
        cohort,
        args.output,
        record_ids=args.record_id,
        num_records=args.num_records,
        window_hours=args.window_hours,
        seed=args.seed,
        card=args.card,
    )
    words = [f"{found['method']} {found['ranking']}. {found['areas']}" for found in report.findings]
    return "\n".join([*words, str(report.page)])
