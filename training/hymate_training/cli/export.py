"""`hymate export`: a fine-tuned model as a program that runs without this package."""

import argparse
from pathlib import Path

from hymate_training.cli.arguments import add_checkpoint, add_overwrite
from hymate_training.inference.export import SUFFIXES, export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    add_checkpoint(parser)
    parser.add_argument("--output", type=Path, required=True, help="File to write: .onnx, or .pt2.")
    add_overwrite(parser)
    parser.add_argument(
        "--program",
        choices=list(SUFFIXES),
        default="onnx",
        help="What runs it: onnx for ONNX Runtime, aoti for code that is compiled for this machine and needs only "
        "PyTorch, torch for torch.export.load (default: onnx).",
    )


def run(args: argparse.Namespace) -> str:
    """Exports; returns what the program takes and how it compares with the model."""
    exported = export(args.checkpoint, args.output, args.program, overwrite=args.overwrite)
    compared = (
        "not compared with the model, since onnxruntime is not installed"
        if exported.difference is None
        else f"its logits differ from the model's by at most {exported.difference:.1e} on made-up records"
    )
    return f"{exported.output}; takes {', '.join(exported.inputs)}; {compared}"
