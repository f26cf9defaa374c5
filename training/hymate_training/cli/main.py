"""The `hymate` command: parses, calls, and turns a user's mistake into one line and exit code 2."""

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence

from hymate_training.versions import installed_version

# Each is a module of this folder, imported when its command is called, so that `hymate --help` answers at once.
COMMANDS = {
    "prepare": "Turn a source of health records into a prepared folder.",
    "concepts": "Show the vocabulary of concepts, and propose which variables mean which.",
    "pretrain": "Pretrain an encoder by forecasting the next hours' values.",
    "finetune": "Fine-tune a classifier on a task.",
    "evaluate": "Evaluate a fine-tuned model on a split.",
    "compare": "Compare two models on the same records of a split.",
    "predict": "Predict the records of a file of events, or of a split.",
    "monitor": "Compare new records with those that a model was trained on.",
    "embed": "Write patient representations of the records of a file of events.",
    "serve": "Serve a fine-tuned model over HTTP.",
    "explain": "Show what predictions rest on, and whether that can be trusted.",
    "export": "Write a fine-tuned model as a program for ONNX Runtime, or compiled.",
    "push": "Push a checkpoint or a prepared folder to the Hugging Face Hub.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0, 2 for a user's mistake, 130 for an interruption, or the command's own
    (1 of `hymate monitor`, for records that have shifted)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="hymate", description="HyMaTE for electronic health records.")
    parser.add_argument(
        "--version", action="version", version=f"hymate {installed_version('hymate') or '(not installed)'}"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    called = arguments[0] if arguments else None
    module = None
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        if name == called:
            try:
                module = importlib.import_module(f"hymate_training.cli.{name}")
            except ModuleNotFoundError as error:
                extras = {"explain": "train,explain", "serve": "train,serve"}.get(name, "train")
                print(f"hymate {name} needs {error.name}: pip install 'hymate[{extras}]'", file=sys.stderr)
                return 2
            module.add_arguments(command)
    parsed = parser.parse_args(arguments)
    parsed.command_line = shlex.join(["hymate", *arguments])
    try:
        result = module.run(parsed)  # type: ignore[union-attr]  # parse_args exits where no command was called
    except KeyboardInterrupt as interrupt:
        print(f"hymate {called}: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        message = " ".join(str(error).splitlines())  # a parser's own message may hold the rows it quotes
        print(f"hymate {called}: {message}", file=sys.stderr)
        return 2
    text, code = result if isinstance(result, tuple) else (result, 0)
    if text:
        print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
