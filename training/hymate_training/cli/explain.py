"""`hymate explain`: show what predictions rest on, and whether that can be trusted."""

import argparse
from pathlib import Path

from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.schema import SPLITS
from hymate_training.explanations.attribution import BATCH_SIZE, Explainer
from hymate_training.explanations.cohort import cohort_of_records, cohort_of_task
from hymate_training.explanations.report import NUM_RECORDS, build_report
from hymate_training.inference.prediction import CHECKPOINT_HELP, load_checkpoint, parse_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--checkpoint", type=Path, required=True, help=CHECKPOINT_HELP)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="prepared folder whose records are explained; needs --task")
    source.add_argument("--events", type=Path, help="CSV or Parquet: record_id, time (hours), variable, value")
    parser.add_argument("--task", help="task of the prepared folder")
    parser.add_argument(
        "--split", default="validation", choices=SPLITS, help="split of the task (default: validation)"
    )
    parser.add_argument("--static", type=Path, help="CSV or Parquet for --events: record_id and the static columns")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the report: new, empty, or an earlier report to replace"
    )
    parser.add_argument("--label", help="output to explain, where the model has several")
    parser.add_argument(
        "--num-records",
        type=int,
        default=NUM_RECORDS,
        help=f"number of records that are drawn for the cohort (default: {NUM_RECORDS})",
    )
    parser.add_argument(
        "--record-id", nargs="+", default=[], metavar="ID", help="also write pages about these single records"
    )
    parser.add_argument(
        "--window-hours", type=float, default=6.0, help="width of the windows that occlusion removes (default: 6)"
    )
    parser.add_argument(
        "--card", action="store_true", help="also say in the checkpoint's model card whether explanations are faithful"
    )
    parser.add_argument(
        "--max-events", type=int, help="keep only the latest events of longer records (default: as in training)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=BATCH_SIZE, help=f"number of records per batch (default: {BATCH_SIZE})"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the drawn records, random orders and resamples (default: 0)"
    )


def run(args: argparse.Namespace) -> str:
    """Write the report; return the findings and where it lies."""
    if args.data is not None and args.task is None:
        raise ValueError("--data needs --task")
    model, extractor = load_checkpoint(args.checkpoint)
    explainer = Explainer(model, extractor, args.label, args.batch_size)
    if args.data is not None:
        cohort = cohort_of_task(
            explainer, PreparedFolder(args.data), args.task, args.split, max_events=args.max_events, seed=args.seed
        )
    else:
        events, _ = parse_files(extractor, args.events, args.static)
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
