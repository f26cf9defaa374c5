"""`hymate push`: push a checkpoint or a prepared folder to the Hugging Face Hub."""

import argparse
from pathlib import Path

from hymate_training.publishing.push import push


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", type=Path, metavar="DIR", help="folder of a model")
    what.add_argument("--data", type=Path, metavar="DIR", help="prepared folder, pushed as a data set")
    parser.add_argument(
        "--repo", required=True, metavar="ORG/NAME", help="repository on the Hub; it is made if it does not exist"
    )
    parser.add_argument("--private", action="store_true", help="let only you and your organization see it")
    parser.add_argument(
        "--acknowledge-credentialed",
        action="store_true",
        help="with --data and --private, for sources that only credentialed users may see: you have checked that "
        "everyone with access to the repository has signed the source's data use agreement, and that it lets you "
        "keep the data on the Hub",
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be uploaded, and stop")


def run(args: argparse.Namespace) -> str:
    """Push; return what was uploaded, and where."""
    pushed = push(
        args.repo,
        checkpoint=args.checkpoint,
        data=args.data,
        private=args.private,
        acknowledge_credentialed=args.acknowledge_credentialed,
        dry_run=args.dry_run,
    )
    shown = pushed.plan.describe(f"{pushed.destination}{' (private)' if args.private else ''}")
    if pushed.commit is None:
        return f"{shown}\n\nnothing was uploaded: --dry-run"
    return f"{shown}\n\n{len(pushed.plan.uploaded)} files -> {pushed.commit}"
