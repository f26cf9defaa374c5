"""`hymate push`: push a checkpoint, a prepared folder or a Space to the Hugging Face Hub."""

import argparse
from pathlib import Path

from hymate_training.publishing.push import push


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--checkpoint", metavar="DIR", help="Folder of a model; with --space, the name of one on the Hub, ORG/MODEL."
    )
    what.add_argument("--data", type=Path, metavar="DIR", help="The prepared folder, pushed as a data set.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--repo", metavar="ORG/NAME", help="Repository on the Hub; it is made if it does not exist.")
    where.add_argument(
        "--space", metavar="ORG/NAME", help="Space on the Hub, a page on which to try the checkpoint; likewise."
    )
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument("--private", action="store_true", help="Let only you and your organization see it.")
    seen.add_argument(
        "--gated",
        nargs="?",
        const="manual",
        choices=("manual", "auto"),
        help="Let everyone see the card, and those who ask have the files: once you agree (manual, the default), or "
        "at once (auto).",
    )
    parser.add_argument(
        "--base-model",
        metavar="ORG/NAME",
        help="With --checkpoint: the model on the Hub from which its training started, for the card (default: what "
        "`hymate finetune --checkpoint` was given by name).",
    )
    parser.add_argument(
        "--dataset",
        action="append",
        default=[],
        metavar="ORG/NAME",
        help="With --checkpoint: a data set on the Hub that it was trained on, for the card. May be given more than "
        "once.",
    )
    parser.add_argument(
        "--acknowledge-credentialed",
        action="store_true",
        help="With --data and --private, for sources that only credentialed users may see: you have checked that "
        "everyone with access to the repository has signed the source's data use agreement, and that it lets you "
        "keep the data on the Hub.",
    )
    parser.add_argument("--dry-run", action="store_true", help="Show what would be uploaded, and stop.")


def run(args: argparse.Namespace) -> str:
    """Pushes; returns what was uploaded, and where."""
    pushed = push(
        args.space or args.repo,
        checkpoint=args.checkpoint,
        data=args.data,
        space=args.space is not None,
        private=args.private,
        gated=args.gated,
        base_model=args.base_model,
        datasets=args.dataset,
        acknowledge_credentialed=args.acknowledge_credentialed,
        dry_run=args.dry_run,
    )
    limits = " (private)" if args.private else f" (gated: {args.gated})" if args.gated else ""
    shown = pushed.plan.describe(f"{pushed.destination}{limits}")
    if pushed.commit is None:
        return f"{shown}\n\nnothing was uploaded: --dry-run"
    return f"{shown}\n\n{len(pushed.plan.uploaded)} files -> {pushed.commit}"
