"""`hymate concepts`: the vocabulary of concepts, and proposals which variables of a table mean which."""

import argparse
from pathlib import Path

from hymate_training.concepts.suggestion import suggest, summarize, write_map
from hymate_training.concepts.vocabulary import Concept, load_vocabulary
from hymate_training.data.exports import Layout, read_events


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = commands.add_parser("list", help="Print the vocabulary.", description="Print the vocabulary.")
    listing.add_argument("--source", help="Show only the concepts that this source has, with its variables.")
    proposing = commands.add_parser(
        "suggest",
        help="Propose a concept for each variable of a table.",
        description="Propose a concept for each variable of a table of events, by name, LOINC code, unit and values.",
    )
    proposing.add_argument(
        "--events",
        type=Path,
        action="append",
        required=True,
        help="CSV or Parquet, as `hymate prepare frame` takes it: record_id, time, variable, value and maybe unit.",
    )
    proposing.add_argument(
        "--columns", nargs="+", default=(), metavar="ROLE=COLUMN", help="Your names for those columns."
    )
    proposing.add_argument("--layout", type=Path, metavar="FILE", help="YAML file of columns, files and time_zone.")
    proposing.add_argument(
        "--output", type=Path, required=True, metavar="MAP.csv", help="The map to write, for you to check and edit."
    )


def run(args: argparse.Namespace) -> str:
    """Print or propose; returns what to print. Mistakes: ValueError."""
    if args.action == "list":
        return listing(args.source)
    layout = (Layout() if args.layout is None else Layout.read(args.layout)).with_columns(args.columns)
    rows = suggest(read_events(args.events, layout, timed=False).events)
    write_map(rows, args.output)
    counts = ", ".join(f"{count:,} {what}" for what, count in summarize(rows).items())
    return (
        f"{rows.height:,} variables: {counts} -> {args.output}\n"
        f"Check it, then: hymate prepare frame --events {args.events[0]} --concepts {args.output} --output DIR"
    )


def listing(source: str | None = None) -> str:
    """The vocabulary as text, a line per concept; with `source` its variables in place of the description."""
    vocabulary = load_vocabulary()
    variables: dict[str, list[str]] = {}
    if source is not None:
        for variable, (concept, _) in vocabulary.variables_of(source).items():
            variables.setdefault(concept.name, []).append(variable)
        if not variables:
            raise ValueError(f"--source: the vocabulary has no variables of {source!r}; it has {_sources()}")
    lines, group = [], ""
    for concept in vocabulary.concepts.values():
        if source is not None and concept.name not in variables:
            continue
        if concept.group != group:
            group = concept.group
            lines += ["", group]
        text = ", ".join(variables[concept.name]) if source is not None else _description(concept)
        lines.append(f"  {concept.name:<42} {concept.unit or '':<20} {text}".rstrip())
    return "\n".join(lines).lstrip("\n")


def _description(concept: Concept) -> str:
    return f"{concept.description} LOINC {', '.join(concept.loinc)}." if concept.loinc else concept.description


def _sources() -> str:
    return ", ".join(name for name in load_vocabulary().sources if name != "mimic") + ", mimic-iii, mimic-iv"
