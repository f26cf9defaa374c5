"""`hymate prepare SOURCE`: raw data of one source into a prepared folder."""

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path

from hymate_training.concepts.mapping import Rules, read_map, rules_from_map, rules_from_vocabulary, with_concepts
from hymate_training.data.card import summary_tables
from hymate_training.data.prepared_folder import PreparedFolder
from hymate_training.data.remarks import remarks
from hymate_training.data.schema import DatasetInfo
from hymate_training.readers import READERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sources = parser.add_subparsers(dest="source", metavar="SOURCE", required=True)
    for name, reader in READERS.items():
        summary = (reader.__doc__ or name).split("\n", 1)[0]
        source = sources.add_parser(name, help=summary, description=summary)
        source.add_argument("--output", type=Path, required=True, help="The prepared folder to make.")
        source.add_argument(
            "--seed", type=int, default=0, help="Seed of the split and of whatever else is drawn (default: 0)."
        )
        source.add_argument("--overwrite", action="store_true", help="Replace an existing prepared folder.")
        reader.add_arguments(source)
        if name == "frame":
            source.add_argument(
                "--concepts", type=Path, metavar="MAP.csv", help="Name variables by concepts, as this map has them."
            )
        else:
            source.add_argument(
                "--concepts",
                action="store_true",
                help="Name variables by the concepts of `hymate concepts list`, in their units.",
            )


def run(args: argparse.Namespace) -> str:
    """Prepare the folder.

    Returns:
        What to print: records per split, tasks, static columns, what was dropped, and what is worth a look.

    Raises:
        ValueError: for a user's mistake.
    """
    prepare = READERS[args.source].prepare
    arguments = {name: getattr(args, name) for name in inspect.signature(prepare).parameters}
    if args.concepts:
        if arguments.get("shard"):
            raise ValueError("--concepts needs all shards: leave --shard out")
        info = with_concepts(
            lambda folder: prepare(**{**arguments, "output": folder}),
            args.output,
            _rules(args.source, args.concepts),
            overwrite=args.overwrite,
        )
    else:
        info = prepare(**arguments)
    if info is None:
        return f"A part is done; run the command without --shard to finish {args.output}"
    return describe(PreparedFolder(args.output))


def _rules(source: str, concepts: Path | bool) -> Callable[[DatasetInfo], Rules]:
    """What finds the rules: the map of a user's own tables, or the vocabulary's variables of the source."""
    if isinstance(concepts, Path):
        rows = read_map(concepts)
        return lambda info: rules_from_map(info, rows)
    return lambda info: rules_from_vocabulary(info, source)


def describe(folder: PreparedFolder) -> str:
    """The summary of a prepared folder as aligned text tables."""
    info = folder.info
    tables = [table for table in summary_tables(folder).values() if len(table) > 1]
    size = f"{len(info.variables)} variables, {len(info.static_columns)} static columns"
    notes = ["\n".join(["Worth a look:", *(f"- {note}" for note in found)])] if (found := remarks(folder)) else []
    return "\n\n".join(
        [f"{info.source} -> {folder.path} ({size})", *map(_align, tables), info.split_description, *notes]
    )


def _align(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
