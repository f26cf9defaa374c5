"""`hymate finetune`: fine-tunes a classifier."""

import argparse
from pathlib import Path

from hymate_training.cli.arguments import add_data
from hymate_training.cli.options import add_option_flags, read_options
from hymate_training.evaluation.evaluation import format_evaluation
from hymate_training.fitting.finetuning import FinetuneOptions, finetune


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_data(parser)
    parser.add_argument("--output", type=Path, required=True, help="New folder of the run and its best checkpoint.")
    parser.add_argument(
        "--checkpoint",
        help="The pretrained model to start from: its folder, or its name on the Hub (ORG/NAME). Without it, training "
        "starts from random weights.",
    )
    parser.add_argument("--resume", action="store_true", help="Continue the run in --output where it stopped.")
    add_option_flags(parser, FinetuneOptions)


def run(args: argparse.Namespace) -> str:
    """Fine-tunes; returns the metrics of the validation split."""
    options = read_options(FinetuneOptions, "finetune", args)
    result = finetune(
        args.data, args.task, args.output, options, args.checkpoint, args.resume, command=args.command_line
    )
    if result.evaluation is None:  # another process than the main one
        return ""
    text = f"{format_evaluation(result.evaluation.content)}\n\n{result.output}"
    return f"{result.transfer.summary}\n\n{text}" if result.transfer else text
